//! What it is like in a container.

use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use tierbox_supervisor::protocol::{FromSupervisor, Mechanism, ToSupervisor};
use tierbox_supervisor::setup::{Bind, MadeFile, Mode, Net, Root, UserMap};

use crate::host::*;

fn detail<'a>(mechanisms: &'a [Mechanism], name: &str) -> &'a str {
    let found = mechanisms.iter().find(|mechanism| mechanism.name == name);
    let found = found.unwrap_or_else(|| panic!("{name} is not in {mechanisms:?}"));
    assert_eq!(found.applied, 0, "{name} is not enforced");
    &found.detail
}

#[test]
fn a_container_is_ready_and_names_its_mechanisms() {
    for (users, user) in ways() {
        let mut machine = Machine::start(&container(users), user);
        let mechanisms = machine.ready();
        for name in ["user", "pid", "mount", "network", "ipc", "uts", "cgroup"] {
            detail(&mechanisms, &format!("{name} namespace"));
        }
        for name in ["read-only root", "capabilities", "no_new_privs", "seccomp"] {
            detail(&mechanisms, name);
        }
        assert!(mechanisms.iter().any(|mechanism| mechanism.name == "landlock"));
        assert_eq!(machine.stop(), Some(0));
    }
}

#[test]
fn a_command_has_no_rights_and_its_own_machine() {
    for (users, user) in ways() {
        let setup = container(users);
        let mut machine = Machine::start(&setup, user);
        machine.ready();
        assert_eq!(
            machine.shell("id -u; id -g; pwd; hostname").lines().collect::<Vec<_>>(),
            ["1000", "1000", "/workspace", &setup.id]
        );
        let status = machine.shell("cat /proc/self/status");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_else(|| panic!("no {name}")).trim().to_owned()
        };
        for none in ["CapInh", "CapPrm", "CapEff", "CapAmb", "SigBlk", "SigIgn"] {
            assert_eq!(u64::from_str_radix(&field(none), 16), Ok(0), "{none}");
        }
        assert_eq!(u64::from_str_radix(&field("CapBnd"), 16), Ok(0xa000_05fb));
        assert_eq!((field("NoNewPrivs"), field("Seccomp")), ("1".into(), "2".into()));
        assert_eq!(machine.shell("cat /proc/1/comm; test -e /proc/$$ && ls /proc | grep -cE '^[0-9]{4,}$'"), "tierbox-init\n0\n");
        assert!(machine.shell("cat /proc/1/mem; cat /proc/1/environ; ls -l /proc/1/fd").matches("ermission denied").count() >= 2);
        assert_eq!(machine.shell("ls -A /sys; ls -A /proc/acpi; cat /proc/keys"), "");
        assert_eq!(machine.shell("ulimit -c; umask"), "0\n0022\n");
        // What a process may change of itself: the shell truncates what it opens for writing.
        assert_eq!(machine.shell("echo 500 > /proc/self/oom_score_adj && echo name > /proc/self/comm && echo yes"), "yes\n");
    }
}

#[test]
fn root_inside_has_dockers_fewest_capabilities() {
    if !is_root() {
        return;
    }
    let mut machine = Machine::start(&container(direct()), None);
    machine.ready();
    let script = "id -u; grep -E 'Cap(Prm|Eff|Bnd)' /proc/self/status | cut -f2 | sort -u; touch /home/agent/f && chown 5:5 /home/agent/f && stat -c %u /home/agent/f";
    assert_eq!(machine.shell_as(Some("root"), script), "0\n00000000a00005fb\n5\n");
    let script =
        "kill -9 1; cat /proc/1/environ || mount -t tmpfs none /tmp || chroot / true || echo 3 > /proc/sys/vm/drop_caches";
    assert_eq!(machine.shell_as(Some("root"), &format!("({script}) 2>/dev/null || echo refused")), "refused\n");
}

