//! What a machine knows of names.
//!
//! The Docker Engine writes `/etc/hosts` and `/etc/resolv.conf` of every container. podman copies the names of this host into the one, and
//! leaves the other as it is in the image where there is no network: whoever asks for a name would not ask the gateway.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bollard::models::Mount;
use tierbox_core::{Error, Result};

use crate::BACKEND;
use crate::launch::{Around, bind, resolver};
use crate::plan::MachinePlan;

/// The files of a machine that the engine would not write as they must be. They lie in the lease's directory.
///
/// # Errors
/// What the file system says.
pub fn files(around: &Around<'_>, machine: &MachinePlan) -> Result<Vec<Mount>> {
    if !around.engine.is_podman {
        return Ok(Vec::new());
    }
    let hostname = machine.hostname.as_ref().unwrap_or(&machine.name);
    let hosts = format!("127.0.0.1 localhost {hostname}\n::1 localhost\n");
    let resolv = format!("nameserver {}\n", resolver(around.plan));
    let mut mounts = Vec::new();
    for (guest, name, text) in [("/etc/hosts", "hosts", hosts), ("/etc/resolv.conf", "resolv", resolv)] {
        // On a network, whom to ask is what that network says.
        if name == "resolv" && !machine.links.is_empty() {
            continue;
        }
        if machine.mounts.iter().any(|mount| mount.guest == guest) {
            continue;
        }
        let path = around.program.with_file_name(format!("{name}-{}", machine.name));
        mounts.push(bind(&write(path, &text)?, guest));
    }
    Ok(mounts)
}

fn write(path: PathBuf, text: &str) -> Result<PathBuf> {
    let readable = |path: &Path| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644));
    match std::fs::write(&path, text).and_then(|()| readable(&path)) {
        Ok(()) => Ok(path),
        Err(error) => {
            Err(Error::io("write the machine's names", error).with_backend(BACKEND).with_context("path", path.display()))
        }
    }
}
