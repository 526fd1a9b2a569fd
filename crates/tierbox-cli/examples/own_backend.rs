//! A `tierbox` with a backend of its own: here a layer over `local` that starts at most two machines at once. All that
//! the command line does works with it.

use std::process::ExitCode;
use std::sync::Arc;

use async_trait::async_trait;
use tierbox::local::LocalBackend;
use tierbox::{
    Backend, Capabilities, Check, DestroyReport, Environment, EnvironmentSpec, Error, ErrorKind, LeaseHandle, LeaseRecord,
    Lifted, Progress, Registry, Result,
};
use tokio::sync::Semaphore;

struct TwoAtOnce {
    inner: LocalBackend,
    places: Semaphore,
}

#[async_trait]
impl Backend for TwoAtOnce {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn settings_schema(&self) -> serde_json::Value {
        self.inner.settings_schema()
    }
    fn validate(&self, spec: &EnvironmentSpec) -> Result<()> {
        self.inner.validate(spec)
    }
    fn capabilities(&self, spec: &EnvironmentSpec) -> Result<Capabilities> {
        self.inner.capabilities(spec)
    }
    async fn start(
        &self,
        spec: &EnvironmentSpec,
        lease: Arc<dyn LeaseHandle>,
        progress: &dyn Progress,
    ) -> Result<Box<dyn Environment>> {
        progress.step("waiting for one of two places");
        let closed = |_| Error::new(ErrorKind::Internal, "wait for a place", "there are no places any more");
        let _place = self.places.acquire().await.map_err(closed)?;
        self.inner.start(spec, lease, progress).await
    }
    // What verification compares with; without it no environment is ever called verified.
    async fn twin(&self, spec: &EnvironmentSpec, lifted: &Lifted, lease: Arc<dyn LeaseHandle>) -> Result<Box<dyn Environment>> {
        self.inner.twin(spec, lifted, lease).await
    }
    async fn attach(&self, lease: &LeaseRecord) -> Result<Box<dyn Environment>> {
        self.inner.attach(lease).await
    }
    async fn is_alive(&self, lease: &LeaseRecord) -> bool {
        self.inner.is_alive(lease).await
    }
    async fn destroy(&self, lease: &LeaseRecord) -> Result<DestroyReport> {
        self.inner.destroy(lease).await
    }
    async fn doctor(&self) -> Vec<Check> {
        self.inner.doctor().await
    }
}

/// The whole program.
pub fn main() -> ExitCode {
    let mut registry = Registry::linked();
    registry.register(Arc::new(TwoAtOnce { inner: LocalBackend::new(), places: Semaphore::new(2) }));
    tierbox_cli::main_with(registry)
}
