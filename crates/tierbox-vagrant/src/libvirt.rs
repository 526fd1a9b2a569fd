//! libvirt without Vagrant: what it knows of an environment, and what a start that was killed left in it.

use std::os::unix::process::CommandExt;
use std::process::Output;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tierbox_core::{Error, ErrorKind, Result};

use crate::BACKEND;
use crate::place::Place;

/// This host's own libvirt, which vagrant-libvirt uses unless told otherwise.
const URI: &str = "qemu:///system";

/// How long a tool may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a tool of this host and returns what it prints. `stdin` is what it reads.
///
/// # Errors
/// `MissingEngine` if it is not installed; `HostUnable` with what it complained of; `Timeout`.
pub async fn tool(program: &'static str, arguments: &[&str], stdin: &[u8]) -> Result<String> {
    tool_within(program, arguments, stdin, PATIENCE).await
}

/// The same with another limit, at which the tool and all that it began are killed.
///
/// # Errors
/// As [`tool`].
pub async fn tool_within(program: &'static str, arguments: &[&str], stdin: &[u8], limit: Duration) -> Result<String> {
    let found = crate::provider::find_program(program).ok_or_else(|| {
        Error::new(ErrorKind::MissingEngine, "run tool", format!("{program} is not installed"))
            .with_backend(BACKEND)
            .with_help("`tierbox doctor` says what is missing")
    })?;
    let own_group = |command: &mut std::process::Command| {
        command.process_group(0);
        Ok(())
    };
    let expression = duct::cmd(found, arguments)
        .stdin_bytes(stdin)
        .stdout_capture()
        .stderr_capture()
        .unchecked()
        // What it says is read here.
        .env("LC_ALL", "C")
        .env_remove("LANGUAGE")
        .before_spawn(own_group);
    let shown = format!("{program} {}", arguments.join(" "));
    let failed = |error: std::io::Error| Error::io("run tool", error).with_context("tool", program);
    let done = tokio::task::spawn_blocking(move || ended(&expression, limit)).await;
    let done = done.map_err(|error| Error::new(ErrorKind::Internal, "run tool", error.to_string()))?.map_err(failed)?;
    let Some(output) = done else {
        return Err(
            Error::new(ErrorKind::Timeout, "run tool", format!("`{shown}` did not end within {limit:?}")).with_backend(BACKEND)
        );
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(500).collect();
    Err(Error::new(ErrorKind::HostUnable, "run tool", format!("`{shown}` failed: {said}")).with_backend(BACKEND))
}

/// Runs it to its end, or to that of its time: then its group is killed.
fn ended(expression: &duct::Expression, limit: Duration) -> std::io::Result<Option<Output>> {
    let handle = expression.start()?;
    let started = Instant::now();
    while started.elapsed() < limit {
        if let Some(output) = handle.try_wait()? {
            return Ok(Some(output.clone()));
        }
        // Most take some ten milliseconds.
        std::thread::sleep((started.elapsed() / 8).clamp(Duration::from_millis(1), Duration::from_millis(100)));
    }
    if let Some(group) = handle.pids().first().and_then(|pid| Pid::from_raw(*pid as i32)) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    handle.kill()?;
    Ok(None)
}

/// Runs virsh.
///
/// # Errors
/// As [`tool`].
pub async fn virsh(arguments: &[&str]) -> Result<String> {
    virsh_within(arguments, PATIENCE).await
}

/// The same with another limit.
///
/// # Errors
/// As [`tool`].
pub async fn virsh_within(arguments: &[&str], limit: Duration) -> Result<String> {
    let all: Vec<&str> = ["-q", "-c", URI].into_iter().chain(arguments.iter().copied()).collect();
    tool_within("virsh", &all, b"", limit).await
}

/// The lines of a listing that begin with a prefix, or are the prefix without its dash.
fn of(listing: &str, prefix: &str) -> Vec<String> {
    let bare = prefix.trim_end_matches('-');
    let names = listing.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| name.starts_with(prefix) || *name == bare).map(str::to_owned).collect()
}

/// The domains of an environment, running or not.
///
/// # Errors
/// As [`virsh`].
pub async fn domains(prefix: &str) -> Result<Vec<String>> {
    Ok(of(&virsh(&["list", "--all", "--name"]).await?, prefix))
}

/// A machine that is not among the domains, if there is one: whatever is looked for elsewhere cannot be checked or removed here.
pub fn missing(place: &Place, machines: &[String], domains: &[String]) -> Option<String> {
    let names = machines.iter().map(|machine| format!("{}{machine}", place.prefix()));
    names.into_iter().find(|name| !domains.contains(name))
}

/// The networks of an environment, active or not.
///
/// # Errors
/// As [`virsh`].
pub async fn networks(prefix: &str) -> Result<Vec<String>> {
    Ok(of(&virsh(&["net-list", "--all", "--name"]).await?, prefix))
}

/// Removes what an environment has in libvirt, whoever made it. Returns what was removed.
///
/// # Errors
/// The first thing that could not be removed.
pub async fn sweep(prefix: &str) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for domain in domains(prefix).await? {
        // It may be off already; what counts is that it can be undefined then.
        let _ = virsh(&["destroy", &domain]).await;
        virsh(&["undefine", &domain, "--managed-save", "--snapshots-metadata", "--nvram"]).await?;
        removed.push(format!("domain {domain}"));
    }
    for pool in virsh(&["pool-list", "--name"]).await?.split_whitespace() {
        // A pool that vanishes meanwhile is none of ours.
        let _ = virsh(&["pool-refresh", pool]).await;
        let Ok(listing) = virsh(&["vol-list", pool]).await else { continue };
        for volume in of(&listing, prefix) {
            virsh(&["vol-delete", "--pool", pool, &volume]).await?;
            removed.push(format!("volume {volume}"));
        }
    }
    for network in networks(prefix).await? {
        let _ = virsh(&["net-destroy", &network]).await;
        // A transient one is gone by now.
        let _ = virsh(&["net-undefine", &network]).await;
        removed.push(format!("network {network}"));
    }
    let left = networks(prefix).await?;
    if left.is_empty() {
        return Ok(removed);
    }
    Err(Error::new(ErrorKind::Io, "remove networks", format!("{} are still there", left.join(", "))).with_backend(BACKEND))
}

#[cfg(test)]
mod unit {
    use super::*;

    #[tokio::test]
    async fn a_tool_that_hangs_is_killed_with_what_it_began() {
        let dir = tempfile::tempdir().unwrap();
        let script = format!("sleep 1234.5 & echo $! >{}/pid; wait", dir.path().display());
        let error = tool_within("sh", &["-c", &script], b"", Duration::from_millis(300)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        let pid = std::fs::read_to_string(dir.path().join("pid")).unwrap();
        let started = std::time::Instant::now();
        let state = || std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        while !state().is_empty() && !state().contains(") Z ") {
            assert!(started.elapsed() < Duration::from_secs(10), "its child lives: {}", state());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn tools_speak_one_language() {
        assert_eq!(tool("sh", &["-c", "echo $LC_ALL; cat"], b"in").await.unwrap(), "C\nin");
    }

    #[test]
    fn only_its_own_names_are_an_environments() {
        let listing = " tbx-0a1b2c3d-web.img   /x/tbx-0a1b2c3d-web.img\n tbx-0a1b2c3e-web.img  /y\n\n tbx-0a1b2c3d\n other-tbx-0a1b2c3d-x\n";
        assert_eq!(of(listing, "tbx-0a1b2c3d-"), ["tbx-0a1b2c3d-web.img", "tbx-0a1b2c3d"]);
    }
}
