//! A sandbox over a *plain transport*: where no stream into the machine can be had (a run-command service), or where the
//! supervisor cannot run (another architecture, nothing executable).
//!
//! The transport runs a POSIX shell script in the machine and brings back what it printed. Everything else is here:
//! [`PlainSandbox::open`] looks at the machine and makes a sandbox of it.
//!
//! In the machine it takes `/bin/sh`, procfs, and the usual small tools, as coreutils or busybox have them. What a plain sandbox
//! does not offer is in [`capabilities`]: output comes when the command has ended (unless a backend asks for more), stdin is given as a whole, and there are no
//! terminals, signals, detached commands or dialled streams. The rest is as everywhere:
//!
//! - a command runs at most once, whatever becomes of the transport's answer: the directory that is named by its id is its claim,
//!   and a script that is sent again finds it and tells what became of the command;
//! - its time limit holds in the machine, and takes all of its session and all descendants. A process that left both, by `setsid`
//!   and a parent that is gone, escapes: [`KillDomain::Session`], which backs nothing above H0 by itself. Where a backend asks for
//!   [it](PlainConfig::groups), and scripts run as root, each command has a cgroup of its own (v2, or v1's freezer), which nothing
//!   leaves;
//! - bytes are exact, of arguments, variables, input, output, files and names; what is longer than the transport carries at once
//!   goes in pieces, with constant memory on this side. The machine holds a command's output in files until it was read,
//!   64 MiB a stream at most: beyond that a command is killed for its output;
//! - a small command takes one script, so does reading or writing a small file; where the transport can hold streams open, a small
//!   command takes none, but a fork of a [shell that is kept](kept).
//!
//! Two things a shell cannot tell: a command that itself exits with 130 or 141 is reported as ended by SIGINT or SIGPIPE.

mod archives;
mod call;
mod exec;
mod files;
pub mod kept;
mod live;
mod probe;
mod sandbox;
mod script;
mod words;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tierbox_core::{
    Capabilities, ExecId, HostIsolation, KillDomain, LimitCapabilities, Limits, Locality, MountSupport, Network, Result,
    UserSupport,
};

pub use sandbox::PlainSandbox;
pub use words::stands_in_an_argument;

/// The shells that scripts have to run in, as far as this host has them.
#[cfg(test)]
fn shells_here() -> impl Iterator<Item = &'static [&'static str]> {
    const EACH: [&[&str]; 3] = [&["sh"], &["busybox", "sh"], &["bash"]];
    let is_there = |shell: &&[&str]| {
        std::process::Command::new(shell[0]).args(&shell[1..]).args(["-c", ":"]).status().is_ok_and(|status| status.success())
    };
    EACH.into_iter().filter(is_there)
}

/// What a sandbox over a plain transport can do, in a machine that `host` and `networks` describe.
pub fn capabilities(host: HostIsolation, networks: Vec<Network>, locality: Locality) -> Capabilities {
    Capabilities {
        host,
        networks,
        locality,
        kill_domain: KillDomain::Session,
        streaming_output: false,
        streaming_stdin: false,
        pty: false,
        signals: false,
        idle_timeout: false,
        detached_exec: false,
        users: UserSupport::Any,
        memory_outcome: false,
        usage: false,
        confined_exec: false,
        files: true,
        archives: true,
        dial: false,
        mounts: MountSupport::None,
        multi_machine: false,
        machines_apart: false,
        detached: false,
        snapshots: false,
        limits: LimitCapabilities { file_size: true, open_files: true, ..LimitCapabilities::default() },
    }
}

/// What a backend says of a machine that it reaches by a plain transport.
#[derive(Debug, Clone)]
pub struct PlainConfig {
    /// The machine's name within its environment.
    pub name: String,
    /// The backend's name, for errors.
    pub backend: &'static str,
    /// What the machine can do, from [`capabilities`]. With `streaming_output` a command's output is brought while it runs, by
    /// scripts that wait in the machine until there is some: a second after its start (later by a slow transport, see
    /// [`PlainTransport::usual`]), then after each that brought something. A
    /// command that is 4 MiB ahead of whoever reads it waits.
    pub capabilities: Capabilities,
    /// Its limits; `exec` and `output` are defaults of commands, file size and open files are set for each.
    pub limits: Limits,
    /// The sandbox's default user, by name or number; whoever runs the scripts where `None`.
    pub user: Option<String>,
    /// Where commands start and relative paths begin; the user's home where `None`.
    pub workdir: Option<String>,
    /// Variables on top of the machine's.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whether each command gets a cgroup of its own, which root's scripts make in the machine, and root there is held as well.
    /// The sandbox's kill domain is then [`KillDomain::Cgroup`], or `Session` where none can be made.
    pub groups: bool,
    /// A directory, root's alone, where the sandbox keeps its things if scripts run as root; [`PLACE`] and others where `None`.
    pub place: Option<String>,
    /// What bounds each command besides `limits`.
    pub bounds: Bounds,
}

impl PlainConfig {
    /// A machine of whoever runs its scripts: nothing is bounded, and nothing set.
    pub fn new(name: impl Into<String>, backend: &'static str, capabilities: Capabilities) -> Self {
        Self {
            name: name.into(),
            backend,
            capabilities,
            limits: Limits::default(),
            user: None,
            workdir: None,
            env: Vec::new(),
            groups: false,
            place: None,
            bounds: Bounds::default(),
        }
    }
}

