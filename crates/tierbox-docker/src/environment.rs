//! A running environment.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tierbox_core::{
    Capabilities, Connection, Decision, Environment, Error, ErrorKind, LeaseHandle, LeaseRecord, Limits, Report, Resource,
    Result, Sandbox,
};
use tierbox_egress::Gateway;
use tierbox_guest::{Channel, GuestConfig, GuestSandbox};

use crate::engine::{Engine, on_driver};
use crate::launch::name_of;
use crate::way::Way;
use crate::{BACKEND, destroy, join};

/// What is to be known of a shell by the engine's own command.
const NOTE: &str = "as root inside, with the image's own /bin/sh: an image without one (scratch, distroless) is not entered so";

/// How long a machine may take to confirm that it lives on.
const DETACH_PATIENCE: Duration = Duration::from_secs(20);

/// What the lease remembers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// The engine's socket.
    pub socket: PathBuf,
    /// Whether the start went to its end.
    pub ready: bool,
    /// How it is found again, once it was detached.
    #[serde(default)]
    pub detached: Option<Box<Detached>>,
}

/// What is needed to use an environment from another process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Detached {
    /// Its machines, primary first.
    pub machines: Vec<Rejoin>,
    /// Their limits.
    pub limits: Limits,
    /// What was enforced.
    pub report: Report,
}

/// The same of a machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rejoin {
    /// Its name.
    pub name: String,
    /// Its default user.
    pub agent: String,
    /// What it can do.
    pub capabilities: Capabilities,
    /// Where its gateway writes what it decides.
    pub decisions: Option<PathBuf>,
}

impl Memory {
    /// Reads it from a lease.
    ///
    /// # Errors
    /// `Internal` if the lease was not written by this backend.
    pub fn of(lease: &LeaseRecord) -> Result<Self> {
        Self::deserialize(&lease.data).map_err(|error| internal("read lease", &error.to_string()))
    }

    /// As the lease keeps it.
    ///
    /// # Errors
    /// `Internal` if it has no JSON form.
    pub fn to_data(&self) -> Result<serde_json::Value> {
        serde_json::to_value(self).map_err(|error| internal("write lease", &error.to_string()))
    }
}

fn internal(operation: &'static str, message: &str) -> Error {
    Error::new(ErrorKind::Internal, operation, message).with_backend(BACKEND)
}

/// A machine of an environment.
pub struct Machine {
    /// How it is spoken with.
    pub way: Way,
    /// Its default user.
    pub agent: String,
    /// Its way out, with N1, where this process serves it.
    pub gateway: Option<Gateway>,
    /// Where its gateway writes what it decides.
    pub decisions: Option<PathBuf>,
}

impl Machine {
    fn rejoin(&self) -> Rejoin {
        Rejoin {
            name: self.way.sandbox().name().to_owned(),
            agent: self.agent.clone(),
            capabilities: self.way.sandbox().capabilities().clone(),
            decisions: self.decisions.clone(),
        }
    }
}

/// A handle on a machine.
pub fn sandbox(channel: Channel, name: &str, agent: &str, capabilities: Capabilities, limits: &Limits) -> Arc<GuestSandbox> {
    let (name, agent) = (name.to_owned(), agent.to_owned());
    Arc::new(GuestSandbox::new(channel, GuestConfig { name, backend: BACKEND, capabilities, limits: limits.clone(), agent }))
}

/// A running environment.
pub struct DockerEnvironment {
    id: String,
    /// Primary first.
    machines: Vec<Machine>,
    report: Report,
    socket: PathBuf,
    resources: Vec<Resource>,
    /// Where it is noted how it is found again; `None` if it was not made to outlive this process.
    lease: Option<Arc<dyn LeaseHandle>>,
    /// Images and engine; `None` for one that was found again.
    identity: Option<BTreeMap<String, String>>,
    stopped: AtomicBool,
}

impl DockerEnvironment {
    /// An environment around machines that were just started.
    pub fn new(
        id: &str,
        machines: Vec<Machine>,
        report: Report,
        socket: PathBuf,
        resources: Vec<Resource>,
        lease: Option<Arc<dyn LeaseHandle>>,
    ) -> Self {
        Self { id: id.to_owned(), machines, report, socket, resources, lease, identity: None, stopped: AtomicBool::new(false) }
    }

    /// The same, made of these images by this engine.
    pub fn made_of(self, identity: BTreeMap<String, String>) -> Self {
        Self { identity: Some(identity), ..self }
    }

    /// Finds a detached environment again.
    ///
    /// # Errors
    /// `NotFound` if it is gone, `Unsupported` if it was never detached.
    pub async fn attach(lease: &LeaseRecord) -> Result<Self> {
        let Memory { socket, detached, .. } = Memory::of(lease)?;
        let Some(detached) = detached else {
            return Err(Error::unsupported("attach", "attaching to an environment that was not detached").with_backend(BACKEND));
        };
        let Detached { machines, limits, report } = *detached;
        let engine = Engine::connect(&socket).await?;
        let mut joined = Vec::new();
        for Rejoin { name, agent, capabilities, decisions } in machines {
            let channel = join::channel(&engine, &lease.id, &name).await?;
            let sandbox = sandbox(channel.clone(), &name, &agent, capabilities, &limits);
            joined.push(Machine { way: Way::Channel(channel, sandbox), agent, gateway: None, decisions });
        }
        Ok(Self::new(&lease.id, joined, report, socket, lease.resources.clone(), None))
    }
}

