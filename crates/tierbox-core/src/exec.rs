//! A command: what is asked, what came of it, and the handle in between.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::files::{ByteReader, ByteWriter, GuestPath};
use crate::{Error, ErrorKind, Result};

/// The identity of one exec, made by the host: 128 random bits, written as 32 hex digits.
///
/// The guest remembers it, so a retried launch never runs a command twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExecId(pub [u8; 16]);

impl fmt::Display for ExecId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ExecId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExecId({self})")
    }
}

impl FromStr for ExecId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::new(ErrorKind::InvalidInput, "read exec id", format!("{text:?} is not 32 hex digits"));
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let mut id = [0; 16];
        for (byte, pair) in id.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| bad())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
        }
        Ok(Self(id))
    }
}

/// What the command reads.
#[derive(Debug, Clone, Default)]
pub enum Stdin {
    /// `/dev/null`.
    #[default]
    Null,
    /// These bytes, then end of file. Empty bytes are a pipe that is at its end, which differs from [`Stdin::Null`].
    Bytes(Bytes),
    /// Whatever is written to [`ExecHandle::take_stdin`].
    Stream,
}

/// What happens when a collected exec prints more than its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnExceed {
    /// The first and the last part are kept, the count is exact, and the command runs on.
    #[default]
    Truncate,
    /// The command is killed with [`KillReason::OutputLimit`]; what came before is kept.
    Kill,
}

/// How much of each output stream a collected exec retains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputLimit {
    /// Bytes retained of each stream.
    pub bytes: u64,
    /// What happens beyond.
    pub on_exceed: OnExceed,
}

/// What happens to processes that the command leaves behind when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Leftovers {
    /// They run on until the sandbox is stopped.
    #[default]
    Keep,
    /// They are killed with the command's end.
    Kill,
}

/// The size of a pseudo-terminal, in character cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PtySize {
    /// Height.
    pub rows: u16,
    /// Width.
    pub cols: u16,
}

/// A command to run: argv, never a shell unless the caller names one.
///
/// ```
/// use std::time::Duration;
/// use tierbox_core::ExecRequest;
///
/// let request = ExecRequest::new(["/bin/sh", "-c", "cat"])
///     .stdin_bytes("hello")
///     .env("GREETING", "hi")
///     .timeout(Duration::from_secs(5));
/// assert_eq!(request.argv.len(), 3);
/// ```
#[derive(Debug, Clone)]
pub struct ExecRequest {
    /// Program and arguments. A program without `/` is looked up in the `PATH` that the command will have.
    pub argv: Vec<Vec<u8>>,
    /// What it reads.
    pub stdin: Stdin,
    /// Where it starts; relative to the sandbox's working directory, which is also the default.
    pub cwd: Option<GuestPath>,
    /// Variables on top of the machine's and the profile's.
    pub env: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Start from an empty environment instead.
    pub env_clear: bool,
    /// A user's name or number; the sandbox's default user otherwise.
    pub user: Option<String>,
    /// Kill the whole tree after this time, measured in the machine. The profile's `exec` limit where `None`; never with
    /// [`Duration::MAX`].
    pub timeout: Option<Duration>,
    /// Kill the whole tree after this time without any output.
    pub idle_timeout: Option<Duration>,
    /// How much a collected exec retains; the profile's `output` limit where `None`. Handles retain nothing.
    pub output_limit: Option<OutputLimit>,
    /// What happens to processes it leaves behind.
    pub leftovers: Leftovers,
    /// A pseudo-terminal for all three streams; stderr then carries nothing.
    pub pty: Option<PtySize>,
    /// What the command is kept to. The machine's kernel enforces this; needs the capability
    /// [`confined_exec`](crate::Capabilities::confined_exec). No such restriction where `None`.
    pub confine: Option<Confinement>,
}

impl ExecRequest {
    /// A command with nothing on stdin and the sandbox's defaults for all else.
    pub fn new<A: AsRef<[u8]>>(argv: impl IntoIterator<Item = A>) -> Self {
        Self {
            argv: argv.into_iter().map(|arg| arg.as_ref().to_vec()).collect(),
            stdin: Stdin::Null,
            cwd: None,
            env: BTreeMap::new(),
            env_clear: false,
            user: None,
            timeout: None,
            idle_timeout: None,
            output_limit: None,
            leftovers: Leftovers::default(),
            pty: None,
            confine: None,
        }
    }

    /// A script for `/bin/sh -c`, chosen by the caller.
    pub fn shell(script: impl AsRef<[u8]>) -> Self {
        Self::new([b"/bin/sh".as_slice(), b"-c", script.as_ref()])
    }

