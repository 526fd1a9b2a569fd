//! A start on an instance that exists.

use std::sync::Arc;
use std::time::Duration;

use tierbox_core::{Applied, Capabilities, KillDomain, LimitReport, UserSupport};
use tierbox_core::{EnvironmentSpec, Error, ErrorKind, Limit, Locality, Mechanism, Network, Report, Resource, Result};
use tierbox_guest::plain::{Bounds, PlainConfig};

use crate::aws::{Aws, driven};
use crate::control::{Control, Find};
use crate::environment::{Ec2Environment, Held};
use crate::link::Link;
use crate::memory::{Machine, Memory};
use crate::objects::Objects;
use crate::settings::{Settings, invalid};
use crate::start::{self, Start};
use crate::task::{self, Made, Status, Task};
use crate::{BACKEND, capabilities, crash, ready};

/// Where tasks are, how long their commands may take, their memory, and how long they outlive their harness.
const BASE: &str = "/opt/sandbox";
const SECONDS: u32 = 300;
const MEMORY: u32 = 1024;
const HOURS: u32 = 24;
/// The largest file of a process, in bytes, and its open files.
const FILE: u64 = 100_000 << 10;
const FILES: u64 = 1024;
/// How long the preparation of a task may take: it removes old ones first.
const PREPARATION: Duration = Duration::from_secs(300);

/// Checks what only an instance that exists asks for.
///
/// # Errors
/// `InvalidProfile`, `TierRefused`.
pub(crate) fn check(spec: &EnvironmentSpec, settings: &Settings) -> Result<()> {
    if settings.instance_id.is_none() {
        return Err(invalid("no instance is named").with_help("write ec2.instance-id, or set EC2_INSTANCE_ID"));
    }
    if spec.user.is_some() {
        return Err(invalid("user is not of mode = \"attach\"").with_help("each environment gets a user of its own there"));
    }
    if spec.tier.network() != Network::N0 {
        let message = format!("{}: the network of an instance that exists is its owner's, and not looked at", spec.tier);
        return Err(Error::new(ErrorKind::TierRefused, "check profile", message)
            .with_backend(BACKEND)
            .with_help(format!("the nearest tier that it can keep is {}.H3.N0", spec.tier.tooling())));
    }
    Ok(())
}

/// What a task can do: it is one machine, and has no other user than its own.
pub(crate) fn attached() -> Capabilities {
    Capabilities { multi_machine: false, users: UserSupport::DefaultOnly, ..capabilities(vec![Network::N0]) }
}

