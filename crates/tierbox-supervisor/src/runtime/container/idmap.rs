//! Which of the host's users exist inside.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::process::{Child, Command, Stdio};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::refusal::{AtStep, Refusal, Step, shown};
use crate::runtime::sys::{self, Fork};
use crate::setup::{Setup, UserMap};
use crate::wire::Blob;

/// Who the caller is on the host.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    uid: u32,
    gid: u32,
}

impl Caller {
    /// This process.
    pub fn now() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }
}

/// Whether pid 1 writes its own map, for which it needs nobody.
pub fn is_self_written(users: &UserMap) -> bool {
    matches!(users, UserMap::Single)
}

/// Maps the caller alone, from inside: the one map that needs no privilege.
///
/// # Errors
/// The refusal of step `uid map`.
pub fn write_own(setup: &Setup, caller: Caller) -> Step {
    write("/proc/self/setgroups", "deny").at_with("uid map", || "setgroups".into())?;
    write("/proc/self/uid_map", &format!("{} {} 1", setup.agent.uid, caller.uid)).at("uid map")?;
    write("/proc/self/gid_map", &format!("{} {} 1", setup.agent.gid, caller.gid)).at_with("uid map", || "groups".into())
}

/// Maps a range, from outside.
///
/// # Errors
/// The refusal of step `uid map`.
pub fn write_for(pid: i32, users: &UserMap, caller: Caller) -> Step {
    match users {
        UserMap::Single => Ok(()),
        UserMap::Direct { first, count } => {
            let map = format!("0 {first} {count}");
            write(&format!("/proc/{pid}/uid_map"), &map).at("uid map")?;
            write(&format!("/proc/{pid}/gid_map"), &map).at_with("uid map", || "groups".into())
        }
        UserMap::Helper { first_uid, uids, first_gid, gids, newuidmap, newgidmap } => {
            // Side by side: each takes as long as the rest of the keeper's work.
            let uids = start_helper(newuidmap, pid, [0, caller.uid, 1, 1, *first_uid, *uids])?;
            let gids = start_helper(newgidmap, pid, [0, caller.gid, 1, 1, *first_gid, *gids]);
            let uids = finish_helper(newuidmap, uids);
            gids.and_then(|gids| finish_helper(newgidmap, gids)).and(uids)
        }
    }
}

/// Becomes root inside, where there is one. Being mapped is not enough: the process still has the caller's ids.
///
/// # Errors
/// The refusal of step `uid map`.
pub fn assume_root(users: &UserMap) -> Step {
    if is_self_written(users) {
        return Ok(());
    }
    set_thread_groups(&[]).at_with("uid map", || "setgroups".into())?;
    set_thread_res_gid(rustix::fs::Gid::ROOT, rustix::fs::Gid::ROOT, rustix::fs::Gid::ROOT)
        .at_with("uid map", || "setgid".into())?;
    set_thread_res_uid(rustix::fs::Uid::ROOT, rustix::fs::Uid::ROOT, rustix::fs::Uid::ROOT).at_with("uid map", || "setuid".into())
}

/// A user namespace that only says: what belongs to `from` (user and group) in a file system appears as `to` on the host.
///
/// # Errors
/// As `clone(2)`, and as writing the maps.
pub fn lens(from: (u32, u32), to: (u32, u32)) -> io::Result<OwnedFd> {
    let pid = match sys::fork_into(libc::CLONE_NEWUSER)? {
        Fork::Parent(pid) => pid,
        Fork::Child => {
            let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
            std::thread::sleep(std::time::Duration::from_secs(10));
            sys::kill_self()
        }
    };
    let made = write(&format!("/proc/{pid}/uid_map"), &format!("{} {} 1", from.0, to.0))
        .and_then(|()| write(&format!("/proc/{pid}/gid_map"), &format!("{} {} 1", from.1, to.1)))
        .and_then(|()| Ok(rustix::fs::open(format!("/proc/{pid}/ns/user"), OFlags::CLOEXEC, Mode::empty())?));
    let _ = sys::kill(pid, libc::SIGKILL);
    let _ = sys::wait_for(pid);
    made
}

fn write(path: &str, text: &str) -> io::Result<()> {
    let file = rustix::fs::openat(CWD, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    // The kernel takes a map in one write or not at all.
    rustix::io::write(&file, text.as_bytes())?;
    Ok(())
}

fn start_helper(program: &Blob, pid: i32, map: [u32; 6]) -> Step<Child> {
    if !program.0.starts_with(b"/") {
        return Err(Refusal::because("uid map", "the helper's path is not absolute"));
    }
    let mut command = Command::new(OsStr::from_bytes(&program.0));
    command.arg(pid.to_string()).args(map.map(|number| number.to_string())).env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().at_with("uid map", || shown(&program.0))
}

fn finish_helper(program: &Blob, child: Child) -> Step {
    let output = child.wait_with_output().at_with("uid map", || shown(&program.0))?;
    if output.status.success() {
        return Ok(());
    }
    let said: String = String::from_utf8_lossy(&output.stderr).chars().filter(|char| !char.is_control()).take(300).collect();
    Err(Refusal::because("uid map", format!("{}: {said}", shown(&program.0))))
}
