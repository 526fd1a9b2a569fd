//! Machines saved and put back while they run.

use std::time::Duration;

use tierbox_core::{Error, ErrorKind, Result};

use crate::BACKEND;
use crate::libvirt::{virsh, virsh_within};
use crate::place::{Place, Source};
use crate::pool::FIRST;
use crate::program::run;
use crate::ssh::Ssh;

/// How long the provider may take for one machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// Refuses what cannot be a snapshot's name.
///
/// # Errors
/// `InvalidInput`.
pub fn check_name(name: &str) -> Result<()> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if name == FIRST {
        return Err(Error::new(ErrorKind::InvalidInput, "name snapshot", format!("{FIRST:?} is tierbox's own"))
            .with_backend(BACKEND)
            .with_help("choose another name"));
    }
    if !name.is_empty() && name.len() <= 63 && !name.starts_with('-') && name.bytes().all(legal) {
        return Ok(());
    }
    let shown: String = name.chars().take(80).collect();
    Err(Error::new(ErrorKind::InvalidInput, "name snapshot", format!("{shown:?} cannot be a snapshot's name"))
        .with_backend(BACKEND)
        .with_help("names are letters, digits and dashes, at most 63"))
}

/// Saves machines under a name: all of them, or none.
///
/// # Errors
/// `AlreadyExists`; what the provider says.
pub async fn save(place: &Place, machines: &[String], name: &str) -> Result<()> {
    for (number, machine) in machines.iter().enumerate() {
        if let Err(error) = save_one(place, machine, name).await {
            // Half a snapshot would take the name, and could not be restored.
            for saved in &machines[..number] {
                let _ = delete(place, saved, name).await;
            }
            return Err(error);
        }
    }
    Ok(())
}

async fn save_one(place: &Place, machine: &str, name: &str) -> Result<()> {
    if place.provider != "libvirt" {
        return run(place, Source::Own, &["snapshot", "save", machine, name], PATIENCE, &mut |_| None).await.map(drop);
    }
    // Without a process of Ruby's: a second of each call.
    let domain = format!("{}{machine}", place.prefix());
    let saved = virsh_within(&["snapshot-create-as", &domain, name], PATIENCE).await;
    saved.map(drop).map_err(|error| match error.message().contains("already exists") {
        true => Error::new(ErrorKind::AlreadyExists, "save snapshot", format!("a snapshot named {name:?} exists"))
            .with_backend(BACKEND),
        false => error,
    })
}

async fn delete(place: &Place, machine: &str, name: &str) -> Result<()> {
    if place.provider != "libvirt" {
        return run(place, Source::Own, &["snapshot", "delete", machine, name], PATIENCE, &mut |_| None).await.map(drop);
    }
    let domain = format!("{}{machine}", place.prefix());
    virsh_within(&["snapshot-delete", &domain, name], PATIENCE).await.map(drop)
}

/// Deletes all snapshots of a libvirt environment's machines but one.
///
/// # Errors
/// As [`virsh_within`].
pub async fn delete_all_but(place: &Place, machines: &[String], kept: &str) -> Result<()> {
    for machine in machines {
        let domain = format!("{}{machine}", place.prefix());
        let listed = virsh(&["snapshot-list", &domain, "--name"]).await?;
        for name in listed.lines().map(str::trim).filter(|name| !name.is_empty() && *name != kept) {
            virsh_within(&["snapshot-delete", &domain, name], PATIENCE).await?;
        }
    }
    Ok(())
}

/// Puts machines back.
///
/// # Errors
/// `NotFound`; what the provider says.
pub async fn restore(place: &Place, machines: &[String], name: &str) -> Result<()> {
    for machine in machines {
        if place.provider != "libvirt" {
            let arguments = ["snapshot", "restore", "--no-provision", machine, name];
            run(place, Source::Own, &arguments, PATIENCE, &mut |_| None).await?;
            continue;
        }
        let domain = format!("{}{machine}", place.prefix());
        virsh_within(&["snapshot-revert", &domain, name, "--running"], PATIENCE).await.map_err(|error| {
            let missing = error.message().contains("no domain snapshot");
            if !missing {
                return error;
            }
            Error::new(ErrorKind::NotFound, "restore snapshot", format!("no snapshot is named {name:?}")).with_backend(BACKEND)
        })?;
    }
    Ok(())
}

/// Sets a machine's clock, which stood still since it was saved. Where the machine allows that to nobody, it stays behind.
///
/// # Errors
/// As [`Ssh::run`].
pub async fn wake(ssh: &Ssh) -> Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    let script = format!("date -u -s @{now} >/dev/null 2>&1 || sudo -n date -u -s @{now} >/dev/null 2>&1; :");
    ssh.run(&script, b"", Duration::from_secs(60)).await.map(drop)
}

#[cfg(test)]
mod unit {
    use super::check_name;

    #[test]
    fn names_reach_a_command_line() {
        check_name("before-run-1").unwrap();
        for bad in ["", "-rf", "a b", "a/b", "$(id)", "é", "tierbox-first", &"x".repeat(64)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
