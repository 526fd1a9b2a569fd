//! A machine that is set up: what the container half hands to the engine.
//!
//! What the engine finds, in every mode:
//! - descriptors 0, 1 and 2 are the null device (2 is kept for diagnostics where the channel is pipes); all others are in
//!   [`Machine`] and close on exec;
//! - the current directory is `/`, the umask 022, no signal is blocked, every signal has its default action but SIGPIPE, which
//!   is ignored: children have to put that back;
//! - the process leads a session without a terminal and is not dumpable. In a container it is pid 1 and root inside (or the
//!   agent itself, where nobody else is mapped), with the capabilities that `container::caps` lists. Elsewhere it is whoever
//!   started it, and a subreaper;
//! - core files are off, by a limit that nobody inside can raise. [`Setup::rlimits`] are *not* applied: they would bind the
//!   supervisor too, so the engine sets them in each child;
//! - in a container the seccomp filter and Landlock are in force, for the engine as for its children. `clone3` does not exist.
//!   Cgroup directories stay writable through [`CgroupDir::dir`] alone.

use std::os::fd::OwnedFd;

use crate::protocol::Mechanism;
use crate::setup::Setup;

/// The machine's own channel.
#[derive(Debug)]
pub enum Channel {
    /// A local stream socket, over which the host can pass descriptors.
    Socket(OwnedFd),
    /// Two pipes (stdin and stdout of a process that somebody started in a container or VM).
    Pipes {
        /// Frames come from here.
        read: OwnedFd,
        /// Frames go here.
        write: OwnedFd,
        /// The socket of the process that brought the two, which ends when this is closed.
        joiner: Option<OwnedFd>,
    },
}

/// A cgroup directory of this machine, opened before the host's file tree was left.
///
/// Commands go into children of it, which the engine makes. In v1 only a process that is still root inside may attach, and it
/// attaches itself (a process is moved by its own user or by the host's root); in v2 root inside may move any process of the
/// machine, since pid 1 is in the same tree: in the parent of this directory where there are limits, in this one where not.
#[derive(Debug)]
pub struct CgroupDir {
    /// `v2`, or the v1 controllers of this hierarchy joined by commas.
    pub kind: String,
    /// The directory. Commands go into children of it.
    pub dir: OwnedFd,
}

/// A machine that is set up.
#[derive(Debug)]
pub struct Machine {
    /// What was asked for.
    pub setup: Setup,
    /// Its own channel.
    pub channel: Channel,
    /// Where later clients connect.
    pub listener: Option<OwnedFd>,
    /// Whether later clients are joiners, who bring the descriptors of a line.
    pub joined: bool,
    /// Its cgroups; empty where none can be written.
    pub cgroups: Vec<CgroupDir>,
    /// What was enforced.
    pub mechanisms: Vec<Mechanism>,
    /// Whether ids other than the agent's are mapped and may be assumed.
    pub other_users: bool,
}
