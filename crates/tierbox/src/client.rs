//! The client: from a profile to a running environment.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use tierbox_core::{
    Backend, Capabilities, Check, DestroyReport, EnvironmentSpec, Error, ErrorKind, Hold, LeaseRecord, Network, Registry, Result,
    Tier,
};
use tierbox_lease::{CleanupOptions, CleanupReport, Entry, Foreign, Journal, Standing, StateDir};
use tierbox_profile::{Loader, Profile};
use tierbox_verify::OperationLog;

use crate::decided::Decided;
use crate::memo::Memo;
use crate::noted::Noted;
use crate::profiles::{ProfileSource, Profiles};
use crate::running::{Running, destroy};
use crate::termination::Termination;
use crate::{AuditLayer, Run, StartOptions, check, life, runs, start};

/// How long what a gateway decided may take to be read, before its environment is ended.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// How long an engine may take to say whether an environment is still there.
const ANSWER: Duration = Duration::from_secs(3);

/// Starts and finds environments. Cheap to clone; clones share everything.
///
/// It needs a tokio runtime with time enabled, of either flavour.
#[derive(Debug, Clone)]
pub struct Tierbox {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    registry: Registry,
    profiles: Profiles,
    state_dir: Option<PathBuf>,
    journal: OnceLock<Journal>,
}

/// Lets the backends get ready for a start that will come soon, in the background. For programs that start one environment: it saves
/// them a millisecond or two, the more the sooner it is called. What it starts ends with this process.
pub fn prepare(registry: &Registry) {
    let registry = registry.clone();
    let work = move || registry.iter().for_each(|backend| backend.prepare());
    // Without a thread the start does it.
    let _ = std::thread::Builder::new().name("tierbox-prepare".to_owned()).spawn(work);
}

/// Settings of a [`Tierbox`].
#[derive(Debug, Clone, Default)]
pub struct TierboxBuilder {
    registry: Option<Registry>,
    state_dir: Option<PathBuf>,
    profiles: Profiles,
}

impl TierboxBuilder {
    /// The backends to use; those linked into the program by default.
    #[must_use]
    pub fn registry(mut self, registry: Registry) -> Self {
        self.registry = Some(registry);
        self
    }

    /// Where leases are kept; [`StateDir::locate`] tells the default.
    #[must_use]
    pub fn state_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.state_dir = Some(path.into());
        self
    }

    /// A further directory of profiles, looked in before the ready ones. May be called again.
    #[must_use]
    pub fn profile_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.profiles.directories.push(path.into());
        self
    }

    /// Whether the user's configuration file and `TIERBOX__…` variables are layers above the profile. Yes by default; a
    /// harness whose runs must not depend on who runs them says no.
    #[must_use]
    pub fn user_config(mut self, yes: bool) -> Self {
        self.profiles.user_config = yes;
        self
    }

    /// The client.
    ///
    /// # Errors
    /// None at present: the state directory is opened when it is first needed.
    pub fn build(self) -> Result<Tierbox> {
        let registry = self.registry.unwrap_or_else(Registry::linked);
        let inner = Inner { registry, profiles: self.profiles, state_dir: self.state_dir, journal: OnceLock::new() };
        Ok(Tierbox { inner: Arc::new(inner) })
    }
}

/// An environment as `tierbox ls` shows it.
#[derive(Debug, Clone)]
pub struct Listed {
    /// What its lease says.
    pub record: LeaseRecord,
    /// Who wants it.
    pub standing: Standing,
    /// Whether anything of it still exists. Of one whose engine does not answer, it is taken for granted.
    pub alive: bool,
    /// What its starter noted: [`StartOptions::label`](crate::StartOptions::label).
    pub labels: BTreeMap<String, String>,
}

/// An environment as the journal knows it: no engine was asked.
#[derive(Debug, Clone)]
pub struct Leased {
    /// What its lease says.
    pub record: LeaseRecord,
    /// Who wants it.
    pub standing: Standing,
    /// What its starter noted: [`StartOptions::label`](crate::StartOptions::label).
    pub labels: BTreeMap<String, String>,
}

impl Leased {
    fn of(entry: Entry) -> Self {
        let standing = entry.standing(SystemTime::now());
        Self { record: entry.record, standing, labels: Memo::from_value(&entry.memo).labels }
    }
}

/// All environments, and what lies among their leases without being one.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// Environments, oldest first.
    pub environments: Vec<Listed>,
    /// Files that tierbox did not write, or cannot read.
    pub foreign: Vec<Foreign>,
}