/// What `destroy` needs to know of an environment.
///
/// # Errors
/// `Internal` if it has no JSON form.
pub fn record(id: &str, memory: &Memory, resources: &[Resource]) -> Result<LeaseRecord> {
    Ok(LeaseRecord {
        id: id.to_owned(),
        name: None,
        backend: BACKEND.to_owned(),
        profile: String::new(),
        tier: String::new(),
        created: std::time::SystemTime::now(),
        expires: None,
        hold: tierbox_core::Hold::Process,
        owner: tierbox_core::Owner { pid: 0, start_ticks: 0, boot_id: String::new(), pid_namespace: 0, uid: 0 },
        resources: resources.to_vec(),
        data: memory.to_data()?,
    })
}

#[async_trait]
impl Environment for DockerEnvironment {
    fn id(&self) -> &str {
        &self.id
    }

    fn machines(&self) -> Vec<Arc<dyn Sandbox>> {
        self.machines.iter().map(|machine| machine.way.sandbox()).collect()
    }

    fn report(&self) -> &Report {
        &self.report
    }

    fn identity(&self) -> Option<BTreeMap<String, String>> {
        self.identity.clone()
    }

    fn connection(&self, machine: &str) -> Result<Connection> {
        self.machine(machine).map_err(|error| error.with_backend(BACKEND))?;
        let host = format!("unix://{}", self.socket.display());
        let container = name_of(&self.id, machine);
        let argv = ["docker", "-H", &host, "exec", "-it", &container, "/bin/sh"].map(str::to_owned).to_vec();
        Ok(Connection { argv, needs: Vec::new(), note: NOTE.to_owned() })
    }

    async fn stop(&self) -> Result<()> {
        if self.stopped.load(Ordering::Acquire) {
            return Ok(());
        }
        let memory = Memory { socket: self.socket.clone(), ready: true, detached: None };
        let record = record(&self.id, &memory, &self.resources)?;
        let destroyed = on_driver(async move { destroy::lease(&record).await }).await?;
        self.machines.iter().for_each(|machine| machine.way.close());
        if !destroyed.failed.is_empty() {
            let message = format!("could not remove {}", destroyed.failed.join("; "));
            return Err(Error::new(ErrorKind::Io, "stop environment", message)
                .with_backend(BACKEND)
                .with_help(format!("run `{}`", destroyed.manual.join("; "))));
        }
        self.stopped.store(true, Ordering::Release);
        Ok(())
    }

    async fn detach(&self) -> Result<()> {
        let Some(lease) = &self.lease else {
            return Err(Error::unsupported("detach environment", "detaching an environment whose hold is its process")
                .with_backend(BACKEND)
                .with_help("start it with a hold of its own (`tierbox up`, or `run --keep`)"));
        };
        let machines: Vec<Rejoin> = self.machines.iter().map(Machine::rejoin).collect();
        let limits = self.machines.first().map(|machine| machine.way.sandbox().limits().clone()).unwrap_or_default();
        let detached = Detached { machines, limits, report: self.report.clone() };
        let memory = Memory { socket: self.socket.clone(), ready: true, detached: Some(Box::new(detached)) };
        // Written before anything outlives this process, so that it can always be found.
        lease.set_data(memory.to_data()?)?;
        for machine in &self.machines {
            let without = || Error::unsupported("detach environment", "machines without a supervisor").with_backend(BACKEND);
            let channel = machine.way.channel().ok_or_else(without)?;
            channel.persist(DETACH_PATIENCE).await.map_err(|error| error.with_backend(BACKEND))?;
        }
        Ok(())
    }

    async fn decisions(&self) -> Result<Vec<Decision>> {
        // Each machine has a gateway of its own, which numbers what it decides by itself.
        let one = |machine: &Machine| Some((machine.way.sandbox().name().to_owned(), machine.decisions.clone()?));
        let logs: Vec<(String, PathBuf)> = self.machines.iter().filter_map(one).collect();
        let named = |(machine, log): &(String, PathBuf)| -> Result<Vec<Decision>> {
            let decisions = tierbox_egress::read_log(log)?.into_iter();
            Ok(decisions.map(|decision| Decision { machine: Some(machine.clone()), ..decision }).collect())
        };
        let read = move || logs.iter().map(named).collect::<Result<Vec<_>>>();
        let read = tokio::task::spawn_blocking(read).await;
        let read = read.map_err(|error| internal("read egress log", &error.to_string()))??;
        Ok(tierbox_egress::merge(read))
    }

    async fn ended(&self, limit: Duration) -> bool {
        let over = futures_util::future::join_all(self.machines.iter().map(|machine| machine.way.ended()));
        tokio::time::timeout(limit, over).await.is_ok()
    }
}