    /// Gives it these bytes to read, then end of file.
    #[must_use]
    pub fn stdin_bytes(mut self, bytes: impl Into<Bytes>) -> Self {
        self.stdin = Stdin::Bytes(bytes.into());
        self
    }
    /// Lets the caller write to its stdin while it runs.
    #[must_use]
    pub fn stdin_stream(mut self) -> Self {
        self.stdin = Stdin::Stream;
        self
    }
    /// Sets the directory it starts in.
    #[must_use]
    pub fn cwd(mut self, path: impl Into<GuestPath>) -> Self {
        self.cwd = Some(path.into());
        self
    }
    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.env.insert(key.as_ref().to_vec(), value.as_ref().to_vec());
        self
    }
    /// Starts from an empty environment.
    #[must_use]
    pub fn env_clear(mut self) -> Self {
        self.env_clear = true;
        self
    }
    /// Runs it as this user.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }
    /// Sets its time limit.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
    /// How long it may take, where `usual` is the limit of commands that set none. `None` is for as long as it likes.
    pub fn time_limit(&self, usual: Option<Duration>) -> Option<Duration> {
        self.timeout.or(usual).filter(|limit| *limit < Duration::MAX)
    }
    /// Sets how long it may be silent.
    #[must_use]
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = Some(timeout);
        self
    }
    /// Sets how much output a collected exec retains per stream.
    #[must_use]
    pub fn output_limit(mut self, bytes: u64, on_exceed: OnExceed) -> Self {
        self.output_limit = Some(OutputLimit { bytes, on_exceed });
        self
    }
    /// Kills what it leaves behind.
    #[must_use]
    pub fn kill_leftovers(mut self) -> Self {
        self.leftovers = Leftovers::Kill;
        self
    }
    /// Gives it a pseudo-terminal.
    #[must_use]
    pub fn pty(mut self, size: PtySize) -> Self {
        self.pty = Some(size);
        self
    }

    /// Lets it be one of these files, execute nothing more, and write no file.
    #[must_use]
    pub fn confine(mut self, executables: impl IntoIterator<Item = GuestPath>) -> Self {
        self.confine = Some(Confinement { executables: executables.into_iter().collect(), children: false });
        self
    }

    /// Lets it and what it starts execute these files only, and write none. See [`Confinement::children`] for what that gives up.
    #[must_use]
    pub fn confine_with_children(mut self, executables: impl IntoIterator<Item = GuestPath>) -> Self {
        self.confine = Some(Confinement { executables: executables.into_iter().collect(), children: true });
        self
    }

    /// Checks what can be checked without a machine. Backends call it before any side effect.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an empty argv, a NUL byte in an argument, variable, user or directory, a variable
    /// name that is empty or holds `=`, a zero-sized terminal, a timeout of zero, or an executable by a relative path.
    pub fn validate(&self) -> Result<()> {
        let bad = |message: String| Err(Error::new(ErrorKind::InvalidInput, "exec", message));
        if self.argv.first().is_none_or(Vec::is_empty) {
            return bad("argv is empty: name a program".to_owned());
        }
        if let Some(position) = self.argv.iter().position(|arg| arg.contains(&0)) {
            return bad(format!("argument {position} holds a NUL byte"));
        }
        for (key, value) in &self.env {
            let shown = key.escape_ascii();
            if key.is_empty() || key.contains(&b'=') || key.contains(&0) {
                return bad(format!("\"{shown}\" cannot be the name of a variable"));
            }
            if value.contains(&0) {
                return bad(format!("the value of \"{shown}\" holds a NUL byte"));
            }
        }
        if self.cwd.as_ref().is_some_and(|cwd| cwd.as_bytes().is_empty() || cwd.as_bytes().contains(&0)) {
            return bad("the working directory is empty or holds a NUL byte".to_owned());
        }
        if self.user.as_ref().is_some_and(|user| user.is_empty() || user.contains(['\0', ':', '\n'])) {
            return bad("the user's name is empty or holds a NUL, colon or newline".to_owned());
        }
        if self.timeout == Some(Duration::ZERO) || self.idle_timeout == Some(Duration::ZERO) {
            return bad("a timeout of zero would kill the command before it ran".to_owned());
        }
        if self.pty.is_some_and(|size| size.rows == 0 || size.cols == 0) {
            return bad("a terminal needs at least one row and one column".to_owned());
        }
        let mut executables = self.confine.iter().flat_map(|confinement| &confinement.executables);
        if let Some(path) = executables.find(|path| path.validate().is_err() || !path.as_bytes().starts_with(b"/")) {
            return bad(format!("{path} cannot name what may be executed: an absolute path is needed"));
        }
        if self.confine.as_ref().is_some_and(|confinement| confinement.executables.len() > 256) {
            return bad("at most 256 files can be named as what may be executed".to_owned());
        }
        Ok(())
    }
}