impl Tierbox {
    /// A client with the linked backends, the default state directory and the user's configuration.
    ///
    /// # Errors
    /// As [`TierboxBuilder::build`].
    pub fn new() -> Result<Self> {
        Self::builder().build()
    }

    /// A client with other settings.
    pub fn builder() -> TierboxBuilder {
        TierboxBuilder::default()
    }

    /// The backends.
    pub fn registry(&self) -> &Registry {
        &self.inner.registry
    }

    /// The journal of leases, opened (and its directory made) on first use.
    ///
    /// # Errors
    /// As [`StateDir::open`].
    pub fn journal(&self) -> Result<&Journal> {
        if let Some(journal) = self.inner.journal.get() {
            return Ok(journal);
        }
        let journal = Journal::at(&self.state_path()?)?;
        Ok(self.inner.journal.get_or_init(|| journal))
    }

    /// Where leases are kept. Does not make it.
    ///
    /// # Errors
    /// As [`StateDir::locate`].
    pub fn state_path(&self) -> Result<PathBuf> {
        self.inner.state_dir.clone().map_or_else(StateDir::locate, Ok)
    }

    /// Starts a profile by its name, or by the path of its file.
    ///
    /// # Errors
    /// As [`start_with`](Self::start_with).
    pub async fn start(&self, profile: &str) -> Result<Running> {
        self.start_with(profile, StartOptions::default()).await
    }

    /// Starts a profile (a name, a path, or one built in code) with changes of its own.
    ///
    /// Dropping the returned future undoes the start, in the background.
    ///
    /// # Errors
    /// `UnknownProfile`, `InvalidProfile`, `UnknownBackend`; `TierRefused`, `LimitRefused` or `Unsupported` naming what
    /// cannot be enforced, before anything exists; `LimitReached` beyond `limits.max-environments`; `Timeout` beyond
    /// `limits.startup`; and what the backend's start says. In every case nothing is left behind.
    pub async fn start_with(&self, profile: impl Into<ProfileSource>, options: StartOptions) -> Result<Running> {
        let spec = self.resolve(profile, &options)?;
        self.start_spec(spec, options).await
    }

    /// Starts a resolved specification. Of the options only those count that do not change it: name, hold, labels, progress,
    /// audit.
    ///
    /// # Errors
    /// As [`start_with`](Self::start_with).
    pub async fn start_spec(&self, mut spec: EnvironmentSpec, options: StartOptions) -> Result<Running> {
        if let Some(hold) = options.hold {
            spec.hold = hold;
        }
        let backend = self.backend(&spec)?;
        start::preflight(backend.as_ref(), &spec)?;
        self.keep_state_private(&spec)?;
        options.name.as_deref().map_or(Ok(()), |name| self.check_name(name))?;
        let journal = self.journal()?;
        self.make_room(&spec).await?;
        start::start(backend, journal, spec, options).await
    }

    /// The specification that a profile and options come to. No side effects.
    ///
    /// # Errors
    /// `UnknownProfile`, `InvalidProfile`.
    pub fn resolve(&self, profile: impl Into<ProfileSource>, options: &StartOptions) -> Result<EnvironmentSpec> {
        self.inner.profiles.resolve(&self.inner.registry, profile.into(), options)
    }

    /// The profile that a name and options come to, with the origin of every value.
    ///
    /// # Errors
    /// `UnknownProfile`, `InvalidProfile`, `WeakerRefused`.
    pub fn load(&self, profile: impl Into<ProfileSource>, options: &StartOptions) -> Result<Profile> {
        self.inner.profiles.load(&self.inner.registry, profile.into(), options)
    }

    /// What reads profiles: for lists, validation and the schema.
    ///
    /// # Errors
    /// `InvalidInput` for a directory of profiles with a colon in its path.
    pub fn loader(&self) -> Result<Loader> {
        self.inner.profiles.loader(&self.inner.registry)
    }

    /// As [`prepare`], with this client's backends.
    pub fn prepare(&self) {
        prepare(&self.inner.registry);
    }

    /// Checks that a specification could start here, and tells what its machine could do. No side effects.
    ///
    /// # Errors
    /// As [`start_with`](Self::start_with), as far as can be told without starting.
    pub fn check(&self, spec: &EnvironmentSpec) -> Result<Capabilities> {
        let capabilities = start::preflight(self.backend(spec)?.as_ref(), spec)?;
        self.keep_state_private(spec)?;
        Ok(capabilities)
    }

