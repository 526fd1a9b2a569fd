//! A machine that somebody else isolates: nothing is set up but this process itself.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::process::DumpableBehavior;

use super::inside::announce_and_run;
use super::mount::split;
use super::refusal::{AtStep, Refusal, Step};
use super::{listen, refuse, seccomp};
use crate::protocol::Mechanism;
use crate::runtime::identity::{self, Identity};
use crate::runtime::machine::{Channel, Machine};
use crate::runtime::sys;
use crate::setup::{Setup, UNKNOWN_ID};
use crate::wire::Blob;

/// Serves the machine that this process was started in.
pub fn run(setup: Setup, channel: Channel) -> u8 {
    match joiners(&setup) {
        Ok(joiners) => run_with(setup, channel, joiners),
        Err(refusal) => refuse(&channel, &refusal),
    }
}

/// The socket at which later lines are joined, if one is asked for, in a new directory that root alone can enter.
///
/// # Errors
/// The refusal of step `listen socket`.
fn joiners(setup: &Setup) -> Step<Option<OwnedFd>> {
    let Some((dir, _)) = setup.listen.as_ref().and_then(|path| split(&path.0)) else { return Ok(None) };
    rustix::fs::mkdirat(rustix::fs::CWD, dir, rustix::fs::Mode::RWXU).at("listen socket")?;
    Ok(listen::open(setup)?.map(|listener| listener.socket))
}

/// The same, with a socket to which joiners connect.
pub fn run_with(mut setup: Setup, channel: Channel, joiners: Option<OwnedFd>) -> u8 {
    let _ = rustix::process::setsid();
    match find_agent(&mut setup).and_then(|()| prepare(&setup)).and_then(|()| filter(&setup)) {
        Ok(mechanisms) => serve(setup, channel, joiners, mechanisms),
        Err(refusal) => refuse(&channel, &refusal),
    }
}

/// Looks up an agent of whom the host knows the name alone, and gives commands what a login would tell of that user.
///
/// # Errors
/// The refusal of step `user`.
fn find_agent(setup: &mut Setup) -> Step {
    if setup.agent.uid != UNKNOWN_ID {
        return Ok(());
    }
    let lacks = |what: &str, name: &str| Refusal::because("user", format!("the machine has no {what} {name:?}"));
    let (name, group) = match setup.agent.name.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (setup.agent.name.as_str(), None),
    };
    let found = Identity::lookup(name).map_err(|_| lacks("user", name))?;
    let gid = match group {
        Some(group) => identity::group(group).ok_or_else(|| lacks("group", group))?,
        None => found.gid,
    };
    let agent = &mut setup.agent;
    agent.uid = found.uid;
    agent.gid = if agent.gid == UNKNOWN_ID { gid } else { agent.gid };
    agent.home = if agent.home.0.is_empty() { found.home.into() } else { agent.home.clone() };
    agent.name = found.name;
    let name: Blob = agent.name.as_bytes().into();
    for (key, value) in [("HOME", agent.home.clone()), ("USER", name.clone()), ("LOGNAME", name)] {
        if !setup.env.iter().any(|(known, _)| known.0 == key.as_bytes()) {
            setup.env.push((key.as_bytes().into(), value));
        }
    }
    Ok(())
}

/// Refuses system calls from here on, if that is asked for.
///
/// # Errors
/// The refusal of step `seccomp`.
fn filter(setup: &Setup) -> Step<Vec<Mechanism>> {
    if !setup.filter {
        return Ok(Vec::new());
    }
    let instructions = seccomp::install().at("seccomp")?;
    Ok(vec![Mechanism { name: "seccomp".to_owned(), applied: 0, detail: format!("{instructions} instructions") }])
}

/// What modes without namespaces of their own do before they serve.
///
/// # Errors
/// The refusal of step `subreaper` or `dumpable`.
pub fn prepare(setup: &Setup) -> Step {
    sys::become_subreaper().at("subreaper")?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).at("dumpable")?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    make_workdir(setup);
    setup.writable.iter().for_each(|path| give(&path.0, setup));
    Ok(())
}

/// Makes a directory if need be and gives it to the agent. What cannot be given stays as it is: commands say so.
fn give(path: &[u8], setup: &Setup) {
    let path = Path::new(OsStr::from_bytes(path));
    if path.is_absolute() && (path.is_dir() || std::fs::create_dir_all(path).is_ok()) {
        let _ = std::os::unix::fs::lchown(path, Some(setup.agent.uid), Some(setup.agent.gid));
    }
}

/// Makes the working directory if it can. If it cannot, each command that needs it says so.
fn make_workdir(setup: &Setup) {
    let path = Path::new(OsStr::from_bytes(&setup.workdir.0));
    // By the oldest calls there are: a virtual machine can have any kernel.
    if path.is_absolute() && !path.exists() && std::fs::create_dir_all(path).is_ok() {
        let _ = std::os::unix::fs::lchown(path, Some(setup.agent.uid), Some(setup.agent.gid));
    }
}

/// Serves without anything having been isolated.
fn serve(setup: Setup, channel: Channel, joiners: Option<OwnedFd>, mechanisms: Vec<Mechanism>) -> u8 {
    let other_users = rustix::process::geteuid().is_root();
    let cgroups = Vec::new();
    let joined = joiners.is_some();
    announce_and_run(Machine { setup, channel, listener: joiners, joined, cgroups, mechanisms, other_users })
}
