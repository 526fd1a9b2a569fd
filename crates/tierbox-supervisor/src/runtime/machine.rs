//! A machine that is set up: what the container half hands to the engine.

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
    },
}

/// A cgroup directory of this machine, opened before the host's file tree was left.
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
    /// Its cgroups; empty where none can be written.
    pub cgroups: Vec<CgroupDir>,
    /// What was enforced.
    pub mechanisms: Vec<Mechanism>,
    /// Whether ids other than the agent's are mapped and may be assumed.
    pub other_users: bool,
}
