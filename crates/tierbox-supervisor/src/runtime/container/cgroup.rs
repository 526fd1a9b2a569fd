//! The machine's cgroups: made and removed by the keeper, joined by commands.
//!
//! A v1 directory takes commands directly. In v2 two rules shape the tree: only the leaves of a cgroup with controllers may
//! hold processes, and whoever moves a process needs the right to write to the nearest common ancestor of its old and new
//! place, within its cgroup namespace. So pid 1 lives inside the machine's v2 cgroup too, outside the limits:
//!
//! ```text
//! <path>              the machine; pid 1's cgroup namespace begins here
//! <path>/supervisor   pid 1                                  } only if there are limits; without them
//! <path>/commands     the limits; execs are made beneath it  } pid 1 and the execs' cgroups are in <path> itself
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::mount::split;
use super::refusal::{AtStep, Refusal, Step, shown};
use crate::protocol::Mechanism;
use crate::runtime::machine::CgroupDir;
use crate::runtime::sys;
use crate::setup::{Cgroup, Setup, UserMap};

const SUPERVISOR: &str = "supervisor";
const COMMANDS: &str = "commands";
const KEEPER: &str = "keeper";

/// How long the end of processes in a cgroup is waited for.
const REMOVAL: Duration = Duration::from_secs(5);

/// How deep below a machine's cgroup anything is looked for: an exec, what a program made of it, and some room.
const DEPTH: u32 = 16;

fn is_v2(group: &Cgroup) -> bool {
    group.kind == "v2"
}

/// Whether pid 1 has to stay beside the limited part.
fn is_split(group: &Cgroup) -> bool {
    is_v2(group) && !group.settings.is_empty()
}

/// The cgroups that this process made, and may remove.
#[derive(Debug, Default)]
pub struct Made<'a>(Vec<&'a Cgroup>);

impl<'a> Made<'a> {
    /// Makes a machine's cgroups and hands them to root inside. In v2 puts pid 1 there. The keeper's part.
    ///
    /// # Errors
    /// The refusal of step `cgroup <kind>`.
    pub fn make_all(&mut self, setup: &'a Setup, pid: i32) -> Step {
        for group in &setup.cgroups {
            self.make(group, setup, pid).map_err(|(error, what)| failed(group, error, what))?;
        }
        Ok(())
    }

    /// Removes those in which nothing lives.
    pub fn remove_empty(&mut self) {
        self.0.retain(|group| !remove_empty(&group.path.0));
    }

    /// Removes them with everything in them. Never fails: what stays is for the lease's cleanup to report.
    pub fn remove_all(&self) {
        self.0.iter().for_each(|group| remove(group));
    }

    fn make(&mut self, group: &'a Cgroup, setup: &Setup, pid: i32) -> Part<'a> {
        let owner = match setup.users {
            UserMap::Direct { first, .. } => Some(first),
            _ => None,
        };
        let dir = make_dir(CWD, &group.path.0, owner).map_err(|error| (error, "mkdir"))?;
        self.0.push(group);
        if !is_v2(group) {
            own(&dir, "tasks", owner).map_err(|error| (error, "chown"))?;
            return apply(&dir, &group.settings);
        }
        if is_split(group) {
            let supervisor = make_dir(dir.as_fd(), SUPERVISOR.as_bytes(), owner).map_err(|error| (error, "mkdir supervisor"))?;
            make_dir(dir.as_fd(), COMMANDS.as_bytes(), owner).map_err(|error| (error, "mkdir commands"))?;
            offer_controllers(group, &dir).map_err(|error| (error, "cgroup.subtree_control above"))?;
            own(&supervisor, "cgroup.procs", owner).map_err(|error| (error, "chown"))?;
            own(&dir, "cgroup.subtree_control", owner).map_err(|error| (error, "chown"))?;
        }
        own(&dir, "cgroup.procs", owner).map_err(|error| (error, "chown"))?;
        write_at(dir.as_fd(), "cgroup.procs", &pid.to_string()).map_err(|error| (error, "cgroup.procs"))
    }
}

fn failed(group: &Cgroup, error: io::Error, what: &str) -> Refusal {
    let step = format!("cgroup {}", group.kind);
    let detail = format!("{what} {}", shown(&group.path.0));
    Refusal { step: step.into(), errno: error.raw_os_error().unwrap_or(0), detail }
}

type Part<'a, T = ()> = Result<T, (io::Error, &'a str)>;

