//! The contract of the operation log: who did what in which environment, and what came of it.
//!
//! Whoever carries out or decides about an operation makes an [`AuditEntry`] and gives it to an [`Audit`]. Nothing is left
//! out for having failed: refused, timed out, cancelled and abandoned operations are entries too. Who keeps the entries
//! (a hash-chained file, a program's own store) redacts secrets before it writes: an entry is made of what was really asked,
//! so it never leaves the process by another way, and shows no argument in `Debug`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Completed, Error, ExecId, Result};

/// Keeps what happened.
///
/// Implementations never wait for a disk or a network in [`record`](Self::record): it is called between the steps of an
/// operation, and from `Drop`.
pub trait Audit: Send + Sync {
    /// Takes an entry. Entries are kept in the order in which they are given.
    fn record(&self, entry: AuditEntry);

    /// Whether what happens next can be kept. The audit layer asks before each operation and refuses the operation
    /// otherwise, so that nothing happens unrecorded.
    ///
    /// # Errors
    /// Why nothing more can be kept: the disk is full, the log has reached its bound.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Where the bytes of a stream go that is too long to be held in memory until its end: all of them, from the first on. By
    /// default, and where nothing more may be kept, nowhere: the rest of such a stream is counted alone.
    fn spill(&self, _stream: &str) -> Option<Box<dyn AuditSpill>> {
        None
    }
}

/// A long stream on its way to where it is kept. One that is dropped unfinished leaves nothing.
pub trait AuditSpill: Send {
    /// Takes the next bytes. It waits for no network, and for a disk no longer than writing to a file does.
    fn write(&mut self, bytes: &[u8]);

    /// Its end. `complete` is false for a stream that its reader gave up. `None` if nothing of it could be kept.
    fn finish(self: Box<Self>, complete: bool) -> Option<AuditFile>;
}

/// Where a long stream is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditFile {
    /// Its name, by which the log finds it.
    pub name: String,
    /// How many bytes of the stream are in it, from the first on; fewer than there were if the log had no room for more.
    pub bytes: u64,
    /// The SHA-256 of what is in it, in hex. Secrets are masked there.
    pub sha256: String,
}

/// For whom an operation was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Principal {
    /// The program that sets up and scores.
    Harness,
    /// The agent, which the tooling axis and approvals bind.
    Agent,
    /// tierbox itself: lifecycle, verification.
    Tierbox,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum AuditOperation {
    /// A command. Two entries with the same exec id: [`AuditOutcome::Started`] and its end.
    Exec,
    /// A command that outlives its client. Its end is in the entry of whoever waits for it.
    ExecDetached,
    /// The list of commands.
    Execs,
    /// Following a detached command.
    Attach,
    /// Waiting for a command by its id.
    Wait,
    /// A signal to a command.
    Signal,
    /// An order to kill a command.
    Kill,
    /// A file that was read. An entry when the reader is done or gives up.
    Read,
    /// A file that was written.
    Write,
    /// Facts about a path.
    Stat,
    /// The entries of a directory.
    List,
    /// A path that was removed.
    Remove,
    /// A directory that was made.
    MakeDir,
    /// A tar stream that was unpacked inside.
    Unpack,
    /// A directory that was read as a tar stream.
    Pack,
    /// A stream into the machine.
    Dial,
    /// A call of a task of code in a sandbox.
    CodeTask,
    /// A decision about something that the agent asked for: allowed, refused, changed, by whom and by which rule.
    Decision,
    /// A decision of the network's gateway.
    Egress,
    /// A step in the environment's life: `start`, `ready`, `stop`, … in the argument `step`.
    Lifecycle,
    /// A verification and its result.
    Verification,
    /// Anything else, by a kebab-case name.
    #[serde(untagged)]
    Other(Cow<'static, str>),
}

/// What came of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum AuditOutcome {
    /// It began; its end is another entry. One that stays alone was cut off by the death of the harness.
    Started,
    /// It was done.
    Done,
    /// The command ended so, timeouts and kills included.
    Ended {
        /// The end of it.
        completed: Completed,
    },
    /// It was refused or failed.
    Failed {
        /// The error's kind in kebab case, as [`ErrorKind::as_str`](crate::ErrorKind::as_str) gives it.
        kind: String,
        /// What was tried and what happened.
        message: String,
    },
    /// The caller gave it up before its end was known. A command was then cancelled.
    Abandoned,
}

