//! Environments: those this daemon holds, and what clients do with them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tierbox::{AgentOptions, AgentSandbox, Error, ErrorKind, Hold, Listed, Result, Running, Standing, StartOptions};

use crate::admission::{Demand, Permit};
use crate::server::Shared;
use crate::turns::Client;
use crate::{reaper, wire};

/// The label that names the client of an environment.
pub(crate) const CLIENT_LABEL: &str = "serve.client";
/// Labels with this beginning are the daemon's own.
const OWN_LABELS: &str = "serve.";
/// How long a start waits for admission, unless its client says otherwise.
const WAIT: Duration = Duration::from_secs(60);

/// An environment in the hands of this daemon.
pub(crate) struct Held {
    pub running: Running,
    pub client: String,
    busy: AtomicUsize,
    /// When it ends unless it is renewed, where its lease does not say so: one that cannot be detached is held by this process.
    end: Mutex<Option<SystemTime>>,
    /// The agent's handles by machine: what T1 rests on is tried out once for each.
    agents: tokio::sync::Mutex<BTreeMap<String, AgentSandbox>>,
    /// Its share of the budget; environments that others started have none.
    _permit: Option<Permit>,
}

/// Shows that a request is under way in an environment, so that its lease does not end meanwhile.
pub(crate) struct Busy(Arc<Held>, bool);

impl Busy {
    fn new(held: &Arc<Held>) -> Self {
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

impl Held {
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed) > 0
    }

    fn end(&self) -> MutexGuard<'_, Option<SystemTime>> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes its end, where that is this process's to say. Whether it is.
    fn prolong(&self, hold: Hold) -> bool {
        if !self.running.is_attached() {
            return false;
        }
        *self.end() = match hold {
            Hold::Until(end) => Some(end),
            // As long as this daemon, which cannot leave it behind.
            _ => None,
        };
        true
    }

    /// Whether its time is up. While it is in use, its time goes on.
    pub fn is_over(&self, now: SystemTime, ttl: Duration) -> bool {
        let mut end = self.end();
        if self.is_busy() {
            *end = end.map(|end| end.max(now + ttl));
        }
        end.is_some_and(|end| end <= now)
    }
}

impl Shared {
    /// Starts an environment for a client, when there is room for it.
    pub async fn create(self: &Arc<Self>, client: &Client, asked: wire::Create) -> Result<wire::Environment> {
        let ttl = self.ttl(asked.ttl)?;
        let wait = asked.wait.map_or(Ok(WAIT), |wait| seconds("wait", wait))?;
        let mut options = StartOptions::new();
        options.set = asked.set.into_iter().collect();
        options.allow_weaker = asked.allow_weaker;
        options.weaker_set = asked.weaker_set;
        options.env = asked.env;
        options.name = asked.name;
        options.lifetime = asked.lifetime.map(|lifetime| seconds("lifetime", lifetime)).transpose()?;
        options.labels = labels(asked.labels)?;
        options.log = asked.log;
        let relative = asked.profile.contains('/') && !asked.profile.starts_with('/');
        if asked.profile.is_empty() || relative || asked.profile.contains('\0') {
            return Err(invalid("the profile is neither a name nor an absolute path"));
        }
        let spec = self.client.resolve(asked.profile.as_str(), &options)?;
        let detachable = self.client.check(&spec)?.detached;
        let demand = Demand::of(&spec);
        options.labels.insert(CLIENT_LABEL.into(), client.name.clone());
        options.labels.extend(demand.labels().map(|(key, value)| (key.to_owned(), value)));
        let told = |event: &mut wire::Event| {
            (event.backend, event.profile) = (Some(spec.backend.clone()), Some(spec.profile.clone()));
            event.client = Some(client.name.clone());
        };
        self.events.tell(wire::EventKind::Asked, "", told);
        let permit = self.admission.admit(client, &spec.profile, demand, Instant::now() + wait).await?;
        // The lease's time begins when the environment is ready, or it could expire during a long start.
        options.hold = detachable.then(|| Hold::Until(SystemTime::now() + spec.limits.startup + ttl));
        let began = Instant::now();
        let (backend, profile) = (spec.backend.clone(), spec.profile.clone());
        let told = |event: &mut wire::Event| {
            (event.backend, event.profile, event.client) = (Some(backend), Some(profile), Some(client.name.clone()));
        };
        let running = match self.client.start_spec(spec, options).await {
            Ok(running) => {
                self.events.tell(wire::EventKind::Started, running.id(), told);
                running
            }
            Err(error) => {
                self.events.tell(wire::EventKind::Failed, "", told);
                return Err(error);
            }
        };
        if detachable {
            self.client.renew(running.id(), Hold::Until(SystemTime::now() + ttl))?;
        }
        self.metrics.started(began.elapsed());
        let id = running.id().to_owned();
        let held = Held {
            running,
            client: client.name.clone(),
            busy: AtomicUsize::new(0),
            end: Mutex::new((!detachable).then(|| SystemTime::now() + ttl)),
            agents: Default::default(),
            _permit: Some(permit),
        };
        self.environments().insert(id.clone(), Arc::new(held));
        let mut shown = self.show(&id).await?;
        shown.ttl = Some(ttl.as_secs_f64());
        Ok(shown)
    }

