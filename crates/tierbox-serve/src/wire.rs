//! The documents of the API, as JSON. The OpenAPI document is made from them.
//!
//! Times are seconds, with a fraction where that makes sense. Unknown fields in a request are refused.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tierbox::{KillReason, Outcome};

/// An environment to start.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Create {
    /// The profile: a name, or the absolute path of a file on the daemon's host.
    pub profile: String,
    /// Settings by their path in the profile, such as `"limits.memory": "512MiB"`.
    #[serde(default)]
    pub set: BTreeMap<String, String>,
    /// Permit what weakens the profile. The report lists it.
    #[serde(default)]
    pub allow_weaker: bool,
    /// Permit `set` to weaken the profile, and nothing else: neither the user's file nor the environment of the daemon.
    #[serde(default)]
    pub weaker_set: bool,
    /// Variables of every command.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// A name, unique among all environments: lower-case letters, digits and dashes.
    pub name: Option<String>,
    /// Seconds that the lease lasts unless it is renewed. The daemon's default where it is missing.
    #[schemars(range(min = 1, max = 604800))]
    pub ttl: Option<f64>,
    /// Seconds after which the environment ends whatever happens.
    #[schemars(range(min = 1, max = 31536000))]
    pub lifetime: Option<f64>,
    /// Seconds to wait for admission. 60 where it is missing.
    #[schemars(range(min = 0, max = 86400))]
    pub wait: Option<f64>,
    /// Notes, shown in lists. Never secrets.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Keep an operation log, which also holds what commands print. Always kept where the profile binds its agent by T1, T2 or
    /// approvals.
    #[serde(default)]
    pub log: bool,
}

/// An environment.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Environment {
    /// Its id.
    pub id: String,
    /// Its name, where it has one.
    pub name: Option<String>,
    /// The profile's name.
    pub profile: String,
    /// The tier that it states and keeps.
    pub tier: String,
    /// The backend's name.
    pub backend: String,
    /// The client that started it through this API; empty for all others.
    pub client: String,
    /// Seconds that its lease lasted from the start, which is how often its client has to renew it.
    pub ttl: Option<f64>,
    /// When it ends by itself, in seconds since 1970.
    pub ends: Option<u64>,
    /// `up`, `kept`, `in use` (by a process), `orphaned`, `expired` or `gone`.
    pub state: String,
    /// Notes of whoever started it.
    pub labels: BTreeMap<String, String>,
    /// The machines, primary first. Empty in lists.
    pub machines: Vec<String>,
    /// What was enforced. Null in lists.
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub report: Option<serde_json::Value>,
    /// What was declared, enforced, shown from inside and granted. Null in lists, and for what another daemon started without
    /// a log.
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub attestation: Option<serde_json::Value>,
    /// Whether a decision ended what the agent may do: whoever drives the run should end it.
    pub terminated: bool,
}

/// All environments, and who waits for one.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Environments {
    /// Oldest first.
    pub environments: Vec<Environment>,
    /// In the order of their turns.
    pub waiting: Vec<crate::Waiting>,
}

/// A new end of a lease.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Renew {
    /// Seconds from now. The daemon's default where it is missing.
    #[schemars(range(min = 1, max = 604800))]
    pub ttl: Option<f64>,
    /// Keep it until somebody ends it.
    #[serde(default)]
    pub keep: bool,
    /// Only these of the client's environments; all of them where it is missing. Of no use for a single lease.
    pub environments: Option<Vec<String>>,
}

/// Which leases were renewed.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Renewed {
    /// Ids.
    pub environments: Vec<String>,
}

/// What was ended.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Removed {
    /// What was removed.
    pub removed: Vec<String>,
}

/// For what a token is.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AskToken {
    /// The machines that the agent may use, by name. The primary one alone where there are none.
    #[serde(default)]
    pub machines: Vec<String>,
}

/// A token.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Token {
    /// To be sent as `Authorization: Bearer …`.
    pub token: String,
}

/// How a person gets a shell.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Connection {
    /// The command, as argv.
    pub argv: Vec<String>,
    /// A remark, or nothing.
    pub note: String,
    /// The state directory in which `tierbox` finds the environment.
    pub state: String,
}

/// What happens beyond an output limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnExceed {
    /// The first and the last part are kept.
    Truncate,
    /// The first part is kept and the command killed.
    Kill,
}

