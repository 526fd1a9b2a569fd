//! Environments in the hands of this daemon, and who uses them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tierbox::{AgentOptions, AgentSandbox, Hold, Result, Running};

use crate::room::{Place, Room};
use crate::watch::Watched;

/// How long use of an environment keeps one whose client never said how long its lease is to last.
const BRIEF: Duration = Duration::from_secs(10);

/// An environment in the hands of this daemon.
pub(crate) struct Held {
    pub running: Running,
    /// Commands that run in it without a connection.
    pub watched: Watched,
    busy: AtomicUsize,
    room: Room,
    times: Mutex<Times>,
    /// The agent's handles by machine: what T1 rests on is tried out once for each.
    agents: tokio::sync::Mutex<BTreeMap<String, AgentSandbox>>,
}

/// When it ends.
#[derive(Clone, Copy, Default)]
struct Times {
    /// How long its client last wanted its lease to last.
    ttl: Option<Duration>,
    /// When it ends unless it is renewed, where its lease does not say so: one that cannot be detached is held by this process.
    end: Option<SystemTime>,
}

impl Held {
    /// One whose client wants its lease to last that long.
    pub fn new(running: Running, ttl: Option<Duration>) -> Self {
        let end = ttl.filter(|_| running.is_attached()).map(|ttl| SystemTime::now() + ttl);
        let times = Mutex::new(Times { ttl, end });
        Self {
            running,
            times,
            watched: Watched::default(),
            busy: AtomicUsize::new(0),
            room: Room::default(),
            agents: Default::default(),
        }
    }

    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed) > 0
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long use of it keeps it: as long as its client wanted, and no longer.
    pub fn ttl(&self) -> Duration {
        self.times().ttl.unwrap_or(BRIEF)
    }

    /// Notes what its client wants now. Whether its end is this process's to say.
    pub fn prolong(&self, hold: Hold, ttl: Duration) -> bool {
        let mut times = self.times();
        times.ttl = Some(ttl);
        if !self.running.is_attached() {
            return false;
        }
        times.end = match hold {
            Hold::Until(end) => Some(end),
            // As long as this daemon, which cannot leave it behind.
            _ => None,
        };
        true
    }

    /// Whether its time is up, where this process says so. While it is in use, its time goes on, but not beyond its lifetime.
    pub fn is_over(&self, now: SystemTime) -> bool {
        if self.running.is_attached() && self.running.expires().is_some_and(|end| end <= now) {
            return true;
        }
        let ttl = self.ttl();
        let mut times = self.times();
        if self.is_busy() {
            times.end = times.end.map(|end| end.max(now + ttl));
        }
        times.end.is_some_and(|end| end <= now)
    }
}

/// Shows that a request is under way in an environment, so that its lease does not end meanwhile.
pub(crate) struct Busy(Arc<Held>, bool);

impl Busy {
    pub fn new(held: &Arc<Held>) -> Self {
        held.busy.fetch_add(1, Ordering::Relaxed);
        Self(held.clone(), true)
    }

    /// The same for a request that does not keep the environment: its lease may end meanwhile.
    pub fn unheld(mut self) -> Self {
        if std::mem::take(&mut self.1) {
            self.0.busy.fetch_sub(1, Ordering::Relaxed);
        }
        self
    }

    pub fn running(&self) -> &Running {
        &self.0.running
    }

    pub fn held(&self) -> &Arc<Held> {
        &self.0
    }

    /// Waits for room for so many bytes of an agent's in memory.
    pub async fn room(&self, bytes: u64) -> Place {
        self.0.room.enter(bytes).await
    }

    /// A machine as the agent may use it. Nobody is asked for approval.
    pub async fn agent(&self, machine: &str) -> Result<AgentSandbox> {
        let mut agents = self.0.agents.lock().await;
        if let Some(agent) = agents.get(machine) {
            return Ok(agent.clone());
        }
        let agent = self.0.running.for_agent(AgentOptions::new().machine(machine)).await?;
        agents.insert(machine.to_owned(), agent.clone());
        Ok(agent)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if self.1 {
            self.0.busy.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