/// What a command is kept to: files that may be executed. It can write no file at all (devices such as `/dev/null` excepted).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Confinement {
    /// The only files that may be executed, by absolute path: programs and their loaders.
    pub executables: Vec<GuestPath>,
    /// Whether the command may execute one of them again, in itself or in a child. Among them is the loader, which starts any
    /// file that it is given, so that this is a promise of the named programs and no longer the kernel's. Without it the kernel
    /// executes the command itself and refuses it everything after that.
    pub children: bool,
}

/// Why a command never ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NotStartedCause {
    /// The working directory does not exist, is not a directory, or may not be entered.
    BadCwd,
    /// No such user in the machine.
    UnknownUser,
    /// The user exists but this sandbox cannot run commands as it.
    UserNotMapped,
    /// The environment or argv is larger than the machine's kernel takes.
    TooBig,
    /// The machine could not make one more process (memory, process table).
    NoResources,
    /// The same exec id was launched before; that launch stands.
    AlreadyLaunched,
    /// It was cancelled before it was launched.
    Cancelled,
    /// It was to be kept to named executables, and the machine's kernel cannot do that.
    Unconfined,
    /// The cgroup of its limits does not take it. Most often tierbox itself runs with a real-time policy (`chrt`) and the cpu is
    /// limited: kernels with real-time groups take no such process then.
    NotAdmitted,
}

/// Why tierbox killed a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KillReason {
    /// Its time was up.
    Timeout,
    /// It was silent too long.
    Idle,
    /// It printed more than it may.
    OutputLimit,
    /// It used more memory than the machine has, by its own cgroup's counter.
    Memory,
    /// The caller cancelled, or went away.
    Cancelled,
    /// The lifetime of its sandbox was over, and everything in it ended. Told where a supervisor runs inside; else such a command is
    /// [`Lost`](Outcome::Lost).
    Lifetime,
}

/// What came of a command. When several ends race, the first that the machine recorded wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It never ran.
    NotStarted {
        /// Why.
        cause: NotStartedCause,
        /// Whether the same call may succeed later.
        retryable: bool,
    },
    /// It ended by itself with this status, 0 to 255.
    Exited(i32),
    /// It was ended by this signal, not by tierbox.
    Signaled(i32),
    /// tierbox ended it.
    Killed(KillReason),
    /// The machine or the line went away: it may have run.
    Lost,
}

impl Outcome {
    /// Whether it exited with status 0.
    pub fn success(self) -> bool {
        self == Self::Exited(0)
    }

    /// The status a shell would show: the exit code, 128 plus the signal, 124 for a time limit, 137 for other kills;
    /// `None` if it never ran or nobody knows.
    pub fn shell_status(self) -> Option<i32> {
        match self {
            Self::Exited(code) => Some(code),
            Self::Signaled(signal) => Some(128 + signal),
            Self::Killed(KillReason::Timeout | KillReason::Idle | KillReason::Lifetime) => Some(124),
            Self::Killed(_) => Some(137),
            Self::NotStarted { .. } | Self::Lost => None,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotStarted { cause, .. } => write!(f, "never ran ({cause:?})"),
            Self::Exited(code) => write!(f, "exited with status {code}"),
            Self::Signaled(signal) => write!(f, "ended by signal {signal}"),
            Self::Killed(reason) => write!(f, "killed ({reason:?})"),
            Self::Lost => f.write_str("lost: the machine went away, and the command may have run"),
        }
    }
}

/// What a command used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// From launch to end, in the machine.
    pub wall: Duration,
    /// CPU time in user mode, of the command and the children it waited for; `None` where unknown.
    pub cpu_user: Option<Duration>,
    /// CPU time in the kernel, likewise.
    pub cpu_system: Option<Duration>,
    /// The most memory it held, in bytes; `None` where unknown.
    pub peak_memory: Option<u64>,
}

/// The end of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Completed {
    /// What came of it.
    pub outcome: Outcome,
    /// The errno if the program could not be executed (`Exited(127)` missing, `Exited(126)` not executable). `None` for a
    /// program that itself exits with those.
    pub cannot_execute: Option<i32>,
    /// What it used.
    pub usage: Usage,
}

/// One retained output stream.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Captured {
    /// The first part.
    pub head: Vec<u8>,
    /// The last part; empty unless something between was dropped.
    pub tail: Vec<u8>,
    /// Bytes that the command printed, dropped ones included.
    pub total: u64,
}

impl Captured {
    /// Whether bytes between `head` and `tail` were dropped.
    pub fn truncated(&self) -> bool {
        self.total > (self.head.len() + self.tail.len()) as u64
    }

    /// All retained bytes, first part then last part.
    pub fn bytes(&self) -> Vec<u8> {
        [self.head.as_slice(), self.tail.as_slice()].concat()
    }

