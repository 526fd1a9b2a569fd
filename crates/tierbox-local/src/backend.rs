//! The backend: start, find again, remove.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tierbox_core::{
    Backend, Capabilities, Check, DestroyReport, Environment, EnvironmentSpec, Error, ErrorKind, Hold, HostIsolation, KillDomain,
    LeaseHandle, LeaseRecord, Lifted, Locality, Mechanism, MountSupport, Network, Progress, Report, Resource, Result,
    UserSupport,
};
use tierbox_guest::Ready;
use tierbox_supervisor::setup::Root;

use crate::environment::{LocalEnvironment, Memory, Parts, Remembered, to_data};
use crate::machine::Way;
use crate::plan::{self, Plan, cgroups::Cgroups, limits};
use crate::reaper::Watched;
use crate::scope::Scope;
use crate::selfcheck::SelfCheck;
use crate::settings::{Mode, Settings};
use crate::{BACKEND, crash, destroy, doctor, machine, spawn, twin};

/// The mechanisms without which a container is not H1.
const REQUIRED: [&str; 8] = [
    "user namespace",
    "mount namespace",
    "pid namespace",
    "network namespace",
    "ipc namespace",
    "uts namespace",
    "seccomp",
    "no_new_privs",
];

/// How long a machine that did not come up may take to end by itself.
const UNDO_PATIENCE: Duration = Duration::from_millis(500);

/// The backend `local`: processes and containers on this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct LocalBackend;

impl LocalBackend {
    /// The backend.
    pub fn new() -> Self {
        Self
    }
}

/// What this host can do for a specification, before anything is started.
fn capabilities(spec: &EnvironmentSpec, settings: &Settings, mode: Mode) -> Capabilities {
    let means = plan::means(mode);
    let chosen = means.cgroups.choose(&[]);
    let has_cgroup = (chosen.unified.is_some() && means.cgroups.kill) || !chosen.legacy.is_empty();
    Capabilities {
        networks: match mode {
            Mode::Process => vec![Network::N0],
            Mode::Container => vec![Network::N0, Network::N1, Network::N2],
        },
        kill_domain: if has_cgroup { KillDomain::Cgroup } else { KillDomain::Subreaper },
        users: if plan::other_users(spec, mode, settings) { UserSupport::Any } else { UserSupport::DefaultOnly },
        memory_outcome: limits::capabilities(&spec.limits, means).memory && spec.limits.memory.is_some(),
        confined_exec: plan::has_landlock(),
        mounts: if mode == Mode::Container { MountSupport::ReadWrite } else { MountSupport::None },
        detached: true,
        limits: limits::capabilities(&spec.limits, means),
        ..tierbox_guest::capabilities(mode.isolation(), Locality::Local)
    }
}

/// The same as a promise: a scope that can be asked for counts, and the start refuses if it is not given.
fn declared(spec: &EnvironmentSpec, settings: &Settings, mode: Mode) -> Result<Capabilities> {
    let mut declared = capabilities(spec, settings, mode);
    let means = plan::means(mode);
    if Scope::wanted("check", &limits::wanted_controllers(&spec.limits), means.cgroups).is_some() {
        let can = &mut declared.limits;
        (can.memory, can.cpu, can.pids) = (true, true, true);
    } else {
        // Refused from here, a required limit has its cause named, and what would help on this host.
        limits::plan(&spec.limits, means, "check")?;
    }
    Ok(declared)
}

/// Checks that what was made is what the tier says.
fn check_tier(spec: &EnvironmentSpec, ready: &Ready) -> Result<()> {
    if spec.tier.host() != HostIsolation::H1 {
        return Ok(());
    }
    let has = |name: &&str| ready.mechanisms.iter().any(|mechanism| mechanism.name == *name && is_in_force(mechanism));
    let mut missing: Vec<&str> = REQUIRED.into_iter().filter(|name| !has(name)).collect();
    if ready.kill_domain == KillDomain::Session {
        missing.push("a cgroup or subreaper for each command");
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::TierRefused,
        "start sandbox",
        format!("{} needs what is not in force: {}", spec.tier, missing.join(", ")),
    )
    .with_backend(BACKEND)
    .with_help("the nearest tier that local can enforce here is T0.H0.N0; `tierbox doctor` says what this host lacks"))
}

fn is_in_force(mechanism: &Mechanism) -> bool {
    mechanism.applied == tierbox_core::Applied::Enforced
}

fn report(spec: &EnvironmentSpec, plan: &Plan, ready: &Ready, notes: Vec<String>) -> Report {
    let own = spec.tier.notes().into_iter().map(str::to_owned);
    Report {
        profile: spec.profile.clone(),
        tier: spec.tier,
        backend: BACKEND.to_owned(),
        locality: Locality::Local,
        kill_domain: ready.kill_domain,
        mechanisms: mechanisms(plan, ready),
        limits: plan.limits.clone(),
        mounts: plan.mounts.clone(),
        parts: if plan.mode == Mode::Container { crate::mounts::parts(&plan.setup) } else { Vec::new() },
        copied_in: spec.files.iter().map(|copy| format!("{} -> {}", copy.host.display(), copy.guest)).collect(),
        weakened: spec.weakened.clone(),
        reason: spec.reason.clone(),
        notes: own.chain(notes).collect(),
    }
}

