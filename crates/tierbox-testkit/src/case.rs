//! One test: its name, the promise it proves, what it needs, and the code.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tierbox_core::{Capabilities, Error, ErrorKind, HostIsolation, KillDomain, Locality, MountSupport, UserSupport};

use crate::subject::Subject;

/// Why a case did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fail {
    /// The sandbox broke the promise, in these words.
    Broken(String),
    /// The case could not be tried here, for this reason. Never for a sandbox's fault.
    Skipped {
        /// What is missing.
        reason: String,
        /// The command that installs it; empty where there is none.
        install: String,
    },
}

impl fmt::Display for Fail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(message) => f.write_str(message),
            Self::Skipped { reason, .. } => write!(f, "skipped: {reason}"),
        }
    }
}

impl From<Error> for Fail {
    fn from(error: Error) -> Self {
        Self::Broken(format!("unexpected error: {error:?}"))
    }
}

impl From<std::io::Error> for Fail {
    fn from(error: std::io::Error) -> Self {
        Self::Broken(format!("unexpected i/o error: {error:?}"))
    }
}

/// What a case comes to.
pub type Verdict<T = ()> = Result<T, Fail>;

/// The verdict of a case that cannot be tried here.
pub fn skip<T>(reason: impl Into<String>) -> Verdict<T> {
    Err(Fail::Skipped { reason: reason.into(), install: String::new() })
}

/// Fails the case unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::case::Fail::Broken(format!($($message)+)));
        }
    };
}

/// Fails the case unless both are equal.
macro_rules! ensure_eq {
    ($left:expr, $right:expr, $($message:tt)+) => {
        // A match keeps temporaries of both sides alive.
        match (&$left, &$right) {
            (left, right) => {
                if left != right {
                    let (what, left, right) = (format!($($message)+), $crate::case::short(left), $crate::case::short(right));
                    return Err($crate::case::Fail::Broken(format!("{what}: got {left}, expected {right}")));
                }
            }
        }
    };
}

pub(crate) use {ensure, ensure_eq};

/// A value for a message, cut where it is long.
pub(crate) fn short(value: &impl fmt::Debug) -> String {
    let text = format!("{value:?}");
    match text.char_indices().nth(400) {
        Some((cut, _)) => format!("{} … ({} bytes)", &text[..cut], text.len()),
        None => text,
    }
}

/// Fails the case unless the call failed with this kind.
pub(crate) fn ensure_kind<T>(result: Result<T, Error>, kind: ErrorKind, what: &str) -> Verdict {
    match result {
        Ok(_) => Err(Fail::Broken(format!("{what}: succeeded, expected the error {kind}"))),
        Err(error) if error.kind() == kind => Ok(()),
        Err(error) => Err(Fail::Broken(format!("{what}: expected the error {kind}, got {error:?}"))),
    }
}

/// A capability that a case needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Need {
    /// None: every sandbox must pass.
    Nothing,
    /// Output can be read while the command runs.
    StreamingOutput,
    /// Standard input can be written while the command runs.
    StreamingStdin,
    /// The kill reaches processes that left the command's session.
    TreeKill,
    /// Pseudo-terminals.
    Pty,
    /// Signals.
    Signals,
    /// Idle timeouts.
    IdleTimeout,
    /// Commands that outlive their client.
    DetachedExec,
    /// Any user of the machine.
    AnyUser,
    /// `Killed(Memory)` is told apart.
    MemoryOutcome,
    /// CPU time and peak memory.
    Usage,
    /// Commands kept to named executables.
    ConfinedExec,
    /// Files.
    Files,
    /// Directories as tar streams.
    Archives,
    /// Streams to ports inside.
    Dial,
    /// Host directories inside.
    Mounts,
    /// A boundary of at least H1.
    Isolation,
    /// A machine on this host, so that the host's process list shows what is left.
    LocalMachine,
    /// A limit on memory.
    LimitMemory,
    /// A limit on CPU.
    LimitCpu,
    /// A limit on processes.
    LimitPids,
    /// A limit on disk bytes.
    LimitDisk,
    /// A limit on files.
    LimitInodes,
    /// A limit on the size of a file.
    LimitFileSize,
    /// A limit on open files.
    LimitOpenFiles,
}

