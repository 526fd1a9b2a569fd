//! Machines that cannot be: each is refused at a step with a stable name.

use std::process::Command;

use tierbox_supervisor::protocol;
use tierbox_supervisor::setup::{Bind, Cgroup, Net, Root, Setup, UserMap};

use crate::host::*;

fn refused(setup: &Setup) -> (String, i32, String) {
    Machine::start(setup, None).refused()
}

/// Starts a machine for a plain user by a shell script that prepares a hostile host first and ends in `exec "$1"`.
fn refused_on_a_host(script: &str) -> Option<(String, i32, String)> {
    let mut command = Command::new("unshare");
    command.args([
        "--user",
        "--map-root-user",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "sh",
        "-ec",
        script,
        "sh",
        SUPERVISOR,
    ]);
    // Where such a host cannot be made there is nothing to test; the container tests have failed by then.
    let probe = Command::new("unshare").args(["--user", "--map-root-user", "--mount", "true"]).status();
    if !probe.is_ok_and(|status| status.success()) {
        return None;
    }
    let mut machine = Machine::start_by(command, &container(UserMap::Single));
    match machine.next() {
        Some(protocol::FromSupervisor::Refused { step, errno, detail }) => Some((step, errno, detail)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_set_up_that_is_not_one() {
    let mut wrong_version = usual();
    wrong_version.version += 1;
    let (step, _, detail) = refused(&wrong_version);
    assert_eq!(step, "setup frame");
    assert!(detail.contains("version"), "{detail}");
    for bytes in [frame(b""), frame(b"\0\0\0\0garbage"), u32::MAX.to_le_bytes().to_vec(), frame(&[1; 64])] {
        let machine = Machine::start_with(Command::new(SUPERVISOR), &bytes);
        assert_eq!(machine.refused().0, "setup frame");
    }
    let mut bad_name = usual();
    bad_name.id = "not a name".into();
    assert_eq!(refused(&bad_name).0, "setup frame");
}

#[test]
fn paths_that_do_not_exist() {
    let mut setup = usual();
    setup.binds = vec![Bind { host: blob("/tierbox-nonexistent/x"), guest: blob("/x"), writable: false, optional: false }];
    assert_eq!(refused(&setup), ("mount /tierbox-nonexistent/x".into(), libc::ENOENT, String::new()));
    let mut setup = usual();
    setup.root = Root::Directory { path: blob("/tierbox-nonexistent") };
    assert_eq!(refused(&setup), ("mount /tierbox-nonexistent".into(), libc::ENOENT, String::new()));
    let mut setup = usual();
    setup.listen = Some(blob("/tierbox-nonexistent/socket"));
    assert_eq!(refused(&setup), ("listen socket".into(), libc::ENOENT, String::new()));
    let mut setup = usual();
    setup.cgroups = vec![Cgroup { path: blob("/tierbox-nonexistent/group"), kind: "memory".into(), settings: Vec::new() }];
    let (step, errno, _) = refused(&setup);
    assert_eq!((step.as_str(), errno), ("cgroup memory", libc::ENOENT));
}

#[test]
fn somebody_elses_cgroup_is_left_alone() {
    let mut setup = usual();
    let groups = cgroups(&setup.id);
    let Some(last) = groups.last() else { return };
    let theirs = std::path::PathBuf::from(String::from_utf8(last.path.0.clone()).unwrap());
    std::fs::create_dir(&theirs).unwrap();
    setup.cgroups = groups.clone();
    let (step, errno, _) = refused(&setup);
    assert_eq!((step, errno), (format!("cgroup {}", last.kind), libc::EEXIST));
    assert!(theirs.exists());
    std::fs::remove_dir(&theirs).unwrap();
    assert!(!groups.iter().any(exists), "{groups:?}");
}

#[test]
fn a_container_with_the_hosts_network() {
    let mut setup = usual();
    setup.net = Net::Host;
    assert_eq!(refused(&setup).0, "network namespace");
}

#[test]
fn a_place_inside_that_cannot_be() {
    let mut setup = usual();
    setup.workdir = blob("/usr/nonexistent/work");
    let (step, errno, _) = refused(&setup);
    assert_eq!((step.as_str(), errno), ("directory /usr/nonexistent/work", libc::EROFS));
}

#[test]
fn a_map_that_the_caller_may_not_write() {
    if !is_root() {
        assert_eq!(refused(&container(direct())).0, "uid map");
        return;
    }
    let (step, errno, _) = Machine::start(&container(direct()), Some(PLAIN)).refused();
    assert_eq!((step.as_str(), errno), ("uid map", libc::EPERM));
    let helper = |program: &str| UserMap::Helper {
        first_uid: 1,
        uids: 1,
        first_gid: 1,
        gids: 1,
        newuidmap: blob(program),
        newgidmap: blob(program),
    };
    let (step, _, detail) = Machine::start(&container(helper("/bin/false")), Some(PLAIN)).refused();
    assert_eq!(step, "uid map");
    assert!(detail.contains("/bin/false"), "{detail}");
    assert_eq!(refused(&container(helper("false"))).0, "uid map");
}

#[test]
fn hosts_that_deny_namespaces() {
    let Some((step, errno, _)) = refused_on_a_host("echo 0 > /proc/sys/user/max_user_namespaces; exec \"$1\"") else { return };
    assert_eq!((step.as_str(), errno), ("user namespace", libc::ENOSPC));
    for (file, step) in
        [("pid", "pid namespace"), ("mnt", "mount namespace"), ("net", "network namespace"), ("ipc", "ipc namespace")]
    {
        // The limit counts what exists: one of each is the host's own.
        let script = format!("echo 0 > /proc/sys/user/max_{file}_namespaces; exec \"$1\"");
        let refused = refused_on_a_host(&script).unwrap();
        assert_eq!((refused.0.as_str(), refused.1), (step, libc::ENOSPC));
    }
}

#[test]
fn a_host_whose_proc_is_masked() {
    let Some((step, errno, _)) = refused_on_a_host("mount -t proc proc /proc; mount --bind /dev/null /proc/uptime; exec \"$1\"")
    else {
        return;
    };
    assert_eq!((step.as_str(), errno), ("mount proc", libc::EPERM));
}
