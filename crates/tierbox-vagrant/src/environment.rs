//! A running environment: machines that a Vagrantfile made.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tierbox_core::{Connection, Environment, Error, ErrorKind, LeaseRecord, Report, Result, Sandbox};
use tokio::sync::RwLock;

use crate::line::{self, Connected};
use crate::ssh::Ssh;
use crate::start::Memory;
use crate::{BACKEND, destroy};

/// How long a machine may take to confirm that it lives on.
const DETACH_PATIENCE: Duration = Duration::from_secs(20);

/// A running environment.
pub struct VagrantEnvironment {
    id: String,
    memory: Memory,
    machines: Vec<Connected>,
    report: Report,
    stopped: AtomicBool,
    /// Vagrant refuses two calls for one machine at a time.
    busy: RwLock<()>,
}

impl VagrantEnvironment {
    /// An environment around machines that are spoken with, the primary one first.
    pub fn new(id: &str, memory: Memory, machines: Vec<Connected>, report: Report) -> Self {
        Self { id: id.to_owned(), memory, machines, report, stopped: AtomicBool::new(false), busy: RwLock::new(()) }
    }

    /// Finds an environment again that another process started.
    ///
    /// # Errors
    /// `NotFound` if it is gone.
    pub async fn attach(lease: &LeaseRecord) -> Result<Self> {
        let gone =
            |why: String| Error::new(ErrorKind::NotFound, "attach", why).with_backend(BACKEND).with_context("id", &lease.id);
        let memory = Memory::of(lease).ok_or_else(|| gone(format!("nothing was started under {}", lease.id)))?;
        let Some(running) = memory.running.clone() else {
            return Err(gone(format!("{} did not come up", lease.id)));
        };
        let mut machines = Vec::new();
        for joining in running.machines {
            let name = joining.machine.shown.clone();
            let joined = line::join(&memory.place, joining, &running.limits).await;
            machines.push(joined.map_err(|error| gone(format!("{name} of {} does not answer: {}", lease.id, error.message())))?);
        }
        Ok(Self::new(&lease.id, memory, machines, running.report))
    }

    fn find(&self, machine: &str) -> Result<&Connected> {
        let shown = |connected: &&Connected| connected.joining.machine.shown == machine;
        let named = |connected: &&Connected| connected.joining.machine.name == machine;
        self.machines.iter().find(shown).or_else(|| self.machines.iter().find(named)).ok_or_else(|| {
            let names: Vec<&str> = self.machines.iter().map(|connected| connected.joining.machine.shown.as_str()).collect();
            let message = format!("no machine is named {machine:?}; there are {}", names.join(", "));
            Error::new(ErrorKind::NotFound, "find machine", message).with_backend(BACKEND)
        })
    }

    async fn leave(&self) {
        for machine in &self.machines {
            machine.sandbox.channel().close();
            machine.ssh.close().await;
        }
    }
}

#[async_trait]
impl Environment for VagrantEnvironment {
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
        let connected = self.find(machine)?;
        let argv = Ssh::arguments_for_people(&self.memory.place.directory, &connected.joining.machine.name);
        Ok(Connection { argv, note: String::new() })
    }

    fn machine(&self, name: &str) -> Result<Arc<dyn Sandbox>> {
        self.find(name).map(|connected| connected.sandbox.clone() as Arc<dyn Sandbox>)
    }

    async fn stop(&self) -> Result<()> {
        if self.stopped.load(Ordering::Acquire) {
            return Ok(());
        }
        let _alone = self.busy.write().await;
        self.leave().await;
        let report = destroy::place(&self.memory.place).await;
        if !report.failed.is_empty() {
            return Err(Error::new(ErrorKind::Io, "stop environment", format!("could not remove {}", report.failed.join("; ")))
                .with_backend(BACKEND)
                .with_help(format!("run `tierbox down {}` again, or `tierbox cleanup`", self.id)));
        }
        self.stopped.store(true, Ordering::Release);
        Ok(())
    }

    async fn detach(&self) -> Result<()> {
        for machine in &self.machines {
            machine.sandbox.channel().persist(DETACH_PATIENCE).await.map_err(|error| error.with_backend(BACKEND))?;
        }
        Ok(())
    }

    async fn ended(&self, limit: Duration) -> bool {
        let primary = self.machines[0].sandbox.channel();
        tokio::time::timeout(limit, primary.closed()).await.is_ok()
    }
}
