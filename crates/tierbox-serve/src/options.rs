//! What a daemon can be told.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tierbox::{Result, Tierbox};

use crate::Budget;
use crate::tokens::Tokens;

/// Settings of a daemon.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// The Unix socket. [`default_socket`] where `None`. Its directory is made with mode 0700, the socket has 0600.
    pub socket: Option<PathBuf>,
    /// A loopback address to listen on as well; needs [`tokens`](Self::tokens).
    pub tcp: Option<SocketAddr>,
    /// Who may come over TCP.
    pub tokens: Option<Tokens>,
    /// What all environments of this daemon may have together.
    pub budget: Budget,
    /// How long a lease lasts for a client that says nothing else. 5 minutes.
    pub ttl: Duration,
    /// How often expired code tasks are removed from all environments. 1 hour.
    pub task_sweep: Duration,
    /// Connections at once; further ones wait to be accepted. 1024.
    pub connections: usize,
    /// The time for a request's head to arrive, and the longest silence in the middle of a body. 30 s.
    pub patience: Duration,
    /// The time in which a connection over TCP must have sent a request with a valid token. 5 s.
    pub greeting: Duration,
    /// End the daemon after this time without clients and environments. Never by default.
    pub idle: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            socket: None,
            tcp: None,
            tokens: None,
            budget: Budget::of_host(),
            ttl: Duration::from_secs(300),
            task_sweep: Duration::from_secs(3600),
            connections: 1024,
            patience: Duration::from_secs(30),
            greeting: Duration::from_secs(5),
            idle: None,
        }
    }
}

/// Where a daemon of this client's state directory listens.
///
/// # Errors
/// As [`Tierbox::state_path`].
pub fn default_socket(client: &Tierbox) -> Result<PathBuf> {
    Ok(client.state_path()?.join("serve").join("serve.sock"))
}

/// The file in which the daemon of this process id shows who waits for admission, for `tierbox ls`: several daemons may share a state
/// directory.
pub fn queue_file(state: &Path, pid: u32) -> PathBuf {
    state.join("serve").join(format!("{QUEUE}{pid}.json"))
}

/// How the names of such files begin.
const QUEUE: &str = "queue-";

/// Who waits for admission, as the daemons of this state directory last wrote it down. Nobody, without a living daemon.
pub fn waiting(state: &Path) -> Vec<crate::Waiting> {
    let lines = queue_files(state).filter(|(_, pid)| is_alive(*pid));
    let read = |path: PathBuf| serde_json::from_slice(&std::fs::read(path).ok()?).ok();
    lines.filter_map(|(path, _)| read(path)).flat_map(|Queue { waiting }| waiting).collect()
}

/// What dead daemons wrote down goes.
pub(crate) fn forget_dead_queues(state: &Path) {
    for (path, _) in queue_files(state).filter(|(_, pid)| !is_alive(*pid)) {
        let _ = std::fs::remove_file(path);
    }
}

#[derive(serde::Deserialize)]
struct Queue {
    waiting: Vec<crate::Waiting>,
}

fn queue_files(state: &Path) -> impl Iterator<Item = (PathBuf, u32)> {
    let files = std::fs::read_dir(state.join("serve")).into_iter().flatten().flatten();
    files.filter_map(|file| {
        let name = file.file_name();
        let pid = name.to_str()?.strip_prefix(QUEUE)?.strip_suffix(".json")?.parse().ok()?;
        Some((file.path(), pid))
    })
}

fn is_alive(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}