#[test]
fn only_the_writable_places_can_be_written() {
    for (users, user) in ways() {
        let mut setup = container(users);
        setup.writable = vec![blob("/data")];
        let mut machine = Machine::start(&setup, user);
        machine.ready();
        for place in ["/tmp", "/var/tmp", "/dev/shm", "/home/agent", "/workspace", "/data"] {
            assert_eq!(machine.shell(&format!("echo hello > {place}/file && cat {place}/file")), "hello\n", "{place}");
        }
        for place in ["/", "/etc", "/usr", "/usr/bin", "/dev", "/run", "/proc/sys/kernel", "/sys", "/home"] {
            assert_eq!(
                machine.shell(&format!("echo hello 2>&- > {place}/file || echo no")).lines().last(),
                Some("no"),
                "{place}"
            );
        }
        assert_eq!(machine.shell("echo gone > /dev/null; head -c 2 /dev/zero | wc -c; test -c /dev/tty && echo tty"), "2\ntty\n");
        let written = machine.shell("dd if=/dev/zero of=/tmp/big bs=1M count=100 2>&1; rm /tmp/big");
        assert!(written.contains("No space left"), "{written}");
        let made = machine.shell("i=0; while true > /tmp/f$i; do i=$((i+1)); done 2>/dev/null; echo $i");
        assert!((900..=1130).contains(&made.trim().parse::<u32>().unwrap()), "{made} files");
    }
}

#[test]
fn loopback_works_and_nothing_else() {
    for (users, user) in ways() {
        let mut machine = Machine::start(&container(users), user);
        machine.ready();
        assert_eq!(machine.shell("ls /proc/sys/net/ipv4/conf | sort | tr '\\n' ' '"), "all default lo ");
        let interfaces = machine.shell("cat /proc/net/dev | grep -c :; cat /proc/net/if_inet6 | wc -l");
        assert!(interfaces.starts_with("1\n"), "{interfaces}");
        assert_eq!(
            machine.shell("cat /proc/net/fib_trie | grep -c 'host LOCAL'").trim().parse::<u32>().map(|count| count > 0),
            Ok(true)
        );
    }
}