    /// All retained bytes as text; invalid UTF-8 is replaced. A gap is marked with its size.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.marked()).into_owned()
    }

    /// All retained bytes. A gap is marked with its size.
    pub fn marked(&self) -> Vec<u8> {
        let kept = (self.head.len() + self.tail.len()) as u64;
        let gap = self.truncated().then(|| format!("\n[… {} bytes dropped …]\n", self.total - kept));
        [self.head.as_slice(), gap.unwrap_or_default().as_bytes(), self.tail.as_slice()].concat()
    }
}

impl fmt::Debug for Captured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Captured({} bytes, {:?})", self.total, self.text().chars().take(200).collect::<String>())
    }
}

/// A collected command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecResult {
    /// The end of it.
    pub completed: Completed,
    /// What it printed.
    pub stdout: Captured,
    /// What it complained.
    pub stderr: Captured,
}

impl ExecResult {
    /// What came of it.
    pub fn outcome(&self) -> Outcome {
        self.completed.outcome
    }
    /// Whether it exited with status 0.
    pub fn success(&self) -> bool {
        self.completed.outcome.success()
    }
}

/// A signal, by number: 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signal(i32);

impl Signal {
    /// SIGHUP.
    pub const HUP: Self = Self(1);
    /// SIGINT.
    pub const INT: Self = Self(2);
    /// SIGKILL.
    pub const KILL: Self = Self(9);
    /// SIGUSR1.
    pub const USR1: Self = Self(10);
    /// SIGTERM.
    pub const TERM: Self = Self(15);
    /// SIGSTOP.
    pub const STOP: Self = Self(19);
    /// SIGCONT.
    pub const CONT: Self = Self(18);

    /// A signal by its Linux number.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] outside 1 to 64.
    pub fn new(number: i32) -> Result<Self> {
        if (1..=64).contains(&number) {
            Ok(Self(number))
        } else {
            Err(Error::new(ErrorKind::InvalidInput, "read signal", format!("{number} is not a signal (1 to 64)")))
        }
    }

    /// The number.
    pub fn number(self) -> i32 {
        self.0
    }
}

/// How a detached command stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExecState {
    /// It runs.
    Running,
    /// It ended.
    Ended(Completed),
}

/// A command that the machine knows of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecInfo {
    /// Its identity.
    pub id: ExecId,
    /// Program and arguments.
    pub argv: Vec<Vec<u8>>,
    /// Its process id inside the machine, where it runs.
    pub pid: Option<u32>,
    /// Whether it outlives the client that started it.
    pub detached: bool,
    /// How long ago it was launched.
    pub age: Duration,
    /// How it stands.
    pub state: ExecState,
}

/// A running command.
///
/// Output streams have backpressure: a reader that stops reading stops the command. Dropping the handle before
/// [`wait`](Self::wait) returned cancels the command and its whole tree, without blocking, from any thread.
#[async_trait]
pub trait ExecHandle: Send + Sync {
    /// Its identity.
    fn id(&self) -> ExecId;

    /// How many bytes of its stdout and stderr there were to be read at the moment when it was attached to: where the past ends
    /// and what it prints from then on begins. `None` for a command of one's own, and where that is not known.
    fn retained(&self) -> Option<[u64; 2]> {
        None
    }

    /// Takes the writing end of its stdin: `Some` once, and only for [`Stdin::Stream`]. Shutting it down or dropping it is
    /// end of file.
    fn take_stdin(&mut self) -> Option<ByteWriter>;

    /// Takes its stdout: `Some` once. Ends shortly after the command ends, even if a background child holds it open.
    fn take_stdout(&mut self) -> Option<ByteReader>;

    /// Takes its stderr: `Some` once, empty with a pty.
    fn take_stderr(&mut self) -> Option<ByteReader>;

    /// Sends a signal to the command's process.
    ///
    /// # Errors
    /// `NotFound` if it ended, `Unsupported` where the capability is missing.
    async fn signal(&self, signal: Signal) -> Result<()>;

    /// Changes the size of its terminal.
    ///
    /// # Errors
    /// `InvalidInput` without a terminal or for a size of zero.
    async fn resize(&self, size: PtySize) -> Result<()>;

    /// Asks for the whole tree to be killed, with a reason for the outcome. Queues and returns at once; the end that the
    /// machine recorded first wins. [`wait`](Self::wait) tells.
    fn kill(&self, reason: KillReason);

    /// Waits for the end. Streams that were not taken are drained and discarded, so this never hangs on a full pipe.
    /// May be called again and returns the same.
    ///
    /// # Errors
    /// Only for defects of the channel's protocol; a machine that went away is [`Outcome::Lost`].
    async fn wait(&mut self) -> Result<Completed>;
}
