//! The kernel's surface, and what of the host shows.

use tierbox_core::{ExecRequest, PtySize};

use super::{Canary, attacks, needs_the_hosts_kernel};
use crate::attack::{findings, install, nothing_leaked};
use crate::case::{Verdict, ensure, ensure_eq};
use crate::subject::Subject;

attacks! { "kernel":
    e31_io_uring [Isolation, Files] "io_uring is closed.";
    e32_dangerous_calls [Isolation, Files] "bpf, perf, userfaultfd, keyrings, mounts, handles, modules, clocks and devices are closed.";
    e32_dangerous_calls_as_root [Isolation, Files, AnyUser] "To root inside, too.";
    e33_namespaces [Isolation, Files] "No new namespaces, no clone3, no setns.";
    e33_namespaces_as_root [Isolation, Files, AnyUser] "For root inside, too.";
    e34_sockets [Isolation, Files] "vsock, packet, alg, raw, and netlink other than route are closed.";
    e34_sockets_as_root [Isolation, Files, AnyUser] "To root inside, too.";
    e36_personality_and_listeners [Isolation, Files] "personality and later seccomp listeners are closed.";
    e36_other_call_tables [Isolation, Files] "x32 and i386 system calls are closed.";
    e37_descriptors [Files] "No descriptor of the harness's arrives, nor its working directory.";
    e38_environments [Isolation] "Nothing of the harness's environment shows, not in /proc either.";
    e39_proc [Isolation] "/proc does not let the host be changed or read.";
    e39_sys_and_dev [Isolation] "/sys and /dev hold nothing that changes the host.";
    e39_sockets_of_the_host [Isolation] "No socket of the host's (docker, dbus, ssh-agent, systemd) is there.";
    e39_mounts [Isolation] "Every mount that shows the host's files is read-only, and none shows more than needed.";
    e40_tiocsti [Isolation, Files, Pty] "Nothing can be typed into a terminal from inside.";
}

const DANGEROUS: &[&str] = &[
    "probe",
    "bpf",
    "perf_event_open",
    "userfaultfd",
    "keyctl",
    "add_key",
    "request_key",
    "mount",
    "mount_bind",
    "remount",
    "umount2",
    "pivot_root",
    "chroot",
    "open_tree",
    "move_mount",
    "fsopen",
    "fsconfig",
    "fsmount",
    "fspick",
    "mount_setattr",
    "open_by_handle_at",
    "kexec_load",
    "kexec_file_load",
    "init_module",
    "finit_module",
    "delete_module",
    "reboot",
    "swapon",
    "acct",
    "quotactl",
    "sethostname",
    "setdomainname",
    "syslog",
    "clock_settime",
    "settimeofday",
    "mknod",
    "fanotify_init",
    "kcmp",
    "iopl",
    "ioperm",
];
const NAMESPACES: &[&str] = &[
    "probe",
    "unshare_user",
    "unshare_mount",
    "unshare_net",
    "unshare_pid",
    "unshare_ipc",
    "unshare_uts",
    "unshare_cgroup",
    "unshare_time",
    "clone_user",
    "clone3",
    "setns_net",
    "setns_own_mount",
];
const SOCKETS: &[&str] = &[
    "probe",
    "vsock",
    "packet",
    "alg",
    "raw_icmp",
    "raw_ip6",
    "bluetooth",
    "tipc",
    "can",
    "xdp",
    "key",
    "rds",
    "netlink_audit",
    "netlink_uevent",
    "netlink_netfilter",
    "netlink_xfrm",
    "netlink_generic",
    "netlink_connector",
];

async fn closed(s: &Subject, probes: &[&str], user: Option<&str>) -> Verdict {
    needs_the_hosts_kernel(s)?;
    let user = user.map(str::to_owned);
    let found = findings(
        s,
        |mut request| {
            request.user = user;
            request
        },
        probes,
    );
    nothing_leaked(&found.await?)
}

async fn e31_io_uring(s: Subject, _: Canary) -> Verdict {
    closed(&s, &["probe", "io_uring_setup"], None).await
}

async fn e32_dangerous_calls(s: Subject, _: Canary) -> Verdict {
    closed(&s, DANGEROUS, None).await
}

