//! A running environment: one machine, named `default`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tierbox_core::{
    Capabilities, Connection, Decision, Environment, Error, ErrorKind, HostIsolation, LeaseHandle, LeaseRecord, Limits, Report,
    Result, Sandbox,
};
use tierbox_egress::Gateway;
use tierbox_guest::{Channel, GuestConfig, GuestSandbox};

use crate::BACKEND;
use crate::machine::Machine;
use crate::reaper::{Watched, watch_other};
use crate::{destroy, identity, selfcheck};

/// The name of the only machine.
pub const MACHINE: &str = "default";

/// How long a machine may take to end when it is told to, before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(3);

/// How long the machine may take to confirm that it lives on.
const DETACH_PATIENCE: Duration = Duration::from_secs(10);

/// A process that is remembered across programs: its number alone proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Its id.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub start_ticks: u64,
}

impl From<&Watched> for Remembered {
    fn from(watched: &Watched) -> Self {
        Self { pid: watched.pid(), start_ticks: watched.start_ticks() }
    }
}

/// What is needed to use a detached machine again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Detached {
    /// Its listening socket.
    pub socket: PathBuf,
    /// What it can do.
    pub capabilities: Capabilities,
    /// Its limits.
    pub limits: Limits,
    /// Its default user.
    pub agent: String,
    /// What was enforced.
    pub report: Report,
    /// Where its gateway writes what it decides.
    #[serde(default)]
    pub decisions: Option<PathBuf>,
}

/// What the lease remembers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// The process that cleans up after the machine.
    pub keeper: Remembered,
    /// The network helper.
    pub helper: Option<Remembered>,
    /// Whose user manager holds the scope, where there is one.
    pub detached: Option<Box<Detached>>,
}

impl Memory {
    /// Reads it from a lease; `None` if nothing was started under that lease.
    pub fn of(lease: &LeaseRecord) -> Option<Self> {
        Self::deserialize(&lease.data).ok()
    }
}

/// What is the same for a machine that was started and one that was found again.
struct Shared {
    id: String,
    channel: Channel,
    sandbox: Arc<GuestSandbox>,
    report: Report,
    /// `None` if the keeper lives in a pid namespace that this process does not see.
    keeper: Option<Watched>,
    helper: Option<Watched>,
    /// Its gateway in this process, until it ends.
    gateway: Mutex<Option<Gateway>>,
    decisions: Option<PathBuf>,
    cgroups: Vec<PathBuf>,
    directories: Vec<PathBuf>,
    /// The directory that its root shows; `None` for one that was found again.
    root: Option<PathBuf>,
}

/// A running environment.
pub struct LocalEnvironment {
    shared: Shared,
    /// How it can be detached; `None` if it was not made for that, or was found again.
    detachable: Option<(Arc<dyn LeaseHandle>, Detached)>,
    stopped: AtomicBool,
}

/// What a fresh environment is made of.
pub struct Parts {
    /// The running machine.
    pub machine: Machine,
    /// What it can do.
    pub capabilities: Capabilities,
    /// Its limits.
    pub limits: Limits,
    /// Its default user.
    pub agent: String,
    /// What was enforced.
    pub report: Report,
    /// Its cgroups, removed by the keeper unless it was killed.
    pub cgroups: Vec<PathBuf>,
    /// Directories of its own on this host.
    pub directories: Vec<PathBuf>,
    /// The listening socket of one that can be detached.
    pub socket: Option<PathBuf>,
    /// Where its gateway writes what it decides.
    pub decisions: Option<PathBuf>,
    /// The directory of this host that its root shows.
    pub root: PathBuf,
}