#[test]
fn made_files_and_binds_are_where_they_belong() {
    let host = tempfile::tempdir().unwrap();
    std::fs::set_permissions(host.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(host.path().join("file"), "from the host\n").unwrap();
    let path = host.path().to_str().unwrap();
    for (users, user) in ways() {
        let mut setup = container(users);
        let bind = |host: &str, guest: &str, optional| Bind { host: blob(host), guest: blob(guest), writable: false, optional };
        setup.binds = vec![
            bind(&format!("{path}/file"), "/opt/tool/file", false),
            bind(path, "/workspace/in/put", false),
            bind("/nonexistent", "/never", true),
        ];
        setup.files.push(MadeFile { path: blob("/etc/deep/er/hosts"), mode: 0o644, contents: blob("127.0.0.1 localhost\n") });
        setup.files.push(MadeFile { path: blob("/srv"), mode: 0o040_700, contents: blob("") });
        let mut machine = Machine::start(&setup, user);
        machine.ready();
        assert_eq!(machine.shell("cat /opt/tool/file /workspace/in/put/file").lines().count(), 2);
        assert_eq!(machine.shell("cat /etc/deep/er/hosts; stat -c %a /srv"), "127.0.0.1 localhost\n700\n");
        assert_eq!(
            machine.shell("test -e /never || echo absent; echo 2>&- > /workspace/in/put/x || echo ro").lines().last(),
            Some("ro")
        );
        assert_eq!(machine.shell("touch /workspace/in/mine && echo yes"), "yes\n", "parents of a bind belong to the agent");
    }
}

#[test]
fn a_bind_that_only_its_owner_may_see_is_seen_inside() {
    if !is_root() {
        return;
    }
    let host = tempfile::tempdir().unwrap();
    let inner = host.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    std::fs::write(inner.join("file"), "seen\n").unwrap();
    std::os::unix::fs::chown(host.path(), Some(PLAIN), Some(PLAIN)).unwrap();
    std::fs::set_permissions(host.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let mut setup = container(direct());
    let path = inner.to_str().unwrap();
    setup.binds = vec![Bind { host: blob(path), guest: blob("/in"), writable: false, optional: false }];
    let mut machine = Machine::start(&setup, None);
    machine.ready();
    assert_eq!(machine.shell("cat /in/file"), "seen\n");
}

#[test]
fn a_directory_is_a_root_copy_on_write() {
    let host = tempfile::tempdir().unwrap();
    std::fs::set_permissions(host.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = host.path().to_str().unwrap();
    let script = format!(
        "cd {path} && mkdir -p bin lib lib64 usr etc && cp /bin/sh /bin/cat /bin/id bin/ && \
         ldd /bin/sh /bin/cat /bin/id | grep -o '/[^ ]*' | sort -u | grep so | while read f; do mkdir -p .$(dirname $f); cp $f .$f; done; \
         echo own > etc/hostfile; echo dir:x:0:0::/:/bin/sh > etc/passwd; ln -s /etc/hostfile etc/resolv.conf; ln -s /etc evil"
    );
    assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
    if is_root() {
        assert!(Command::new("chown").args(["-R", "54321:54321", path]).status().unwrap().success());
    }
    for (users, user) in ways() {
        let mut setup = container(users);
        setup.root = Root::Directory { path: blob(path) };
        setup.files.push(MadeFile { path: blob("/etc/resolv.conf"), mode: 0o644, contents: blob("made\n") });
        setup.files.push(MadeFile { path: blob("/evil/outward"), mode: 0o644, contents: blob("made\n") });
        setup.workdir = blob("/evil/work");
        let mut machine = Machine::start(&setup, user);
        machine.ready();
        assert_eq!(machine.shell("cat /etc/passwd /etc/resolv.conf /etc/hostfile"), "dir:x:0:0::/:/bin/sh\nmade\nown\n");
        assert_eq!(machine.shell("echo new > /etc/work/file; cat /etc/work/file"), "new\n");
        assert_eq!(machine.shell("echo tmp > /tmp/file; cat /tmp/file; echo null > /dev/null"), "tmp\n");
        assert_eq!(machine.stop(), Some(0));
    }
    for outward in ["/etc/outward", "/etc/work"] {
        assert!(!std::path::Path::new(outward).exists(), "{outward} was made on the host");
    }
    assert!(!host.path().join("etc/outward").exists() && !host.path().join("etc/work").exists(), "the directory was changed");
}

#[test]
fn a_network_helper_is_waited_for_and_prefixes_are_blocked() {
    let mut setup = usual();
    setup.net = Net::External { blocked4: vec![([169, 254, 0, 0], 16)], blocked6: vec![([0xfd; 16], 128)] };
    let mut machine = Machine::start(&setup, None);
    let Some(FromSupervisor::NetworkWanted { pid }) = machine.next() else { panic!("no NetworkWanted") };
    let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
    if is_root() {
        assert_ne!(std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap(), ours);
    }
    machine.send(0, &ToSupervisor::NetworkReady);
    machine.ready();
    let table = machine.shell("cat /proc/net/route /proc/net/fib_trie");
    assert!(table.contains("169.254.0.0") && table.contains("UNREACHABLE"), "{table}");
}

#[test]
fn nothing_is_inherited_from_the_host() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new("sh");
    // Descriptors, an ignored signal, a working directory, a mask, a variable.
    let script = "trap '' HUP TERM; umask 0; export SECRET=1; exec 7</etc/hostname 9<\"$1\"; exec \"$2\"";
    command.args(["-c", script, "sh"]).arg(secret.path()).arg(SUPERVISOR).current_dir("/var");
    let mut machine = Machine::start_by(command, &usual());
    machine.ready();
    assert_eq!(
        machine.shell("ls /proc/self/fd | wc -l; umask; env | grep -c SECRET; grep SigIgn /proc/self/status | tr -d '[:space:]'"),
        "4\n0022\n0\nSigIgn:0000000000000000"
    );
    assert!(secret.as_file().as_raw_fd() > 2);
}

#[test]
fn guest_mode_serves_its_own_standard_streams() {
    let mut setup = usual();
    let home = tempfile::tempdir().unwrap();
    setup.mode = Mode::Guest;
    setup.workdir = blob(home.path().join("work").to_str().unwrap());
    setup.users = UserMap::Single;
    let mut keeper = Command::new(SUPERVISOR).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let (mut to, mut from) = (keeper.stdin.take().unwrap(), keeper.stdout.take().unwrap());
    std::io::Write::write_all(&mut to, &tierbox_supervisor::protocol::encode(0, &setup)).unwrap();
    let mut decoder = tierbox_supervisor::protocol::Decoder::default();
    let mut chunk = [0; 4096];
    let first = loop {
        if let Some(frame) = decoder.next_frame::<FromSupervisor>().unwrap() {
            break frame.message;
        }
        let read = std::io::Read::read(&mut from, &mut chunk).unwrap();
        assert_ne!(read, 0, "the channel ended");
        decoder.push(&chunk[..read]);
    };
    assert!(matches!(first, FromSupervisor::Ready { .. }), "{first:?}");
    assert!(home.path().join("work").is_dir());
    drop(to);
    eventually("the supervisor ends with its channel", || keeper.try_wait().unwrap().is_some());
}