/// What bounds the processes of each command. Nothing by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bounds {
    /// The address space of each process, in bytes.
    pub memory: Option<u64>,
    /// The processor time of each process, and the time of a whole command, whatever limit its caller sets.
    pub time: Option<Duration>,
}

/// Where a sandbox whose scripts run as root keeps its things, if there is such a directory: a backend that makes machines can so
/// give it room that nobody else fills.
pub const PLACE: &str = "/.tierbox";

/// What a transport may carry at once. What is larger goes in pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlainLimits {
    /// The longest script, in bytes. At least 16 KiB.
    pub script: usize,
    /// The most on standard input, in bytes. At least 4 KiB.
    pub stdin: usize,
    /// The most that comes back of standard output, in bytes. At least 4 KiB. Of standard error 4 KiB are enough.
    pub output: usize,
}

/// A script to run.
///
/// `Debug` shows no byte of script and input, which may hold secrets.
#[derive(Clone)]
pub struct PlainRun {
    /// The script: ASCII, without NUL, for `/bin/sh -c`. It may have many lines and any printable character.
    pub script: String,
    /// What it reads; then end of file.
    pub stdin: Bytes,
    /// When to give up waiting. The script ends itself before that, unless the machine hangs.
    pub limit: Duration,
    /// The command that it runs, if it runs one. It may come twice, when an answer was lost.
    pub command: Option<ExecId>,
    /// Script or input may hold secrets: they must not go where others can read them later (a service's history of commands).
    pub private: bool,
    /// It ends something else: it must not wait for what runs.
    pub urgent: bool,
    /// It only brings what is there meanwhile: others go first, for a while.
    pub yielding: bool,
    /// About how many bytes it will print, where that is known to be many; otherwise 0.
    pub expects: usize,
}

impl std::fmt::Debug for PlainRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sizes = (self.script.len(), self.stdin.len());
        f.debug_struct("PlainRun").field("sizes", &sizes).field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl PlainRun {
    /// An ordinary script.
    pub fn new(script: impl Into<String>, stdin: Bytes, limit: Duration) -> Self {
        Self { script: script.into(), stdin, limit, command: None, private: false, urgent: false, yielding: false, expects: 0 }
    }

    /// The same, which runs a command.
    #[must_use]
    pub fn of(self, command: ExecId) -> Self {
        Self { command: Some(command), ..self }
    }

    /// The same, private if `is` says so.
    #[must_use]
    pub fn private(self, is: bool) -> Self {
        Self { private: is, ..self }
    }

    /// The same, urgent.
    #[must_use]
    pub fn urgent(self) -> Self {
        Self { urgent: true, ..self }
    }

    /// The same, which lets others go first.
    #[must_use]
    pub fn yielding(self) -> Self {
        Self { yielding: true, ..self }
    }

    /// The same, of which much output is expected.
    #[must_use]
    pub fn expecting(self, bytes: usize) -> Self {
        Self { expects: bytes, ..self }
    }
}

/// What came of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainOutput {
    /// Its exit status, 0 to 255.
    pub status: i32,
    /// What it printed, all of it: a transport that had to cut returns `TooLarge`.
    pub stdout: Vec<u8>,
    /// What it complained; may be cut.
    pub stderr: Vec<u8>,
}

/// Runs scripts in a machine: a backend's way in where it has no channel.
///
/// Each call may be on a line of its own. Several may run at once. Dropping the future stops waiting; whether the script goes on
/// is no matter, since what must end in the machine is ended by another script.
#[async_trait]
pub trait PlainTransport: Send + Sync {
    /// What it may carry.
    fn limits(&self) -> PlainLimits;

    /// Runs `/bin/sh -c SCRIPT` in the machine, always as the same user, and brings back its bytes as they are.
    ///
    /// # Errors
    /// `Lost` where the script may have run. Any error that [is retryable](tierbox_core::Error::is_retryable) says that it did
    /// not; it is then tried again a few times. `TooLarge` for more output than [`PlainLimits::output`].
    async fn run(&self, run: PlainRun) -> Result<PlainOutput>;

    /// Shells that are kept for small commands, where it can hold streams open. By default each command is a script.
    fn shells(&self) -> Option<&kept::Shells> {
        None
    }

    /// Whether the machine is known to be gone, so that nobody need ask once more what became of a command.
    fn is_gone(&self) -> bool {
        false
    }

    /// How long a short script takes from its asking to its answer, as far as is known: so long nobody asks for a command's output, since
    /// most commands have brought it themselves by then. By default nothing is known.
    fn usual(&self) -> Duration {
        Duration::ZERO
    }

    /// Kills everything that came of a command, however it detached itself. Called before its end is told, where nothing of it may
    /// be left: it was killed, or lost, or its leftovers are not wanted. By default nothing is done beyond what the scripts do, which
    /// is [`KillDomain::Session`]; a transport that holds processes together lets its backend declare more.
    ///
    /// # Errors
    /// If something of it lives on; the command's end is then told as that error.
    async fn kill_all(&self, _command: ExecId) -> Result<()> {
        Ok(())
    }
}
