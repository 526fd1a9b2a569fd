//! What a backend can do and enforce for one configuration, as plain data. The conformance suite is made from it.

use serde::{Deserialize, Serialize};

use crate::{HostIsolation, Network};

/// Where the machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Locality {
    /// On this host.
    Local,
    /// On another host.
    Remote,
}

/// How all processes of one exec are found and killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KillDomain {
    /// The process's session only: a `setsid` child escapes. Cannot back a tier above H0.
    Session,
    /// A subreaper per exec whose descendants are stopped and killed until none is left.
    Subreaper,
    /// A cgroup per exec: the kernel knows every member.
    Cgroup,
}

/// As whom a command can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UserSupport {
    /// Only as the sandbox's default user.
    DefaultOnly,
    /// As any user in the machine's `/etc/passwd`, root included.
    Any,
}

/// Whether directories of the host can be mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountSupport {
    /// Not at all.
    None,
    /// Read-only.
    ReadOnly,
    /// Read-only, and writable where the profile allows it.
    ReadWrite,
}

/// Which limits can be enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LimitCapabilities {
    /// Memory of the whole machine.
    pub memory: bool,
    /// CPU rate of the whole machine.
    pub cpu: bool,
    /// Processes and threads of the whole machine.
    pub pids: bool,
    /// Bytes written to the machine's writable areas; the program sees ENOSPC.
    pub disk: bool,
    /// Files made in the machine's writable areas; the program sees ENOSPC.
    pub inodes: bool,
    /// File size per process.
    pub file_size: bool,
    /// Open files per process.
    pub open_files: bool,
}

/// What a backend can do and enforce *for one configuration*.
///
/// Declared means tested: the conformance suite runs the cases of every declared capability, and checks that every
/// undeclared one is refused with [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) before any side effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// The boundary that is really there.
    pub host: HostIsolation,
    /// The network levels that can be enforced with this configuration.
    pub networks: Vec<Network>,
    /// Where the machines are.
    pub locality: Locality,
    /// How a command's tree is killed.
    pub kill_domain: KillDomain,
    /// Output can be read while the command runs.
    pub streaming_output: bool,
    /// Standard input can be written while the command runs.
    pub streaming_stdin: bool,
    /// A command can have a pseudo-terminal.
    pub pty: bool,
    /// Signals can be sent to a running command.
    pub signals: bool,
    /// A command can be killed after a time without output.
    pub idle_timeout: bool,
    /// Commands can outlive the client that started them.
    pub detached_exec: bool,
    /// As whom a command can run.
    pub users: UserSupport,
    /// `Killed(Memory)` is told apart from another SIGKILL.
    pub memory_outcome: bool,
    /// CPU time and peak memory of a command are reported.
    pub usage: bool,
    /// The kernel can keep a command to named executables, without writing ([`ExecRequest::confine`](crate::ExecRequest::confine)).
    #[serde(default)]
    pub confined_exec: bool,
    /// Files can be read, written, listed and removed.
    pub files: bool,
    /// Directories can be moved in and out as tar streams.
    pub archives: bool,
    /// A stream to a port or Unix socket inside can be opened.
    pub dial: bool,
    /// Which host directories can be mounted.
    pub mounts: MountSupport,
    /// Several machines in one environment.
    pub multi_machine: bool,
    /// Several machines that cannot reach each other.
    #[serde(default)]
    pub machines_apart: bool,
    /// An environment can outlive the process that started it.
    pub detached: bool,
    /// A running environment can be saved, and put back to what was saved.
    #[serde(default)]
    pub snapshots: bool,
    /// Which limits can be enforced.
    pub limits: LimitCapabilities,
}

impl Capabilities {
    /// A machine behind this boundary that can do nothing: no network level, no option of a command, no limit. To be filled in with
    /// struct update.
    pub fn none(host: HostIsolation, locality: Locality) -> Self {
        Self {
            host,
            networks: Vec::new(),
            locality,
            kill_domain: KillDomain::Session,
            streaming_output: false,
            streaming_stdin: false,
            pty: false,
            signals: false,
            idle_timeout: false,
            detached_exec: false,
            users: UserSupport::DefaultOnly,
            memory_outcome: false,
            usage: false,
            confined_exec: false,
            files: false,
            archives: false,
            dial: false,
            mounts: MountSupport::None,
            multi_machine: false,
            machines_apart: false,
            detached: false,
            snapshots: false,
            limits: LimitCapabilities::default(),
        }
    }
}