    /// Finds a detached environment by its id or name. Where its profile is verified at every start (`verify = "always"`, and by
    /// default machines that are remote or virtual), its probes are carried out again; elsewhere its report says of when they are.
    ///
    /// # Errors
    /// `NotFound`, naming what there is; `TierRefused` if a probe failed; it then lives on, and `tierbox down` ends it.
    pub async fn attach(&self, id_or_name: &str) -> Result<Running> {
        self.attach_with(id_or_name, false).await
    }

    /// The same, with everything on record from now on: in its log, or in one that begins here and is attested where it can be.
    ///
    /// # Errors
    /// As [`attach`](Self::attach); what the file system says.
    pub async fn attach_logged(&self, id_or_name: &str) -> Result<Running> {
        let running = self.attach_with(id_or_name, true).await?;
        if running.logged_run()?.is_some_and(|run| run.attestation.is_none()) {
            running.attest()?;
        }
        Ok(running)
    }

    async fn attach_with(&self, id_or_name: &str, logged: bool) -> Result<Running> {
        #[allow(unused_mut)]
        let mut running = self.find(id_or_name, logged).await?;
        #[cfg(target_os = "linux")]
        running.verify_found_again().await?;
        Ok(running)
    }

    async fn find(&self, id_or_name: &str, logged: bool) -> Result<Running> {
        let journal = self.journal()?;
        let entry = journal.find(id_or_name)?;
        let backend = self.inner.registry.get(&entry.record.backend)?;
        let environment = backend.attach(&entry.record).await?;
        let report = environment.report().clone();
        tracing::info!(target: "tierbox::op", id = entry.record.id, "attach");
        let mut memo = Memo::from_value(&entry.memo);
        let log = runs::reopen(journal, &entry.record.id, &memo, logged)?;
        let (noted, spec) = (Noted::of(journal, &entry.record.id), memo.spec.take());
        let running = Running::new(environment, backend, journal.clone(), None, report, memo, entry.record.expires).logged(log);
        Ok(running.found_again(noted, spec).following())
    }

    /// A run that was logged ([`StartOptions::log`]), by its environment's id or name, or by its directory. Of several environments
    /// that had the name one after the other, it is the one that has it now, else the last.
    ///
    /// # Errors
    /// `NotFound`; what the file system says.
    pub fn run(&self, id_name_or_directory: &str) -> Result<Run> {
        if id_name_or_directory.contains('/') {
            return Run::read(PathBuf::from(id_name_or_directory));
        }
        let state = self.state_path()?;
        let directory = runs::directory(&state, id_name_or_directory)?;
        if directory.exists() {
            return Run::read(directory);
        }
        match self.journal()?.find(id_name_or_directory) {
            Ok(entry) => Run::read(runs::directory(&state, &entry.record.id)?),
            Err(_) => Run::read(runs::last_named(&state, id_name_or_directory).unwrap_or(directory)),
        }
    }

    /// All environments in the state directory.
    ///
    /// # Errors
    /// If the state directory cannot be read.
    pub async fn list(&self) -> Result<Listing> {
        let found = self.journal()?.list()?;
        let mut listing = Listing { foreign: found.foreign, environments: Vec::new() };
        // What a verification makes and ends is nobody's environment, unless it was left behind.
        let shown = found.entries.into_iter().filter(|entry| !(entry.twin && entry.locked));
        // All are asked at once, so that an engine that does not answer holds up no other.
        let asked: Vec<_> = shown
            .map(|entry| {
                let client = self.clone();
                tokio::spawn(async move { client.listed(entry).await })
            })
            .collect();
        for listed in asked {
            let failed = |error: tokio::task::JoinError| Error::new(ErrorKind::Internal, "list environments", error.to_string());
            listing.environments.push(listed.await.map_err(failed)?);
        }
        Ok(listing)
    }

    /// All environments in the state directory, as the journal knows them, without what verifications make.
    ///
    /// # Errors
    /// If the state directory cannot be read.
    pub fn leases(&self) -> Result<Vec<Leased>> {
        let entries = self.journal()?.list()?.entries;
        Ok(entries.into_iter().filter(|entry| !entry.twin).map(Leased::of).collect())
    }

    /// One environment as the journal knows it, by id or name.
    ///
    /// # Errors
    /// `NotFound`, naming what there is.
    pub fn lease(&self, id_or_name: &str) -> Result<Leased> {
        Ok(Leased::of(self.journal()?.find(id_or_name)?))
    }

