//! What a task is, and what came of it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tierbox_core::{Captured, ExecResult, Outcome, OutputLimit, base64};

/// Limits of one task. What is `None` is as the profile says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TaskLimits {
    /// The time until the whole tree is killed.
    pub time: Option<Duration>,
    /// CPU time of each process, in whole seconds.
    pub cpu: Option<Duration>,
    /// Address space of each process, in bytes.
    pub memory: Option<u64>,
    /// The largest file that a process may write, in bytes.
    pub file_size: Option<u64>,
    /// Open files of each process.
    pub open_files: Option<u64>,
    /// How much of each output stream is retained.
    pub output: Option<OutputLimit>,
}

/// A piece of code to run.
///
/// ```
/// use tierbox_code::CodeTask;
///
/// let task = CodeTask::new("python", "print(open('data.txt').read())").file("data.txt", "hello").env("MODE", "test");
/// assert_eq!(task.files.len(), 1);
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct CodeTask {
    /// The code.
    pub code: String,
    /// The runtime's name, one of the profile's.
    pub runtime: String,
    /// Files that are there when the code starts, by their path below the task's directory. At most 1000, and 64 MiB.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Variables of this task. Values never reach a shell, a log or an error.
    pub env: BTreeMap<String, String>,
    /// What it reads; nothing (`/dev/null`) where `None`.
    pub stdin: Option<Vec<u8>>,
    /// The session: tasks of one session share a directory, which stays between them. A directory of its own where `None`.
    pub session: Option<String>,
    /// Limits.
    pub limits: TaskLimits,
    /// Whether it has a directory of its own (or of its session). Without one it starts in the sandbox's working directory,
    /// its input files are put there, and no files are listed.
    pub private_dir: bool,
}

impl CodeTask {
    /// A task with a directory of its own and nothing else.
    pub fn new(runtime: impl Into<String>, code: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            runtime: runtime.into(),
            files: BTreeMap::new(),
            env: BTreeMap::new(),
            stdin: None,
            session: None,
            limits: TaskLimits::default(),
            private_dir: true,
        }
    }

    /// Adds an input file.
    #[must_use]
    pub fn file(mut self, path: impl Into<String>, contents: impl Into<Vec<u8>>) -> Self {
        self.files.insert(path.into(), contents.into());
        self
    }
    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(key.into(), value.into());
        self
    }
    /// Gives it something to read.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }
    /// Makes it part of a session.
    #[must_use]
    pub fn session(mut self, name: impl Into<String>) -> Self {
        self.session = Some(name.into());
        self
    }
    /// Sets its limits.
    #[must_use]
    pub fn limits(mut self, limits: TaskLimits) -> Self {
        self.limits = limits;
        self
    }
    /// Says whether it has a directory of its own.
    #[must_use]
    pub fn private_dir(mut self, yes: bool) -> Self {
        self.private_dir = yes;
        self
    }
}

impl fmt::Debug for CodeTask {
    /// Shows neither contents nor values: they may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CodeTask")
            .field("runtime", &self.runtime)
            .field("code_bytes", &self.code.len())
            .field("files", &self.files.keys())
            .field("env", &self.env.keys())
            .field("session", &self.session)
            .field("limits", &self.limits)
            .field("private_dir", &self.private_dir)
            .finish_non_exhaustive()
    }
}

/// A file that a task made or changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedFile {
    /// Its path below the task's directory. Bytes that are no text are replaced; [`name_bytes`](Self::name_bytes) has them.
    pub name: String,
    /// The same, exact; left out of what is serialized.
    #[serde(skip)]
    pub name_bytes: Vec<u8>,
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256 in hex; `None` where the task left it unreadable, or more than is hashed: 128 MiB of the first 200 files, and
    /// 8 MiB of each 200 that follow.
    pub sha256: Option<String>,
}

/// What came of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodeOutcome {
    /// The task's stable name: 16 hex digits.
    pub task_hash: String,
    /// The end of the program, and what it printed.
    pub result: ExecResult,
    /// Where it ran, absolute, inside.
    pub working_directory: String,
    /// What it made or changed, by name.
    pub files_created: Vec<CreatedFile>,
    /// Why the list of files is not whole, where it is not.
    pub files_incomplete: Option<String>,
    /// Why it did not succeed, in words; `None` where it did.
    pub error_message: Option<String>,
}

impl CodeOutcome {
    /// Whether the program exited with status 0.
    pub fn success(&self) -> bool {
        self.result.success()
    }

