//! Ends what is left of a machine, whoever started it: by asking it, else by its keeper and its cgroups.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tierbox_core::{DestroyReport, LeaseRecord};
use tierbox_guest::Channel;

use crate::environment::{Memory, Remembered};
use crate::reaper::watch_other;

/// How long a machine may take to end when it is told to, before it is killed.
const GRACE: Duration = Duration::from_secs(2);

/// How long a cgroup may take to become empty and go away.
const PATIENCE: Duration = Duration::from_secs(2);

/// The name that every cgroup of tierbox's begins with. Nothing else is ever removed.
pub const CGROUP_PREFIX: &str = "tierbox-";

/// Removes everything that a lease names. What could not be removed is in the report.
pub async fn lease(lease: &LeaseRecord) -> DestroyReport {
    let mut report = DestroyReport::default();
    if let Some(memory) = Memory::of(lease) {
        end_keeper(lease, &memory, &mut report).await;
        if let Some(helper) = memory.helper
            && kill_if(helper.pid, || is(helper))
        {
            report.removed.push(format!("network helper {}", helper.pid));
        }
    }
    for path in lease.resources_of("cgroup").rev() {
        match remove_cgroup(Path::new(path)) {
            Ok(true) => report.removed.push(format!("cgroup {path}")),
            Ok(false) => {}
            Err(error) => {
                report.failed.push(format!("cgroup {path}: {error}"));
                report.manual.push(format!("rmdir {path}"));
            }
        }
    }
    for path in lease.resources_of("directory").chain(lease.resources_of("socket")) {
        match remove_directory(Path::new(path)) {
            Ok(true) => report.removed.push(path.to_owned()),
            Ok(false) => {}
            Err(error) => {
                report.failed.push(format!("{path}: {error}"));
                report.manual.push(format!("rm -r {path}"));
            }
        }
    }
    report
}

/// Ends the machine by its keeper: asked over the socket if it has one, killed if that does not help.
async fn end_keeper(lease: &LeaseRecord, memory: &Memory, report: &mut DestroyReport) {
    let Some(keeper) = watch_other(memory.keeper.pid, memory.keeper.start_ticks) else { return };
    let line = lease.resources_of("socket").next().and_then(|path| UnixStream::connect(path).ok());
    let channel = line.and_then(|line| Channel::socket(line).ok());
    let asked = channel.as_ref().is_some_and(|channel| channel.hello(Duration::ZERO).is_ok());
    if let Some(channel) = &channel {
        channel.shutdown();
    }
    keeper.kill_after(if asked { GRACE } else { Duration::ZERO });
    keeper.ended().await;
    report.removed.push(format!("machine {} (process {})", lease.id, keeper.pid()));
}

/// Removes a directory of an environment's own with all in it, or a socket. True if it was there.
///
/// # Errors
/// What stands in the way.
pub fn remove_directory(path: &Path) -> Result<bool, String> {
    let kind = match path.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error.to_string()),
        Ok(metadata) => metadata.file_type(),
    };
    let removed = if kind.is_dir() { tierbox_lease::remove_tree(path) } else { fs::remove_file(path) };
    match removed {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error.to_string()),
    }
}

fn is(process: Remembered) -> bool {
    process.start_ticks != 0 && start_ticks(process.pid) == Some(process.start_ticks)
}

/// When a process started, in clock ticks since boot.
pub fn start_ticks(pid: u32) -> Option<u64> {
    stat_field(pid, 22)
}

fn parent(pid: u32) -> Option<u64> {
    stat_field(pid, 4)
}

/// A field of `/proc/<pid>/stat`, counted from 1, beyond the name.
fn stat_field(pid: u32, field: usize) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything, so count from the last one.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(field.checked_sub(3)?)?.parse().ok()
}

/// Kills the children of a process: the first process of a container, with which everything in it dies.
pub fn kill_children(pid: u32) {
    for child in children(pid) {
        kill_if(child, || parent(child) == Some(u64::from(pid)));
    }
}

fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Kills a process that still is the one that is meant: asked while a pidfd holds on to it.
fn kill_if(pid: u32, is_meant: impl FnOnce() -> bool) -> bool {
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return false };
    let Ok(pidfd) = pidfd_open(raw, PidfdFlags::empty()) else { return false };
    is_meant() && pidfd_send_signal(&pidfd, Signal::KILL).is_ok()
}

/// Whether any process is in a cgroup or below it.
pub fn is_populated(dir: &Path) -> bool {
    let here = fs::read_to_string(dir.join("cgroup.procs")).is_ok_and(|procs| !procs.trim().is_empty());
    here || subdirectories(dir).iter().any(|dir| is_populated(dir))
}