    /// One environment, by id or name.
    ///
    /// # Errors
    /// `NotFound`, naming what there is.
    pub async fn list_one(&self, id_or_name: &str) -> Result<Listed> {
        let entry = self.journal()?.find(id_or_name)?;
        Ok(self.listed(entry).await)
    }

    /// Ends a detached or orphaned environment, by id or name.
    ///
    /// # Errors
    /// `NotFound`; `LimitReached` if a living process holds it; what could not be removed.
    pub async fn down(&self, id_or_name: &str) -> Result<DestroyReport> {
        let journal = self.journal()?;
        let entry = journal.find(id_or_name)?;
        let lease = journal.adopt(&entry.record.id)?;
        let record = lease.snapshot();
        let backend = self.inner.registry.get(&record.backend)?;
        let memo = Memo::from_value(&entry.memo);
        let log = runs::reopen(journal, &record.id, &memo, false)?;
        let left = self.left(&record, log.clone())?;
        // What is about to end is not verified again, and its end does not wait for it.
        let find = async { if left.is_some() { self.find(&record.id, false).await.ok() } else { None } };
        let found = tokio::time::timeout(LAST_WORDS, find).await.ok().flatten();
        let environment = found.as_ref().map(Running::environment);
        let decided = found.as_ref().and_then(Running::decided).or(left);
        if let Some(decided) = &decided {
            // What goes with the environment is read before its end; what cannot be read is told after it.
            let _ = tokio::time::timeout(LAST_WORDS, decided.catch_up(environment.as_deref())).await;
        }
        let report = destroy(backend.as_ref(), &record).await?;
        if let Some(decided) = &decided {
            decided.finish(environment.as_deref()).await;
        }
        drop(found);
        lease.remove()?;
        Termination::forget(journal.state().path(), &record.id);
        tracing::info!(target: "tierbox::op", id = record.id, "down");
        if let Some(log) = log {
            life::step(Some(&AuditLayer::new(log.clone(), record.id.as_str())), "stopped");
            log.flush(true)?;
        }
        Ok(report)
    }

    /// What brings the decisions that are left of an ended environment into its log; `None` if it had no gateway or no log.
    fn left(&self, record: &LeaseRecord, log: Option<Arc<OperationLog>>) -> Result<Option<Arc<Decided>>> {
        let is_named = record.tier.parse::<Tier>().is_ok_and(|tier| tier.network() == Network::N1);
        let Some(log) = log.filter(|_| is_named) else { return Ok(None) };
        let lease = self.journal()?.state().environments().join(&record.id);
        let layer = AuditLayer::new(log.clone(), record.id.as_str());
        Ok(Some(Decided::new(layer, log, lease, Arc::default())))
    }

    /// Changes who keeps a detached environment: prolongs it, or keeps it until a person ends it. By id or name.
    ///
    /// # Errors
    /// `NotFound`; `LimitReached` if a living process holds it; `InvalidInput` for [`Hold::Process`], which needs a process
    /// that lives for it.
    pub fn renew(&self, id_or_name: &str, hold: Hold) -> Result<LeaseRecord> {
        if hold == Hold::Process {
            let message = "a detached environment cannot be held by a process";
            return Err(Error::new(ErrorKind::InvalidInput, "renew lease", message));
        }
        let journal = self.journal()?;
        let lease = journal.adopt(&journal.find(id_or_name)?.record.id)?;
        lease.set_hold(hold)?;
        Ok(lease.snapshot())
    }

    /// Removes what nobody wants any more.
    ///
    /// # Errors
    /// If the state directory cannot be read; the rest is in the report.
    pub async fn cleanup(&self, options: CleanupOptions) -> Result<CleanupReport> {
        #[cfg(target_os = "linux")]
        tierbox_verify::remove_orphans();
        let journal = self.journal()?;
        let report = tierbox_lease::cleanup_with(journal, &self.inner.registry, options, &|entry| self.keep_left(entry)).await?;
        Termination::forget_all_but(journal.state().path(), |id| journal.find(id).is_ok());
        Ok(report)
    }

