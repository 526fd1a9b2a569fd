//! The backend: start, find again, remove.

use std::sync::Arc;

use async_trait::async_trait;
use tierbox_core::{
    Backend, Capabilities, Check, DestroyReport, Environment, EnvironmentSpec, HostIsolation, KillDomain, LeaseHandle,
    LeaseRecord, Lifted, LimitCapabilities, Locality, MountSupport, Network, Progress, Result, UserSupport,
};

use crate::beside::Beside;
use crate::engine::on_driver;
use crate::environment::DockerEnvironment;
use crate::plan::{self, Plan};
use crate::settings::Settings;
use crate::start::Start;
use crate::{BACKEND, destroy, doctor, limits, twin};

/// The backend `docker`: containers of an engine on this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct DockerBackend;

impl DockerBackend {
    /// The backend.
    pub fn new() -> Self {
        Self
    }
}

/// Whether this process is root on this host.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

/// The networks that machines of a plan can have. The gateway listens in the container's network, and what N0 keeps out is barred there:
/// only root may enter it, and a kernel of the container's own has another.
fn networks(plan: &Plan) -> Vec<Network> {
    if is_root() && plan.settings.own_kernel().is_none() {
        vec![Network::N0, Network::N1, Network::N2]
    } else {
        vec![Network::N2]
    }
}

/// What machines of a plan can do.
pub fn capabilities(plan: &Plan) -> Capabilities {
    let closed = plan.machines.iter().all(limits::holds_disk);
    let all = Capabilities {
        host: HostIsolation::H1,
        networks: networks(plan),
        locality: Locality::Local,
        kill_domain: KillDomain::Subreaper,
        streaming_output: true,
        streaming_stdin: true,
        pty: true,
        signals: true,
        idle_timeout: true,
        detached_exec: true,
        users: UserSupport::Any,
        // The container's own counter names a command that is alone in it; a service never leaves one alone.
        memory_outcome: plan.settings.own_kernel().is_none() && plan.machines.iter().all(|machine| machine.service.is_none()),
        usage: true,
        confined_exec: true,
        files: true,
        archives: true,
        dial: true,
        mounts: MountSupport::ReadOnly,
        multi_machine: plan.machines.len() > 1,
        // With the whole network each would reach the others by way of the engine's bridge.
        machines_apart: plan.network != Network::N0,
        detached: true,
        snapshots: false,
        limits: LimitCapabilities {
            memory: true,
            cpu: true,
            pids: true,
            disk: closed,
            inodes: closed,
            file_size: true,
            open_files: true,
        },
    };
    if plan.is_plain() { over_scripts(all) } else { all }
}

/// What is left of it where scripts are run.
fn over_scripts(all: Capabilities) -> Capabilities {
    Capabilities {
        // This host's cgroups hold commands, which only root may make.
        kill_domain: if is_root() { KillDomain::Cgroup } else { KillDomain::Session },
        mounts: all.mounts,
        limits: all.limits,
        ..tierbox_guest::plain::capabilities(all.host, all.networks, all.locality)
    }
}

#[async_trait]
impl Backend for DockerBackend {
    fn name(&self) -> &'static str {
        BACKEND
    }

    fn settings_schema(&self) -> serde_json::Value {
        Settings::schema()
    }

    fn validate(&self, spec: &EnvironmentSpec) -> Result<()> {
        plan::plan(spec).map(drop)
    }

    fn capabilities(&self, spec: &EnvironmentSpec) -> Result<Capabilities> {
        Ok(capabilities(&plan::plan(spec)?))
    }

    async fn start(
        &self,
        spec: &EnvironmentSpec,
        lease: Arc<dyn LeaseHandle>,
        progress: &dyn Progress,
    ) -> Result<Box<dyn Environment>> {
        let plan = plan::plan(spec)?;
        capabilities(&plan).admit(spec).map_err(|error| error.with_backend(BACKEND))?;
        let (start, mut steps, _given_up) = Start::new(spec, plan, lease, None);
        let started = on_driver(start.run());
        tokio::pin!(started);
        loop {
            tokio::select! {
                biased;
                Some(step) = steps.recv() => progress.step(&step),
                environment = &mut started => return Ok(Box::new(environment?)),
            }
        }
    }

    async fn twin(&self, spec: &EnvironmentSpec, lifted: &Lifted, lease: Arc<dyn LeaseHandle>) -> Result<Box<dyn Environment>> {
        if *lifted == Lifted::Isolation {
            return Ok(Box::new(on_driver(async move { Beside::start(lease.as_ref()).await }).await?));
        }
        let spec = twin::spec(spec, lifted)?;
        let plan = twin::alone(plan::plan(&spec)?);
        let (start, _steps, _given_up) = Start::new(&spec, plan, lease, Some(lifted.clone()));
        Ok(Box::new(on_driver(start.run()).await?))
    }

    async fn attach(&self, lease: &LeaseRecord) -> Result<Box<dyn Environment>> {
        let lease = lease.clone();
        Ok(Box::new(on_driver(async move { DockerEnvironment::attach(&lease).await }).await?))
    }

    async fn is_alive(&self, lease: &LeaseRecord) -> bool {
        let lease = lease.clone();
        on_driver(async move { Ok(destroy::is_alive(&lease).await) }).await.unwrap_or(false)
    }

    async fn destroy(&self, lease: &LeaseRecord) -> Result<DestroyReport> {
        let lease = lease.clone();
        on_driver(async move { destroy::lease(&lease).await }).await
    }

    async fn doctor(&self) -> Vec<Check> {
        on_driver(async { Ok(doctor::checks().await) }).await.unwrap_or_default()
    }
}