fn mechanisms(plan: &Plan, ready: &Ready) -> Vec<Mechanism> {
    let gateway = plan.gateway.as_ref().map(|gateway| Mechanism {
        name: "egress gateway".to_owned(),
        applied: tierbox_core::Applied::Enforced,
        detail: format!("{} rules; nothing but its sockets is in the network", gateway.rules.iter().len()),
    });
    ready.mechanisms.iter().cloned().chain(gateway).collect()
}

/// A scope of the user's systemd that was asked for and given.
struct Scoped {
    spawned: spawn::Spawned,
    cgroups: Cgroups,
}

/// Starts the keeper in a scope of the user's systemd, if that would give it controllers that it lacks.
async fn scoped(spec: &EnvironmentSpec, mode: Mode, lease: &dyn LeaseHandle, life: bool) -> Result<Option<Scoped>> {
    let means = plan::means(mode);
    let wanted = limits::wanted_controllers(&spec.limits);
    let Some(scope) = Scope::wanted(lease.id(), &wanted, means.cgroups) else { return Ok(None) };
    lease.record(&[Resource { kind: "scope".to_owned(), id: scope.unit().to_owned() }])?;
    let Ok(spawned) = spawn::keeper(Some(&scope), life) else { return Ok(None) };
    match scope.prepare(spawned.keeper.pid()).await {
        Some(cgroups) => Ok(Some(Scoped { spawned, cgroups })),
        // It ends with its socket; the limits are then planned without it, and refused if they are required.
        None => {
            spawned.keeper.kill_after(Duration::ZERO);
            Ok(None)
        }
    }
}

fn make_directories(directories: &[PathBuf]) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    for directory in directories {
        let made = std::fs::DirBuilder::new().mode(0o700).create(directory);
        made.map_err(|error| Error::io("make directory", error).with_backend(BACKEND).with_context("path", directory.display()))?;
    }
    Ok(())
}

/// Adds what is seen from outside to what the machine says of itself.
fn checked(spec: &EnvironmentSpec, plan: &Plan, mut machine: machine::Machine) -> Result<machine::Machine> {
    if plan.mode == Mode::Container {
        machine.ready.mechanisms.extend(SelfCheck::new(spec, &plan.setup, machine.keeper.pid()).run()?);
    }
    Ok(machine)
}

async fn start(
    spec: &EnvironmentSpec,
    lease: Arc<dyn LeaseHandle>,
    progress: &dyn Progress,
    lifted: Option<&Lifted>,
) -> Result<LocalEnvironment> {
    let (settings, mode) = plan::validate(spec)?;
    let life = mode == Mode::Container
        && match spec.tier.network() {
            Network::N0 => true,
            // Held by this process, the machine ends with it, and so may its gateway.
            Network::N1 => spec.hold != Hold::Process,
            Network::N2 => false,
        };
    let scoped = scoped(spec, mode, &*lease, life).await?;
    let found = match &scoped {
        Some(scoped) => &scoped.cgroups,
        None => Cgroups::of_this_host(),
    };
    let mut plan = plan::plan(spec, lease.id(), found, || lease.directory())?;
    if let Some(lifted) = lifted {
        twin::lift(&mut plan.setup, lifted);
    }
    lease.record(&plan.resources)?;
    crash::point("lease");
    let directories = Remains(plan.directories.clone());
    make_directories(&plan.directories)?;
    let spawned = match scoped {
        Some(scoped) => scoped.spawned,
        None => spawn::keeper(None, life)?,
    };
    crash::point("spawned");
    let keeper = Remembered::from(&spawned.keeper);
    lease.set_data(to_data(&Memory { keeper, helper: None, detached: None })?)?;
    let log = match (&plan.helper, &plan.gateway) {
        (Some(_), _) => Some(lease.directory()?.join("network.log")),
        (None, Some(_)) => Some(tierbox_egress::log_path(&lease.directory()?, None)),
        (None, None) => None,
    };
    let way = log.as_deref().and_then(|log| match (&plan.helper, &plan.gateway) {
        (Some(helper), _) => Some(Way::Helper(helper, log)),
        (None, gateway) => gateway.as_ref().map(|plan| Way::Gateway { plan, id: lease.id(), log, canaries: twin::names(lifted) }),
    });
    if let Some(helper) = &plan.helper {
        progress.step(&format!("connecting the network with {}", helper.name()));
    }
    let watched = spawned.keeper.clone();
    let launched = machine::launch(spawned, &plan.setup, way.as_ref(), spec.limits.startup).await;
    let machine = match launched.and_then(|machine| match lifted {
        Some(_) => Ok(machine),
        None => check_tier(spec, &machine.ready).and_then(|()| checked(spec, &plan, machine)),
    }) {
        Ok(machine) => machine,
        Err(error) => {
            undo(&watched, &plan).await;
            return Err(error);
        }
    };
    crash::point("started");
    if let Some(helper) = &machine.helper {
        lease.set_data(to_data(&Memory { keeper, helper: Some(helper.into()), detached: None })?)?;
    }
    let mut capabilities = capabilities(spec, &settings, mode);
    capabilities.kill_domain = machine.ready.kill_domain;
    capabilities.memory_outcome = machine.ready.memory_outcome;
    capabilities.users = if machine.ready.users { UserSupport::Any } else { UserSupport::DefaultOnly };
    let report = report(spec, &plan, &machine.ready, notes(&plan));
    directories.keep();
    spawn::started_one();
    Ok(LocalEnvironment::new(lease.id(), parts(spec, plan, machine, capabilities, report, log), lease.clone()))
}

