//! A start, step by step.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tierbox_core::{
    Applied, Capabilities, EnvironmentSpec, Error, ErrorKind, HostIsolation, KillDomain, LeaseHandle, LeaseRecord, LimitReport,
    Limits, Mechanism, Network, Progress, Report, Resource, Result,
};
use tierbox_guest::driver;
use tierbox_lease::Slot;
use tokio::task::JoinSet;

use crate::egress::{self, Egress};
use crate::environment::VagrantEnvironment;
use crate::inputs::Inputs;
use crate::isolation::{self, Isolated};
use crate::line::{self, Connected, Joining};
use crate::machines::{self, Asked, Chosen, Machine};
use crate::place::{Place, Source, make_directory, new_token, write_private};
use crate::pool::{self, Pool};
use crate::program::{self, run};
use crate::provider::Provider;
use crate::record::{Record, shown};
use crate::scripts;
use crate::settings::{Settings, Supervisor};
use crate::ssh::{self, Reach, Ssh};
use crate::{BACKEND, crash, destroy, libvirt, snapshot, throttle};

/// How long Vagrant may take to tell how a machine is reached.
const EVALUATION: Duration = Duration::from_secs(120);

/// How much is kept of what a failed `vagrant up` said.
const MAX_LOG: usize = 1 << 20;

/// What the lease remembers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// Where it is.
    pub place: Place,
    /// The machines that came up; the primary one comes first.
    pub machines: Vec<Machine>,
    /// Whether nobody said which one is primary.
    pub is_guess: bool,
    /// What is needed to use its machines from another process.
    pub running: Option<Box<Running>>,
    /// The pool that it is kept in, while nobody uses it.
    pub kept: Option<String>,
    /// What its machines were made from, for a pool.
    #[serde(default)]
    pub inputs: Option<Inputs>,
}

/// An environment that came up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Running {
    /// Its machines.
    pub machines: Vec<Joining>,
    /// Their limits.
    pub limits: Limits,
    /// What was enforced.
    pub report: Report,
}

impl Memory {
    /// Reads it from a lease; `None` if nothing was begun under that lease.
    pub fn of(lease: &LeaseRecord) -> Option<Self> {
        Self::deserialize(&lease.data).ok()
    }

    /// The machines' names in Vagrant.
    pub fn names(&self) -> Vec<String> {
        self.machines.iter().map(|machine| machine.name.clone()).collect()
    }

    /// As the lease keeps it.
    ///
    /// # Errors
    /// `Internal` if it has no JSON form.
    pub fn to_data(&self) -> Result<serde_json::Value> {
        serde_json::to_value(self).map_err(|error| Error::new(ErrorKind::Internal, "write lease", error.to_string()))
    }
}

/// A specification that was checked.
pub struct Plan {
    /// The backend's own table.
    pub settings: Settings,
    /// What makes the machines.
    pub provider: Provider,
    /// The Vagrantfile, absolute.
    pub vagrantfile: PathBuf,
}

/// Checks a specification by itself, whatever files there are.
///
/// # Errors
/// `InvalidProfile`, `TierRefused`.
pub fn check(spec: &EnvironmentSpec) -> Result<(Settings, Provider)> {
    let settings = Settings::from_value(&spec.settings)?;
    let provider = settings.provider()?;
    provider.check(spec.tier)?;
    egress::rules(spec)?;
    Ok((settings, provider))
}

/// Checks a specification and finds its Vagrantfile, without side effects.
///
/// # Errors
/// `InvalidProfile`, `TierRefused`.
pub fn plan(spec: &EnvironmentSpec) -> Result<Plan> {
    let (settings, provider) = check(spec)?;
    provider.check_here(spec.tier)?;
    let vagrantfile = settings.vagrantfile(&spec.base_dir)?;
    Ok(Plan { settings, provider, vagrantfile })
}

/// What a start works on.
struct Start<'a> {
    spec: &'a EnvironmentSpec,
    declared: Capabilities,
    plan: &'a Plan,
    lease: &'a Arc<dyn LeaseHandle>,
    progress: &'a dyn Progress,
    pool: Option<Pool>,
}