    /// What became of the program.
    pub fn outcome(&self) -> Outcome {
        self.result.outcome()
    }

    /// As plain data, for JSON.
    pub fn report(&self) -> TaskReport {
        let text = |captured: &Captured| captured.text();
        let base64 = |captured: &Captured| base64::unless_text(&captured.bytes());
        TaskReport {
            task_hash: self.task_hash.clone(),
            success: self.success(),
            outcome: self.outcome(),
            exit_code: self.outcome().shell_status(),
            stdout: text(&self.result.stdout),
            stdout_base64: base64(&self.result.stdout),
            stdout_bytes: self.result.stdout.total,
            stdout_truncated: self.result.stdout.truncated(),
            stderr: text(&self.result.stderr),
            stderr_base64: base64(&self.result.stderr),
            stderr_bytes: self.result.stderr.total,
            stderr_truncated: self.result.stderr.truncated(),
            execution_time: self.result.completed.usage.wall.as_secs_f64(),
            working_directory: self.working_directory.clone(),
            files_created: self.files_created.clone(),
            files_incomplete: self.files_incomplete.clone(),
            error_message: self.error_message.clone(),
        }
    }
}

/// A [`CodeOutcome`] as the command line, the daemon and MCP print it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskReport {
    /// The task's stable name: 16 hex digits.
    pub task_hash: String,
    /// Whether the program exited with status 0.
    pub success: bool,
    /// What became of it.
    pub outcome: Outcome,
    /// The status a shell would show: the exit code, 128 plus the signal, 124 for a timeout, 137 for another kill; null if it
    /// never ran or nobody knows.
    pub exit_code: Option<i32>,
    /// What it printed, as text; a gap is marked.
    pub stdout: String,
    /// The same as bytes, both ends one after the other, where they are no text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout_base64: Option<String>,
    /// Bytes that it printed, dropped ones included.
    pub stdout_bytes: u64,
    /// Whether some were dropped.
    pub stdout_truncated: bool,
    /// What it complained, as text; a gap is marked.
    pub stderr: String,
    /// The same as bytes, both ends one after the other, where they are no text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_base64: Option<String>,
    /// Bytes that it complained, dropped ones included.
    pub stderr_bytes: u64,
    /// Whether some were dropped.
    pub stderr_truncated: bool,
    /// Seconds from its launch to its end, in the machine.
    pub execution_time: f64,
    /// Where it ran, absolute, inside.
    pub working_directory: String,
    /// What it made or changed.
    pub files_created: Vec<CreatedFile>,
    /// Why the list of files is not whole, where it is not.
    pub files_incomplete: Option<String>,
    /// Why it did not succeed, in words.
    pub error_message: Option<String>,
}

/// A file of a task, with its contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskFile {
    /// Its path below the task's directory.
    pub name: Vec<u8>,
    /// What it holds.
    pub contents: Vec<u8>,
}

/// A file of a task, without its contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskEntry {
    /// Its path below the task's directory.
    pub name: Vec<u8>,
    /// Its size in bytes.
    pub size: u64,
}

/// The files of a task, without their contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskFiles {
    /// By name; at most 10000.
    pub files: Vec<TaskEntry>,
    /// Why these are not all, where they are not.
    pub incomplete: Option<String>,
}

/// What a clean-up did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TaskCleanup {
    /// The hashes of tasks whose directories were removed.
    pub tasks: Vec<String>,
    /// Sessions whose directories were removed.
    pub sessions: Vec<String>,
    /// What could not be removed: names of directories.
    pub failed: Vec<String>,
}

/// A session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    /// Its name.
    pub name: String,
    /// Its directory, absolute, inside.
    pub directory: String,
    /// Seconds since its last task started.
    pub idle_seconds: u64,
}

/// A runtime as the machine has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeStatus {
    /// Its name.
    pub name: String,
    /// The program that runs it, absolute; `None` if the machine has none.
    pub program: Option<String>,
}

/// How code tasks stand in a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CodeStatus {
    /// The directory of the tasks' directories, absolute, inside.
    pub base_dir: String,
    /// Tasks whose directories exist.
    pub tasks: u64,
    /// Sessions whose directories exist.
    pub sessions: u64,
    /// Bytes that all of them take on disk.
    pub used_bytes: u64,
    /// Bytes free where they lie; `None` where unknown.
    pub free_bytes: Option<u64>,
    /// The age at which a task's directory goes, in seconds.
    pub expiry_seconds: u64,
    /// The profile's runtimes.
    pub runtimes: Vec<RuntimeStatus>,
}
