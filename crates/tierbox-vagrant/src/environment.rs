//! A running environment: machines that a Vagrantfile made.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tierbox_core::{Connection, Decision, Environment, Error, ErrorKind, LeaseHandle, LeaseRecord, Report, Result, Sandbox};
use tokio::sync::Mutex;

use crate::egress::Egress;
use crate::line::{self, Connected, Joining};
use crate::pool::{self, Pool};
use crate::ssh::Ssh;
use crate::start::Memory;
use crate::swap::Swap;
use crate::{BACKEND, destroy, snapshot};

/// How long a machine may take to confirm that it lives on.
const DETACH_PATIENCE: Duration = Duration::from_secs(20);

/// How often a machine without a channel is looked at by those who wait for its end.
const LOOK: Duration = Duration::from_secs(1);

/// A running environment.
pub struct VagrantEnvironment {
    id: String,
    memory: Memory,
    machines: Vec<Held>,
    report: Report,
    /// The way out, with N1, until it is stopped.
    egress: std::sync::Mutex<Option<Egress>>,
    stopped: AtomicBool,
    /// Where it goes when it is stopped, instead of being destroyed, and the lease that it has until then.
    pool: Option<(Pool, Arc<dyn LeaseHandle>)>,
    /// Vagrant refuses two calls for one machine at a time.
    busy: Mutex<()>,
}

/// A machine and its line of the moment.
struct Held {
    swap: Arc<Swap>,
    line: Mutex<Connected>,
    joining: Joining,
}