fn subdirectories(dir: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let dirs = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.map(|entry| entry.path()).collect()
}

/// Kills all processes of a cgroup and removes it with those below it. True if it is gone (or never was).
///
/// # Errors
/// What stands in the way.
pub fn remove_cgroup(dir: &Path) -> Result<bool, String> {
    let named = dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with(CGROUP_PREFIX));
    if !named || !dir.is_absolute() {
        return Err("the lease names a directory that is not tierbox's".to_owned());
    }
    if !dir.exists() {
        return Ok(false);
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        kill_all(dir);
        match remove_empty(dir) {
            Ok(()) => return Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(true),
            Err(error) if Instant::now() >= deadline => return Err(error.to_string()),
            // Killed processes leave their cgroup when they are reaped, which nothing announces on v1.
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn kill_all(dir: &Path) {
    if write_existing(&dir.join("cgroup.kill"), "1") {
        return;
    }
    // Without it: stop the members where that is possible, so that none can fork away, kill them, let them run into it.
    let freezer = dir.join("freezer.state");
    let frozen = write_existing(&freezer, "FROZEN");
    for_each_below(dir, &|dir| {
        for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines().filter_map(|pid| pid.parse().ok()) {
            kill_if(pid, || is_member(dir, pid));
        }
    });
    if frozen {
        // Also below: a supervisor that died while it killed a command leaves that command's own group frozen, and what is
        // frozen does not die.
        for_each_below(dir, &|dir| {
            write_existing(&dir.join("freezer.state"), "THAWED");
        });
    }
}

fn write_existing(path: &Path, text: &str) -> bool {
    use std::io::Write;
    fs::OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(text.as_bytes())).is_ok()
}

fn is_member(dir: &Path, pid: u32) -> bool {
    let pid = pid.to_string();
    fs::read_to_string(dir.join("cgroup.procs")).is_ok_and(|procs| procs.lines().any(|line| line == pid))
}

fn for_each_below(dir: &Path, visit: &dyn Fn(&Path)) {
    visit(dir);
    subdirectories(dir).iter().for_each(|dir| for_each_below(dir, visit));
}

fn remove_empty(dir: &Path) -> std::io::Result<()> {
    for below in subdirectories(dir) {
        remove_empty(&below)?;
    }
    fs::remove_dir(dir)
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn only_cgroups_of_tierboxs_own_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("user.slice");
        fs::create_dir(&other).unwrap();
        assert!(remove_cgroup(&other).is_err() && other.exists());
        assert_eq!(remove_cgroup(&dir.path().join("tierbox-x")), Ok(false));
        let own = dir.path().join("tierbox-x");
        fs::create_dir_all(own.join("a/b")).unwrap();
        assert_eq!(remove_cgroup(&own), Ok(true));
        assert!(!own.exists());
    }

    /// What a command can make in the directory of a process: deeper than a thread's stack, more levels than descriptors, closed.
    #[test]
    fn a_hostile_directory_is_removed() {
        use std::os::unix::fs::PermissionsExt;
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("work");
        fs::create_dir_all(dir.join("closed/inner")).unwrap();
        fs::set_permissions(dir.join("closed"), fs::Permissions::from_mode(0o0)).unwrap();
        let mut levels = rustix::fs::open(&dir, rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty()).unwrap();
        for _ in 0..30_000 {
            rustix::fs::mkdirat(&levels, "d", rustix::fs::Mode::RWXU).unwrap();
            levels = rustix::fs::openat(&levels, "d", rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty()).unwrap();
        }
        drop(levels);
        assert_eq!(remove_directory(&dir), Ok(true));
        assert!(!dir.exists());
    }

    #[test]
    fn a_process_is_killed_only_if_it_is_the_one_that_is_meant() {
        let mut child = std::process::Command::new("/bin/sleep").arg("100").spawn().unwrap();
        let (pid, start_ticks) = (child.id(), start_ticks(child.id()).unwrap());
        for other in [Remembered { pid, start_ticks: start_ticks + 1 }, Remembered { pid, start_ticks: 0 }] {
            assert!(!kill_if(pid, || is(other)));
        }
        assert!(child.try_wait().unwrap().is_none());
        assert!(kill_if(pid, || is(Remembered { pid, start_ticks })));
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn children_are_found_and_killed() {
        let mut child = std::process::Command::new("/bin/sleep").arg("100").spawn().unwrap();
        assert!(children_of_this_thread().contains(&child.id()));
        assert_eq!(parent(child.id()), Some(std::process::id().into()));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The kernel lists children by the thread that made them.
    fn children_of_this_thread() -> Vec<u32> {
        let text = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }
}