/// The size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pty {
    /// Height in characters.
    #[schemars(range(min = 1))]
    pub rows: u16,
    /// Width in characters.
    #[schemars(range(min = 1))]
    pub cols: u16,
}

/// A command.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// Program and arguments.
    #[schemars(length(min = 1))]
    pub argv: Vec<String>,
    /// In which machine; the primary one where it is missing.
    pub machine: Option<String>,
    /// Where it starts; relative to the working directory.
    pub cwd: Option<String>,
    /// Variables on top of the profile's.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Start from an empty environment instead.
    #[serde(default)]
    pub env_clear: bool,
    /// As whom; the default user where it is missing.
    pub user: Option<String>,
    /// Seconds until it is killed with its whole tree.
    #[schemars(range(min = 0))]
    pub timeout: Option<f64>,
    /// Seconds of silence until it is killed.
    #[schemars(range(min = 0))]
    pub idle_timeout: Option<f64>,
    /// Whether what follows the head is its stdin. Without it stdin is `/dev/null`.
    #[serde(default)]
    pub stdin: bool,
    /// Bytes of each output stream that are kept.
    pub output_limit: Option<u64>,
    /// What happens beyond; `truncate` where it is missing.
    pub on_exceed: Option<OnExceed>,
    /// Kill what it leaves behind.
    #[serde(default)]
    pub kill_leftovers: bool,
    /// A terminal; only when it is streamed.
    pub pty: Option<Pty>,
    /// Let it live on without this connection, and answer with its id at once.
    #[serde(default)]
    pub detach: bool,
}

/// One collected stream: its bytes follow the head.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, JsonSchema)]
pub struct Stream {
    /// Bytes of the first part.
    pub head: u64,
    /// Bytes of the last part; between the two something was dropped.
    pub tail: u64,
    /// Bytes that the command printed.
    pub total: u64,
}

/// What a command used.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
pub struct Used {
    /// Seconds from launch to end.
    pub wall_seconds: f64,
    /// Seconds of CPU time in user mode.
    pub user_seconds: Option<f64>,
    /// Seconds of CPU time in the kernel.
    pub system_seconds: Option<f64>,
    /// Bytes.
    pub peak_memory_bytes: Option<u64>,
}

/// The end of a command. Of a collected one it is the first line of the answer; then follow the bytes: stdout's first part,
/// its last part, stderr's first part, its last part.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Ended {
    /// The command's id.
    pub exec: String,
    /// `{"exited": 0}`, `{"signaled": 9}`, `{"killed": "timeout"}`, `{"not-started": {…}}` or `"lost"`.
    #[schemars(with = "serde_json::Value")]
    pub outcome: Outcome,
    /// The status that a shell would show; null if it never ran or nobody knows.
    pub status: Option<i32>,
    /// The errno if the program could not be executed.
    pub cannot_execute: Option<i32>,
    /// What it used.
    pub usage: Used,
    /// What follows of stdout.
    pub stdout: Stream,
    /// What follows of stderr.
    pub stderr: Stream,
}

/// A command that runs without this connection.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Detached {
    /// Its id.
    pub exec: String,
}

/// A command that the machine knows.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ExecInfo {
    /// Its id.
    pub exec: String,
    /// Program and arguments; bytes that are no UTF-8 are replaced.
    pub argv: Vec<String>,
    /// Its process id inside.
    pub pid: Option<u32>,
    /// Whether it outlives its client.
    pub detached: bool,
    /// Seconds since its launch.
    pub age: f64,
    /// How it ended; null while it runs.
    #[schemars(with = "Option<serde_json::Value>")]
    pub outcome: Option<Outcome>,
}

/// Commands.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Execs {
    /// Running ones, and ended ones that were detached.
    pub execs: Vec<ExecInfo>,
}

/// A signal to a command.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Signal {
    /// Its Linux number.
    #[schemars(range(min = 1, max = 64))]
    pub signal: i32,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// A client waits for admission, or is admitted at once.
    Asked,
    /// An environment is ready.
    Started,
    /// A start failed, or was given up.
    Failed,
    /// A client ended an environment.
    Destroyed,
    /// An environment is gone: its lease ended, or somebody else ended it.
    Gone,
    /// A command was launched.
    ExecStarted,
    /// A command ended.
    ExecEnded,
    /// A code task was launched.
    TaskStarted,
    /// A code task ended.
    TaskEnded,
    /// The follower was too slow for some.
    Missed,
    /// Nothing happened for a while.
    Beat,
}

