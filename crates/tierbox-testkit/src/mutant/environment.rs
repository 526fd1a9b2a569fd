//! Environments and factories that break a promise.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tierbox_core::{Connection, Environment, Error, ErrorKind, HostIsolation, Report, Result, Sandbox, Tier};

use super::catalogue::Fault;
use super::sandbox::BrokenSandbox;
use crate::subject::{Absence, Adjust, Factory};

/// An environment that breaks one promise.
pub(super) struct Broken {
    inner: Arc<dyn Environment>,
    fault: Fault,
    machines: Vec<Arc<dyn Sandbox>>,
    report: Report,
    stopped: AtomicBool,
    /// Somebody else's, who stops it.
    borrowed: bool,
}

impl Broken {
    pub(super) fn new(inner: Arc<dyn Environment>, fault: Fault, borrowed: bool) -> Self {
        let wrap = |machine| -> Arc<dyn Sandbox> { Arc::new(BrokenSandbox::new(machine, fault)) };
        let machines = inner.machines().into_iter().map(wrap).collect();
        let mut report = inner.report().clone();
        match fault {
            Fault::ReportsMore => {
                let more = Tier::new(report.tier.tooling(), HostIsolation::H3, report.tier.network());
                report.tier = more.unwrap_or(report.tier);
            }
            Fault::HasNoLimits => report.limits.clear(),
            _ => (),
        }
        Self { inner, fault, machines, report, stopped: AtomicBool::new(false), borrowed }
    }
}

#[async_trait]
impl Environment for Broken {
    fn id(&self) -> &str {
        self.inner.id()
    }

    fn machines(&self) -> Vec<Arc<dyn Sandbox>> {
        self.machines.clone()
    }

    fn report(&self) -> &Report {
        &self.report
    }

    fn connection(&self, machine: &str) -> Result<Connection> {
        let name = if self.fault == Fault::AnswersToAnyName { self.machines[0].name() } else { machine };
        self.inner.connection(name)
    }

    async fn stop(&self) -> Result<()> {
        let again = self.stopped.swap(true, Ordering::Relaxed);
        match self.fault {
            Fault::StopsOnce if again => Err(Error::new(ErrorKind::NotFound, "stop environment", "it was stopped before")),
            // Whoever proves the mutant stops it for good, when its process ends.
            Fault::NeverStops => Ok(()),
            _ if self.borrowed => Ok(()),
            _ => self.inner.stop().await,
        }
    }

    async fn ended(&self, limit: Duration) -> bool {
        self.fault == Fault::HasAlwaysEnded || self.inner.ended(limit).await
    }

    fn machine(&self, name: &str) -> Result<Arc<dyn Sandbox>> {
        let machines = self.machines();
        let found = machines.iter().find(|machine| machine.name() == name || self.fault == Fault::AnswersToAnyName);
        match found {
            Some(machine) => Ok(machine.clone()),
            None => self.inner.machine(name),
        }
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        if self.fault != Fault::NeverStops || self.borrowed {
            return;
        }
        let inner = self.inner.clone();
        // A thread of its own, because a runtime may be about to end.
        let stop = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map(|runtime| runtime.block_on(inner.stop()))
        });
        let _ = stop.join();
    }
}

/// A factory of environments that break one promise.
pub(super) struct BrokenFactory {
    inner: Arc<dyn Factory>,
    first: Arc<dyn Environment>,
    fault: Fault,
    starting: AtomicU32,
}

impl BrokenFactory {
    pub(super) fn new(inner: Arc<dyn Factory>, first: Arc<dyn Environment>, fault: Fault) -> Self {
        Self { inner, first, fault, starting: AtomicU32::new(0) }
    }

    async fn start_inner(&self, adjust: Adjust<'_>) -> Result<Arc<dyn Environment>> {
        let fault = self.fault;
        self.inner
            .start(&move |spec| {
                let before = spec.clone();
                adjust(spec);
                match fault {
                    Fault::IgnoresTheProfile => {
                        spec.env = before.env;
                        spec.workdir = before.workdir;
                        spec.limits.exec = before.limits.exec;
                        spec.limits.output = before.limits.output;
                    }
                    Fault::HasNoLimits => spec.limits = before.limits,
                    Fault::DeclaresNothing => spec.limits = before.limits,
                    Fault::IgnoresSettings => spec.settings = before.settings,
                    _ => (),
                }
            })
            .await
    }
}

#[async_trait]
impl Factory for BrokenFactory {
    fn engine(&self) -> &str {
        self.inner.engine()
    }

    fn absent(&self) -> Option<Absence> {
        self.inner.absent()
    }

    async fn start(&self, adjust: Adjust<'_>) -> Result<Arc<dyn Environment>> {
        if self.fault == Fault::SharesEnvironments {
            return Ok(Arc::new(Broken::new(self.first.clone(), self.fault, true)));
        }
        let others = self.starting.fetch_add(1, Ordering::SeqCst);
        if self.fault == Fault::StartsOneAtATime && others > 0 {
            return Err(Error::new(ErrorKind::LimitReached, "start environment", "another one is being started"));
        }
        let started = self.start_inner(adjust).await;
        self.starting.fetch_sub(1, Ordering::SeqCst);
        Ok(Arc::new(Broken::new(started?, self.fault, false)))
    }
}
