//! A start, step by step.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tierbox_core::{
    EnvironmentSpec, Error, ErrorKind, KillDomain, LeaseHandle, Mechanism, Network, Progress, Resource, Result, Tier,
};
use tierbox_egress::Rules;
use tierbox_guest::plain::{PlainConfig, PlainSandbox};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::aws::{Aws, driven};
use crate::call::{FEWER, throttled};
use crate::control::{Control, Order, short_hash};
use crate::destroy::Undo;
use crate::environment::{Ec2Environment, Held};
use crate::gateway::{self, Gateway};
use crate::guest::{self, Prepared, Wall};
use crate::image::{self, Image};
use crate::link::Link;
use crate::memory::{Machine, Memory};
use crate::objects::{Objects, prefix_of};
use crate::role::{self, Role};
use crate::settings::{Settings, invalid, is_plain};
use crate::signed;
use crate::{BACKEND, attach, capabilities, crash, isolation, place, ready, report, tags};

/// How long a machine outlives its harness, if the profile does not say.
const OUTLIVE: Duration = Duration::from_secs(15 * 60);
/// The least time that a start is given: no machine boots in less.
const STARTUP: Duration = Duration::from_secs(60);
/// What part of `limits.startup` a start takes at most: whoever waits for it gives up at the whole, and is then not told why.
const PART: f64 = 0.95;
/// And what part until what a failed start has made need be gone: its removal goes on meanwhile.
const LAST: f64 = 0.98;
/// How long the preparation of a machine may take.
const PREPARATION: Duration = Duration::from_secs(120);

/// A specification that was checked.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) settings: Settings,
    /// Named, unless an instance is used that exists.
    pub(crate) bucket: Option<String>,
    pub(crate) user: String,
    /// What may be reached, with N1.
    pub(crate) rules: Option<Rules>,
}

/// Checks a specification, without side effects.
///
/// # Errors
/// `InvalidProfile`, `TierRefused`.
pub(crate) fn plan(spec: &EnvironmentSpec) -> Result<Plan> {
    let settings = Settings::from_value(&spec.settings)?.filled()?;
    let bucket = settings.bucket.clone();
    if settings.attaches() {
        attach::check(spec, &settings)?;
        check_workdir(spec.workdir.as_deref())?;
        return Ok(Plan { settings, bucket, user: String::new(), rules: None });
    }
    if bucket.is_none() {
        return Err(invalid("no bucket is named, through which files and secrets pass")
            .with_help("write ec2.bucket, or set INSPECT_EC2_SANDBOX_S3_BUCKET"));
    }
    let user = spec.user.clone().unwrap_or_else(|| guest::USER.to_owned());
    if !is_plain(&user) {
        return Err(invalid(format!("user = {:?} is not a name of a user that can be had here", crate::call::shown(&user))));
    }
    check_tier(spec.tier, &user)?;
    check_workdir(spec.workdir.as_deref())?;
    let rules = (spec.tier.network() == Network::N1).then(|| Rules::new(&spec.network)).transpose()?;
    if rules.is_some() && settings.gateway.is_none() {
        return Err(invalid("N1 needs a gateway, and none is named")
            .with_help("write ec2.gateway; `tierbox ec2 setup --gateway` makes one and a profile with it"));
    }
    Ok(Plan { settings, bucket, user, rules })
}

fn check_tier(tier: Tier, user: &str) -> Result<()> {
    let refuse = |message: String, help: String| {
        Err(Error::new(ErrorKind::TierRefused, "check profile", message).with_backend(BACKEND).with_help(help))
    };
    match tier.network() {
        Network::N1 | Network::N2 if is_root(user) => refuse(
            format!("{tier}: nothing in the machine binds root, to whom metadata stay open"),
            "leave user out: tierbox makes one without rights".to_owned(),
        ),
        _ => Ok(()),
    }
}

/// Refuses a directory that is the kernel's, or that leads above.
pub(crate) fn check_workdir(workdir: Option<&str>) -> Result<()> {
    let reserved = |path: &str| ["/proc", "/sys", "/dev"].iter().any(|own| Path::new(path).starts_with(own));
    match workdir {
        Some(path) if reserved(path) || path.split('/').any(|part| part == "..") => {
            Err(invalid(format!("workdir = {:?} cannot be a directory of commands", crate::call::shown(path))))
        }
        _ => Ok(()),
    }
}