/// Makes an environment, or leaves nothing behind.
///
/// # Errors
/// What any of the steps says.
pub async fn start(
    spec: &EnvironmentSpec,
    declared: Capabilities,
    plan: &Plan,
    lease: &Arc<dyn LeaseHandle>,
    progress: &dyn Progress,
) -> Result<VagrantEnvironment> {
    let pool = Pool::of(plan, spec, lease.as_ref())?;
    let start = Start { spec, declared, plan, lease, progress, pool };
    if let Some(kept) = start.warm().await? {
        return Ok(kept);
    }
    let token = new_token()?;
    let isolated = (spec.tier.network() != Network::N0).then(|| Isolated::planned(&token));
    let home = match pool::journal_of(lease.as_ref())? {
        // Beside the leases, since a pool hands it from one to the next.
        Some(journal) => journal.state().path().join("vagrant").join(&token),
        None => lease.directory()?.join("vagrant"),
    };
    let mut place = Place {
        directory: home,
        vagrantfile: plan.vagrantfile.clone(),
        provider: plan.provider.name().to_owned(),
        isolated,
        token,
    };
    match start.cold(&mut place).await {
        Ok(environment) => Ok(environment),
        Err(error) => {
            let log = keep_log(&place);
            // What this cannot remove stands in the lease.
            destroy::place(&place).await;
            Err(match log {
                Some(path) => error.with_context("log", path.display()),
                None => error,
            })
        }
    }
}

/// Keeps what `vagrant up` said, in the place of the last one that failed: its directory goes with the environment.
fn keep_log(place: &Place) -> Option<PathBuf> {
    let text = std::fs::read(place.file("log").join("up.log")).ok()?;
    let kept = place.directory.parent()?.join("last-failed-up.log");
    write_private(&kept, &text[text.len().saturating_sub(MAX_LOG)..]).ok()?;
    Some(kept)
}

impl Start<'_> {
    fn remember(&self, memory: &Memory) -> Result<()> {
        self.lease.set_data(memory.to_data()?)
    }

    /// A kept environment, if there is one that can be used.
    async fn warm(&self) -> Result<Option<VagrantEnvironment>> {
        let Some(pool) = &self.pool else { return Ok(None) };
        // Beside this start, which it must not delay.
        let others = pool.clone();
        drop(driver::handle()?.spawn(async move {
            if let Err(error) = others.empty_expired().await {
                tracing::warn!(target: "tierbox::vagrant", "what was kept too long cannot be removed: {}", error.message());
            }
        }));
        let Some(memory) = pool.take(self.lease.as_ref()).await? else { return Ok(None) };
        self.progress.step("taking a kept machine");
        let entered = match self.serve(&memory.place).await {
            Ok(egress) => self.enter(memory.clone(), egress).await,
            Err(error) => Err(error),
        };
        match entered {
            Ok(environment) => Ok(Some(environment)),
            Err(error) => {
                tracing::warn!(target: "tierbox::vagrant", token = memory.place.token, "a kept machine is of no use: {}", error.message());
                destroy::place(&memory.place).await;
                self.lease.set_data(serde_json::Value::Null)?;
                Ok(None)
            }
        }
    }

    /// A new environment.
    async fn cold(&self, place: &mut Place) -> Result<VagrantEnvironment> {
        self.lease.record(&pool::resources(place))?;
        let mut memory =
            Memory { place: place.clone(), machines: Vec::new(), is_guess: false, running: None, kept: None, inputs: None };
        self.remember(&memory)?;
        crash::point("lease");
        make_directory(&place.directory)?;
        let rules = egress::rules(self.spec)?;
        isolation::make(place, rules.is_some()).await?;
        if let (Some(rules), Some(network)) = (&rules, &place.isolated) {
            isolation::open(place, network, &egress::plan(network, rules)?).await?;
        }
        place.write(&self.plan.settings.env, self.pool.is_some())?;
        memory.place = place.clone();
        self.remember(&memory)?;
        crash::point("written");
        // Before the machines boot, so that provisioning has the same way out as they.
        let egress = self.serve(place).await?;

        let Wanted { chosen, defined } = self.up(place).await?;
        crash::point("up");

        let reached = reaches(place, &chosen, &defined).await?;
        let named: Vec<(String, Reach)> = reached.iter().map(|(machine, reach)| (machine.name.clone(), reach.clone())).collect();
        ssh::configure(place, &named)?;
        memory.machines = reached.into_iter().map(|(machine, _)| machine).collect();
        memory.is_guess = chosen.is_guess;
        memory.inputs = Inputs::of(place, &self.plan.settings.env);
        if self.pool.is_some() {
            self.progress.step("saving the first moment");
            snapshot::save(place, &memory.names(), pool::FIRST).await?;
        }
        self.enter(memory, egress).await
    }

    /// Goes into machines that run.
    async fn enter(&self, mut memory: Memory, egress: Option<Egress>) -> Result<VagrantEnvironment> {
        self.progress.step("connecting");
        let (machines, ()) = tokio::try_join!(self.connect(&memory, egress.as_ref()), self.look(&memory, egress.as_ref()))?;
        crash::point("connected");
        let report = report(self.spec, self.plan, &memory, &machines, egress.as_ref()).await?;
        memory.running = Some(Box::new(Running {
            machines: machines.iter().map(|machine| machine.joining.clone()).collect(),
            limits: self.spec.limits.clone(),
            report: report.clone(),
        }));
        self.remember(&memory)?;
        let pool = self.pool.clone().map(|pool| (pool, self.lease.clone()));
        Ok(VagrantEnvironment::new(self.lease.id(), memory, machines, report, egress, pool))
    }
}