fn apply<'a>(dir: &OwnedFd, settings: &'a [(String, String)]) -> Part<'a> {
    for (name, value) in settings {
        write_at(dir.as_fd(), name, value).map_err(|error| (error, name.as_str()))?;
    }
    Ok(())
}

/// Opens the cgroups as pid 1 needs them, and finishes the v2 one. Pid 1's part, while it still sees the host's files.
///
/// # Errors
/// The refusal of step `cgroup <kind>`, or of `cgroup namespace`.
pub fn enter(setup: &Setup) -> Step<Vec<CgroupDir>> {
    // After the keeper moved this process: the namespace begins where the process is.
    sys::unshare(libc::CLONE_NEWCGROUP).at("cgroup namespace")?;
    open(setup)
}

/// Opens the cgroups, and finishes the v2 one.
///
/// # Errors
/// The refusal of step `cgroup <kind>`.
pub fn open(setup: &Setup) -> Step<Vec<CgroupDir>> {
    let opened = setup.cgroups.iter().map(|group| match supervisors_part(group) {
        Ok(dir) => Ok(CgroupDir { kind: group.kind.clone(), dir }),
        Err((error, what)) => Err(failed(group, error, what)),
    });
    opened.collect()
}

fn supervisors_part(group: &Cgroup) -> Part<'_, OwnedFd> {
    let dir = open_dir(CWD, &group.path.0).map_err(|error| (error, "open"))?;
    if !is_split(group) {
        return Ok(dir);
    }
    let supervisor = open_dir(dir.as_fd(), SUPERVISOR.as_bytes()).map_err(|error| (error, "open supervisor"))?;
    write_at(supervisor.as_fd(), "cgroup.procs", "0").map_err(|error| (error, "supervisor/cgroup.procs"))?;
    let wanted = controllers(&group.settings);
    write_at(dir.as_fd(), "cgroup.subtree_control", &wanted).map_err(|error| (error, "cgroup.subtree_control"))?;
    let commands = open_dir(dir.as_fd(), COMMANDS.as_bytes()).map_err(|error| (error, "open commands"))?;
    apply(&commands, &group.settings)?;
    // So that every exec has counters of its own; where that is impossible its outcome says less.
    let _ = write_at(commands.as_fd(), "cgroup.subtree_control", &wanted);
    Ok(commands)
}

/// What was made, for the report.
pub fn mechanism(group: &Cgroup) -> Mechanism {
    let settings: Vec<String> = group.settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
    Mechanism { name: format!("cgroup {}", group.kind), applied: 0, detail: settings.join(" ") }
}

/// The controllers that settings belong to, as `cgroup.subtree_control` takes them: `+memory +pids`.
fn controllers(settings: &[(String, String)]) -> String {
    let mut names: Vec<&str> = settings
        .iter()
        .filter_map(|(name, _)| name.split_once('.'))
        .map(|(name, _)| name)
        .filter(|&name| name != "cgroup")
        .collect();
    names.sort_unstable();
    names.dedup();
    names.iter().map(|name| format!("+{name}")).collect::<Vec<_>>().join(" ")
}

/// Sees that the directory above gives the controllers down. A delegated scope starts with this process in it and no
/// controller enabled, and cannot enable any while it holds a process: then the keeper moves into a leaf of its own.
fn offer_controllers(group: &Cgroup, dir: &OwnedFd) -> io::Result<()> {
    let wanted = controllers(&group.settings);
    let mut offered = [0; 512];
    let file = rustix::fs::openat(dir, "cgroup.controllers", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let length = rustix::io::read(&file, &mut offered)?;
    let offered = String::from_utf8_lossy(&offered[..length]);
    if wanted.split_whitespace().all(|name| offered.split_whitespace().any(|other| other == &name[1..])) {
        return Ok(());
    }
    let (parent, _) = split(&group.path.0).ok_or(Errno::INVAL)?;
    let parent = open_dir(CWD, parent)?;
    match write_at(parent.as_fd(), "cgroup.subtree_control", &wanted) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            let leaf = make_dir(parent.as_fd(), KEEPER.as_bytes(), None)?;
            write_at(leaf.as_fd(), "cgroup.procs", "0")?;
            write_at(parent.as_fd(), "cgroup.subtree_control", &wanted)
        }
        other => other,
    }
}