/// Waits until nothing is left of a machine that did not come up. Its channel is closed already.
async fn undo(keeper: &Watched, plan: &Plan) {
    keeper.kill_after(UNDO_PATIENCE);
    keeper.ended().await;
    for made in plan.resources.iter().filter(|made| made.kind == "cgroup") {
        // What is left now stands in the lease, and cleanup removes it.
        let _ = destroy::remove_cgroup(Path::new(&made.id));
    }
}

fn notes(plan: &Plan) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(helper) = &plan.helper {
        notes
            .push(format!("the network is {}'s; metadata services and this host's own addresses are unreachable", helper.name()));
    }
    notes.extend(plan.gateway.iter().flat_map(|gateway| gateway.rules.notes()));
    if plan.mode == Mode::Process && rustix::process::geteuid().is_root() {
        notes.push("commands run as root on this host".to_owned());
    }
    notes
}

fn parts(
    spec: &EnvironmentSpec,
    plan: Plan,
    machine: machine::Machine,
    capabilities: Capabilities,
    report: Report,
    log: Option<PathBuf>,
) -> Parts {
    let paths = |kind: &str| {
        plan.resources.iter().filter(|made| made.kind == kind).map(|made| PathBuf::from(&made.id)).collect::<Vec<_>>()
    };
    Parts {
        machine,
        capabilities,
        limits: spec.limits.clone(),
        agent: plan.setup.agent.name.clone(),
        root: root(&plan),
        report,
        cgroups: paths("cgroup"),
        socket: paths("socket").pop(),
        decisions: log.filter(|_| plan.gateway.is_some()),
        directories: plan.directories,
    }
}

/// The directory of this host that a plan's root shows.
fn root(plan: &Plan) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    match &plan.setup.root {
        Root::Host => PathBuf::from("/"),
        Root::Directory { path } => PathBuf::from(std::ffi::OsStr::from_bytes(&path.0)),
    }
}

/// Directories that are removed again if the start fails or is given up.
struct Remains(Vec<PathBuf>);

impl Remains {
    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Remains {
    fn drop(&mut self) {
        for directory in &self.0 {
            // What is left now stands in the lease, and cleanup removes it.
            let _ = destroy::remove_directory(directory);
        }
    }
}

#[async_trait]
impl Backend for LocalBackend {
    fn name(&self) -> &'static str {
        BACKEND
    }

    fn settings_schema(&self) -> serde_json::Value {
        Settings::schema()
    }

    fn validate(&self, spec: &EnvironmentSpec) -> Result<()> {
        plan::validate(spec).map(drop)
    }

    fn capabilities(&self, spec: &EnvironmentSpec) -> Result<Capabilities> {
        let (settings, mode) = plan::validate(spec)?;
        declared(spec, &settings, mode)
    }

    fn prepare(&self) {
        spawn::prepare();
        plan::files::shared();
    }

    async fn start(
        &self,
        spec: &EnvironmentSpec,
        lease: Arc<dyn LeaseHandle>,
        progress: &dyn Progress,
    ) -> Result<Box<dyn Environment>> {
        Ok(Box::new(start(spec, lease, progress, None).await?))
    }

    async fn twin(&self, spec: &EnvironmentSpec, lifted: &Lifted, lease: Arc<dyn LeaseHandle>) -> Result<Box<dyn Environment>> {
        let twin = twin::spec(spec, lifted)?;
        Ok(Box::new(start(&twin, lease, &tierbox_core::Silent, Some(lifted)).await?))
    }

    async fn attach(&self, lease: &LeaseRecord) -> Result<Box<dyn Environment>> {
        Ok(Box::new(LocalEnvironment::attach(lease).await?))
    }

    async fn is_alive(&self, lease: &LeaseRecord) -> bool {
        let lives =
            |process: Remembered| process.start_ticks != 0 && destroy::start_ticks(process.pid) == Some(process.start_ticks);
        Memory::of(lease).is_some_and(|memory| lives(memory.keeper))
            || lease.resources_of("cgroup").any(|path| destroy::is_populated(Path::new(path)))
    }

    async fn destroy(&self, lease: &LeaseRecord) -> Result<DestroyReport> {
        crash::point("destroy");
        Ok(destroy::lease(lease).await)
    }

    async fn doctor(&self) -> Vec<Check> {
        doctor::checks().await
    }
}
