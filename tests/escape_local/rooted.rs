//! Containers whose root is a directory of the host's, in which there is busybox and nothing else.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use tierbox::Backend;
use tierbox_testkit::{Absence, BackendFactory, Factory};

use crate::support;

/// What the attacks call.
const APPLETS: [&str; 24] = [
    "sh", "cat", "cut", "echo", "env", "find", "getent", "grep", "head", "id", "ln", "ls", "mkdir", "mv", "ps", "rm", "sed",
    "sleep", "stat", "test", "touch", "true", "wc", "xargs",
];

/// Containers with a root of their own.
pub fn factory() -> Arc<dyn Factory> {
    let backend: Arc<dyn Backend> = Arc::new(tierbox::local::LocalBackend::new());
    let mut spec = support::spec("local");
    let absence = match root() {
        Ok(root) => {
            spec.settings = serde_json::json!({ "root": root });
            None
        }
        Err(reason) => Some(Absence { reason, install: "apt-get install busybox-static".to_owned() }),
    };
    Arc::new(BackendFactory::new("local-container", backend, spec, absence))
}

/// The directory, made once for the process and left to the system's temporary files.
fn root() -> Result<PathBuf, String> {
    static ROOT: OnceLock<Result<tempfile::TempDir, String>> = OnceLock::new();
    let made = ROOT.get_or_init(|| make().map_err(|error| error.to_string()));
    made.as_ref().map(|dir| dir.path().to_owned()).map_err(Clone::clone)
}

fn make() -> std::io::Result<tempfile::TempDir> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    let busybox = busybox.ok_or_else(|| std::io::Error::other("busybox is not installed"))?;
    let root = tempfile::Builder::new().prefix("tierbox-root-").tempdir()?;
    std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755))?;
    for dir in ["bin", "etc", "usr/bin"] {
        std::fs::create_dir_all(root.path().join(dir))?;
    }
    std::fs::copy(busybox, root.path().join("bin/busybox"))?;
    for applet in APPLETS {
        symlink("busybox", root.path().join("bin").join(applet))?;
    }
    Ok(root)
}