fn remove(group: &Cgroup) {
    let path = group.path.0.as_slice();
    let end = Instant::now() + REMOVAL;
    while !remove_empty(path) && Instant::now() < end {
        let Ok(dir) = open_dir(CWD, path) else { return };
        visit(dir.as_fd(), DEPTH, &kill_members);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Removes a cgroup and those below it, if nothing lives in any. Tells whether nothing is left to be done.
fn remove_empty(path: &[u8]) -> bool {
    let remove = || !matches!(rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR), Err(Errno::BUSY | Errno::NOTEMPTY));
    if remove() {
        return true;
    }
    if let Ok(dir) = open_dir(CWD, path) {
        visit(dir.as_fd(), DEPTH, &|_| ());
    }
    remove()
}

/// Removes the cgroups below one, as far as nothing lives there, and calls `act` on the others and on itself.
fn visit(dir: BorrowedFd<'_>, depth: u32, act: &dyn Fn(BorrowedFd<'_>)) {
    for name in children(dir) {
        let remove = || rustix::fs::unlinkat(dir, name.as_slice(), AtFlags::REMOVEDIR);
        if remove().is_ok() || depth == 0 {
            continue;
        }
        if let Ok(child) = open_dir(dir, &name) {
            visit(child.as_fd(), depth - 1, act);
            let _ = remove();
        }
    }
    act(dir);
}

fn children(dir: BorrowedFd<'_>) -> Vec<Vec<u8>> {
    let Ok(entries) = rustix::fs::Dir::read_from(dir) else { return Vec::new() };
    let directories = entries.flatten().filter(|entry| entry.file_type() == rustix::fs::FileType::Directory);
    directories.map(|entry| entry.file_name().to_bytes().to_vec()).filter(|name| name != b"." && name != b"..").collect()
}

fn kill_members(dir: BorrowedFd<'_>) {
    if write_at(dir, "cgroup.kill", "1").is_ok() {
        return;
    }
    let Ok(file) = rustix::fs::openat(dir, "cgroup.procs", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) else { return };
    let mut text = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(read @ 1..) = rustix::io::read(&file, &mut chunk) {
        text.extend_from_slice(&chunk[..read]);
    }
    for pid in String::from_utf8_lossy(&text).lines().filter_map(|line| line.parse::<i32>().ok()).filter(|&pid| pid > 1) {
        let _ = sys::kill(pid, libc::SIGKILL);
    }
    // A frozen process dies only when it is thawed.
    let _ = write_at(dir, "freezer.state", "THAWED");
}

fn make_dir(parent: BorrowedFd<'_>, path: &[u8], owner: Option<u32>) -> io::Result<OwnedFd> {
    rustix::fs::mkdirat(parent, path, Mode::from_raw_mode(0o755))?;
    let dir = open_dir(parent, path)?;
    if let Some(id) = owner {
        rustix::fs::fchown(&dir, Some(Uid::from_raw(id)), Some(Gid::from_raw(id)))?;
    }
    Ok(dir)
}

fn own(dir: &OwnedFd, name: &str, owner: Option<u32>) -> io::Result<()> {
    let Some(id) = owner else { return Ok(()) };
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    Ok(rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn open_dir(parent: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, path, flags, Mode::empty())?)
}

fn write_at(dir: BorrowedFd<'_>, name: &str, value: &str) -> io::Result<()> {
    let file = rustix::fs::openat(dir, name, OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, value.as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn settings_name_their_controllers() {
        let settings = ["memory.max", "pids.max", "memory.swap.max", "cgroup.max.depth"].map(|name| (name.into(), "1".into()));
        assert_eq!(controllers(&settings), "+memory +pids");
        assert_eq!(controllers(&[]), "");
    }
}