impl Start<'_> {
    /// The gateway, with N1.
    async fn serve(&self, place: &Place) -> Result<Option<Egress>> {
        match (egress::rules(self.spec)?, &place.isolated) {
            (Some(rules), Some(network)) => {
                let log = self.lease.directory()?.join("egress.jsonl");
                Egress::serve(network, rules, self.lease.id(), &log).await.map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Looks at what booted from outside, while it is gone into.
    async fn look(&self, memory: &Memory, egress: Option<&Egress>) -> Result<()> {
        let place = &memory.place;
        if let Some(network) = &place.isolated {
            return isolation::check(place, network, &memory.names(), egress.map(Egress::plan)).await;
        }
        if place.provider != "libvirt" {
            return Ok(());
        }
        match libvirt::missing(place, &memory.names(), &libvirt::domains(&place.prefix()).await?) {
            None => Ok(()),
            Some(missing) => {
                Err(Error::new(ErrorKind::TierRefused, "check tier", format!("this host's libvirt does not know {missing}"))
                    .with_backend(BACKEND)
                    .with_help("let the Vagrantfile use this host's own libvirt, qemu:///system"))
            }
        }
    }

    async fn connect(&self, memory: &Memory, egress: Option<&Egress>) -> Result<Vec<Connected>> {
        let more = egress.map(Egress::variables).unwrap_or_default();
        let mut tasks = JoinSet::new();
        for (number, machine) in memory.machines.iter().enumerate() {
            let (place, is_old, way) = (memory.place.clone(), memory.running.is_some(), self.plan.settings.supervisor);
            let (machine, spec, declared, more) = (machine.clone(), self.spec.clone(), self.declared.clone(), more.clone());
            tasks.spawn(async move {
                let ssh = Arc::new(Ssh::new(&place, &machine.name));
                if is_old {
                    snapshot::wake(&ssh).await?;
                }
                let begun = enter_machine(&place, &machine, &spec, &declared, way, &more, ssh).await;
                begun.map(|connected| (number, connected)).map_err(|error| error.with_context("machine", &machine.shown))
            });
        }
        let mut machines = Vec::new();
        while let Some(done) = tasks.join_next().await {
            machines.push(done.map_err(|error| Error::new(ErrorKind::Internal, "connect", error.to_string()))??);
        }
        machines.sort_by_key(|(number, _)| *number);
        Ok(machines.into_iter().map(|(_, connected)| connected).collect())
    }
}

/// Which machines there are, and which of them are to start.
struct Wanted {
    chosen: Chosen,
    defined: Vec<Machine>,
}

/// What `vagrant up` is told while it waits, before anything boots.
struct Choice<'a> {
    start: &'a Start<'a>,
    place: &'a Place,
    /// Decided once, however often Vagrant has to be run.
    wanted: Option<Result<Wanted>>,
    slot: Option<Slot>,
    /// Machines that start only when they are named.
    idle: Vec<String>,
}

impl Choice<'_> {
    /// Hears what Vagrant says, and answers when it asks: the names of machines (none are those that it starts by itself), or that
    /// nothing is to start by this process.
    fn hear(&mut self, record: &Record) -> Option<String> {
        if let Some(names) = record.idle() {
            names.clone_into(&mut self.idle);
            return None;
        }
        let Some(names) = record.asked() else {
            show(record, self.start.progress);
            return None;
        };
        if self.wanted.is_none() {
            let wanted = self.start.choose(self.place, names, &self.idle).and_then(|wanted| {
                self.slot = throttle::take(&self.start.plan.settings)?;
                Ok(wanted)
            });
            self.wanted = Some(wanted);
        } else if self.is_other(names) {
            let message = format!("the Vagrantfile defines other machines than a moment before: {}", names.join(", "));
            self.wanted = Some(Err(Error::new(ErrorKind::InvalidProfile, "read Vagrantfile", message).with_backend(BACKEND)));
        }
        let told = match (&self.wanted, &self.slot) {
            (Some(Ok(wanted)), Some(_)) => {
                self.start.progress.step("vagrant up");
                serde_json::json!(wanted.chosen.named)
            }
            _ => serde_json::Value::Null,
        };
        Some(told.to_string())
    }

    /// Whether these are not the machines that were written down.
    fn is_other(&self, names: &[String]) -> bool {
        let Some(Ok(wanted)) = &self.wanted else { return false };
        wanted.defined.iter().map(|machine| &machine.name).ne(names)
    }

    /// What was decided, if Vagrant asked.
    fn taken(self) -> Result<Wanted> {
        self.wanted.unwrap_or_else(|| {
            let message = "`vagrant up` ended without asking which machines to start";
            Err(Error::new(ErrorKind::Protocol, "start environment", message).with_backend(BACKEND))
        })
    }
}