/// Whether the user has the instance's role within reach: by becoming root, or because nothing closes the metadata service.
fn is_open(facts: &Prepared) -> bool {
    facts.door.is_root || !facts.door.holds()
}

/// Whether a name is root's.
fn is_root(user: &str) -> bool {
    matches!(user, "root" | "0")
}

/// What a start works on.
pub(crate) struct Start<'a> {
    pub(crate) spec: &'a EnvironmentSpec,
    pub(crate) plan: Plan,
    pub(crate) aws: Arc<Aws>,
    pub(crate) control: Arc<dyn Control>,
    pub(crate) lease: &'a Arc<dyn LeaseHandle>,
    pub(crate) progress: &'a dyn Progress,
}

/// What instances stand on.
struct Ground {
    gateway: Option<Gateway>,
    /// What closes the network around them.
    network: Vec<Mechanism>,
    image: Image,
}

impl Start<'_> {
    /// Makes an environment, or leaves nothing behind.
    ///
    /// # Errors
    /// What any of the steps says.
    pub(crate) async fn run(self) -> Result<Ec2Environment> {
        let mut memory = Memory {
            account: self.aws.account.clone(),
            bucket: self.plan.bucket.clone().unwrap_or_default(),
            prefix: prefix_of(self.plan.settings.key_prefix.as_deref().unwrap_or("tierbox"), self.lease.id()),
            machines: Vec::new(),
            gateway: self.plan.rules.as_ref().and(self.plan.settings.gateway.clone()),
            task: None,
            owner: None,
        };
        let task = self.plan.settings.attaches().then(|| self.task());
        if let Some((task, machine)) = &task {
            memory.machines.push(machine.clone());
            memory.task = Some(task.clone());
        }
        let named = |error: Error| error.with_backend(BACKEND);
        // Nothing is begun, and nothing to be undone, where the ground does not carry.
        let looking = async {
            match task {
                None => self.look(&memory).await.map(Some),
                Some(_) => self.look_at_instance().await.map(|()| None),
            }
        };
        let (began, limit) = (Instant::now(), self.spec.limits.startup);
        let (end, last) = (began + limit.mul_f64(PART), began + limit.mul_f64(LAST));
        let looked = self.until(end, async {
            let (ground, owner) = tokio::join!(looking, signed::account(&self.aws));
            Ok((ground?, owner))
        });
        let (ground, owner) = looked.await.map_err(named)?;
        memory.owner = owner;
        let undo = Undo::new(&self.aws, &self.control, &memory, self.lease.id());
        let link = task.as_ref().map(|_| self.link(&memory));
        let made = self.until(end, async {
            match (&task, &link, ground) {
                (Some((task, _)), Some(link), _) => self.attach(task, &memory, link).await,
                (None, _, Some(ground)) => self.make(&mut memory, ground).await,
                _ => Err(Error::new(ErrorKind::Internal, "start environment", "nobody looked at the network")),
            }
        });
        match made.await {
            Ok(environment) => {
                undo.keep();
                Ok(environment)
            }
            Err(error) => {
                if let Some(link) = link {
                    self.leave(&link, &mut memory);
                }
                undo.now(memory, last).await;
                Err(error.with_backend(BACKEND))
            }
        }
    }

    /// Does something until a time, and says what AWS throttles if that was too short.
    async fn until<T>(&self, end: Instant, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::time::timeout_at(end, work).await.unwrap_or_else(|_| {
            let limit = self.spec.limits.startup;
            let late = |why: &str| {
                let message = format!("it was not ready in time for limits.startup, which is {limit:?}{why}");
                Error::new(ErrorKind::Timeout, "start environment", message).retryable()
            };
            Err(match throttled() {
                Some(told) => late(&format!(": {told}")).with_help(FEWER),
                None => late(""),
            })
        })
    }

    /// Nothing more is sent to an instance that exists, and where nothing was there is nothing to remove: AWS, which throttles, would
    /// be asked in vain once more.
    fn leave(&self, link: &Link, memory: &mut Memory) {
        link.close();
        if !link.was_used() {
            memory.machines.clear();
            // Where this is not written down, the machine is asked all the same.
            let _ = memory.to_data().and_then(|data| self.lease.set_data(data));
        }
    }

    /// Looks at all that must be there before an instance is.
    async fn look(&self, memory: &Memory) -> Result<Ground> {
        if is_root(&self.plan.user) {
            self.role().await?;
        }
        let (aws, settings) = (self.aws.clone(), self.plan.settings.clone());
        driven(async move { place::check(&aws, &settings).await }).await?;
        let gateway = self.find_gateway(memory).await?;
        let network = self.check_network(gateway.as_ref().map(Gateway::facts)).await?;
        self.progress.step("choosing the image");
        let (aws, settings) = (self.aws.clone(), self.plan.settings.clone());
        let image = driven(async move { image::find(&aws, &settings).await }).await?;
        Ok(Ground { gateway, network, image })
    }

    async fn make(&self, memory: &mut Memory, ground: Ground) -> Result<Ec2Environment> {
        let Ground { gateway, network, image } = ground;
        let id = self.lease.id().to_owned();
        self.lease.record(&[
            Resource { kind: "instances".to_owned(), id: id.clone() },
            Resource { kind: "objects".to_owned(), id: format!("s3://{}/{}", memory.bucket, memory.prefix) },
        ])?;
        self.lease.set_data(memory.to_data()?)?;
        crash::point("lease");
        self.progress.step("starting instances");
        memory.machines = self.launch(&image).await?;
        crash::point("launched");
        let instance = |machine: &Machine| Resource { kind: "instance".to_owned(), id: machine.instance.clone() };
        self.lease.record(&memory.machines.iter().map(instance).collect::<Vec<_>>())?;
        self.lease.set_data(memory.to_data()?)?;
        crash::point("recorded");
        self.progress.step("waiting for the SSM agent");
        let limit = ready::patience(self.spec.limits.startup);
        let ids: Vec<String> = memory.machines.iter().map(|machine| machine.instance.clone()).collect();
        let (aws, control) = (self.aws.clone(), self.control.clone());
        driven(async move { ready::wait(&aws, control.as_ref(), &ids, limit).await }).await?;
        crash::point("online");
        self.progress.step("preparing");
        if let Some(gateway) = &gateway {
            let ids: Vec<String> = memory.machines.iter().map(|machine| machine.instance.clone()).collect();
            gateway.enter(&self.aws, &ids, self.life()).await?;
        }
        let held = self.enter(memory, gateway.as_ref()).await?;
        crash::point("prepared");
        let facts: Vec<Prepared> = held.iter().map(|(_, prepared)| prepared.clone()).collect();
        let role = if facts.iter().any(is_open) { Some(self.role().await?) } else { None };
        self.check_inside(&facts)?;
        self.check_renewal(memory).await?;
        let mut report = report::make(self.spec, &self.plan, &image, memory, &facts, role.as_ref());
        report.mechanisms.extend(network);
        report.notes.extend(gateway.iter().flat_map(Gateway::notes));
        let machines = held.into_iter().map(|(held, _)| held).collect();
        let environment = Ec2Environment::new(
            id,
            memory.clone(),
            machines,
            self.aws.clone(),
            self.control.clone(),
            report,
            self.plan.user.clone(),
        )
        .with_gateway(gateway);
        environment.keep_alive(self.life());
        Ok(environment)
    }

    /// The gateway, with N1.
    async fn find_gateway(&self, memory: &Memory) -> Result<Option<Gateway>> {
        let Some(rules) = self.plan.rules.clone() else { return Ok(None) };
        let (aws, settings) = (self.aws.clone(), self.plan.settings.clone());
        let found = driven(async move { gateway::find(&aws, &settings).await }).await;
        let facts = found.map_err(|error| isolation::refused(Network::N1, error))?;
        let objects = Objects::at(self.aws.clone(), &memory.bucket, &memory.prefix);
        let link = Arc::new(Link::new(self.aws.clone(), &facts.instance, Some(objects)));
        Ok(Some(Gateway::new(facts, link, self.lease.id(), rules)))
    }

    /// What closes the network outside of the machines, with N1 and N2.
    async fn check_network(&self, gateway: Option<&gateway::Facts>) -> Result<Vec<Mechanism>> {
        if self.spec.tier.network() == Network::N0 {
            return Ok(Vec::new());
        }
        self.progress.step("checking the network");
        let (aws, settings, bucket) =
            (self.aws.clone(), self.plan.settings.clone(), self.plan.bucket.clone().unwrap_or_default());
        let gateway = gateway.cloned();
        driven(async move { isolation::check(&aws, &settings, &bucket, gateway.as_ref()).await }).await
    }

    /// What closes the machines from inside, with N1 and N2.
    fn check_inside(&self, facts: &[Prepared]) -> Result<()> {
        let network = self.spec.tier.network();
        if network == Network::N0 || !facts.iter().any(is_open) {
            return Ok(());
        }
        let message = format!("{network} does not hold: metadata are open to the user, or the user can become root");
        Err(Error::new(ErrorKind::TierRefused, "check machine", message)
            .with_help("leave user out: tierbox makes one without rights, and closes metadata to it"))
    }

    /// Renews the machines once: who has no right to would lose them in the middle of their work, and hears of it now.
    async fn check_renewal(&self, memory: &Memory) -> Result<()> {
        let ids: Vec<String> = memory.machines.iter().map(|machine| machine.instance.clone()).collect();
        let (aws, control, until) = (self.aws.clone(), self.control.clone(), SystemTime::now() + self.life());
        match driven(async move { tags::renew(&aws, control.as_ref(), &ids, until).await }).await {
            Err(error) if error.kind() == ErrorKind::Credentials => Err(error),
            Err(error) => {
                tracing::warn!(target: "tierbox::ec2", "{}", error.message());
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// What the role of the instances may do, which is what an agent may do who can become root.
    async fn role(&self) -> Result<Role> {
        let (aws, profile) = (self.aws.clone(), self.plan.settings.instance_profile.clone());
        driven(async move { role::check(&aws, profile.as_ref()).await }).await
    }

    /// How long machines live after a sign of life.
    fn life(&self) -> Duration {
        self.plan.settings.outlive_minutes.map_or(OUTLIVE, |minutes| Duration::from_secs(60 * u64::from(minutes)))
    }

    async fn launch(&self, image: &Image) -> Result<Vec<Machine>> {
        let owner = owner(self.lease.as_ref())?;
        let settings = &self.plan.settings;
        // Booting counts as well: nobody renews before the agent answers.
        let first = self.life() + self.spec.limits.startup.max(STARTUP);
        let mut tasks = JoinSet::new();
        for (number, name) in settings.names().into_iter().enumerate() {
            let order = Order {
                token: format!("{}-{}", self.lease.id().chars().take(40).collect::<String>(), short_hash(&name)),
                image: image.id.clone(),
                root_device: image.root_device.clone(),
                types: settings.types(),
                subnets: settings.subnets.clone(),
                security_group: settings.security_group.clone(),
                instance_profile: settings.instance_profile.clone(),
                volume_size: settings.volume_size.or(image.size),
                tags: tags::of(&settings.tags, &self.spec.profile, self.lease.id(), &name, &owner, first),
                user_data: guest::user_data(first),
                kept: false,
            };
            let control = self.control.clone();
            tasks.spawn(driven(async move {
                let instance = control.create(&order).await.map_err(|error| error.with_context("machine", &name))?;
                Ok((number, Machine { name, instance: instance.id }))
            }));
        }
        in_order(tasks).await
    }

    async fn enter(&self, memory: &Memory, gateway: Option<&Gateway>) -> Result<Vec<(Held, Prepared)>> {
        let wall = match (self.spec.tier.network(), gateway) {
            (Network::N1, Some(gateway)) => Wall::Gate(gateway.facts().address),
            (Network::N0, _) => Wall::None,
            _ => Wall::Whole,
        };
        let objects = Objects::at(self.aws.clone(), &memory.bucket, &memory.prefix);
        let mut tasks = JoinSet::new();
        for (number, machine) in memory.machines.iter().cloned().enumerate() {
            let link = Arc::new(Link::new(self.aws.clone(), &machine.instance, Some(objects.clone())));
            link.set_life(self.life());
            let mut config = config(self.spec, &machine.name, &self.plan.user);
            let proxy = gateway.map(Gateway::variables).unwrap_or_default();
            // What the profile says of a variable stands.
            let own = |name: &String| config.env.iter().any(|(known, _)| known == name.as_bytes());
            let added: Vec<_> = proxy.into_iter().filter(|(name, _)| !own(name)).collect();
            config.env.extend(added.into_iter().map(|(name, value)| (name.into_bytes(), value.into_bytes())));
            let (user, life) = (self.plan.user.clone(), self.life());
            tasks.spawn(async move {
                let name = machine.name.clone();
                let entered = enter(link, machine, (&user, life), wall, config).await;
                entered.map(|entered| (number, entered)).map_err(|error| error.with_context("machine", name))
            });
        }
        in_order(tasks).await
    }
}

/// The results of tasks, in the order of their numbers. The first that failed ends the others.
async fn in_order<T: Send + 'static>(mut tasks: JoinSet<Result<(usize, T)>>) -> Result<Vec<T>> {
    let (mut all, mut failed) = (Vec::new(), None);
    while let Some(done) = tasks.join_next().await {
        let done = done.map_err(|error| Error::new(ErrorKind::Internal, "start environment", error.to_string()))?;
        match done {
            Ok(pair) => all.push(pair),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    all.sort_by_key(|(number, _)| *number);
    Ok(all.into_iter().map(|(_, value)| value).collect())
}

async fn enter(
    link: Arc<Link>,
    machine: Machine,
    (user, life): (&str, Duration),
    wall: Wall,
    config: PlainConfig,
) -> Result<(Held, Prepared)> {
    let printed = link.script(guest::prepare(user, wall, life), PREPARATION).await?;
    let prepared = Prepared::read(&printed.stdout, &printed.stderr)?;
    let sandbox = open(link.clone(), config).await?;
    Ok((Held { machine, link, sandbox: Arc::new(sandbox) }, prepared))
}

/// Makes a sandbox of a machine that was prepared.
///
/// # Errors
/// `HostUnable` where it has no cgroup for commands.
pub(crate) async fn open(link: Arc<Link>, config: PlainConfig) -> Result<PlainSandbox> {
    let instance = link.instance().to_owned();
    let sandbox = PlainSandbox::open(link, config).await?;
    let domain = tierbox_core::Sandbox::capabilities(&sandbox).kill_domain;
    if domain < KillDomain::Cgroup {
        let message =
            format!("commands can have no cgroup of their own on {instance}, so that nothing would end all of a command");
        return Err(Error::new(ErrorKind::HostUnable, "prepare machine", message).with_backend(BACKEND).with_help(
            "root there must be able to make directories in /sys/fs/cgroup, of version 2 with cgroup.kill (Linux 5.14) or of version 1 \
             with the freezer: take an image that has it (Ubuntu from 22.04, Amazon Linux 2023), or mount it there",
        ));
    }
    Ok(sandbox)
}

fn config(spec: &EnvironmentSpec, machine: &str, user: &str) -> PlainConfig {
    PlainConfig {
        groups: true,
        limits: spec.limits.clone(),
        user: Some(user.to_owned()),
        workdir: spec.workdir.clone(),
        env: spec.env.iter().map(|(name, value)| (name.clone().into_bytes(), value.clone().into_bytes())).collect(),
        ..PlainConfig::new(machine, BACKEND, capabilities(vec![spec.tier.network()]))
    }
}

/// Who keeps the leases, as a tag: the state directory on this host.
fn owner(lease: &dyn LeaseHandle) -> Result<String> {
    let directory = lease.directory()?;
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let above = directory.parent().unwrap_or(&directory);
    Ok(format!("{}-{}", crate::call::shown(&host), short_hash(&above.display().to_string())))
}
