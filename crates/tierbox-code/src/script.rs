//! The scripts that run inside, and their answers: fields that end in NUL, and every field bounded.
//!
//! A task runs as the same user as the scripts, so that what they read is the task's to forge. It can lie about its own
//! files by that, and about nothing else.

use std::time::Duration;

use tierbox_core::{
    Error, ErrorKind, ExecRequest, ExecResult, KillReason, NotStartedCause, OnExceed, Outcome, Result, Sandbox, SandboxExt,
};

const COMMON: &str = include_str!("scripts/common.sh");
pub(crate) const PREPARE: &str = include_str!("scripts/prepare.sh");
pub(crate) const LIMITS: &str = include_str!("scripts/limits.sh");
pub(crate) const AFTER: &str = include_str!("scripts/after.sh");
pub(crate) const FILES: &str = include_str!("scripts/files.sh");
pub(crate) const CLEANUP: &str = include_str!("scripts/cleanup.sh");
pub(crate) const SESSIONS: &str = include_str!("scripts/sessions.sh");
pub(crate) const STATUS: &str = include_str!("scripts/status.sh");

/// How long a script may take; a task's own time is its own.
const PATIENCE: Duration = Duration::from_secs(120);

/// The most that an answer may take, but for contents of files.
pub(crate) const ANSWER: u64 = 4 << 20;

/// A script with its arguments.
pub(crate) struct Script {
    operation: &'static str,
    request: ExecRequest,
    most: u64,
}

impl Script {
    pub fn new(operation: &'static str, body: &str, args: Vec<Vec<u8>>) -> Self {
        let text = format!("{COMMON}\n{body}");
        let head = [b"/bin/sh".to_vec(), b"-c".to_vec(), text.into_bytes(), b"sh".to_vec()];
        let request = ExecRequest::new(head.into_iter().chain(args)).timeout(PATIENCE).kill_leftovers();
        Self { operation, request, most: ANSWER }
    }

    pub fn stdin(mut self, bytes: Vec<u8>) -> Self {
        self.request = self.request.stdin_bytes(bytes);
        self
    }

    pub fn at_most(mut self, bytes: u64) -> Self {
        self.most = bytes;
        self
    }

    /// Runs it and gives its answer.
    pub async fn run(self, sandbox: &dyn Sandbox) -> Result<Answer> {
        let answer = self.try_run(sandbox).await?;
        match answer.incomplete {
            Some((kind, why)) => Err(Error::new(kind, answer.operation, why)),
            None => Ok(answer),
        }
    }

    /// The same, also if it was cut off.
    pub async fn try_run(self, sandbox: &dyn Sandbox) -> Result<Answer> {
        let result = sandbox.run(self.request.output_limit(self.most, OnExceed::Kill)).await?;
        let incomplete = problem(&result, self.most);
        Ok(Answer { operation: self.operation, bytes: result.stdout.bytes(), at: 0, incomplete })
    }
}

fn problem(result: &ExecResult, most: u64) -> Option<(ErrorKind, String)> {
    let said = || String::from_utf8_lossy(&result.stderr.bytes()).trim().chars().take(300).collect::<String>();
    Some(match result.outcome() {
        Outcome::Exited(0) => return None,
        Outcome::Killed(KillReason::OutputLimit) => (ErrorKind::TooLarge, format!("the answer is larger than {most} bytes")),
        Outcome::Killed(KillReason::Timeout) => (ErrorKind::Timeout, format!("no answer within {} s", PATIENCE.as_secs())),
        Outcome::Lost => (ErrorKind::Lost, "the machine went away".to_owned()),
        Outcome::NotStarted { cause: NotStartedCause::NoResources, .. } => {
            (ErrorKind::LimitReached, "the machine has no room for one more process".to_owned())
        }
        other => (ErrorKind::Io, format!("the script in the machine {other}: {}", said())),
    })
}

/// What a script said.
pub(crate) struct Answer {
    pub operation: &'static str,
    bytes: Vec<u8>,
    at: usize,
    /// Why this is not all of it.
    pub incomplete: Option<(ErrorKind, String)>,
}

impl Answer {
    #[cfg(test)]
    pub fn of(operation: &'static str, bytes: &[u8]) -> Self {
        Self { operation, bytes: bytes.to_vec(), at: 0, incomplete: None }
    }

    /// The next field; `None` at the end.
    pub fn next(&mut self) -> Option<&[u8]> {
        let rest = self.bytes.get(self.at..)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        self.at += end + 1;
        Some(&rest[..end])
    }

    /// The next three.
    pub fn fields(&mut self) -> Option<[Vec<u8>; 3]> {
        Some([self.next()?.to_vec(), self.next()?.to_vec(), self.next()?.to_vec()])
    }

    /// Something that must be there, although the rest may be cut off.
    pub fn head<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let found = read(self);
        match self.incomplete.take_if(|_| found.is_err()) {
            Some((kind, why)) => Err(Error::new(kind, self.operation, why)),
            None => found,
        }
    }

    /// The next so many bytes.
    pub fn take(&mut self, count: usize) -> Option<&[u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    pub fn text(&mut self) -> Result<String> {
        let operation = self.operation;
        let field = self.next().ok_or_else(|| unclear(operation))?;
        Ok(String::from_utf8_lossy(field).into_owned())
    }

    pub fn number(&mut self) -> Result<u64> {
        let operation = self.operation;
        self.text()?.parse().map_err(|_| unclear(operation))
    }
}

pub(crate) fn unclear(operation: &'static str) -> Error {
    Error::new(ErrorKind::Protocol, operation, "the machine's answer makes no sense")
        .with_help("code tasks need a POSIX shell with find, head, tail, stat and sha256sum (coreutils or busybox) inside")
}

#[cfg(test)]
mod unit {
    use std::process::Command;

    use super::*;

    #[test]
    fn clean_ups_at_once_take_nothing_that_is_new() {
        let base = tempfile::tempdir().unwrap();
        let at = |name: &str| base.path().join(name);
        let (new, old) = ("0123456789abcdef", "fedcba9876543210");
        for directory in [".tasks", ".sessions", new, old] {
            std::fs::create_dir(at(directory)).unwrap();
        }
        for task in [new, old] {
            std::fs::write(at(&format!(".tasks/{task}")), task).unwrap();
        }
        // Another one, which has made its mark and not set its time yet.
        let meanwhile = "touch() { command touch \"$@\"; command touch .expiry; }";
        let age = format!("touch -d @1000000000 .tasks/{old}");
        let script = format!("{COMMON}\n{meanwhile}\n{age}\n{CLEANUP}");
        let done = Command::new("/bin/sh").args(["-c", &script, "sh", ".", "3600"]).current_dir(base.path()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&done.stdout), format!("done\0tasks\0{old}\0"), "{done:?}");
        assert!(at(new).exists() && !at(old).exists());
        let marks = std::fs::read_dir(base.path()).unwrap().flatten();
        let marks: Vec<_> =
            marks.map(|entry| entry.file_name()).filter(|name| name.to_string_lossy().starts_with(".expiry.")).collect();
        assert!(marks.is_empty(), "{marks:?}");
    }
}
