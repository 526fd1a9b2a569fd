//! What the cases have in common.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use tierbox_core::{Backend, Environment, EnvironmentSpec, Error, ErrorKind, LeaseHandle, Registry, Silent};
use tierbox_ec2::Ec2Backend;
use tierbox_lease::{Journal, Lease, NewLease};

use crate::server::{Server, absent};

/// What a case comes to.
pub type Outcome = Result<(), String>;

/// Anything that goes wrong, as text.
pub fn text(error: impl std::fmt::Debug) -> String {
    format!("{error:?}")
}

/// Fails a case unless something holds.
macro_rules! ensure {
    ($holds:expr, $($why:tt)+) => {
        if !$holds {
            return Err(format!($($why)+));
        }
    };
}
pub(crate) use ensure;

/// A case that needs the server.
pub fn trial<F>(name: &str, case: fn(World) -> F) -> Trial
where
    F: Future<Output = Outcome> + Send + 'static,
{
    let own = format!("aws::{name}");
    let limit = Duration::from_secs(if name.starts_with("slow::") { 1200 } else { 240 });
    let missing = absent();
    let ignored = missing.is_some() && std::env::var_os("CI").is_none_or(|value| value.is_empty());
    let shown = own.clone();
    let run = move || {
        if let Some(absence) = missing {
            let required = include_str!("../engines-required.txt");
            return tierbox_testkit::skipped("aws", &shown, &absence, required).map_err(Into::into);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(text)?;
        runtime.block_on(async {
            match tokio::time::timeout(limit, case(World::new())).await {
                Ok(outcome) => outcome.map_err(Into::into),
                Err(_) => Err(format!("it did not end within {limit:?}").into()),
            }
        })
    };
    Trial::test(own, run).with_kind(if ignored { "engine absent" } else { "" }).with_ignored_flag(ignored)
}

/// A caller of the server with a journal of its own.
pub struct World {
    pub server: Server,
    pub journal: Journal,
    state: Option<tempfile::TempDir>,
}

/// An environment and its lease.
pub struct Started {
    pub environment: Box<dyn Environment>,
    pub lease: Arc<Lease>,
}

impl World {
    fn new() -> Self {
        let state = tempfile::Builder::new().prefix("tierbox-aws-").tempdir().expect("a directory");
        let journal = Journal::at(&state.path().join("state")).expect("a journal");
        Self { server: Server::new(), journal, state: Some(state) }
    }

    /// The world of another process: its caller and its journal.
    pub fn of(key: &str, state: &Path) -> Self {
        let journal = Journal::at(&state.join("state")).expect("a journal");
        Self { server: Server::of_key(key), journal, state: None }
    }

    /// The directory of its journal.
    pub fn state(&self) -> &Path {
        self.state.as_ref().expect("the world's own").path()
    }

    /// The usual environment with changes.
    pub fn spec(&self, change: impl FnOnce(&mut EnvironmentSpec)) -> EnvironmentSpec {
        let mut spec = self.server.spec();
        change(&mut spec);
        spec
    }

    /// Starts an environment under a lease.
    pub async fn start(&self, spec: &EnvironmentSpec) -> tierbox_core::Result<Started> {
        let backend = Ec2Backend::new();
        backend.validate(spec)?;
        backend.capabilities(spec)?.admit(spec)?;
        let lease = Arc::new(self.journal.create(NewLease::new("ec2", "ec2", spec.tier.to_string()))?);
        let handle: Arc<dyn LeaseHandle> = lease.clone();
        let environment = backend.start(spec, handle, &Silent).await?;
        Ok(Started { environment, lease })
    }

    /// Starts an environment whose tier cannot be had, for a reason that is named.
    pub async fn refuses(&self, spec: &EnvironmentSpec, what: &str) -> Result<Error, String> {
        let Err(error) = self.start(spec).await else { return Err(format!("it started, though {what}")) };
        ensure!(error.kind() == ErrorKind::TierRefused && error.to_string().contains(what), "{what}: {error}");
        Ok(error)
    }

    /// Starts the usual environment.
    pub async fn usual(&self) -> Result<Started, String> {
        self.start(&self.spec(|_| ())).await.map_err(text)
    }

    /// Counts the calls that something takes.
    pub async fn counted<T>(&self, work: impl Future<Output = T>) -> (T, std::collections::BTreeMap<String, u64>) {
        let before = self.server.calls();
        let value = work.await;
        let mut after = self.server.calls();
        for (name, count) in before {
            after.entry(name).and_modify(|now| *now -= count);
        }
        after.retain(|_, count| *count > 0);
        (value, after)
    }

    /// Whether nothing of this caller is left: no instance that lives, no object.
    pub fn is_clean(&self) -> bool {
        let living = self.server.instances().values().any(|state| !matches!(state.as_str(), "terminated" | "shutting-down"));
        !living && self.server.objects().is_empty()
    }

    /// Waits until something holds.
    pub async fn until(&self, limit: Duration, what: &str, mut holds: impl FnMut() -> bool) -> Outcome {
        let begun = Instant::now();
        while !holds() {
            if begun.elapsed() > limit {
                return Err(format!("after {limit:?}, still not: {what}"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// The registry with this backend alone.
    pub fn registry(&self) -> Registry {
        let mut registry = Registry::empty();
        registry.register(Arc::new(Ec2Backend::new()));
        registry
    }
}