impl AuditOutcome {
    /// The outcome of a result.
    pub fn of<T>(result: &Result<T>) -> Self {
        match result {
            Ok(_) => Self::Done,
            Err(error) => Self::failed(error),
        }
    }

    /// The outcome of an operation that ended with this error.
    pub fn failed(error: &Error) -> Self {
        Self::Failed { kind: error.kind().as_str().to_owned(), message: format!("{}: {}", error.operation(), error.message()) }
    }
}

/// Bytes that went through an operation: a stream of a command, the contents of a file.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditData {
    /// Which: `stdin`, `stdout`, `stderr`, `contents`.
    pub stream: Cow<'static, str>,
    /// How many bytes there were in all.
    pub total: u64,
    /// The first of them, for the log to keep; fewer than `total` where the bound was reached or nothing is to be kept.
    pub kept: Bytes,
    /// Where they are instead, if there are too many to be held in memory. `kept` is then empty.
    pub file: Option<AuditFile>,
}

impl AuditData {
    /// Bytes of a stream that are kept elsewhere.
    pub fn in_file(stream: impl Into<Cow<'static, str>>, total: u64, file: Option<AuditFile>) -> Self {
        Self { stream: stream.into(), total, kept: Bytes::new(), file }
    }

    /// Bytes of a stream: how many in all, and the first of them.
    pub fn new(stream: impl Into<Cow<'static, str>>, total: u64, kept: impl Into<Bytes>) -> Self {
        Self { stream: stream.into(), total, kept: kept.into(), file: None }
    }
}

impl fmt::Debug for AuditData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = self.file.as_ref().map_or(self.kept.len() as u64, |file| file.bytes);
        write!(f, "AuditData({}, {kept} of {} bytes)", self.stream, self.total)
    }
}

/// One operation.
///
/// ```
/// use tierbox_core::{AuditEntry, AuditOperation, AuditOutcome, Principal};
///
/// let entry = AuditEntry::new("e-1", Principal::Agent, AuditOperation::Decision)
///     .machine("default")
///     .argument("verdict", "refused")
///     .argument("rule", "no-network-tools")
///     .outcome(AuditOutcome::Done);
/// assert_eq!(entry.arguments["verdict"], "refused");
/// ```
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct AuditEntry {
    /// When it was made.
    pub time: SystemTime,
    /// The environment's id.
    pub environment: String,
    /// The machine's name; `None` for what concerns the whole environment.
    pub machine: Option<String>,
    /// For whom.
    pub principal: Principal,
    /// What.
    pub operation: AuditOperation,
    /// The command that it is about.
    pub exec: Option<ExecId>,
    /// With which arguments, as they were given: they may hold secrets until the log redacts them.
    pub arguments: BTreeMap<Cow<'static, str>, Value>,
    /// What came of it.
    pub outcome: AuditOutcome,
    /// How long it took, where that means something.
    pub duration: Option<Duration>,
    /// What went through it.
    pub data: Vec<AuditData>,
}

impl AuditEntry {
    /// An entry of now, [`Done`](AuditOutcome::Done) and without arguments.
    pub fn new(environment: impl Into<String>, principal: Principal, operation: AuditOperation) -> Self {
        Self {
            time: SystemTime::now(),
            environment: environment.into(),
            machine: None,
            principal,
            operation,
            exec: None,
            arguments: BTreeMap::new(),
            outcome: AuditOutcome::Done,
            duration: None,
            data: Vec::new(),
        }
    }

