//! A factory for any backend: no journal, no profiles.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tierbox_core::{Backend, Connection, Environment, EnvironmentSpec, Report, Result, Sandbox, Silent};

use crate::lease::MemoryLease;
use crate::subject::{Absence, Adjust, Factory, USUAL_LIMIT, USUAL_PATIENCE};

/// Starts environments of a backend from a specification.
pub struct BackendFactory {
    engine: String,
    backend: Arc<dyn Backend>,
    spec: EnvironmentSpec,
    absent: Option<Absence>,
    patience: Duration,
}

impl BackendFactory {
    /// A factory; `absent` is why the engine cannot be used here, if so.
    pub fn new(engine: impl Into<String>, backend: Arc<dyn Backend>, spec: EnvironmentSpec, absent: Option<Absence>) -> Self {
        Self { engine: engine.into(), backend, spec, absent, patience: USUAL_PATIENCE }
    }

    /// The same for machines in which everything takes longer: what is usually waited for 20 s is waited for
    /// so long, and cases may take longer in proportion.
    #[must_use]
    pub fn patient(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }
}

#[async_trait]
impl Factory for BackendFactory {
    fn engine(&self) -> &str {
        &self.engine
    }

    fn absent(&self) -> Option<Absence> {
        self.absent.clone()
    }

    fn case_limit(&self) -> Duration {
        USUAL_LIMIT.mul_f64(self.patience.div_duration_f64(USUAL_PATIENCE))
    }

    fn patience(&self) -> Duration {
        self.patience
    }

    async fn start(&self, adjust: Adjust<'_>) -> Result<Arc<dyn Environment>> {
        let mut spec = self.spec.clone();
        adjust(&mut spec);
        self.backend.validate(&spec)?;
        self.backend.capabilities(&spec)?.admit(&spec)?;
        let lease = MemoryLease::new(self.backend.name(), &spec.profile, spec.tier.to_string())
            .map_err(|error| tierbox_core::Error::io("make lease", error))?;
        let lease = Arc::new(lease);
        match self.backend.start(&spec, lease.clone(), &Silent).await {
            Ok(inner) => Ok(Arc::new(Leased { inner, backend: self.backend.clone(), lease })),
            Err(error) => {
                self.backend.destroy(&lease.record()).await?;
                Err(error)
            }
        }
    }
}

/// An environment with its lease: what `stop` leaves is destroyed.
struct Leased {
    inner: Box<dyn Environment>,
    backend: Arc<dyn Backend>,
    lease: Arc<MemoryLease>,
}

#[async_trait]
impl Environment for Leased {
    fn id(&self) -> &str {
        self.inner.id()
    }

    fn machines(&self) -> Vec<Arc<dyn Sandbox>> {
        self.inner.machines()
    }

    fn report(&self) -> &Report {
        self.inner.report()
    }

    fn connection(&self, machine: &str) -> Result<Connection> {
        self.inner.connection(machine)
    }

    async fn stop(&self) -> Result<()> {
        self.inner.stop().await?;
        let destroyed = self.backend.destroy(&self.lease.record()).await?;
        if destroyed.failed.is_empty() {
            return Ok(());
        }
        Err(tierbox_core::Error::new(tierbox_core::ErrorKind::Io, "stop environment", destroyed.failed.join("; ")))
    }

    async fn decisions(&self) -> Result<Vec<tierbox_core::Decision>> {
        self.inner.decisions().await
    }

    async fn detach(&self) -> Result<()> {
        self.inner.detach().await
    }

    async fn snapshot(&self, name: &str) -> Result<()> {
        self.inner.snapshot(name).await
    }

    async fn restore(&self, name: &str) -> Result<()> {
        self.inner.restore(name).await
    }

    async fn ended(&self, limit: Duration) -> bool {
        self.inner.ended(limit).await
    }
}
