//! System calls that must not get through. Each is made in a child of its own, since a filter may kill the caller.

use std::io::{Read, Write};
use std::process::ExitCode;

use crate::sys::{self, nr};

type Probe = fn() -> Result<i64, i32>;

/// Errnos by which a filter, or a missing right, answers. Any other means that the call reached the kernel's own code.
const REFUSED: &[i32] = &[sys::EPERM, sys::ENOSYS, sys::EACCES];
const NO_SUCH_SOCKET: &[i32] = &[sys::EPERM, sys::ENOSYS, sys::EACCES, sys::EAFNOSUPPORT, sys::EPROTONOSUPPORT, sys::ESOCKTNOSUPPORT];
const NO_NAMESPACE: &[i32] = &[sys::EPERM, sys::ENOSYS, sys::EACCES, sys::ENOSPC];
const NO_TERMINAL: &[i32] = &[sys::EPERM, sys::EIO, sys::ENOTTY, sys::EACCES, sys::ENOSYS, sys::EINVAL];
const ONLY_ENOSYS: &[i32] = &[sys::ENOSYS];

fn call(number: i64, args: &[usize]) -> Result<i64, i32> {
    let mut six = [0; 6];
    six[..args.len()].copy_from_slice(args);
    sys::call(number, six)
}

fn text(text: &'static [u8]) -> usize {
    text.as_ptr() as usize
}

const MINUS: usize = usize::MAX;

