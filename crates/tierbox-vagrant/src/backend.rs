//! The backend: start, find again, remove.

use std::sync::Arc;

use async_trait::async_trait;
use tierbox_core::{
    Backend, Capabilities, Check, DestroyReport, Environment, EnvironmentSpec, LeaseHandle, LeaseRecord, LimitCapabilities,
    Locality, MountSupport, Network, Progress, Result, UserSupport,
};

use crate::environment::VagrantEnvironment;
use crate::place::{Place, prefix};
use crate::scripts;
use crate::settings::{Settings, Supervisor};
use crate::start::{Memory, Plan, check, plan, start};
use crate::{BACKEND, destroy, doctor, libvirt};

/// The backend `vagrant`: machines of any hypervisor that Vagrant drives.
#[derive(Debug, Clone, Copy, Default)]
pub struct VagrantBackend;

impl VagrantBackend {
    /// The backend.
    pub fn new() -> Self {
        Self
    }
}

/// What machines of a provider can do, before any is there.
fn declared(spec: &EnvironmentSpec, plan: &Plan) -> Capabilities {
    let provider = &plan.provider;
    let over_channel = Capabilities {
        networks: provider.networks(),
        users: UserSupport::Any,
        mounts: MountSupport::None,
        multi_machine: true,
        // The gateway ends with this process.
        detached: spec.tier.network() != Network::N1,
        snapshots: provider.can_snapshot(),
        limits: LimitCapabilities { file_size: true, open_files: true, ..LimitCapabilities::default() },
        ..tierbox_guest::capabilities(provider.isolation(), Locality::Local)
    };
    match plan.settings.supervisor {
        Supervisor::Auto => over_channel,
        Supervisor::Never => scripts::capabilities(&over_channel),
    }
}

async fn is_there(place: &Place) -> bool {
    if place.provider == "libvirt" {
        return libvirt::domains(&prefix(&place.token)).await.is_ok_and(|domains| !domains.is_empty());
    }
    let machines = std::fs::read_dir(place.dotfile().join("machines")).into_iter().flatten().flatten();
    machines.into_iter().any(|machine| machine.path().join(&place.provider).join("id").is_file())
}

#[async_trait]
impl Backend for VagrantBackend {
    fn name(&self) -> &'static str {
        BACKEND
    }

    fn settings_schema(&self) -> serde_json::Value {
        Settings::schema()
    }

    fn validate(&self, spec: &EnvironmentSpec) -> Result<()> {
        check(spec)?;
        spec.check_values()
    }

    fn capabilities(&self, spec: &EnvironmentSpec) -> Result<Capabilities> {
        Ok(declared(spec, &plan(spec)?))
    }

    async fn start(
        &self,
        spec: &EnvironmentSpec,
        lease: Arc<dyn LeaseHandle>,
        progress: &dyn Progress,
    ) -> Result<Box<dyn Environment>> {
        let plan = plan(spec)?;
        Ok(Box::new(start(spec, declared(spec, &plan), &plan, &lease, progress).await?))
    }

    async fn attach(&self, lease: &LeaseRecord) -> Result<Box<dyn Environment>> {
        Ok(Box::new(VagrantEnvironment::attach(lease).await?))
    }

    async fn is_alive(&self, lease: &LeaseRecord) -> bool {
        match Memory::of(lease) {
            Some(memory) => is_there(&memory.place).await,
            None => false,
        }
    }

    async fn destroy(&self, lease: &LeaseRecord) -> Result<DestroyReport> {
        Ok(destroy::lease(lease).await)
    }

    async fn doctor(&self) -> Vec<Check> {
        doctor::checks().await
    }
}
