//! From a plan to a running environment, or to nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bollard::models::SystemInfo;
use futures_util::future::join_all;
use tierbox_core::{
    Capabilities, EnvironmentSpec, Error, ErrorKind, Hold, KillDomain, LeaseHandle, Lifted, LimitReport, Locality, Mechanism,
    Network, Progress, Report, Resource, Result, UserSupport,
};
use tierbox_guest::plain::{PlainConfig, PlainSandbox};
use tokio::sync::watch;

use crate::backend::{capabilities, is_root};
use crate::destroy::{CONTAINER, IMAGE, NETWORK, VOLUME};
use crate::domain::Domains;
use crate::engine::{self, Engine, failed};
use crate::environment::{self, DockerEnvironment, Machine, Memory};
use crate::first::First;
use crate::launch::{self, Around, Launched, Line, name_of};
use crate::plain::Scripts;
use crate::plan::{self, ImagePlan, MachinePlan, Plan};
use crate::settings::{cut, invalid};
use crate::way::{Kept, Way};
use crate::{BACKEND, build, crash, destroy, egress, image, network, outside, program, report, services};

/// Passes steps on to a progress that belongs to the caller's side.
struct Steps(tokio::sync::mpsc::UnboundedSender<String>);

impl Progress for Steps {
    fn step(&self, message: &str) {
        // The caller may have given up.
        let _ = self.0.send(message.to_owned());
    }
}

/// What was found in the machines, for the report.
#[derive(Default)]
struct Found {
    mechanisms: Vec<Mechanism>,
    /// The limits of each machine.
    limits: Vec<(String, Vec<LimitReport>)>,
    weakened: Vec<String>,
}

/// Everything that starting takes, owned: it runs on the driver's thread.
pub struct Start {
    spec: EnvironmentSpec,
    plan: Plan,
    lease: Arc<dyn LeaseHandle>,
    /// The rule that is lifted, in a twin.
    lifted: Option<Lifted>,
    steps: Steps,
    /// Closed once the caller is gone.
    given_up: watch::Receiver<()>,
}

