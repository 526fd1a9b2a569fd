//! A running environment.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tierbox_core::{Connection, Decision, Environment, Error, ErrorKind, LeaseRecord, Report, Resource, Result, Sandbox};
use tierbox_egress::Gateway;
use tierbox_guest::{Channel, GuestSandbox};

use crate::engine::on_driver;
use crate::launch::name_of;
use crate::{BACKEND, destroy};

/// What the lease remembers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The engine's socket.
    pub socket: PathBuf,
    /// Whether the start went to its end.
    pub ready: bool,
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
    /// The line to its supervisor.
    pub channel: Channel,
    /// The handle for everybody else.
    pub sandbox: Arc<GuestSandbox>,
    /// Its way out, with N1.
    pub gateway: Option<Gateway>,
}

/// A running environment.
pub struct DockerEnvironment {
    id: String,
    /// Primary first.
    machines: Vec<Machine>,
    report: Report,
    socket: PathBuf,
    resources: Vec<Resource>,
    stopped: AtomicBool,
}

impl DockerEnvironment {
    /// An environment around machines that were just started.
    pub fn new(id: &str, machines: Vec<Machine>, report: Report, socket: PathBuf, resources: Vec<Resource>) -> Self {
        Self { id: id.to_owned(), machines, report, socket, resources, stopped: AtomicBool::new(false) }
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
        self.machines.iter().map(|machine| machine.sandbox.clone() as Arc<dyn Sandbox>).collect()
    }

    fn report(&self) -> &Report {
        &self.report
    }

    fn connection(&self, machine: &str) -> Result<Connection> {
        self.machine(machine).map_err(|error| error.with_backend(BACKEND))?;
        let host = format!("unix://{}", self.socket.display());
        let container = name_of(&self.id, machine);
        let argv = ["docker", "-H", &host, "exec", "-it", &container, "/bin/sh"].map(str::to_owned).to_vec();
        Ok(Connection { argv, note: "as root inside, with the image's own shell".to_owned() })
    }

    async fn stop(&self) -> Result<()> {
        if self.stopped.load(Ordering::Acquire) {
            return Ok(());
        }
        let memory = Memory { socket: self.socket.clone(), ready: true };
        let record = record(&self.id, &memory, &self.resources)?;
        let destroyed = on_driver(async move { destroy::lease(&record).await }).await?;
        self.machines.iter().for_each(|machine| machine.channel.close());
        if !destroyed.failed.is_empty() {
            let message = format!("could not remove {}", destroyed.failed.join("; "));
            return Err(Error::new(ErrorKind::Io, "stop environment", message)
                .with_backend(BACKEND)
                .with_help(format!("run `{}`", destroyed.manual.join("; "))));
        }
        self.stopped.store(true, Ordering::Release);
        Ok(())
    }

    async fn decisions(&self) -> Result<Vec<Decision>> {
        let mut all = Vec::new();
        for gateway in self.machines.iter().filter_map(|machine| machine.gateway.as_ref()) {
            all.extend(gateway.decisions()?);
        }
        all.sort_by_key(|decision| decision.time);
        Ok(all)
    }

    async fn ended(&self, limit: Duration) -> bool {
        let over = futures_util::future::join_all(self.machines.iter().map(|machine| machine.channel.closed()));
        tokio::time::timeout(limit, over).await.is_ok()
    }
}
