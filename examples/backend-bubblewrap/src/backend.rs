//! The lifecycle: what can be enforced, start, find again, destroy.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tierbox_core::{
    Backend, Capabilities, Check, CheckStatus, DestroyReport, Environment, EnvironmentSpec, Error, ErrorKind, HostIsolation,
    LeaseHandle, LeaseRecord, LimitCapabilities, Locality, Network, Progress, Resource, Result,
};

use crate::command::Files;
use crate::{hold, machine};

/// The name in profiles: `backend = "bubblewrap"`.
pub const NAME: &str = "bubblewrap";
/// The resource that a lease holds: the file that names the machine's first process.
const INFO: &str = "info";
const INSTALL: &str = "install it: sudo apt-get install bubblewrap   (or: sudo dnf install bubblewrap)";

/// Containers by bubblewrap.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bubblewrap;

/// What a machine of this backend can do, and what isolates it.
pub fn capabilities() -> Capabilities {
    Capabilities {
        networks: vec![Network::N2],
        limits: LimitCapabilities { file_size: true, open_files: true, ..LimitCapabilities::default() },
        ..tierbox_guest::capabilities(HostIsolation::H1, Locality::Local)
    }
}

/// Where the program is.
///
/// # Errors
/// `MissingEngine`.
pub fn program() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|directory| directory.join("bwrap")).find(|program| program.is_file());
    found.ok_or_else(|| {
        Error::new(ErrorKind::MissingEngine, "find bubblewrap", "there is no bwrap on PATH").with_backend(NAME).with_help(INSTALL)
    })
}

/// bubblewrap maps one user. If that is root outside, much of `/proc/sys` belongs to the agent, whatever its number inside.
fn refuse_root() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::HostUnable, "start bubblewrap", "the agent would be root outside, and could write to /proc/sys")
        .with_backend(NAME)
        .with_help("run as a plain user, or use the local backend, which gives its machines users of their own"))
}

/// The file that a lease names, and only if it lies where this backend puts it.
fn info_of(lease: &LeaseRecord) -> Option<&Path> {
    lease.resources_of(INFO).map(Path::new).find(|path| path.is_absolute() && path.ends_with("info.json"))
}

#[async_trait]
impl Backend for Bubblewrap {
    fn name(&self) -> &'static str {
        NAME
    }

    fn settings_schema(&self) -> serde_json::Value {
        serde_json::json!({ "type": "object", "additionalProperties": false })
    }

    fn validate(&self, spec: &EnvironmentSpec) -> Result<()> {
        let kernels = |path: &str| ["/proc", "/sys", "/dev"].iter().any(|root| Path::new(path).starts_with(root));
        let workdir = spec.workdir.as_deref().filter(|path| kernels(path));
        let unknown = spec.settings.as_object().and_then(|table| table.keys().next());
        let message = match (unknown, &spec.user, workdir) {
            (_, _, Some(path)) => format!("workdir = {path:?} is the kernel's"),
            (Some(key), _, _) => format!("[{NAME}] has no settings, and {key:?} is one"),
            (None, Some(user), _) if user != crate::command::AGENT => format!("user = {user:?}: there is only `agent` inside"),
            _ => return Ok(()),
        };
        Err(Error::new(ErrorKind::InvalidProfile, "check profile", message).with_backend(NAME))
    }

    fn capabilities(&self, _: &EnvironmentSpec) -> Result<Capabilities> {
        Ok(capabilities())
    }

    async fn start(
        &self,
        spec: &EnvironmentSpec,
        lease: Arc<dyn LeaseHandle>,
        progress: &dyn Progress,
    ) -> Result<Box<dyn Environment>> {
        refuse_root()?;
        let bwrap = program()?;
        let files = Files::new(&lease.directory()?);
        // The lease first: a harness that dies after the next line leaves something that can be found.
        lease.record(&[Resource { kind: INFO.to_owned(), id: files.info.to_string_lossy().into_owned() }])?;
        progress.step("starting bubblewrap");
        let machine = machine::start(spec, lease.id(), &bwrap, files).await?;
        Ok(Box::new(machine))
    }

    async fn attach(&self, _: &LeaseRecord) -> Result<Box<dyn Environment>> {
        Err(Error::unsupported("attach environment", "a detached environment").with_backend(NAME))
    }

    async fn is_alive(&self, lease: &LeaseRecord) -> bool {
        info_of(lease).is_some_and(|info| !matches!(hold::first_process(info), Ok(None)))
    }

    async fn destroy(&self, lease: &LeaseRecord) -> Result<DestroyReport> {
        let Some(info) = info_of(lease).map(Path::to_owned) else { return Ok(DestroyReport::default()) };
        let path = info.clone();
        let ended = tokio::task::spawn_blocking(move || hold::end(&path, Duration::from_secs(5)));
        let ended = ended.await.map_err(|error| Error::new(ErrorKind::Internal, "destroy machine", error.to_string()))?;
        let name = format!("machine {}", lease.id);
        let manual = vec![format!("kill -9 the child-pid in {}", info.display())];
        Ok(match ended {
            Ok(true) => DestroyReport { removed: vec![name], ..DestroyReport::default() },
            Ok(false) => DestroyReport { failed: vec![format!("{name} did not die")], manual, ..DestroyReport::default() },
            Err(error) => DestroyReport { failed: vec![format!("{name}: {error}")], manual, ..DestroyReport::default() },
        })
    }

    async fn doctor(&self) -> Vec<Check> {
        let (status, detail, remedy) = match program() {
            Ok(path) => (CheckStatus::Ok, path.display().to_string(), String::new()),
            Err(error) => (CheckStatus::Fail, error.to_string(), INSTALL.to_owned()),
        };
        vec![Check { name: NAME.to_owned(), status, detail, remedy }]
    }
}
