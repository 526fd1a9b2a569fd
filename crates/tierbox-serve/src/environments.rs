//! Environments: started for clients, found, shown.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tierbox::{Error, ErrorKind, Hold, Leased, Listed, Result, Running, Standing, StartOptions};

use crate::admission::Demand;
use crate::held::{Busy, Held};
use crate::server::Shared;
use crate::turns::Client;
use crate::{labels, reaper, wire};

/// How long a start waits for admission, unless its client says otherwise.
const WAIT: Duration = Duration::from_secs(60);

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
        options.labels = labels::checked(asked.labels)?;
        options.log = asked.log;
        let relative = asked.profile.contains('/') && !asked.profile.starts_with('/');
        if asked.profile.is_empty() || relative || asked.profile.contains('\0') {
            return Err(invalid("the profile is neither a name nor an absolute path"));
        }
        let spec = self.client.resolve(asked.profile.as_str(), &options)?;
        let detachable = self.client.check(&spec)?.detached;
        let demand = Demand::of(&spec);
        options.labels.extend(labels::of(client, ttl));
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
        self.metrics.started(began.elapsed());
        let id = running.id().to_owned();
        self.shares().insert(id.clone(), permit);
        self.scale_share(&running);
        self.environments().insert(id.clone(), Arc::new(Held::new(running, Some(ttl))));
        if detachable {
            self.client.renew(&id, Hold::Until(SystemTime::now() + ttl))?;
        }
        let mut shown = self.show(&id).await?;
        shown.ttl = Some(ttl.as_secs_f64());
        Ok(shown)
    }

    /// Finds an environment, also one that somebody else started.
    pub async fn find(&self, id_or_name: &str) -> Result<Busy> {
        if let Some(held) = self.environments().get(id_or_name) {
            return Ok(Busy::new(held));
        }
        let leased = self.client.lease(id_or_name)?;
        if let Some(held) = self.environments().get(&leased.record.id) {
            return Ok(Busy::new(held));
        }
        let held = self.attach(&leased).await?;
        Ok(Busy::new(self.environments().entry(leased.record.id).or_insert(held)))
    }

    async fn attach(&self, leased: &Leased) -> Result<Arc<Held>> {
        let running = self.client.attach(&leased.record.id).await?;
        self.take_share(leased);
        self.scale_share(&running);
        let held = Arc::new(Held::new(running, labels::ttl(&leased.labels)));
        // Nobody waits for a machine that may not answer, and this does not keep it.
        let sweeping = Busy::new(&held).unheld();
        tokio::spawn(async move { reaper::expire_tasks(sweeping.running()).await });
        Ok(held)
    }

    /// What was asked for is for each machine: now it is known how many there are.
    fn scale_share(&self, running: &Running) {
        if let Some(share) = self.shares().get_mut(running.id()) {
            share.times(running.machines().len() as u64);
        }
    }

    /// Whether a request is under way in an environment that keeps it.
    pub fn is_busy(&self, id: &str) -> bool {
        self.environments().get(id).is_some_and(|held| held.is_busy())
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

fn describe(listed: &Listed) -> wire::Environment {
    let record = &listed.record;
    let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let hold = match record.hold {
        Hold::Until(end) => Some(end),
        Hold::Process | Hold::Kept => None,
    };
    let foreign = |(key, _): &(&String, &String)| !key.starts_with(labels::OWN);
    wire::Environment {
        id: record.id.clone(),
        name: record.name.clone(),
        profile: record.profile.clone(),
        tier: record.tier.clone(),
        backend: record.backend.clone(),
        client: listed.labels.get(labels::CLIENT).cloned().unwrap_or_default(),
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