/// Name, call, the errnos that are a refusal.
const PROBES: &[(&str, Probe, &[i32])] = &[
    ("io_uring_setup", || call(nr::IO_URING_SETUP, &[1, 0]), REFUSED),
    ("bpf", || call(nr::BPF, &[0, 0, 0]), REFUSED),
    ("perf_event_open", || call(nr::PERF_EVENT_OPEN, &[0, 0, MINUS, MINUS, 0]), REFUSED),
    ("userfaultfd", || call(nr::USERFAULTFD, &[1]), REFUSED),
    ("keyctl", || call(nr::KEYCTL, &[0, MINUS - 2, 0]), REFUSED),
    ("add_key", || call(nr::ADD_KEY, &[text(b"user\0"), text(b"x\0"), text(b"x\0"), 1, MINUS - 2]), REFUSED),
    ("request_key", || call(nr::REQUEST_KEY, &[text(b"user\0"), text(b"x\0"), 0, MINUS - 2]), REFUSED),
    ("mount", || call(nr::MOUNT, &[text(b"none\0"), text(b"/tmp\0"), text(b"tmpfs\0"), 0, 0]), REFUSED),
    ("mount_bind", || call(nr::MOUNT, &[text(b"/\0"), text(b"/tmp\0"), 0, 4096, 0]), REFUSED),
    ("remount", || call(nr::MOUNT, &[0, text(b"/\0"), 0, 32, 0]), REFUSED),
    ("umount2", || call(nr::UMOUNT2, &[text(b"/proc\0"), 2]), REFUSED),
    ("pivot_root", || call(nr::PIVOT_ROOT, &[text(b"/tmp\0"), text(b"/tmp\0")]), REFUSED),
    ("chroot", || call(nr::CHROOT, &[text(b"/tmp\0")]), REFUSED),
    ("open_tree", || call(nr::OPEN_TREE, &[MINUS - 99, text(b"/\0"), 1]), REFUSED),
    ("move_mount", || call(nr::MOVE_MOUNT, &[MINUS, text(b"\0"), MINUS, text(b"\0"), 0]), REFUSED),
    ("fsopen", || call(nr::FSOPEN, &[text(b"tmpfs\0"), 0]), REFUSED),
    ("fsconfig", || call(nr::FSCONFIG, &[MINUS, 0, 0, 0, 0]), REFUSED),
    ("fsmount", || call(nr::FSMOUNT, &[MINUS, 0, 0]), REFUSED),
    ("fspick", || call(nr::FSPICK, &[MINUS - 99, text(b"/\0"), 0]), REFUSED),
    ("mount_setattr", || call(nr::MOUNT_SETATTR, &[MINUS - 99, text(b"/\0"), 0, 0, 0]), REFUSED),
    ("open_by_handle_at", || call(nr::OPEN_BY_HANDLE_AT, &[MINUS - 99, 0, 0]), REFUSED),
    ("unshare_user", || call(nr::UNSHARE, &[0x1000_0000]), NO_NAMESPACE),
    ("unshare_mount", || call(nr::UNSHARE, &[0x0002_0000]), NO_NAMESPACE),
    ("unshare_net", || call(nr::UNSHARE, &[0x4000_0000]), NO_NAMESPACE),
    ("unshare_pid", || call(nr::UNSHARE, &[0x2000_0000]), NO_NAMESPACE),
    ("unshare_ipc", || call(nr::UNSHARE, &[0x0800_0000]), NO_NAMESPACE),
    ("unshare_uts", || call(nr::UNSHARE, &[0x0400_0000]), NO_NAMESPACE),
    ("unshare_cgroup", || call(nr::UNSHARE, &[0x0200_0000]), NO_NAMESPACE),
    ("unshare_time", || call(nr::UNSHARE, &[0x0000_0080]), NO_NAMESPACE),
    ("clone_user", clone_user, NO_NAMESPACE),
    ("clone3", || call(nr::CLONE3, &[0, 0]), ONLY_ENOSYS),
    ("setns_net", || setns(b"/proc/1/ns/net\0"), REFUSED),
    ("setns_own_mount", || setns(b"/proc/self/ns/mnt\0"), REFUSED),
    ("personality", || call(nr::PERSONALITY, &[0x004_0000]), REFUSED),
    ("seccomp_listener", seccomp_listener, REFUSED),
    ("kexec_load", || call(nr::KEXEC_LOAD, &[0, 0, 0, 0]), REFUSED),
    ("kexec_file_load", || call(nr::KEXEC_FILE_LOAD, &[MINUS, MINUS, 0, 0, 0]), REFUSED),
    ("init_module", || call(nr::INIT_MODULE, &[0, 0, text(b"\0")]), REFUSED),
    ("finit_module", || call(nr::FINIT_MODULE, &[MINUS, text(b"\0"), 0]), REFUSED),
    ("delete_module", || call(nr::DELETE_MODULE, &[text(b"no-such-module\0"), 0]), REFUSED),
    ("reboot", || call(nr::REBOOT, &[0xfee1_dead, 672_274_793, 0, 0]), REFUSED),
    ("swapon", || call(nr::SWAPON, &[text(b"/none\0"), 0]), REFUSED),
    ("acct", || call(nr::ACCT, &[0]), REFUSED),
    ("quotactl", || call(nr::QUOTACTL, &[0x80_0001_00, 0, 0, 0]), REFUSED),
    ("sethostname", || call(nr::SETHOSTNAME, &[text(b"x\0"), 1]), REFUSED),
    ("setdomainname", || call(nr::SETDOMAINNAME, &[text(b"x\0"), 1]), REFUSED),
    ("syslog", || call(nr::SYSLOG, &[3, 0, 0]), REFUSED),
    ("clock_settime", || call(nr::CLOCK_SETTIME, &[0, 0]), REFUSED_OR_FAULT),
    ("settimeofday", || call(nr::SETTIMEOFDAY, &[text(&[0; 16]), 0]), REFUSED),
    ("mknod", || call(nr::MKNODAT, &[MINUS - 99, text(b"tierbox-node\0"), 0o020_666, 0x103]), REFUSED),
    ("fanotify_init", || call(nr::FANOTIFY_INIT, &[0, 0]), REFUSED),
    ("kcmp", || call(nr::KCMP, &[1, 1, 0, 0, 0]), REFUSED),
    ("vsock", || call(nr::SOCKET, &[40, 1, 0]), NO_SUCH_SOCKET),
    ("packet", || call(nr::SOCKET, &[17, 3, 0]), NO_SUCH_SOCKET),
    ("alg", || call(nr::SOCKET, &[38, 5, 0]), NO_SUCH_SOCKET),
    ("raw_icmp", || call(nr::SOCKET, &[2, 3, 1]), NO_SUCH_SOCKET),
    ("raw_ip6", || call(nr::SOCKET, &[10, 3, 58]), NO_SUCH_SOCKET),
    ("bluetooth", || call(nr::SOCKET, &[31, 3, 1]), NO_SUCH_SOCKET),
    ("tipc", || call(nr::SOCKET, &[30, 5, 0]), NO_SUCH_SOCKET),
    ("can", || call(nr::SOCKET, &[29, 3, 1]), NO_SUCH_SOCKET),
    ("xdp", || call(nr::SOCKET, &[44, 3, 0]), NO_SUCH_SOCKET),
    ("key", || call(nr::SOCKET, &[15, 3, 2]), NO_SUCH_SOCKET),
    ("rds", || call(nr::SOCKET, &[21, 5, 0]), NO_SUCH_SOCKET),
    ("netlink_audit", || call(nr::SOCKET, &[16, 3, 9]), NO_SUCH_SOCKET),
    ("netlink_uevent", || call(nr::SOCKET, &[16, 3, 15]), NO_SUCH_SOCKET),
    ("netlink_netfilter", || call(nr::SOCKET, &[16, 3, 12]), NO_SUCH_SOCKET),
    ("netlink_xfrm", || call(nr::SOCKET, &[16, 3, 6]), NO_SUCH_SOCKET),
    ("netlink_generic", || call(nr::SOCKET, &[16, 3, 16]), NO_SUCH_SOCKET),
    ("netlink_connector", || call(nr::SOCKET, &[16, 3, 11]), NO_SUCH_SOCKET),
    ("tiocsti", || call(nr::IOCTL, &[0, 0x5412, text(b"x")]), NO_TERMINAL),
    ("tioclinux", || call(nr::IOCTL, &[0, 0x541c, text(b"\x06")]), NO_TERMINAL),
    #[cfg(target_arch = "x86_64")]
    ("x32", || call(0x4000_0000 | nr::GETPID, &[]), REFUSED),
    #[cfg(target_arch = "x86_64")]
    ("x32_unshare", || call(0x4000_0000 | nr::UNSHARE, &[0x1000_0000]), REFUSED),
    #[cfg(target_arch = "x86_64")]
    ("i386", i386, REFUSED),
    #[cfg(target_arch = "x86_64")]
    ("iopl", || call(172, &[3]), REFUSED),
    #[cfg(target_arch = "x86_64")]
    ("ioperm", || call(173, &[0, 1, 1]), REFUSED),
];