async fn e32_dangerous_calls_as_root(s: Subject, _: Canary) -> Verdict {
    closed(&s, DANGEROUS, Some("root")).await
}

async fn e33_namespaces(s: Subject, _: Canary) -> Verdict {
    closed(&s, NAMESPACES, None).await
}

async fn e33_namespaces_as_root(s: Subject, _: Canary) -> Verdict {
    closed(&s, NAMESPACES, Some("root")).await
}

async fn e34_sockets(s: Subject, _: Canary) -> Verdict {
    closed(&s, SOCKETS, None).await
}

async fn e34_sockets_as_root(s: Subject, _: Canary) -> Verdict {
    closed(&s, SOCKETS, Some("root")).await
}

async fn e36_personality_and_listeners(s: Subject, _: Canary) -> Verdict {
    closed(&s, &["probe", "personality", "seccomp_listener"], None).await
}

async fn e36_other_call_tables(s: Subject, _: Canary) -> Verdict {
    closed(&s, &["probe", "x32", "x32_unshare", "i386"], None).await
}

async fn e37_descriptors(s: Subject, canary: Canary) -> Verdict {
    nothing_leaked(&findings(&s, |request| request, &["descriptors"]).await?)?;
    let program = install(&s).await?;
    let streamed = s.run(ExecRequest::new([program.as_str(), "descriptors"]).stdin_bytes("x")).await?;
    ensure!(!streamed.stdout.text().contains("\"leaked\":true"), "with stdin: {}", streamed.stdout.text());
    if s.can(crate::case::Need::Isolation) {
        let here = std::env::current_dir()?;
        let inside = s.text("readlink /proc/self/cwd; readlink /proc/1/cwd 2>/dev/null; :").await?;
        ensure!(
            here == std::path::Path::new("/") || !inside.lines().any(|line| std::path::Path::new(line) == here),
            "the harness's directory shows: {inside}"
        );
        ensure!(!inside.contains(&canary.directory()), "a host directory shows: {inside}");
    }
    Ok(())
}

async fn e38_environments(s: Subject, _: Canary) -> Verdict {
    let seen = s.run(ExecRequest::shell("env; cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'; :")).await?.stdout.text();
    let mut probes = 0;
    for (name, value) in std::env::vars().filter(|(_, value)| value.len() > 3) {
        if ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TERM", "PWD", "HOSTNAME", "LC_ALL"].contains(&name.as_str()) {
            continue;
        }
        probes += 1;
        ensure!(!seen.contains(&format!("{name}={value}")), "the harness's {name} shows inside");
    }
    ensure!(probes > 0, "the harness has no variable by which a leak would show");
    for name in [
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "SSH_AUTH_SOCK",
        "DBUS_SESSION_BUS_ADDRESS",
        "AWS_SECRET_ACCESS_KEY",
    ] {
        ensure!(!seen.lines().any(|line| line.starts_with(&format!("{name}="))), "{name} is set inside");
    }
    Ok(())
}

async fn e39_proc(s: Subject, _: Canary) -> Verdict {
    needs_the_hosts_kernel(&s)?;
    let script = "for f in /proc/sysrq-trigger /proc/sys/kernel/core_pattern /proc/sys/kernel/hostname /proc/sys/vm/drop_caches /proc/sys/kernel/modprobe /proc/sys/fs/binfmt_misc/register /proc/irq/default_smp_affinity /proc/self/oom_score_adj_ /proc/mtrr; do \
                  if ( exec 3>>$f ) 2>/dev/null; then echo writable $f; fi; done; \
                  for f in /proc/kcore /proc/kmsg /proc/kpagecount /proc/kpageflags /proc/timer_list /proc/sched_debug /proc/keys; do \
                  n=$(head -c 1 $f 2>/dev/null | wc -c); [ \"$n\" -gt 0 ] && echo readable $f; done; :";
    for user in ["", "root"] {
        let mut request = s.shell(script);
        if user == "root" {
            if !s.can(crate::case::Need::AnyUser) {
                continue;
            }
            request = request.user(user);
        }
        let found = s.run(request).await?.stdout.text();
        ensure_eq!(found.trim(), "", "files of /proc that are open to {user:?}");
    }
    Ok(())
}

