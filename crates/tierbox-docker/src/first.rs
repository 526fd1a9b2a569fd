//! The first process of a machine, as this host sees it.

use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tierbox_core::{Error, ErrorKind, GuestPath, Result, Sandbox};

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

    /// The same, once it is clear that the number stands for the machine: its network is the one that the machine sees itself in, and not
    /// this program's own. An engine that numbers processes otherwise than this host may name any.
    ///
    /// # Errors
    /// `HostUnable` if it is another's too.
    pub async fn in_own_network(around: &Around<'_>, machine: &str, sandbox: &dyn Sandbox) -> Result<Self> {
        let first = Self::of(around, machine).await?;
        let inside = sandbox.stat(&GuestPath::from(NETWORK), false).await.ok().and_then(|found| found.target);
        check(first.pid, inside.as_deref())?;
        Ok(first)
    }
}

/// The network of whoever looks.
const NETWORK: &str = "/proc/self/ns/net";

/// Checks that the network of a process is the one that is seen inside, and not this program's own, which is the host's.
fn check(pid: u32, inside: Option<&[u8]>) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let there = std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let own = std::fs::read_link(NETWORK).ok();
    let why = match there {
        None => "cannot be looked at",
        Some(_) if there == own => "is in this program's own network",
        Some(there) if inside != Some(there.as_os_str().as_bytes()) => "is in another network than the machine",
        Some(_) => return Ok(()),
    };
    Err(Error::new(ErrorKind::HostUnable, "look for the machine", format!("process {pid}, which the engine names, {why}"))
        .with_backend(BACKEND)
        .with_help(
            "the engine numbers processes otherwise than this host, or its runtime has a network of its own: run tierbox in the \
             engine's own pid namespace, or take N2 of one machine",
        ))
}

async fn number(engine: &Engine, container: &str) -> Result<u32> {
    let found = engine.docker.inspect_container(container, None).await;
    let state = found.map_err(|error| failed("look for the machine", &error))?.state;
    Ok(state.and_then(|state| state.pid).and_then(|pid| u32::try_from(pid).ok()).unwrap_or_default())
}

#[cfg(test)]
mod unit {
    use super::*;

    fn refusal(pid: u32, inside: Option<&[u8]>) -> String {
        let error = check(pid, inside).unwrap_err();
        assert!(error.kind() == ErrorKind::HostUnable && error.help().is_some(), "{error}");
        error.message().to_owned()
    }

    #[test]
    fn a_number_that_stands_for_another_process_is_refused() {
        use std::os::unix::ffi::OsStrExt;
        let own = std::fs::read_link(NETWORK).unwrap();
        let own = own.as_os_str().as_bytes();
        assert!(refusal(std::process::id(), Some(own)).contains("own network"));
        assert!(refusal(u32::MAX, Some(own)).contains("looked at"));
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let mut other =
            std::process::Command::new("unshare").args(["--net", "cat"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
        let network = format!("/proc/{}/ns/net", other.id());
        let there = std::iter::repeat_with(|| std::fs::read_link(&network).unwrap())
            .inspect(|_| std::thread::yield_now())
            .find(|there| there.as_os_str().as_bytes() != own)
            .unwrap();
        for lie in [None, Some(own), Some(&b"net:[1]"[..])] {
            assert!(refusal(other.id(), lie).contains("another network"));
        }
        check(other.id(), Some(there.as_os_str().as_bytes())).unwrap();
        drop(other.stdin.take());
        other.wait().unwrap();
    }
}