    /// Removes one environment, by its id, if nobody wants it any more: neither its lease, nor `wanted`, which is asked last.
    ///
    /// # Errors
    /// `NotFound`; if its lease cannot be read; the rest is in the report.
    pub async fn cleanup_one(&self, id: &str, wanted: impl Fn() -> bool + Send + Sync) -> Result<CleanupReport> {
        #[cfg(target_os = "linux")]
        tierbox_verify::remove_orphans();
        let journal = self.journal()?;
        let registry = &self.inner.registry;
        let report = tierbox_lease::cleanup_one(journal, registry, id, &wanted, &|entry| self.keep_left(entry)).await?;
        if !report.removed.is_empty() {
            Termination::forget(journal.state().path(), id);
        }
        Ok(report)
    }

    /// Keeps what the gateway of a logged environment had decided whose owner is gone, before its lease is removed.
    fn keep_left(&self, entry: &Entry) {
        let keep = || -> Result<()> {
            let log = runs::reopen(self.journal()?, &entry.record.id, &Memo::from_value(&entry.memo), false)?;
            if let Some(decided) = self.left(&entry.record, log)? {
                decided.finish_left();
            }
            Ok(())
        };
        if let Err(error) = keep() {
            tracing::warn!(target: "tierbox::op", id = entry.record.id, "its last decisions are not in its log: {}", error.message());
        }
    }

    /// What this host can enforce, by backend.
    pub async fn doctor(&self) -> Vec<(&'static str, Vec<Check>)> {
        let mut checks = Vec::new();
        for backend in self.inner.registry.iter() {
            checks.push((backend.name(), backend.doctor().await));
        }
        checks
    }

    /// No path may show this client's state directory, nor the one that others use by default.
    fn keep_state_private(&self, spec: &EnvironmentSpec) -> Result<()> {
        let settings = if spec.settings.as_object().is_none_or(|table| table.is_empty()) {
            Vec::new()
        } else {
            tierbox_profile::host_paths(&self.backend(spec)?.settings_schema(), &spec.settings, &spec.base_dir)
        };
        if spec.mounts.is_empty() && spec.files.is_empty() && settings.is_empty() {
            return Ok(());
        }
        let (own, usual) = (self.state_path()?, StateDir::locate().ok());
        let states: Vec<&Path> = usual.as_deref().into_iter().chain([own.as_path()]).collect();
        check::check_state(spec, &settings, &states)
    }

    /// A name that an environment may get as its id would mean two of them.
    fn check_name(&self, name: &str) -> Result<()> {
        if !self.inner.registry.iter().any(|backend| tierbox_lease::is_shaped_like_id(name, backend.name())) {
            return Ok(());
        }
        let message = format!("{name:?} is shaped like an id, and could come to mean another environment");
        Err(Error::new(ErrorKind::InvalidInput, "name environment", message)
            .with_help("choose a name such as `demo` or `build-2`"))
    }

    fn backend(&self, spec: &EnvironmentSpec) -> Result<Arc<dyn Backend>> {
        self.inner.registry.get(&spec.backend)
    }

    async fn listed(&self, entry: Entry) -> Listed {
        let standing = entry.standing(SystemTime::now());
        let alive = match self.inner.registry.get(&entry.record.backend) {
            Ok(backend) => tokio::time::timeout(ANSWER, backend.is_alive(&entry.record)).await.unwrap_or(true),
            Err(_) => false,
        };
        Listed { record: entry.record, standing, alive, labels: Memo::from_value(&entry.memo).labels }
    }

    /// Removes dead environments before a count limit refuses a start because of them.
    async fn make_room(&self, spec: &EnvironmentSpec) -> Result<()> {
        let Some(max) = spec.limits.max_environments else { return Ok(()) };
        let entries = self.journal()?.list()?.entries;
        if (entries.iter().filter(|entry| entry.record.backend == spec.backend && !entry.twin).count() as u64) < max {
            return Ok(());
        }
        for spare in entries.iter().filter(|entry| entry.record.backend == spec.backend && is_spare(entry)) {
            // Whoever takes it at this moment has it; else it is nobody's from here on.
            if let Ok(lease) = self.journal()?.adopt(&spare.record.id)
                && lease.snapshot().resources_of(SPARE).next().is_some()
            {
                lease.set_hold(Hold::Process)?;
            }
        }
        self.cleanup(CleanupOptions::default()).await.map(|_| ())
    }
}

/// The kind of resource by which a backend says that nobody needs an environment, such as one kept for the next start.
const SPARE: &str = "spare";

fn is_spare(entry: &tierbox_lease::Entry) -> bool {
    entry.standing(SystemTime::now()) == Standing::Until && entry.record.resources_of(SPARE).next().is_some()
}
