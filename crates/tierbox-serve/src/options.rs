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

/// The file in which a daemon shows who waits for admission, for `tierbox ls`.
pub fn queue_file(state: &Path) -> PathBuf {
    state.join("serve").join("queue.json")
}

/// Who waits for admission, as a daemon of this state directory last wrote it down. Nobody, without a living daemon.
pub fn waiting(state: &Path) -> Vec<crate::Waiting> {
    #[derive(serde::Deserialize)]
    struct Queue {
        pid: u32,
        waiting: Vec<crate::Waiting>,
    }
    let queue = std::fs::read(queue_file(state)).ok().and_then(|text| serde_json::from_slice::<Queue>(&text).ok());
    queue.filter(|queue| Path::new("/proc").join(queue.pid.to_string()).exists()).map(|queue| queue.waiting).unwrap_or_default()
}