async fn e39_sys_and_dev(s: Subject, _: Canary) -> Verdict {
    needs_the_hosts_kernel(&s)?;
    let script = "find /sys -type f -writable 2>/dev/null | head -5; find /dev -type b 2>/dev/null; \
                  for f in mem kmem port kmsg fuse kvm vda sda loop-control vsock vhost-net net/tun uinput userfaultfd; do test -e /dev/$f && echo /dev/$f; done; \
                  find /dev -type c 2>/dev/null | grep -vE '^/dev/(null|zero|full|random|urandom|tty|ptmx|console|pts/(ptmx|[0-9]+))$'; :";
    ensure_eq!(s.text(script).await?, "", "what is open in /sys and /dev");
    Ok(())
}

async fn e39_sockets_of_the_host(s: Subject, _: Canary) -> Verdict {
    needs_the_hosts_kernel(&s)?;
    let script = "find / -xdev -type s 2>/dev/null | grep -v \"^$PWD\"; for f in /var/run/docker.sock /run/docker.sock /run/containerd /run/dbus /run/systemd /run/user /run/snapd.socket /run/podman; do test -e $f && echo $f; done; :";
    let own = s.another(&|_| ()).await?;
    ensure_eq!(own.text(script).await?, "", "sockets that show");
    own.stop().await
}

async fn e39_mounts(s: Subject, canary: Canary) -> Verdict {
    for mount in s.text("cat /proc/self/mountinfo").await?.lines().filter_map(Mount::parse) {
        let is_own = if s.has_own_kernel() { !mount.is_shared_folder() } else { mount.is_own() };
        ensure!(is_own || mount.is_read_only, "what may be the host's can be written: {mount:?}");
        ensure!(s.has_own_kernel() || mount.kind != "devtmpfs" || mount.is_one_device(), "the host's /dev shows: {mount:?}");
    }
    let listed = s.run(ExecRequest::new(["ls", canary.directory().as_str()])).await?;
    ensure!(!listed.success(), "a directory of the host's /tmp shows");
    // A machine's own home directories may be called as the host's are.
    if s.has_own_kernel() {
        return Ok(());
    }
    for home in ["/root", "/home"] {
        let names = s.run(ExecRequest::new(["ls", "-A", home])).await?.stdout.text();
        let host: Vec<String> = std::fs::read_dir(home)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        let shown: Vec<&String> = host.iter().filter(|name| names.lines().any(|line| line == *name)).collect();
        ensure!(shown.is_empty(), "files of the host's {home} show: {shown:?}");
    }
    Ok(())
}

/// A line of `/proc/self/mountinfo`.
#[derive(Debug)]
struct Mount<'a> {
    root: &'a str,
    #[expect(dead_code, reason = "shown when a mount is found")]
    point: &'a str,
    kind: &'a str,
    is_read_only: bool,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, point, options) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Self { root, point, kind: after.split(' ').next()?, is_read_only: options.split(',').any(|option| option == "ro") })
    }

    /// Made for the sandbox.
    fn is_own(&self) -> bool {
        matches!(self.kind, "tmpfs" | "proc" | "devpts" | "mqueue" | "overlay" | "devtmpfs" | "sysfs" | "cgroup2" | "cgroup")
    }

    /// What hypervisors show of their host.
    fn is_shared_folder(&self) -> bool {
        matches!(self.kind, "9p" | "virtiofs" | "vboxsf" | "prl_fs" | "nfs" | "nfs4" | "cifs" | "fuse.sshfs" | "fuse.vmhgfs-fuse")
    }

    /// A single device, perhaps over a file of `/proc` that is to show nothing.
    fn is_one_device(&self) -> bool {
        ["/null", "/zero", "/full", "/random", "/urandom", "/tty"].contains(&self.root)
    }
}

async fn e40_tiocsti(s: Subject, _: Canary) -> Verdict {
    needs_the_hosts_kernel(&s)?;
    let size = PtySize { rows: 24, cols: 80 };
    let found = findings(&s, |request| request.pty(size), &["probe", "tiocsti", "tioclinux"]).await?;
    ensure!(found.iter().all(|finding| finding.errno != 25), "standard input is no terminal, so nothing was tried: {found:?}");
    nothing_leaked(&found)
}