/// One event: a line of `GET /v1/events`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Seconds since 1970.
    pub time: f64,
    /// What happened.
    pub event: EventKind,
    /// Where.
    pub environment: Option<String>,
    /// The environment's backend.
    pub backend: Option<String>,
    /// The environment's profile.
    pub profile: Option<String>,
    /// Who asked for the environment.
    pub client: Option<String>,
    /// The command's id.
    pub exec: Option<String>,
    /// The code task's name, at its end.
    pub task: Option<String>,
    /// How the command or task ended.
    #[schemars(with = "Option<serde_json::Value>")]
    pub outcome: Option<Outcome>,
    /// How many events were missed.
    pub missed: Option<u64>,
}

/// A code task.
#[derive(Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Code {
    /// The program's text.
    pub code: String,
    /// What runs it: `python`, `node`, `bash`, `sh`, or another that the profile allows.
    pub runtime: String,
    /// Text files that it finds, by their paths below its directory. Other files are written as raw bytes beforehand.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// Variables.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// What it reads; nothing where it is missing.
    pub stdin: Option<String>,
    /// The session whose directory it shares.
    pub session: Option<String>,
    /// Whether it has a directory of its own; yes where it is missing.
    pub private_dir: Option<bool>,
    /// Seconds until it is killed.
    #[schemars(range(min = 0))]
    pub timeout: Option<f64>,
    /// Seconds of CPU time until it is killed.
    #[schemars(range(min = 0))]
    pub cpu_time: Option<f64>,
    /// Bytes of memory of each of its processes.
    pub memory: Option<u64>,
    /// Bytes of the largest file that it may write.
    pub file_size: Option<u64>,
    /// Open files of each of its processes.
    pub open_files: Option<u64>,
    /// Bytes of each output stream that are kept.
    pub output_limit: Option<u64>,
}

/// Which code tasks go.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CleanCode {
    /// Those older than these seconds; the profile's expiry where it is missing.
    #[schemars(range(min = 0, max = 31536000))]
    pub older_than: Option<f64>,
}

/// A file of a code task.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CodeFile {
    /// Its path below the task's directory; bytes that are no UTF-8 are replaced.
    pub name: String,
    /// Bytes.
    pub size: u64,
}

/// The files of a code task.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CodeFiles {
    /// Sorted by name; at most 10000.
    pub files: Vec<CodeFile>,
    /// Why these are not all, where they are not.
    pub incomplete: Option<String>,
}

/// Facts about a file.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Stat {
    /// `file`, `directory`, `symlink` or `other`.
    pub kind: String,
    /// Bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner inside.
    pub uid: u32,
    /// Group inside.
    pub gid: u32,
    /// Last change, in seconds since 1970.
    pub modified: f64,
    /// Where a link points.
    pub target: Option<String>,
}

/// One name in a directory.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Entry {
    /// The name; bytes that are no UTF-8 are replaced.
    pub name: String,
    /// The facts.
    pub stat: Stat,
}

/// A directory.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Entries {
    /// Sorted by name.
    pub entries: Vec<Entry>,
}

/// Nothing to say.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct Done {}

/// About the daemon.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct About {
    /// Its version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// The backends it has.
    pub backends: Vec<String>,
    /// Environments at once, as far as the budget for one like this profile goes; null without a bound.
    pub concurrency: Option<u64>,
    /// The tier that the profile in the query states.
    pub tier: Option<String>,
    /// The backend of the profile in the query.
    pub backend: Option<String>,
    /// Seconds that a lease lasts for a client that says nothing else.
    pub ttl: f64,
}

/// What went wrong.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// A stable name such as `not-found`: what programs match on.
    pub kind: String,
    /// What was tried and what happened.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// Facts, such as the path.
    pub context: BTreeMap<String, String>,
}

impl Problem {
    /// An error as a document.
    pub fn of(error: &tierbox::Error) -> Self {
        Self {
            kind: error.kind().as_str().to_owned(),
            message: format!("{}: {}", error.operation(), error.message()),
            help: error.help().map(str::to_owned),
            retryable: error.is_retryable(),
            context: error.context().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        }
    }
}

impl Ended {
    /// Whether the command's time was up.
    pub fn timed_out(&self) -> bool {
        self.outcome == Outcome::Killed(KillReason::Timeout)
    }
}