/// Passes on what Vagrant says to people.
fn show(record: &Record, progress: &dyn Progress) {
    let Some(message) = record.message() else { return };
    if message.contains("Waiting for") || message.contains("Starting container") {
        crash::point("booting");
    }
    if let Some(line) = message.lines().map(shown).find(|line| !line.is_empty()) {
        progress.step(line.trim_start_matches("==> "));
    }
}

impl Start<'_> {
    /// Decides what is to start of the machines that a Vagrantfile defines, and writes all of them down.
    fn choose(&self, place: &Place, names: &[String], idle: &[String]) -> Result<Wanted> {
        let (settings, suffix) = (&self.plan.settings, place.suffix());
        let defined = machines::defined(names, &suffix)?;
        let asked = Asked { primary: settings.primary.as_deref(), wanted: &settings.machines, suffix: &suffix };
        let chosen = machines::choose(&defined, idle, asked)?;
        let machine =
            |machine: &Machine| Resource { kind: "machine".to_owned(), id: format!("{}{}", place.prefix(), machine.name) };
        self.lease.record(&defined.iter().map(machine).collect::<Vec<_>>())?;
        Ok(Wanted { chosen, defined })
    }

    /// Brings up the machines that are wanted. A process of Vagrant's costs a second and more, so the one that boots them also tells
    /// which there are.
    async fn up(&self, place: &Place) -> Result<Wanted> {
        self.progress.step("reading the Vagrantfile");
        let (started, limit) = (Instant::now(), self.spec.limits.startup);
        let left = || limit.saturating_sub(started.elapsed());
        let mut choice = Choice { start: self, place, wanted: None, slot: None, idle: Vec::new() };
        let arguments = [program::UP, "--provider", &place.provider];
        loop {
            let ran = run(place, Source::Own, &arguments, left(), &mut |record| choice.hear(record)).await;
            match (&choice.wanted, &choice.slot) {
                // What was refused says more than how Vagrant then ended.
                (Some(Err(_)), _) => return choice.taken(),
                (Some(Ok(_)), None) => {
                    ran?;
                    // It has ended: what waits for its turn takes no memory.
                    choice.slot = Some(throttle::wait(&self.plan.settings, left(), self.progress).await?);
                }
                _ => return ran.and_then(|_| choice.taken()),
            }
        }
    }
}

/// How the machines that came up are reached; the primary machine first.
async fn reaches(place: &Place, chosen: &Chosen, defined: &[Machine]) -> Result<Vec<(Machine, Reach)>> {
    let mut reached = Vec::new();
    for machine in defined {
        let told = match Reach::told(place, &machine.name)? {
            // An old Vagrant without triggers tells only when it is asked.
            None if is_made(place, &machine.name) => asked(place, &machine.name).await?,
            told => told,
        };
        if let Some(reach) = told {
            let at = if machine.name == chosen.primary.name { 0 } else { reached.len() };
            reached.insert(at, (machine.clone(), reach));
        }
    }
    match reached.first() {
        Some((first, _)) if first.name == chosen.primary.name => Ok(reached),
        _ => Err(Error::new(
            ErrorKind::InvalidProfile,
            "start environment",
            format!("the primary machine {:?} was not started by `vagrant up`", chosen.primary.shown),
        )
        .with_backend(BACKEND)
        .with_help("name it in vagrant.machines, or take `autostart: false` off it")),
    }
}

/// Whether Vagrant remembers to have made a machine.
pub fn is_made(place: &Place, machine: &str) -> bool {
    place.dotfile().join("machines").join(machine).join(&place.provider).join("id").is_file()
}