/// Its end tells the start that its caller is gone.
pub struct GiveUp(#[expect(dead_code, reason = "it is there to be dropped")] watch::Sender<()>);

impl Start {
    /// A start that is to be run, its steps, and what tells it that its caller is gone.
    pub fn new(
        spec: &EnvironmentSpec,
        plan: Plan,
        lease: Arc<dyn LeaseHandle>,
        lifted: Option<Lifted>,
    ) -> (Self, tokio::sync::mpsc::UnboundedReceiver<String>, GiveUp) {
        let (sender, steps) = tokio::sync::mpsc::unbounded_channel();
        let (caller, given_up) = watch::channel(());
        let start = Self { spec: spec.clone(), plan, lease, lifted, steps: Steps(sender), given_up };
        (start, steps, GiveUp(caller))
    }

    /// Starts, and leaves nothing behind if that fails or is given up.
    ///
    /// # Errors
    /// What the engine says, `TierRefused`, `Cancelled`.
    pub async fn run(self) -> Result<DockerEnvironment> {
        let socket = engine::locate(&self.plan.settings)?;
        let started = match self.start(socket.clone()).await {
            Ok(environment) => self.wanted().map(|()| environment),
            Err(error) => Err(error),
        };
        if let Err(error) = &started {
            // What was given up may still be on its way in the engine.
            let memory = Memory { socket, ready: error.kind() != ErrorKind::Cancelled, detached: None };
            let record = environment::record(self.lease.id(), &memory, &self.resources())?;
            // What is left now stands in the lease, and cleanup removes it.
            let _ = destroy::lease(&record).await;
        }
        started
    }

    /// Whether anybody still waits for this.
    fn wanted(&self) -> Result<()> {
        if self.given_up.has_changed().is_ok() { Ok(()) } else { Err(given_up()) }
    }

    /// Returns once nobody waits for this any more.
    async fn unwanted(&self) {
        let mut caller = self.given_up.clone();
        while caller.changed().await.is_ok() {}
    }

    async fn start(&self, socket: PathBuf) -> Result<DockerEnvironment> {
        // Before anything exists: whoever cleans up must know whom to ask.
        self.lease.set_data(Memory { socket: socket.clone(), ready: false, detached: None }.to_data()?)?;
        let engine = Engine::connect(&socket).await?;
        network::check(engine.is_podman, &self.plan)?;
        let info = engine.docker.info().await.map_err(|error| failed("ask the engine", &error))?;
        let resources = self.resources();
        self.lease.record(&resources)?;
        crash::point("lease");
        // The engine ends a build whose line is dropped.
        let images = tokio::select! {
            images = self.images(&engine) => images?,
            () = self.unwanted() => return Err(given_up()),
        };
        let program = program::put(&self.lease.directory()?)?;
        network::create(&engine, self.lease.id(), &self.plan).await?;
        crash::point("networks");
        let around = Around {
            engine: &engine,
            info: &info,
            id: self.lease.id(),
            program: &program,
            limits: &self.spec.limits,
            persists: self.persists(),
            lifted: self.lifted.as_ref(),
            plan: &self.plan,
        };
        let (machines, mut found) = self.bring_up(&around, &images).await?;
        self.lease.set_data(Memory { socket: socket.clone(), ready: true, detached: None }.to_data()?)?;
        crash::point("ready");
        found.mechanisms.extend(self.plan.egress.as_ref().map(|egress| Mechanism {
            name: "egress gateway".to_owned(),
            applied: tierbox_core::Applied::Enforced,
            detail: format!("{} rules; nothing but its sockets is in the network", egress.rules.iter().len()),
        }));
        let report = self.report(&machines, found, &images);
        let lease = self.persists().then(|| self.lease.clone());
        let environment = DockerEnvironment::new(self.lease.id(), machines, report, socket, resources, lease);
        Ok(environment.made_of(self.identity(&images, &info)))
    }

    /// The digest of each machine's image, and the engine.
    fn identity(&self, images: &[image::Image], info: &SystemInfo) -> BTreeMap<String, String> {
        let told = |text: &Option<String>| text.clone().unwrap_or_default();
        let engine = format!("{} {} on {}", told(&info.id), told(&info.server_version), told(&info.kernel_version));
        let of_machines = self.plan.machines.iter().zip(images);
        let images = of_machines.map(|(machine, image)| (format!("image of {}", machine.name), image.id.clone()));
        images.chain([("engine".to_owned(), engine)]).collect()
    }

    /// Whether it may outlive this process.
    fn persists(&self) -> bool {
        self.spec.hold != Hold::Process
    }

    fn resources(&self) -> Vec<Resource> {
        let resource = |kind: &str, name: &str| Resource { kind: kind.to_owned(), id: name_of(self.lease.id(), name) };
        let machines = &self.plan.machines;
        let built = machines.iter().filter(|machine| matches!(machine.image, ImagePlan::Built(_)));
        let images = built.map(|machine| resource(IMAGE, &machine.name));
        let networks = self.plan.networks.iter().map(|name| resource(NETWORK, name));
        let volumes = self.plan.volumes.iter().map(|name| resource(VOLUME, name));
        images.chain(networks).chain(volumes).chain(machines.iter().map(|machine| resource(CONTAINER, &machine.name))).collect()
    }

    /// Finds, fetches or builds every machine's image.
    async fn images(&self, engine: &Engine) -> Result<Vec<image::Image>> {
        let mut images = Vec::new();
        for machine in &self.plan.machines {
            self.wanted()?;
            let built = name_of(self.lease.id(), &machine.name);
            if let ImagePlan::Built(plan) = &machine.image {
                build::image(engine, plan, &built, self.lease.id(), &self.steps).await?;
                crash::point("built");
            }
            images.push(image::ensure(engine, &machine.image, &built, &self.steps).await?);
        }
        Ok(images)
    }

    /// Starts machines and their services, those first for which others wait.
    async fn bring_up(&self, around: &Around<'_>, images: &[image::Image]) -> Result<(Vec<Machine>, Found)> {
        let plans: Vec<&MachinePlan> = self.plan.machines.iter().collect();
        let mut up: Vec<Option<(Machine, Option<services::Running>)>> = plans.iter().map(|_| None).collect();
        let mut found = Found::default();
        for group in plan::order(&plans).unwrap_or_default() {
            self.wanted()?;
            self.await_services(&group, &up).await?;
            self.steps.step("starting the containers");
            // All of them come to an end, so that nothing is under way any more when the undertaker comes.
            let launches = group.iter().map(|index| launch::launch(around, plans[*index], &images[*index]));
            let launched = join_all(launches).await.into_iter().collect::<Result<Vec<_>>>()?;
            for (index, launched) in group.into_iter().zip(launched) {
                found.limits.push((plans[index].name.clone(), launched.limits.clone()));
                let machine = self.machine(plans[index], &images[index], launched, around, &mut found).await?;
                let service = services::start(&*machine.way.sandbox(), plans[index], &images[index]).await?;
                up[index] = Some((machine, service));
            }
        }
        for (machine, service) in up.iter().flatten() {
            if let Some(service) = service {
                service.healthy(&*machine.way.sandbox()).await?;
            }
        }
        Ok((up.into_iter().flatten().map(|(machine, _)| machine).collect(), found))
    }

    /// Waits for what a group of machines must have before it starts.
    async fn await_services(&self, group: &[usize], up: &[Option<(Machine, Option<services::Running>)>]) -> Result<()> {
        let afters =
            group.iter().filter_map(|index| self.plan.machines[*index].service.as_ref()).flat_map(|service| &service.after);
        for after in afters {
            let index = self.plan.machines.iter().position(|machine| machine.name == after.service);
            if let Some((machine, Some(service))) = index.and_then(|index| up[index].as_ref()) {
                self.steps.step(&format!("waiting for the service {}", after.service));
                service.reach(&*machine.way.sandbox(), after.condition).await?;
            }
        }
        Ok(())
    }

    /// A machine that scripts are run in.
    async fn scripts(
        &self,
        plan: &MachinePlan,
        image: &image::Image,
        around: &Around<'_>,
        capabilities: Capabilities,
        kept: Kept,
    ) -> Result<Way> {
        let First { pid, life: _life } = First::of(around, &plan.name).await?;
        let domains = Domains::of(pid).map_err(|error| {
            let message = format!("commands of the machine {:?} could not be held together: {error}", plan.name);
            Error::new(ErrorKind::HostUnable, "start environment", message)
                .with_backend(BACKEND)
                .with_help("docker.transport = \"plain\" takes root on the engine's own host, and its cgroups at /sys/fs/cgroup")
        })?;
        let user = launch::user_of(plan, image);
        if user.contains(':') {
            let message = format!("docker.transport = \"plain\" knows no group beside a user's own, and the user is {user:?}");
            return Err(invalid(message).with_help("take the group out, or use the supervisor (the default)"));
        }
        let mut env = launch::pairs(&self.plan, plan, image);
        if user == launch::NOBODY {
            env.push((b"HOME".to_vec(), plan::WORKSPACE.as_bytes().to_vec()));
        }
        let config = PlainConfig {
            limits: self.spec.limits.clone(),
            user: Some(user.to_owned()),
            workdir: Some(image.workdir(plan.workdir.as_deref())),
            env,
            ..PlainConfig::new(&plan.name, BACKEND, capabilities)
        };
        let scripts = Scripts::new(around.engine.clone(), name_of(around.id, &plan.name), domains);
        let sandbox = PlainSandbox::open(Arc::new(scripts), config).await.map_err(|error| error.with_backend(BACKEND))?;
        Ok(Way::scripts(sandbox, kept))
    }

    /// A handle on a machine, once it is clear that it is what the tier says.
    async fn machine(
        &self,
        plan: &MachinePlan,
        image: &image::Image,
        launched: Launched,
        around: &Around<'_>,
        found: &mut Found,
    ) -> Result<Machine> {
        let mut capabilities = capabilities(&self.plan);
        capabilities.limits.inodes &= !around.engine.is_podman;
        let Launched { line, agent, .. } = launched;
        let (way, ready) = match line {
            Line::Supervised(channel, ready) => {
                capabilities.kill_domain = ready.kill_domain;
                capabilities.memory_outcome &= ready.memory_outcome;
                capabilities.users = if ready.users { UserSupport::Any } else { UserSupport::DefaultOnly };
                let sandbox = environment::sandbox(channel.clone(), &plan.name, &agent, capabilities, &self.spec.limits);
                (Way::Channel(channel, sandbox), Some(ready))
            }
            Line::Bare(kept) => (self.scripts(plan, image, around, capabilities, kept).await?, None),
        };
        let sandbox = way.sandbox();
        let seen = report::seen(&*sandbox, ready.as_ref(), &self.plan, plan, around.info).await?;
        if self.lifted.is_none() {
            report::check(&plan.name, &seen.mechanisms, self.plan.settings.own_kernel())?;
            report::check_ipv6(&plan.name, &seen.by_ipv6)?;
            found.weakened.extend(seen.is_root.then(|| as_root(plan, &agent)).transpose()?.flatten());
        }
        merge(&mut found.mechanisms, seen.mechanisms, &plan.name);
        let mut machine = Machine { way, agent, gateway: None, decisions: None };
        if let Some(egress) = self.plan.egress.as_ref().filter(|_| !plan.alone) {
            let log = tierbox_egress::log_path(&self.lease.directory()?, Some(&plan.name));
            machine.gateway = egress::serve(around, &plan.name, &*sandbox, egress, &log).await?;
            machine.decisions = Some(log);
        }
        match self.plan.network {
            _ if plan.alone => {}
            Network::N0 => outside::bar(around, &plan.name, &*machine.way.sandbox()).await?,
            _ if !plan.links.is_empty() && self.can_shut() => outside::shut(around, &plan.name, &*machine.way.sandbox()).await?,
            _ => {}
        }
        Ok(machine)
    }

    /// Whether routes can be set for machines that are joined with others alone. A twin that shares the host's network must not change
    /// it, and a kernel of a container's own knows nothing of them. Where this takes root that is not there, nothing is reached by the
    /// engine's route either, and verification says that there is one.
    fn can_shut(&self) -> bool {
        self.lifted.is_none() && is_root() && self.plan.settings.own_kernel().is_none()
    }

    fn report(&self, machines: &[Machine], found: Found, images: &[image::Image]) -> Report {
        let spec = &self.spec;
        let kill_domain = machines.iter().map(|machine| machine.way.sandbox().capabilities().kill_domain).min();
        let mounts = spec.mounts.iter().map(|mount| format!("{} -> {} (ro)", mount.host.display(), mount.guest)).collect();
        let rules = self.plan.egress.iter().flat_map(|egress| egress.rules.notes());
        let plain =
            self.plan.is_plain().then(|| "commands go by the engine's own exec; nothing of tierbox's is inside".to_owned());
        let builds = self.plan.machines.iter().filter_map(|machine| match &machine.image {
            ImagePlan::Built(plan) => Some(format!(
                "the image of {} was built from {}; the steps of the build had the engine's default network",
                machine.name,
                plan.context.display()
            )),
            ImagePlan::Named(..) => None,
        });
        let outside = (self.plan.network == Network::N0).then(|| outside::NOTE.to_owned());
        let notes = spec
            .tier
            .notes()
            .into_iter()
            .map(str::to_owned)
            .chain(notes(images))
            .chain(builds)
            .chain(rules)
            .chain(outside)
            .chain(beyond(spec, &self.plan))
            .chain(plain);
        Report {
            profile: spec.profile.clone(),
            tier: spec.tier,
            backend: BACKEND.to_owned(),
            locality: Locality::Local,
            kill_domain: kill_domain.unwrap_or(KillDomain::Session),
            mechanisms: found.mechanisms,
            limits: limits_of(machines.first().map(|machine| machine.way.sandbox().name().to_owned()), found.limits),
            mounts,
            parts: parts(&self.plan, images),
            copied_in: spec.files.iter().map(|copy| format!("{} -> {}", copy.host.display(), copy.guest)).collect(),
            weakened: spec.weakened.iter().chain(&self.plan.weakened).cloned().chain(found.weakened).collect(),
            reason: spec.reason.clone(),
            notes: notes.collect(),
        }
    }
}

/// What root inside may fill beside the areas that the limits are about.
fn beyond(spec: &EnvironmentSpec, plan: &Plan) -> Option<String> {
    let limited = spec.limits.disk.is_some() || spec.limits.inodes.is_some();
    let own = if plan.is_plain() { " and the scripts' own area (512 MiB)" } else { "" };
    limited.then(|| {
        format!("root inside can also write to /dev (64 MiB){own}, which no limit on disk and inodes counts; memory does")
    })
}

fn given_up() -> Error {
    Error::new(ErrorKind::Cancelled, "start environment", "the caller gave up").with_backend(BACKEND)
}

/// A default user who is root inside: a weakening that somebody must have asked for. `None` if the profile says `root` itself, which is
/// told already.
///
/// # Errors
/// `InvalidProfile` if it is the image alone that makes him so.
fn as_root(plan: &MachinePlan, agent: &str) -> Result<Option<String>> {
    match &plan.user {
        Some(user) if plan::is_root(user) => Ok(None),
        Some(user) => Ok(Some(format!("user: commands of {} run as root inside, which {user:?} is there", plan.name))),
        None => Err(Error::new(
            ErrorKind::InvalidProfile,
            "start environment",
            format!("the user of the image of {}, {:?}, is root inside (uid 0)", plan.name, cut(agent)),
        )
        .with_backend(BACKEND)
        .with_help("name another by `user`, or say `user = \"root\"`, which the report then lists")),
    }
}

/// The limits of the primary machine, and those of others that differ from it, with the machine's name.
fn limits_of(primary: Option<String>, all: Vec<(String, Vec<LimitReport>)>) -> Vec<LimitReport> {
    let (first, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|(name, _)| Some(name) == primary.as_ref());
    let mut limits: Vec<LimitReport> = first.into_iter().flat_map(|(_, limits)| limits).collect();
    let of_primary = limits.clone();
    for (machine, own) in others {
        let differs = own.into_iter().filter(|limit| !of_primary.contains(limit));
        limits.extend(differs.map(|limit| LimitReport { name: format!("{} of {machine}", limit.name), ..limit }));
    }
    limits
}

/// Where containers show something of the engine's host that no profile names: files that the engine makes, the supervisor, and volumes
/// of their own.
fn parts(plan: &Plan, images: &[image::Image]) -> Vec<String> {
    const ENGINES: [&str; 6] =
        ["/etc/resolv.conf", "/etc/hosts", "/etc/hostname", "/dev/shm", "/run/.containerenv", "/run/secrets"];
    let volumes = plan.machines.iter().flat_map(|machine| machine.volumes.iter().map(|volume| volume.guest.clone()));
    let images = images.iter().flat_map(|image| image.volumes.iter().cloned());
    let own = ENGINES.into_iter().chain([launch::SUPERVISOR]).map(str::to_owned);
    own.chain(volumes).chain(images).collect()
}

fn notes(images: &[image::Image]) -> Vec<String> {
    let volumes = images.iter().flat_map(|image| &image.volumes);
    volumes.map(|path| format!("the image declares a volume at {path}: what is written there has no limit of its own")).collect()
}

/// Keeps, of each mechanism, the weakest form that any machine has.
fn merge(all: &mut Vec<Mechanism>, found: Vec<Mechanism>, machine: &str) {
    let rank = |mechanism: &Mechanism| mechanism.applied as u8;
    for mut mechanism in found {
        match all.iter_mut().find(|known| known.name == mechanism.name) {
            None => all.push(mechanism),
            Some(known) if rank(&mechanism) > rank(known) => {
                mechanism.detail = format!("{machine}: {}", mechanism.detail);
                *known = mechanism;
            }
            Some(_) => {}
        }
    }
}