impl Need {
    /// Every need but [`Need::Nothing`].
    pub const ALL: &'static [Self] = &[
        Self::StreamingOutput,
        Self::StreamingStdin,
        Self::TreeKill,
        Self::Pty,
        Self::Signals,
        Self::IdleTimeout,
        Self::DetachedExec,
        Self::AnyUser,
        Self::MemoryOutcome,
        Self::Usage,
        Self::ConfinedExec,
        Self::Files,
        Self::Archives,
        Self::Dial,
        Self::Mounts,
        Self::Isolation,
        Self::LocalMachine,
        Self::LimitMemory,
        Self::LimitCpu,
        Self::LimitPids,
        Self::LimitDisk,
        Self::LimitInodes,
        Self::LimitFileSize,
        Self::LimitOpenFiles,
    ];

    /// Its name in case names and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::StreamingOutput => "streaming_output",
            Self::StreamingStdin => "streaming_stdin",
            Self::TreeKill => "tree_kill",
            Self::Pty => "pty",
            Self::Signals => "signals",
            Self::IdleTimeout => "idle_timeout",
            Self::DetachedExec => "detached_exec",
            Self::AnyUser => "any_user",
            Self::MemoryOutcome => "memory_outcome",
            Self::Usage => "usage",
            Self::ConfinedExec => "confined_exec",
            Self::Files => "files",
            Self::Archives => "archives",
            Self::Dial => "dial",
            Self::Mounts => "mounts",
            Self::Isolation => "isolation",
            Self::LocalMachine => "local_machine",
            Self::LimitMemory => "limit_memory",
            Self::LimitCpu => "limit_cpu",
            Self::LimitPids => "limit_pids",
            Self::LimitDisk => "limit_disk",
            Self::LimitInodes => "limit_inodes",
            Self::LimitFileSize => "limit_file_size",
            Self::LimitOpenFiles => "limit_open_files",
        }
    }

    /// Whether a host may lack it through no fault of the backend: limits rest on cgroups that not everybody may write to.
    pub fn depends_on_the_host(self) -> bool {
        matches!(self, Self::MemoryOutcome | Self::ConfinedExec | Self::LimitMemory | Self::LimitCpu | Self::LimitPids)
    }

    /// Whether these capabilities hold it.
    pub fn is_met(self, by: &Capabilities) -> bool {
        match self {
            Self::Nothing => true,
            Self::StreamingOutput => by.streaming_output,
            Self::StreamingStdin => by.streaming_stdin,
            Self::TreeKill => by.kill_domain > KillDomain::Session,
            Self::Pty => by.pty,
            Self::Signals => by.signals,
            Self::IdleTimeout => by.idle_timeout,
            Self::DetachedExec => by.detached_exec,
            Self::AnyUser => by.users == UserSupport::Any,
            Self::MemoryOutcome => by.memory_outcome,
            Self::Usage => by.usage,
            Self::ConfinedExec => by.confined_exec,
            Self::Files => by.files,
            Self::Archives => by.archives,
            Self::Dial => by.dial,
            Self::Mounts => by.mounts > MountSupport::None,
            Self::Isolation => by.host > HostIsolation::H0,
            // What runs in a virtual machine is no process of this host's.
            Self::LocalMachine => by.locality == Locality::Local && by.host < HostIsolation::H2,
            Self::LimitMemory => by.limits.memory,
            Self::LimitCpu => by.limits.cpu,
            Self::LimitPids => by.limits.pids,
            Self::LimitDisk => by.limits.disk,
            Self::LimitInodes => by.limits.inodes,
            Self::LimitFileSize => by.limits.file_size,
            Self::LimitOpenFiles => by.limits.open_files,
        }
    }
}

type Running = Pin<Box<dyn Future<Output = Verdict> + Send>>;

/// One test.
#[derive(Clone)]
pub struct Case {
    /// Its stable name: `conformance::<area>::<id>` or `escape::<area>::<id>`.
    pub name: String,
    /// The promise it proves.
    pub clause: &'static str,
    /// What it needs; all of these.
    pub needs: Vec<Need>,
    run: Arc<dyn Fn(Subject) -> Running + Send + Sync>,
}

impl Case {
    pub(crate) fn new<F, R>(name: impl Into<String>, clause: &'static str, needs: &[Need], run: F) -> Self
    where
        F: Fn(Subject) -> R + Send + Sync + 'static,
        R: Future<Output = Verdict> + Send + 'static,
    {
        let run = move |subject| -> Running { Box::pin(run(subject)) };
        Self { name: name.into(), clause, needs: needs.to_vec(), run: Arc::new(run) }
    }

    /// The part of the name after the marker: `<area>::<id>`.
    pub fn local_name(&self) -> &str {
        self.name.split_once("::").map_or(self.name.as_str(), |(_, rest)| rest)
    }

    /// Whether these capabilities hold all it needs.
    pub fn is_met(&self, by: &Capabilities) -> bool {
        self.needs.iter().all(|need| need.is_met(by))
    }

    /// Runs it. A case that does not end by itself within the factory's limit fails.
    ///
    /// # Errors
    /// [`Fail`], with the promise that was broken.
    pub async fn run(&self, subject: Subject) -> Verdict {
        let limit = subject.factory.case_limit();
        match tokio::time::timeout(limit, (self.run)(subject)).await {
            Ok(verdict) => verdict,
            Err(_) => Err(Fail::Broken(format!("the case did not end within {limit:?}"))),
        }
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("name", &self.name).field("clause", &self.clause).field("needs", &self.needs).finish()
    }
}