    /// Finds an environment, also one that somebody else started.
    pub async fn find(&self, id_or_name: &str) -> Result<Busy> {
        if let Some(held) = self.environments().get(id_or_name) {
            return Ok(Busy::new(held));
        }
        let id = self.client.journal()?.find(id_or_name)?.record.id;
        if let Some(held) = self.environments().get(&id) {
            return Ok(Busy::new(held));
        }
        let held = self.attach(&id, None).await?;
        Ok(Busy::new(self.environments().entry(id).or_insert(held)))
    }

    async fn attach(&self, id: &str, listed: Option<&Listed>) -> Result<Arc<Held>> {
        let running = self.client.attach(id).await?;
        let client = listed.and_then(|listed| listed.labels.get(CLIENT_LABEL)).cloned();
        let permit = listed
            .zip(client.as_ref())
            .map(|(listed, _)| self.admission.take(Demand::from_labels(&listed.record.backend, &listed.labels)));
        let held = Arc::new(Held {
            running,
            client: client.unwrap_or_default(),
            busy: AtomicUsize::new(0),
            end: Mutex::default(),
            agents: Default::default(),
            _permit: permit,
        });
        // Nobody waits for a machine that may not answer.
        let sweeping = Busy::new(&held);
        tokio::spawn(async move { reaper::expire_tasks(sweeping.running()).await });
        Ok(held)
    }

    /// Finds the environments again that an earlier daemon served.
    pub async fn find_again(&self) -> Result<usize> {
        let mut found = 0;
        for listed in self.client.list().await?.environments {
            let ours = listed.labels.contains_key(CLIENT_LABEL);
            if !ours || !listed.alive || !matches!(listed.standing, Standing::Until | Standing::Kept) {
                continue;
            }
            let id = listed.record.id.clone();
            match self.attach(&id, Some(&listed)).await {
                Ok(held) => {
                    self.environments().insert(id, held);
                    found += 1;
                }
                Err(error) => tracing::warn!(target: "tierbox::op", id, error = error.message(), "could not attach again"),
            }
        }
        Ok(found)
    }

    /// Ends an environment.
    pub async fn destroy(&self, id_or_name: &str) -> Result<wire::Removed> {
        let id = match self.client.journal()?.find(id_or_name) {
            Ok(entry) => entry.record.id,
            Err(error) => return Err(error),
        };
        let held = self.environments().remove(&id);
        self.events.tell(wire::EventKind::Destroyed, &id, |_| ());
        // One that cannot be detached is this process's own: it ends by its handle.
        if let Some(held) = held.filter(|held| held.running.is_attached()) {
            return match Arc::try_unwrap(held) {
                Ok(held) => held.running.stop().await.map(|()| wire::Removed { removed: vec![id] }),
                Err(held) => {
                    // Whoever still uses it is the last to let go, which ends it.
                    drop(held);
                    Ok(wire::Removed { removed: vec![id] })
                }
            };
        }
        Ok(wire::Removed { removed: self.client.down(&id).await?.removed })
    }

    pub async fn show(&self, id_or_name: &str) -> Result<wire::Environment> {
        let found = self.find(id_or_name).await?;
        let running = found.running();
        let listed = self.client.list_one(running.id()).await?;
        let mut shown = describe(&listed);
        shown.machines = running.machines().iter().map(|machine| machine.name().to_owned()).collect();
        let failed = |error: serde_json::Error| Error::new(ErrorKind::Internal, "write report", error.to_string());
        shown.report = Some(serde_json::to_value(running.report()).map_err(failed)?);
        shown.attestation = running.attestation().map(serde_json::to_value).transpose().map_err(failed)?;
        shown.terminated = running.is_terminated();
        Ok(shown)
    }