impl Start<'_> {
    fn instance(&self) -> &str {
        self.plan.settings.instance_id.as_deref().unwrap_or_default()
    }

    fn hours(&self) -> u32 {
        self.plan.settings.cleanup_after_hours.unwrap_or(HOURS)
    }

    fn memory_bytes(&self) -> u64 {
        u64::from(self.plan.settings.max_memory_mib.unwrap_or(MEMORY)) << 20
    }

    /// The task of an environment, and the instance that it is on.
    pub(crate) fn task(&self) -> (Task, Machine) {
        let task = Task::of(self.plan.settings.base_dir.as_deref().unwrap_or(BASE), self.lease.id());
        (task, Machine { name: "main".to_owned(), instance: self.instance().to_owned() })
    }

    /// The way into the instance.
    pub(crate) fn link(&self, memory: &Memory) -> Arc<Link> {
        let objects = self.plan.bucket.as_ref().map(|bucket| Objects::at(self.aws.clone(), bucket, &memory.prefix));
        Arc::new(Link::new(self.aws.clone(), self.instance(), objects))
    }

    /// Makes a task on an instance that exists.
    ///
    /// # Errors
    /// What any of the steps says.
    pub(crate) async fn attach(&self, task: &Task, memory: &Memory, link: &Arc<Link>) -> Result<Ec2Environment> {
        self.lease.record(&[Resource { kind: "task".to_owned(), id: format!("{} on {}", task.directory(), self.instance()) }])?;
        self.lease.set_data(memory.to_data()?)?;
        crash::point("lease");
        self.progress.step("making a task");
        let runtimes: Vec<String> = self.spec.code.runtimes.iter().map(|runtime| runtime.name.clone()).collect();
        let printed = link.script(task.make(self.hours(), &runtimes), PREPARATION).await?;
        let made = Made::read(&printed.stdout, &printed.stderr)?;
        crash::point("prepared");
        if made.door.is_root {
            return Err(Error::new(ErrorKind::HostUnable, "prepare task", "on that instance every user may become root by sudo")
                .with_help("take the rule out of its sudoers, or use another instance"));
        }
        if !made.door.holds() {
            let message = "nothing on that instance closes the metadata service to the task's user, who would have its role";
            return Err(Error::new(ErrorKind::HostUnable, "prepare task", message)
                .with_help("install nftables, iptables or iproute2 there, or take the instance's metadata service away"));
        }
        let sandbox = start::open(link.clone(), self.task_config(task, &made)).await?;
        let bounds = self.bound_memory(link, &made, sandbox.group()).await?;
        let report = self.task_report(task, &made, bounds);
        let machine = memory.machines[0].clone();
        let held = Held { machine, link: link.clone(), sandbox: Arc::new(sandbox) };
        let environment = Ec2Environment::new(
            self.lease.id().to_owned(),
            memory.clone(),
            vec![held],
            self.aws.clone(),
            self.control.clone(),
            report,
            task.user(),
        );
        environment.keep_task(task.clone(), task::sign_every(self.hours()));
        Ok(environment)
    }

    /// Looks whether the instance runs and its agent answers: without one, a task can neither be made nor removed.
    pub(crate) async fn look_at_instance(&self) -> Result<()> {
        self.progress.step("looking at the instance");
        let (aws, control, id) = (self.aws.clone(), self.control.clone(), self.instance().to_owned());
        let limit = ready::patience(self.spec.limits.startup);
        driven(async move {
            running(&aws, control.as_ref(), &id).await?;
            ready::wait(&aws, control.as_ref(), &[id], limit).await
        })
        .await
    }

    fn task_config(&self, task: &Task, made: &Made) -> PlainConfig {
        let time = Duration::from_secs(u64::from(self.plan.settings.max_execution_seconds.unwrap_or(SECONDS)));
        let mut limits = self.spec.limits.clone();
        limits.file_size = limits.file_size.or(Some(Limit::required(FILE)));
        limits.open_files = limits.open_files.or(Some(Limit::required(FILES)));
        let memory = (!made.bounds_memory).then(|| self.memory_bytes());
        PlainConfig {
            place: Some(task.place()),
            bounds: Bounds { memory, time: Some(time) },
            groups: true,
            name: "main".to_owned(),
            backend: BACKEND,
            capabilities: attached(),
            limits,
            user: Some(task.user()),
            workdir: Some(self.spec.workdir.clone().unwrap_or_else(|| task.directory())),
            env: self.spec.env.iter().map(|(name, value)| (name.clone().into_bytes(), value.clone().into_bytes())).collect(),
        }
    }

    /// Bounds its memory; tells by what.
    async fn bound_memory(&self, link: &Arc<Link>, made: &Made, group: Option<&str>) -> Result<String> {
        let bytes = self.memory_bytes();
        match group.filter(|_| made.bounds_memory) {
            None => Ok(format!("address space of each process, {} MiB", bytes >> 20)),
            Some(group) => {
                let bounded = link.script(Task::bound(group, bytes), Duration::from_secs(60)).await?;
                if bounded.status != 0 {
                    return Err(Error::new(ErrorKind::HostUnable, "prepare task", "its cgroup does not take a limit on memory"));
                }
                Ok(format!("memory of the task by its cgroup, {} MiB", bytes >> 20))
            }
        }
    }

    fn task_report(&self, task: &Task, made: &Made, memory: String) -> Report {
        let mechanism = |name: &str, applied, detail: String| Mechanism { name: name.to_owned(), applied, detail };
        let door = mechanism("metadata closed", Applied::Enforced, format!("to the task's user, by {}", made.door.by));
        let mut notes: Vec<String> = self.spec.tier.notes().into_iter().map(str::to_owned).collect();
        notes.push(format!("{} is shared: other tasks there are kept apart by users and directories alone", self.instance()));
        if self.plan.bucket.is_none() {
            notes.push(
                "there is no bucket: variables and input of single commands are refused, and files go in small pieces".to_owned(),
            );
        }
        notes.push(format!("runtimes there: {}; missing: {}", or_none(&made.runtimes[0]), or_none(&made.runtimes[1])));
        notes.extend((made.swept > 0).then(|| format!("{} older tasks were removed", made.swept)));
        notes.extend(
            (!made.door.has_metadata)
                .then(|| "the metadata service answers nobody, so that its closing could not be tested".to_owned()),
        );
        Report {
            profile: self.spec.profile.clone(),
            tier: self.spec.tier,
            backend: BACKEND.to_owned(),
            locality: Locality::Remote,
            kill_domain: KillDomain::Cgroup,
            mechanisms: vec![
                mechanism("virtual machine", Applied::Enforced, "an instance of EC2 that others made".to_owned()),
                mechanism("commands by SSM", Applied::Enforced, format!("as {}, each in a cgroup of its own", task.user())),
                mechanism("private directory", Applied::Enforced, task.directory()),
                mechanism("memory", Applied::Enforced, memory),
                door,
            ],
            limits: LimitReport::of_processes_alone(&self.spec.limits),
            mounts: Vec::new(),
            copied_in: Vec::new(),
            parts: Vec::new(),
            weakened: self.spec.weakened.clone(),
            reason: self.spec.reason.clone(),
            notes,
        }
    }
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}

/// The state of an instance that must run.
async fn running(aws: &Aws, control: &dyn Control, id: &str) -> Result<String> {
    let found = control.find(&Find::Ids(vec![id.to_owned()])).await?;
    let unable = |message: String, help: &str| {
        Err(Error::new(ErrorKind::HostUnable, "find instance", message).with_backend(BACKEND).with_help(help.to_owned()))
    };
    match found.first() {
        None => unable(format!("there is no instance {id} in {}", aws.region), "check ec2.instance-id and ec2.region"),
        Some(instance) if instance.state != "running" && instance.state != "pending" => {
            unable(format!("the instance {id} is {}", instance.state), "start it, or name another one")
        }
        Some(instance) => Ok(instance.state.clone()),
    }
}

/// How an instance is.
///
/// # Errors
/// `HostUnable` where there is none that runs; `Protocol` for an answer that makes no sense; the transport's own.
pub(crate) async fn status(aws: Arc<Aws>, settings: &Settings) -> Result<Status> {
    let id = settings.instance_id.clone().ok_or_else(|| invalid("no instance is named"))?;
    let task = Task::of(settings.base_dir.as_deref().unwrap_or(BASE), "status");
    let (found, instance) = (aws.clone(), id.clone());
    let state = driven(async move { running(&found, found.as_ref(), &instance).await }).await?;
    let link = Arc::new(Link::new(aws, &id, None));
    let printed = link.script(task.status(), Duration::from_secs(60)).await?;
    Status::read(&id, &state, &printed.stdout).ok_or_else(|| {
        let said = crate::call::shown(&String::from_utf8_lossy(&printed.stdout));
        Error::new(ErrorKind::Protocol, "look at instance", format!("the machine's answer makes no sense: {said:?}"))
            .with_backend(BACKEND)
    })
}
