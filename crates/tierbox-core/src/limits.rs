//! Limits of an environment, and whether each is required or best effort.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What happens when this host cannot enforce a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Enforce {
    /// `start` refuses and names the limit.
    Required,
    /// A weaker mechanism, or none, is used, and the report says which.
    Best,
}

/// A limit and how much it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit<T> {
    /// The greatest allowed value.
    pub max: T,
    /// Whether it must be enforced.
    pub enforce: Enforce,
}

impl<T> Limit<T> {
    /// A limit that must be enforced, or the start is refused.
    pub fn required(max: T) -> Self {
        Self { max, enforce: Enforce::Required }
    }

    /// A limit that is enforced as well as this host can.
    pub fn best(max: T) -> Self {
        Self { max, enforce: Enforce::Best }
    }
}

/// The limits of one environment. `None` means no limit of tierbox's own.
///
/// Memory, pids, disk and CPU bind a whole machine; file size, open files and core size bind each process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory of a machine, in bytes. Writable areas kept in memory count towards it.
    pub memory: Option<Limit<u64>>,
    /// CPU of a machine, in thousandths of one CPU (1500 is one and a half CPUs).
    pub cpu_millis: Option<Limit<u64>>,
    /// Processes and threads of a machine.
    pub pids: Option<Limit<u64>>,
    /// Bytes that may be written to a machine's writable areas.
    pub disk: Option<Limit<u64>>,
    /// Files and directories that may be made in a machine's writable areas.
    pub inodes: Option<Limit<u64>>,
    /// The largest file a process may write, in bytes.
    pub file_size: Option<Limit<u64>>,
    /// Open files of a process.
    pub open_files: Option<Limit<u64>>,
    /// The largest core dump, in bytes. Zero by default.
    pub core_size: u64,
    /// The time that `start` may take. 60 s by default.
    pub startup: Duration,
    /// The default time limit of an exec. None by default.
    pub exec: Option<Duration>,
    /// Bytes of each output stream that a collected exec retains. 10 MiB by default.
    pub output: u64,
    /// The life of the whole environment, enforced in the machine where possible.
    pub lifetime: Option<Duration>,
    /// Environments of this backend that may exist at once on this host.
    pub max_environments: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: None,
            cpu_millis: None,
            pids: None,
            disk: None,
            inodes: None,
            file_size: None,
            open_files: None,
            core_size: 0,
            startup: Duration::from_secs(60),
            exec: None,
            output: 10 << 20,
            lifetime: None,
            max_environments: None,
        }
    }
}