impl LocalEnvironment {
    /// An environment around a machine that was just started.
    pub fn new(id: &str, parts: Parts, lease: Arc<dyn LeaseHandle>) -> Self {
        let Parts { machine, capabilities, limits, agent, report, cgroups, directories, socket, decisions, root } = parts;
        let detached = socket.map(|socket| Detached {
            socket,
            capabilities: capabilities.clone(),
            limits: limits.clone(),
            agent: agent.clone(),
            report: report.clone(),
            decisions: decisions.clone(),
        });
        let config = GuestConfig { name: MACHINE.to_owned(), backend: BACKEND, capabilities, limits, agent };
        let shared = Shared {
            id: id.to_owned(),
            sandbox: Arc::new(GuestSandbox::new(machine.channel.clone(), config)),
            channel: machine.channel,
            report,
            keeper: Some(machine.keeper),
            helper: machine.helper,
            gateway: Mutex::new(machine.gateway),
            decisions,
            cgroups,
            directories,
            root: Some(root),
        };
        Self { shared, detachable: detached.map(|detached| (lease, detached)), stopped: AtomicBool::new(false) }
    }

    /// Finds a detached environment again.
    ///
    /// # Errors
    /// `NotFound` if it is gone, `Unsupported` if it was never detached.
    pub async fn attach(lease: &LeaseRecord) -> Result<Self> {
        let gone =
            |why: String| Error::new(ErrorKind::NotFound, "attach", why).with_backend(BACKEND).with_context("id", &lease.id);
        let memory = Memory::of(lease).ok_or_else(|| gone(format!("nothing was started under {}", lease.id)))?;
        let Some(detached) = memory.detached else {
            return Err(Error::unsupported("attach", "attaching to a sandbox that was not detached").with_backend(BACKEND));
        };
        let socket = std::os::unix::net::UnixStream::connect(&detached.socket)
            .map_err(|error| gone(format!("{} has ended: {}: {error}", lease.id, detached.socket.display())))?;
        let channel = Channel::socket(socket)?;
        channel.meet(Duration::ZERO, DETACH_PATIENCE).await.map_err(|error| match error.kind() {
            ErrorKind::LimitReached => error.with_backend(BACKEND).with_context("id", &lease.id),
            _ => gone(format!("{} does not answer: {}", lease.id, error.message())),
        })?;
        let Detached { capabilities, limits, agent, mut report, decisions, .. } = *detached;
        if report.tier.host() == HostIsolation::H1 {
            // Nobody lives whose number is all that is known of him: what is looked at must be what was started.
            let keeper = memory.keeper;
            let is_it = destroy::start_ticks(keeper.pid) == Some(keeper.start_ticks);
            let looked = if is_it { selfcheck::again(keeper.pid, report.tier.network())? } else { None };
            report.mechanisms.retain(|mechanism| mechanism.name != selfcheck::NAME);
            report.mechanisms.extend(looked);
        }
        let config = GuestConfig { name: MACHINE.to_owned(), backend: BACKEND, capabilities, limits, agent };
        let watch = |process: Remembered| watch_other(process.pid, process.start_ticks);
        let paths = |kind: &str| lease.resources_of(kind).map(PathBuf::from).collect();
        let shared = Shared {
            id: lease.id.clone(),
            sandbox: Arc::new(GuestSandbox::new(channel.clone(), config)),
            channel,
            report,
            keeper: watch(memory.keeper),
            helper: memory.helper.and_then(watch),
            gateway: Mutex::new(None),
            decisions,
            cgroups: paths("cgroup"),
            directories: paths("directory"),
            root: None,
        };
        Ok(Self { shared, detachable: None, stopped: AtomicBool::new(false) })
    }
}