    /// Names the machine.
    #[must_use]
    pub fn machine(mut self, name: impl Into<String>) -> Self {
        self.machine = Some(name.into());
        self
    }
    /// Names the command.
    #[must_use]
    pub fn exec(mut self, id: ExecId) -> Self {
        self.exec = Some(id);
        self
    }
    /// Adds an argument.
    #[must_use]
    pub fn argument(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Value>) -> Self {
        self.arguments.insert(name.into(), value.into());
        self
    }
    /// Sets what came of it.
    #[must_use]
    pub fn outcome(mut self, outcome: AuditOutcome) -> Self {
        self.outcome = outcome;
        self
    }
    /// Sets how long it took.
    #[must_use]
    pub fn duration(mut self, duration: Duration) -> Self {
        self.duration = Some(duration);
        self
    }
    /// Adds bytes that went through it.
    #[must_use]
    pub fn data(mut self, data: AuditData) -> Self {
        self.data.push(data);
        self
    }
}

impl fmt::Debug for AuditEntry {
    /// Shows the names of the arguments, and never their values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditEntry")
            .field("time", &self.time)
            .field("environment", &self.environment)
            .field("machine", &self.machine)
            .field("principal", &self.principal)
            .field("operation", &self.operation)
            .field("exec", &self.exec)
            .field("arguments", &self.arguments.keys().collect::<Vec<_>>())
            .field("outcome", &self.outcome)
            .field("duration", &self.duration)
            .field("data", &self.data)
            .finish()
    }
}

/// Bytes as a JSON value: text where they are UTF-8, else `{"escaped": "…"}` with every other byte escaped.
pub fn audit_text(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => Value::from(text),
        Err(_) => serde_json::json!({ "escaped": bytes.escape_ascii().to_string() }),
    }
}

#[cfg(test)]
mod unit {
    use super::*;
    use crate::{ErrorKind, Outcome, Usage};

    #[test]
    fn debug_shows_no_argument() {
        let entry = AuditEntry::new("e", Principal::Agent, AuditOperation::Exec)
            .argument("argv", vec!["s3cret"])
            .data(AuditData::new("stdout", 6, "s3cret"));
        let shown = format!("{entry:?}");
        assert!(shown.contains("argv") && shown.contains("6 of 6 bytes") && !shown.contains("s3cret"), "{shown}");
    }

    #[test]
    fn outcomes_say_how_it_ended() {
        let failed = AuditOutcome::of::<()>(&Err(Error::new(ErrorKind::NotFound, "read", "no such file")));
        let json = serde_json::to_value(&failed).unwrap();
        assert_eq!(json, serde_json::json!({"status": "failed", "kind": "not-found", "message": "read: no such file"}));
        let completed = Completed { outcome: Outcome::Exited(3), cannot_execute: None, usage: Usage::default() };
        let json = serde_json::to_value(AuditOutcome::Ended { completed }).unwrap();
        assert_eq!((&json["status"], &json["completed"]["outcome"]["exited"]), (&"ended".into(), &3.into()));
        let back: AuditOutcome = serde_json::from_value(json).unwrap();
        assert_eq!(back, AuditOutcome::Ended { completed });
    }

    #[test]
    fn operations_have_kebab_case_names() {
        for (operation, name) in [(AuditOperation::MakeDir, "make-dir"), (AuditOperation::Other("cooldown".into()), "cooldown")] {
            assert_eq!(serde_json::to_value(&operation).unwrap(), name);
            assert_eq!(serde_json::from_value::<AuditOperation>(name.into()).unwrap(), operation);
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_escaped() {
        assert_eq!(audit_text(b"caf\xc3\xa9"), "café");
        assert_eq!(audit_text(b"\xff\n"), serde_json::json!({"escaped": "\\xff\\n"}));
    }
}