/// A null pointer is looked at before the right to set the clock.
const REFUSED_OR_FAULT: &[i32] = &[sys::EPERM, sys::ENOSYS, sys::EACCES, 14];

fn clone_user() -> Result<i64, i32> {
    let result = call(nr::CLONE, &[0x1000_0000 | 17, 0, 0, 0, 0]);
    if result == Ok(0) {
        sys::leave(0);
    }
    result
}

fn setns(path: &'static [u8]) -> Result<i64, i32> {
    use std::os::fd::AsRawFd;
    let path = std::str::from_utf8(&path[..path.len() - 1]).unwrap_or_default();
    let file = std::fs::File::open(path).map_err(|error| error.raw_os_error().unwrap_or(0))?;
    call(nr::SETNS, &[file.as_raw_fd() as usize, 0])
}

/// A filter that allows everything, with a listener that would see (and could answer for) every call of its children.
fn seccomp_listener() -> Result<i64, i32> {
    let allow: [u64; 1] = [u64::from_le_bytes([6, 0, 0, 0, 0, 0, 0xff, 0x7f])];
    let program: [usize; 2] = [1, allow.as_ptr() as usize];
    call(nr::SECCOMP, &[1, 8, program.as_ptr() as usize])
}

#[cfg(target_arch = "x86_64")]
fn i386() -> Result<i64, i32> {
    let result: i64;
    // SAFETY: getpid of the 32-bit table touches no memory; the kernel may kill this child instead.
    unsafe { std::arch::asm!("int 0x80", inlateout("rax") 20i64 => result, out("r8") _, out("r9") _, out("r10") _, out("r11") _) };
    if (-4095..0).contains(&result) { Err(-result as i32) } else { Ok(result) }
}

/// Whether this process could really do these things to the machine it is on. Then nothing may be tried: the calls would
/// unmount, rename and restart a host.
fn is_almighty() -> bool {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let Some(status) = read("/proc/self/status") else { return true };
    let set = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        u64::from_str_radix(line.trim().trim_start_matches(':').trim(), 16).ok()
    };
    // CAP_SYS_ADMIN, CAP_SYS_BOOT, CAP_SYS_TIME, CAP_SYS_MODULE, CAP_SYS_RAWIO, CAP_SYS_CHROOT.
    let dangerous: u64 = [21, 22, 25, 16, 17, 18].iter().map(|bit| 1u64 << bit).sum();
    set("CapEff").is_none_or(|effective| effective & dangerous != 0)
}

/// Runs the named probes, or all of them.
pub fn run(names: &[&str]) -> ExitCode {
    if is_almighty() {
        sys::report("probe", 0, true, "this process has capabilities that no sandbox gives; nothing was tried");
        return ExitCode::from(78);
    }
    if on_a_host() {
        eprintln!("refused: these calls would succeed on a host and break it; they run inside a sandbox only");
        return ExitCode::from(65);
    }
    for name in names.iter().filter(|name| !PROBES.iter().any(|probe| probe.0 == **name)) {
        sys::report(name, 0, false, "no such probe on this architecture");
    }
    for (name, probe, refused) in PROBES.iter().filter(|probe| names.is_empty() || names.contains(&probe.0)) {
        one(name, *probe, refused);
    }
    ExitCode::SUCCESS
}

/// Whether this is the initial pid namespace, whose inode is the same on every Linux (`PROC_PID_INIT_INO`). With root's
/// rights the mount calls would take the host's own root away.
fn on_a_host() -> bool {
    std::fs::read_link("/proc/self/ns/pid").map_or(true, |link| link.as_os_str() == "pid:[4026531836]")
}

fn one(name: &str, probe: Probe, refused: &[i32]) {
    let Ok((mut read, mut write)) = std::io::pipe() else {
        return sys::report(name, 0, true, "no pipe could be made");
    };
    let child = sys::split();
    if child == 0 {
        let errno = match probe() {
            Ok(_) => 0,
            Err(errno) => errno,
        };
        let _ = write.write_all(&errno.to_le_bytes());
        sys::leave(0);
    }
    drop(write);
    let mut answer = [0; 4];
    let answered = read.read_exact(&mut answer).is_ok();
    let status = sys::wait(child);
    if !answered {
        return sys::report(name, 0, false, &format!("the caller was killed, status {status:#x}"));
    }
    let errno = i32::from_le_bytes(answer);
    sys::report(name, errno, errno == 0 || !refused.contains(&errno), if errno == 0 { "it succeeded" } else { "" });
}