impl Shared {
    async fn end(&self) -> Result<()> {
        self.channel.shutdown();
        match &self.keeper {
            Some(keeper) => {
                keeper.kill_after(STOP_PATIENCE);
                keeper.ended().await;
            }
            None => drop(tokio::time::timeout(STOP_PATIENCE, self.channel.closed()).await),
        }
        self.channel.close();
        drop(self.gateway.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(helper) = &self.helper {
            helper.kill_after(Duration::ZERO);
            helper.ended().await;
        }
        self.remove_remains()
    }

    /// What the keeper could not remove, because it was killed.
    fn remove_remains(&self) -> Result<()> {
        let mut failed = Vec::new();
        for cgroup in self.cgroups.iter().filter(|path| path.exists()) {
            if let Err(error) = destroy::remove_cgroup(cgroup) {
                failed.push(format!("{}: {error}", cgroup.display()));
            }
        }
        for directory in &self.directories {
            if let Err(error) = destroy::remove_directory(directory) {
                failed.push(format!("{}: {error}", directory.display()));
            }
        }
        if failed.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Io, "stop sandbox", format!("could not remove {}", failed.join("; ")))
            .with_backend(BACKEND)
            .with_help(format!("run `tierbox down {}` again, or `tierbox cleanup`", self.id)))
    }
}

#[async_trait]
impl Environment for LocalEnvironment {
    fn id(&self) -> &str {
        &self.shared.id
    }

    fn machines(&self) -> Vec<Arc<dyn Sandbox>> {
        vec![self.shared.sandbox.clone()]
    }

    fn report(&self) -> &Report {
        &self.shared.report
    }

    fn identity(&self) -> Option<BTreeMap<String, String>> {
        identity::of(self.shared.root.as_deref()?)
    }

    fn connection(&self, machine: &str) -> Result<Connection> {
        if machine != MACHINE {
            return Err(Error::new(
                ErrorKind::NotFound,
                "connect",
                format!("no machine is named {machine:?}; there is {MACHINE}"),
            )
            .with_backend(BACKEND));
        }
        let argv = ["tierbox", "shell", &self.shared.id].map(str::to_owned).to_vec();
        let attached = self.shared.keeper.is_some() && self.detachable.is_none();
        let note = if attached { "only from the process that started it, unless it is detached" } else { "" };
        Ok(Connection { argv, needs: Vec::new(), note: note.to_owned() })
    }

    async fn decisions(&self) -> Result<Vec<Decision>> {
        let Some(log) = self.shared.decisions.clone() else { return Ok(Vec::new()) };
        let read = tokio::task::spawn_blocking(move || tierbox_egress::read_log(&log)).await;
        read.unwrap_or_else(|error| Err(Error::new(ErrorKind::Internal, "read egress log", error.to_string())))
    }

    async fn stop(&self) -> Result<()> {
        if self.stopped.load(Ordering::Acquire) {
            return Ok(());
        }
        self.shared.end().await?;
        self.stopped.store(true, Ordering::Release);
        Ok(())
    }

    async fn detach(&self) -> Result<()> {
        let Some((lease, detached)) = &self.detachable else {
            return Err(Error::unsupported("detach sandbox", "detaching a sandbox whose hold is its process")
                .with_backend(BACKEND)
                .with_help("start it with a hold of its own (`tierbox up`, or `run --keep`)"));
        };
        let memory = Memory {
            keeper: self.shared.keeper.as_ref().map_or(Remembered { pid: 0, start_ticks: 0 }, Remembered::from),
            helper: self.shared.helper.as_ref().map(Remembered::from),
            detached: Some(Box::new(detached.clone())),
        };
        // Written before the machine outlives this process, so that it can always be found.
        lease.set_data(to_data(&memory)?)?;
        self.shared.channel.persist(DETACH_PATIENCE).await.map_err(|error| error.with_backend(BACKEND))
    }

    async fn ended(&self, limit: Duration) -> bool {
        let over = async {
            match &self.shared.keeper {
                Some(keeper) => keeper.ended().await,
                None => drop(self.shared.channel.closed().await),
            }
        };
        tokio::time::timeout(limit, over).await.is_ok()
    }
}

/// A memory as the lease keeps it.
///
/// # Errors
/// `Internal` if it has no JSON form.
pub fn to_data(memory: &Memory) -> Result<serde_json::Value> {
    serde_json::to_value(memory).map_err(|error| Error::new(ErrorKind::Internal, "write lease", error.to_string()))
}
