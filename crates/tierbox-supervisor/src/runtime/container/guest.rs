//! A machine that somebody else isolates: nothing is set up but this process itself.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::process::DumpableBehavior;

use super::inside::announce_and_run;
use super::refusal::{AtStep, Step};
use super::refuse;
use crate::runtime::machine::{Channel, Machine};
use crate::runtime::sys;
use crate::setup::Setup;

/// Serves the machine that this process was started in.
pub fn run(setup: Setup, channel: Channel) -> u8 {
    run_with(setup, channel, None)
}

/// The same, with a socket to which joiners connect.
pub fn run_with(setup: Setup, channel: Channel, joiners: Option<OwnedFd>) -> u8 {
    let _ = rustix::process::setsid();
    match prepare(&setup) {
        Ok(()) => serve(setup, channel, joiners),
        Err(refusal) => refuse(&channel, &refusal),
    }
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
    Ok(())
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
fn serve(setup: Setup, channel: Channel, joiners: Option<OwnedFd>) -> u8 {
    let other_users = rustix::process::geteuid().is_root();
    let (cgroups, mechanisms) = (Vec::new(), Vec::new());
    let joined = joiners.is_some();
    announce_and_run(Machine { setup, channel, listener: joiners, joined, cgroups, mechanisms, other_users })
}
