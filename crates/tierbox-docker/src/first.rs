//! The first process of a machine, as this host sees it.

use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tierbox_core::{Error, ErrorKind, Result};

use crate::BACKEND;
use crate::engine::{Engine, failed};
use crate::launch::{Around, name_of};

/// The first process of a machine.
#[derive(Debug)]
pub struct First {
    /// Its number on this host.
    pub pid: u32,
    /// Stands for it, whoever gets its number next.
    pub life: OwnedFd,
}

impl First {
    /// Asks the engine.
    ///
    /// # Errors
    /// `HostUnable` if the machine has ended, or is not on this host.
    pub async fn of(around: &Around<'_>, machine: &str) -> Result<Self> {
        let container = name_of(around.id, machine);
        let pid = number(around.engine, &container).await?;
        let unseen = |error: std::io::Error| {
            Error::new(ErrorKind::HostUnable, "look for the machine", format!("its process {pid} is not on this host: {error}"))
                .with_backend(BACKEND)
        };
        let handle =
            i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| unseen(std::io::ErrorKind::NotFound.into()))?;
        let life = pidfd_open(handle, PidfdFlags::empty()).map_err(|errno| unseen(errno.into()))?;
        // The number may have come to mean another process before it was held.
        if number(around.engine, &container).await? != pid {
            return Err(unseen(std::io::Error::other("it ended")));
        }
        Ok(Self { pid, life })
    }
}

async fn number(engine: &Engine, container: &str) -> Result<u32> {
    let found = engine.docker.inspect_container(container, None).await;
    let state = found.map_err(|error| failed("look for the machine", &error))?.state;
    Ok(state.and_then(|state| state.pid).and_then(|pid| u32::try_from(pid).ok()).unwrap_or_default())
}