impl VagrantEnvironment {
    /// An environment around machines that are spoken with, the primary one first.
    pub fn new(
        id: &str,
        memory: Memory,
        machines: Vec<Connected>,
        report: Report,
        egress: Option<Egress>,
        pool: Option<(Pool, Arc<dyn LeaseHandle>)>,
    ) -> Self {
        let held = |connected: Connected| Held {
            swap: Arc::new(Swap::new(connected.way.clone())),
            joining: connected.joining.clone(),
            line: Mutex::new(connected),
        };
        let machines = machines.into_iter().map(held).collect();
        Self {
            id: id.to_owned(),
            memory,
            machines,
            report,
            egress: std::sync::Mutex::new(egress),
            stopped: AtomicBool::new(false),
            pool,
            busy: Mutex::new(()),
        }
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
            let ssh = Ssh::borrowing(&memory.place, &joining.machine.name);
            let joined = line::join(&memory.place, joining, &running.limits, ssh).await;
            machines.push(joined.map_err(|error| gone(format!("{name} of {} does not answer: {}", lease.id, error.message())))?);
        }
        Ok(Self::new(&lease.id, memory, machines, running.report, None, None))
    }

    fn find(&self, machine: &str) -> Result<&Held> {
        let shown = |held: &&Held| held.joining.machine.shown == machine;
        let named = |held: &&Held| held.joining.machine.name == machine;
        self.machines.iter().find(shown).or_else(|| self.machines.iter().find(named)).ok_or_else(|| {
            let names: Vec<&str> = self.machines.iter().map(|held| held.joining.machine.shown.as_str()).collect();
            let message = format!("no machine is named {machine:?}; there are {}", names.join(", "));
            Error::new(ErrorKind::NotFound, "find machine", message).with_backend(BACKEND)
        })
    }

    async fn leave(&self) {
        for held in &self.machines {
            held.swap.way().close();
            held.line.lock().await.ssh.close().await;
        }
    }

    /// Puts it back to its first moment and keeps it for the next start. False if it is not to be kept.
    async fn park(&self) -> Result<bool> {
        let Some((pool, lease)) = &self.pool else { return Ok(false) };
        if !pool.has_room()? {
            return Ok(false);
        }
        // Whatever ran in it ends here.
        snapshot::restore(&self.memory.place, &self.memory.names(), pool::FIRST).await?;
        snapshot::delete_all_but(&self.memory.place, &self.memory.names(), pool::FIRST).await?;
        pool.empty_expired().await?;
        pool.keep(&self.memory, lease.as_ref())?;
        Ok(true)
    }

    /// Returns when the first machine, which has no channel whose end could be seen, does not answer any more.
    async fn is_over(&self) {
        let machine = &self.machines[0];
        let domain = line::domain(&self.memory.place, &machine.joining.machine);
        loop {
            let gone = match &domain {
                Some(domain) => line::is_gone(domain).await,
                None => {
                    let ssh = machine.line.lock().await.ssh.clone();
                    self.stopped.load(Ordering::Acquire) || ssh.run(":", b"", DETACH_PATIENCE).await.is_err()
                }
            };
            if gone {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn require_snapshots(&self) -> Result<()> {
        if self.machines[0].joining.capabilities.snapshots { Ok(()) } else { Err(pool::unsupported(&self.memory.place.provider)) }
    }
}

#[async_trait]
impl Environment for VagrantEnvironment {
    fn id(&self) -> &str {
        &self.id
    }

    fn machines(&self) -> Vec<Arc<dyn Sandbox>> {
        self.machines.iter().map(|held| held.swap.clone() as Arc<dyn Sandbox>).collect()
    }

    fn report(&self) -> &Report {
        &self.report
    }

    fn connection(&self, machine: &str) -> Result<Connection> {
        let held = self.find(machine)?;
        let argv = Ssh::arguments_for_people(&self.memory.place.directory, &held.joining.machine.name);
        Ok(Connection { argv, needs: Vec::new(), note: String::new() })
    }

    fn machine(&self, name: &str) -> Result<Arc<dyn Sandbox>> {
        self.find(name).map(|held| held.swap.clone() as Arc<dyn Sandbox>)
    }

    async fn stop(&self) -> Result<()> {
        if self.stopped.load(Ordering::Acquire) {
            return Ok(());
        }
        let _alone = self.busy.lock().await;
        // Another call may have done it meanwhile: by now it may even be somebody else's, from the pool.
        if self.stopped.load(Ordering::Acquire) {
            return Ok(());
        }
        self.leave().await;
        drop(self.egress.lock().unwrap_or_else(PoisonError::into_inner).take());
        match self.park().await {
            Ok(true) => {
                self.stopped.store(true, Ordering::Release);
                return Ok(());
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(target: "tierbox::vagrant", id = self.id, "cannot be kept: {}", error.message()),
        }
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
        for held in &self.machines {
            let way = held.swap.way();
            let channel = way.channel().ok_or_else(|| Error::unsupported("detach", "machines without a supervisor"))?;
            channel.persist(DETACH_PATIENCE).await.map_err(|error| error.with_backend(BACKEND))?;
        }
        Ok(())
    }

    async fn snapshot(&self, name: &str) -> Result<()> {
        self.require_snapshots()?;
        snapshot::check_name(name)?;
        let _alone = self.busy.lock().await;
        snapshot::save(&self.memory.place, &self.memory.names(), name).await
    }

    async fn restore(&self, name: &str) -> Result<()> {
        self.require_snapshots()?;
        snapshot::check_name(name)?;
        let _alone = self.busy.lock().await;
        snapshot::restore(&self.memory.place, &self.memory.names(), name).await?;
        for held in &self.machines {
            let mut line = held.line.lock().await;
            // What runs over the old line is lost; the new one is to the supervisor as it was saved.
            held.swap.way().close();
            line.ssh.close().await;
            let next = line.again(&self.memory.place, held.swap.limits()).await?;
            snapshot::wake(&next.ssh).await?;
            held.swap.replace(next.way.clone());
            *line = next;
        }
        Ok(())
    }

    async fn decisions(&self) -> Result<Vec<Decision>> {
        self.egress.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or_else(|| Ok(Vec::new()), Egress::decisions)
    }

    async fn ended(&self, limit: Duration) -> bool {
        let over = async {
            loop {
                let way = self.machines[0].swap.way();
                match way.channel() {
                    Some(channel) => drop(channel.closed().await),
                    None => self.is_over().await,
                }
                // A line that was replaced meanwhile ended because the machine was put back.
                let _quiet = self.busy.lock().await;
                if way.is(&self.machines[0].swap.way()) {
                    return;
                }
            }
        };
        tokio::time::timeout(limit, over).await.is_ok()
    }
}