async fn asked(place: &Place, machine: &str) -> Result<Option<Reach>> {
    let records = run(place, Source::Own, &["ssh-config", machine], EVALUATION, &mut |_| None).await?;
    let text: Vec<&str> = records
        .iter()
        .filter_map(|record| match record.kind.as_str() {
            "ssh-config" => record.data.first().map(String::as_str),
            _ => record.message(),
        })
        .collect();
    Ok(Reach::from_config(&text.join("\n")))
}

/// Speaks with a machine, by the way that the profile allows and the machine has.
async fn enter_machine(
    place: &Place,
    machine: &Machine,
    spec: &EnvironmentSpec,
    declared: &Capabilities,
    way: Supervisor,
    more: &[(String, String)],
    ssh: Arc<Ssh>,
) -> Result<Connected> {
    if way == Supervisor::Never {
        return scripts::begin(machine, spec, declared, more, ssh).await;
    }
    match line::begin(place, machine, spec, declared.clone(), more, ssh.clone()).await {
        // Scripts alone cannot kill all that a command left, which every tier above asks for.
        Err(error) if error.kind() == ErrorKind::Unsupported && spec.tier.host() == HostIsolation::H0 => {
            tracing::info!(target: "tierbox::vagrant", machine = machine.shown, "no supervisor: {}", error.message());
            scripts::begin(machine, spec, declared, more, ssh).await
        }
        begun => begun,
    }
}

async fn report(
    spec: &EnvironmentSpec,
    plan: &Plan,
    memory: &Memory,
    machines: &[Connected],
    egress: Option<&Egress>,
) -> Result<Report> {
    let place = &memory.place;
    let mechanism = |name: &str, detail: String| Mechanism { name: name.to_owned(), applied: Applied::Enforced, detail };
    let mut mechanisms = Vec::new();
    if plan.provider.isolation() == HostIsolation::H3 {
        mechanisms.push(mechanism("virtual machine", format!("Vagrant's provider {}", plan.provider.name())));
    }
    if let Some(network) = &place.isolated {
        let mut dropped = String::new();
        for machine in machines {
            dropped = isolation::probe(place, network, machine.way.sandbox().as_ref()).await?;
        }
        let out = if egress.is_some() { "whose only way out is the gateway" } else { "without a way out" };
        mechanisms.push(mechanism("isolated network", format!("{}, {out}", network.subnet())));
        mechanisms.push(mechanism("host firewall", format!("nftables: guests reach nothing of this host; {dropped}")));
    }
    let mut notes: Vec<String> = spec.tier.notes().into_iter().map(str::to_owned).collect();
    if let Some(egress) = egress {
        mechanisms.push(mechanism("egress gateway", format!("on {}, in this process", network_address(place))));
        notes.extend(egress.notes());
        notes.extend(unresolved(egress, machines).await?);
    }
    for machine in machines.iter().filter(|machine| machine.joining.join.is_none()) {
        let shown = &machine.joining.machine.shown;
        notes.push(format!("{shown} has no supervisor: commands are scripts over SSH, as the plain transport does them"));
    }
    if memory.is_guess {
        notes.push(format!("no primary machine is named; commands go to the first, {:?}", memory.machines[0].shown));
    }
    if plan.settings.pool > 0 && !plan.provider.can_snapshot() {
        notes.push(format!("vagrant.pool is ignored: the provider {} cannot save running machines", plan.provider.name()));
    }
    if plan.provider.isolation() == HostIsolation::H0 {
        notes.push(format!(
            "the provider {} makes containers that have rights of this host's root: for trusted code only",
            place.provider
        ));
    }
    let kill_domain = machines.iter().map(|machine| machine.joining.capabilities.kill_domain).min();
    Ok(Report {
        profile: spec.profile.clone(),
        tier: spec.tier,
        backend: BACKEND.to_owned(),
        locality: tierbox_core::Locality::Local,
        kill_domain: kill_domain.unwrap_or(KillDomain::Session),
        mechanisms,
        limits: LimitReport::of_processes_alone(&spec.limits),
        mounts: Vec::new(),
        parts: Vec::new(),
        copied_in: Vec::new(),
        weakened: spec.weakened.clone(),
        reason: spec.reason.clone(),
        notes,
    })
}

/// Makes the gateway the resolver of machines, and says of which it could not be made.
async fn unresolved(egress: &Egress, machines: &[Connected]) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    for machine in machines {
        if !egress.resolve(&machine.ssh).await? {
            let shown = &machine.joining.machine.shown;
            notes.push(format!("{shown} lets nobody change its resolver: only programs that take proxies get out"));
        }
    }
    Ok(notes)
}

fn network_address(place: &Place) -> String {
    place.isolated.as_ref().map(isolation::Isolated::host_address).unwrap_or_default()
}