    pub async fn list(&self) -> Result<wire::Environments> {
        let environments = self.client.list().await?.environments.iter().map(describe).collect();
        Ok(wire::Environments { environments, waiting: self.admission.usage().waiting })
    }

    /// Renews one lease.
    pub fn renew(&self, id_or_name: &str, asked: &wire::Renew) -> Result<wire::Renewed> {
        let hold = self.hold(asked)?;
        let id = self.client.journal()?.find(id_or_name)?.record.id;
        let prolonged = self.environments().get(&id).is_some_and(|held| held.prolong(hold));
        if !prolonged {
            self.client.renew(&id, hold)?;
        }
        Ok(wire::Renewed { environments: vec![id] })
    }

    /// Renews every lease of a client. Those that are gone are left out.
    pub fn renew_all(&self, client: &str, asked: &wire::Renew) -> Result<wire::Renewed> {
        let hold = self.hold(asked)?;
        let named = |id: &str| asked.environments.as_ref().is_none_or(|ids| ids.iter().any(|named| named == id));
        let mine = |held: &&Arc<Held>| held.client == client && named(held.running.id());
        let held: Vec<Arc<Held>> = self.environments().values().filter(mine).cloned().collect();
        let renewed = |held: &Arc<Held>| held.prolong(hold) || self.client.renew(held.running.id(), hold).is_ok();
        let renewed = held.into_iter().filter(renewed).map(|held| held.running.id().to_owned());
        Ok(wire::Renewed { environments: renewed.collect() })
    }

    fn hold(&self, asked: &wire::Renew) -> Result<Hold> {
        let ttl = self.ttl(asked.ttl)?;
        Ok(if asked.keep { Hold::Kept } else { Hold::Until(SystemTime::now() + ttl) })
    }

    fn ttl(&self, asked: Option<f64>) -> Result<Duration> {
        let ttl = asked.map_or(Ok(self.options.ttl), |ttl| seconds("ttl", ttl))?;
        if !(1..=604_800).contains(&ttl.as_secs()) {
            return Err(invalid("the ttl is not between one second and one week"));
        }
        Ok(ttl)
    }
}

/// Seconds as a duration of at most a year.
pub(crate) fn seconds(what: &str, value: f64) -> Result<Duration> {
    match Duration::try_from_secs_f64(value) {
        Ok(duration) if duration.as_secs() <= 31_536_000 => Ok(duration),
        _ => Err(invalid(&format!("{what} is not between 0 and 31536000 seconds"))),
    }
}

pub(crate) fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, "read request", what)
}

fn labels(asked: BTreeMap<String, String>) -> Result<BTreeMap<String, String>> {
    if asked.keys().any(|key| key.starts_with(OWN_LABELS)) {
        return Err(invalid("labels that begin with `serve.` are the daemon's own"));
    }
    if asked.len() > 32 || asked.iter().any(|(key, value)| key.len() > 64 || value.len() > 1024) {
        return Err(invalid("there are more than 32 labels, or one is longer than 1024 bytes"));
    }
    Ok(asked)
}

fn describe(listed: &Listed) -> wire::Environment {
    let record = &listed.record;
    let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let hold = match record.hold {
        Hold::Until(end) => Some(end),
        Hold::Process | Hold::Kept => None,
    };
    let foreign = |(key, _): &(&String, &String)| !key.starts_with(OWN_LABELS);
    wire::Environment {
        id: record.id.clone(),
        name: record.name.clone(),
        profile: record.profile.clone(),
        tier: record.tier.clone(),
        backend: record.backend.clone(),
        client: listed.labels.get(CLIENT_LABEL).cloned().unwrap_or_default(),
        ttl: None,
        ends: record.expires.into_iter().chain(hold).min().map(since),
        state: state(listed).to_owned(),
        labels: listed.labels.iter().filter(foreign).map(|(key, value)| (key.clone(), value.clone())).collect(),
        machines: Vec::new(),
        report: None,
        attestation: None,
        terminated: false,
    }
}

fn state(listed: &Listed) -> &'static str {
    match (listed.standing, listed.alive) {
        (Standing::Held, _) => "in use",
        (Standing::Until, true) => "up",
        (Standing::Kept, true) => "kept",
        (Standing::Orphaned, _) => "orphaned",
        (Standing::Expired, _) => "expired",
        (Standing::Until | Standing::Kept, false) => "gone",
    }
}
