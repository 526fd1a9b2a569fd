//! What is left of a machine when it ends, however it ends: nothing.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tierbox_supervisor::setup::{Mode, Setup, UserMap};

use crate::host::*;

#[test]
fn cgroups_limit_and_are_removed() {
    let mut setup = usual();
    setup.cgroups = cgroups(&setup.id);
    let groups = setup.cgroups.clone();
    let mut machine = Machine::start(&setup, None);
    let mechanisms = machine.ready();
    for group in &groups {
        assert!(exists(group), "{group:?}");
        assert!(mechanisms.iter().any(|mechanism| mechanism.name == format!("cgroup {}", group.kind)));
    }
    assert_eq!(machine.shell("sleep 1000 >/dev/null 2>&1 & setsid sleep 1000 >/dev/null 2>&1 & echo started"), "started\n");
    assert_eq!(machine.stop(), Some(0));
    assert!(!groups.iter().any(exists), "{groups:?}");
}

#[test]
fn a_v2_cgroup_with_limits_keeps_pid_1_beside_them() {
    let mut setup = usual();
    setup.cgroups = cgroups(&setup.id).into_iter().filter(|group| group.kind == "v2").collect();
    let Some(group) = setup.cgroups.first_mut() else { return };
    let path = PathBuf::from(String::from_utf8(group.path.0.clone()).unwrap());
    let offered = std::fs::read_to_string(path.parent().unwrap().join("cgroup.controllers")).unwrap();
    let setting = if offered.contains("pids") {
        ("pids.max", "50")
    } else if offered.contains("hugetlb") {
        ("hugetlb.2MB.max", "0")
    } else {
        return;
    };
    group.settings = vec![(setting.0.into(), setting.1.into())];
    let mut machine = Machine::start(&setup, None);
    machine.ready();
    assert!(!std::fs::read_to_string(path.join("supervisor/cgroup.procs")).unwrap().is_empty());
    assert_eq!(std::fs::read_to_string(path.join("commands").join(setting.0)).unwrap().trim(), setting.1);
    assert_eq!(machine.shell("echo ran"), "ran\n");
    assert_eq!(machine.shell("sleep 1000 >/dev/null 2>&1 & echo started"), "started\n");
    assert_eq!(machine.stop(), Some(0));
    assert!(!path.exists());
}

#[test]
fn a_killed_keeper_takes_the_machine_with_it() {
    let mut setup = usual();
    setup.cgroups = cgroups(&setup.id);
    let groups = setup.cgroups.clone();
    let mut machine = Machine::start(&setup, None);
    machine.ready();
    machine.keeper.kill().unwrap();
    while machine.next().is_some() {}
    for group in &groups {
        let path = Path::new(std::str::from_utf8(&group.path.0).unwrap());
        eventually("its cgroups are empty", || remove_tree(path));
    }
}

/// Removes a directory of cgroups, if nothing is in it.
fn remove_tree(path: &Path) -> bool {
    if let Ok(entries) = std::fs::read_dir(path) {
        for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
            remove_tree(&entry.path());
        }
    }
    !path.exists() || std::fs::remove_dir(path).is_ok()
}

#[test]
fn the_end_of_the_channel_ends_the_machine() {
    for (users, user) in ways() {
        let mut machine = Machine::start(&container(users), user);
        machine.ready();
        assert_eq!(machine.shell("sleep 1000 >/dev/null 2>&1 & echo started"), "started\n");
        machine.hang_up();
        assert_eq!(machine.end(), Some(0));
    }
}

#[test]
fn a_crash_at_any_point_ends_everything() {
    let points = ["clone", "map", "cgroup", "mount", "pivot", "seccomp", "ready"];
    for point in points {
        let mut setup = usual();
        setup.cgroups = cgroups(&setup.id);
        setup.crash_at = Some(point.into());
        let groups = setup.cgroups.clone();
        let mut machine = Machine::start(&setup, None);
        assert_eq!(machine.next(), None, "{point}: the channel ends without a word");
        machine.end();
        for group in &groups {
            let path = Path::new(std::str::from_utf8(&group.path.0).unwrap());
            // A keeper that was killed cannot remove them, but nothing may live in them.
            eventually("its cgroups are empty", || remove_tree(path));
        }
    }
}

#[test]
fn a_listening_socket_is_private_and_is_removed() {
    let state = tempfile::tempdir().unwrap();
    // Longer than an address can be.
    let dir = state.path().join("d".repeat(120));
    std::fs::create_dir(&dir).unwrap();
    let socket = dir.join("socket");
    let mut setup = usual();
    setup.listen = Some(blob(socket.to_str().unwrap()));
    setup.persist = true;
    let mut machine = Machine::start(&setup, None);
    machine.ready();
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    machine.hang_up();
    let handle = std::fs::File::open(&dir).unwrap();
    let near = format!("/proc/self/fd/{}/socket", std::os::fd::AsRawFd::as_raw_fd(&handle));
    machine.reconnect(UnixStream::connect(near).unwrap());
    machine.greet();
    assert_eq!(machine.shell("echo again"), "again\n");
    assert_eq!(machine.stop(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn processes_without_isolation_are_killed_with_their_supervisor() {
    let work = tempfile::tempdir().unwrap();
    let mut setup: Setup = usual();
    setup.mode = Mode::Process;
    setup.users = UserMap::Single;
    setup.workdir = blob(work.path().join("w").to_str().unwrap());
    let mut machine = Machine::start(&setup, None);
    machine.ready();
    let pid = machine.shell_as(None, "setsid sleep 1000 >/dev/null 2>&1 & echo $!");
    let pid = pid.trim();
    let process = PathBuf::from(format!("/proc/{pid}"));
    assert!(process.exists());
    assert!(work.path().join("w").is_dir());
    machine.hang_up();
    assert_eq!(machine.end(), Some(0));
    eventually("the leftover is gone", || !process.exists());
}

#[test]
fn a_killed_supervisor_leaves_no_process() {
    let mut setup: Setup = usual();
    setup.mode = Mode::Process;
    setup.users = UserMap::Single;
    setup.workdir = blob("/tmp");
    let mut machine = Machine::start(&setup, None);
    machine.ready();
    let printed = machine.shell("setsid sleep 1000 >/dev/null 2>&1 & echo $! $PPID");
    let pids: Vec<&str> = printed.split_whitespace().collect();
    let process = PathBuf::from(format!("/proc/{}", pids[0]));
    let supervisor = children_of(machine.keeper.id()).pop().unwrap();
    assert!(std::process::Command::new("kill").args(["-9", &supervisor]).status().unwrap().success());
    assert_eq!(machine.end(), Some(5));
    eventually("the orphan is gone", || !process.exists());
}

fn children_of(pid: u32) -> Vec<String> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.split_whitespace().map(str::to_owned).collect()
}
