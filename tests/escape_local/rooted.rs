//! Containers whose root is a directory of the host's, in which there is busybox and nothing else.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tierbox::{Backend, Environment, EnvironmentSpec};
use tierbox_testkit::{Absence, Adjust, BackendFactory, Factory};

use crate::support;

/// What the attacks call.
const APPLETS: [&str; 24] = [
    "sh", "cat", "cut", "echo", "env", "find", "getent", "grep", "head", "id", "ln", "ls", "mkdir", "mv", "ps", "rm", "sed",
    "sleep", "stat", "test", "touch", "true", "wc", "xargs",
];

/// Containers with a root of their own.
pub fn factory() -> Arc<dyn Factory> {
    let backend: Arc<dyn Backend> = Arc::new(tierbox::local::LocalBackend::new());
    let absence = busybox()
        .is_none()
        .then(|| Absence { reason: "busybox is not installed".to_owned(), install: "apt-get install busybox-static".to_owned() });
    Arc::new(Rooted(BackendFactory::new("local-container", backend, support::spec("local"), absence)))
}

/// The directory, made when the first container needs it.
static ROOT: Mutex<Option<tempfile::TempDir>> = Mutex::new(None);

/// Removes what was made. A process that ends drops no statics.
pub fn clean() {
    drop(ROOT.lock().unwrap_or_else(PoisonError::into_inner).take());
}

struct Rooted(BackendFactory);

#[async_trait::async_trait]
impl Factory for Rooted {
    fn engine(&self) -> &str {
        self.0.engine()
    }

    fn absent(&self) -> Option<Absence> {
        self.0.absent()
    }

    async fn start(&self, adjust: Adjust<'_>) -> tierbox::Result<Arc<dyn Environment>> {
        let root = root().map_err(|error| tierbox::Error::io("make a root", error))?;
        let rooted = move |spec: &mut EnvironmentSpec| {
            spec.settings = serde_json::json!({ "root": root });
            adjust(spec);
        };
        self.0.start(&rooted).await
    }
}

fn root() -> std::io::Result<PathBuf> {
    let mut made = ROOT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(made) = made.as_ref() {
        return Ok(made.path().to_owned());
    }
    Ok(made.insert(make()?).path().to_owned())
}

fn busybox() -> Option<&'static str> {
    ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists())
}

fn make() -> std::io::Result<tempfile::TempDir> {
    let busybox = busybox().ok_or_else(|| std::io::Error::other("busybox is not installed"))?;
    let root = tempfile::Builder::new().prefix("tierbox-root-").tempdir()?;
    std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755))?;
    for dir in ["bin", "etc", "usr/bin"] {
        std::fs::create_dir_all(root.path().join(dir))?;
    }
    support::copy_program(busybox.as_ref(), &root.path().join("bin/busybox"))?;
    for applet in APPLETS {
        symlink("busybox", root.path().join("bin").join(applet))?;
    }
    Ok(root)
}
