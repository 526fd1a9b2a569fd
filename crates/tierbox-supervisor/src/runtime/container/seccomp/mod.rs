//! Which system calls a container may make: docker's default as the floor, and stricter where nothing a program needs is lost.
//!
//! The filter is installed once, in pid 1 after the set-up, and inherited by all it starts. What is not on the list fails with
//! EPERM. What is newer than the list, or called by the numbers of another architecture (i386, x32), fails with ENOSYS, so that
//! programs fall back as on an older kernel.

mod asm;
mod table;

use std::io;

use asm::{Rule, Test, Verdict};

use crate::runtime::sys::{self, BpfInsn};

const ALLOW: Rule = Rule::Always(Verdict::Allow);

const fn errno(errno: i32) -> Rule {
    Rule::Always(Verdict::Errno(errno as u16))
}

/// The namespaces that `clone` could make, each of which opens kernel code that nobody else can reach.
const CLONE_NEW: u32 = 0x7e02_0000;
/// Set in the type of a socket beside the type itself.
const SOCKET_FLAGS: u32 = (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u32;
/// Pastes into virtual consoles.
const TIOCLINUX: u32 = 0x541c;
/// Chooses a line discipline, which loads old drivers that were never meant for untrusted terminals.
const TIOCSETD: u32 = 0x5423;
/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`: to decide about other processes' calls.
const NEW_LISTENER: u32 = 0x8;
/// All bits count.
const WHOLE: u32 = u32::MAX;

/// Installs the filter and tells how many instructions it has.
///
/// # Errors
/// As `seccomp(2)`.
pub fn install() -> io::Result<usize> {
    let program = program();
    sys::seccomp_install(&program)?;
    Ok(program.len())
}

fn program() -> Vec<BpfInsn> {
    let (unlisted, unknown) = (Verdict::Errno(libc::EPERM as u16), Verdict::Errno(libc::ENOSYS as u16));
    asm::assemble(table::AUDIT_ARCH, &rules(), unlisted, table::LAST_KNOWN, unknown)
}

fn rules() -> Vec<(u32, Rule)> {
    let mut rules: Vec<(u32, Rule)> = table::allowed().map(|number| (number, ALLOW)).collect();
    rules.extend([
        (libc::SYS_clone as u32, Rule::test(0, Test::AnyBit(CLONE_NEW), errno(libc::EPERM), ALLOW)),
        // Its arguments lie in memory, where a filter cannot see them; programs then use `clone`.
        (libc::SYS_clone3 as u32, errno(libc::ENOSYS)),
        (libc::SYS_socket as u32, socket()),
        (libc::SYS_ioctl as u32, ioctl()),
        (libc::SYS_personality as u32, personality()),
        (libc::SYS_seccomp as u32, Rule::test(1, Test::AnyBit(NEW_LISTENER), errno(libc::EPERM), ALLOW)),
    ]);
    rules.sort_unstable_by_key(|(number, _)| *number);
    rules
}

fn ioctl() -> Rule {
    Rule::one_of(1, WHOLE, &[libc::TIOCSTI as u32, TIOCLINUX, TIOCSETD], errno(libc::EPERM), ALLOW)
}

fn personality() -> Rule {
    // A question; Linux and Linux 2.6 version numbers, each with or without a 32-bit machine name.
    Rule::one_of(0, WHOLE, &[WHOLE, 0, 0x0008, 0x0002_0000, 0x0002_0008], ALLOW, errno(libc::EPERM))
}

/// Unix sockets, IPv4 and IPv6 sockets of the everyday types and protocols, and netlink for routing information.
fn socket() -> Rule {
    let (family, kind, protocol) = (0, 1, 2);
    let unknown_protocol = || errno(libc::EPROTONOSUPPORT);
    let everyday = [0, libc::IPPROTO_TCP, libc::IPPROTO_UDP, libc::IPPROTO_ICMP, libc::IPPROTO_ICMPV6];
    let internet = Rule::one_of(
        kind,
        !SOCKET_FLAGS,
        &[libc::SOCK_STREAM as u32, libc::SOCK_DGRAM as u32],
        Rule::one_of(protocol, WHOLE, &everyday.map(|number| number as u32), ALLOW, unknown_protocol()),
        errno(libc::EPERM),
    );
    let netlink = Rule::test(protocol, Test::Equal(libc::NETLINK_ROUTE as u32), ALLOW, unknown_protocol());
    let other = errno(libc::EAFNOSUPPORT);
    let others = Rule::test(family, Test::Equal(libc::AF_NETLINK as u32), netlink, other);
    let internet = Rule::one_of(family, WHOLE, &[libc::AF_INET as u32, libc::AF_INET6 as u32], internet, others);
    Rule::test(family, Test::Equal(libc::AF_UNIX as u32), ALLOW, internet)
}

#[cfg(test)]
mod unit {
    use super::asm::interpret;
    use super::*;

    const X32: u32 = 0x4000_0000;

    fn verdict(call: libc::c_long, args: [u64; 6]) -> u32 {
        interpret(&program(), table::AUDIT_ARCH, call as u32, args)
    }

    fn refused(errno: i32) -> u32 {
        libc::SECCOMP_RET_ERRNO | errno as u32
    }

    #[track_caller]
    fn assert_refused(call: libc::c_long, args: [u64; 6], errno: i32) {
        assert_eq!(verdict(call, args), refused(errno));
    }

    #[track_caller]
    fn assert_allowed(call: libc::c_long, args: [u64; 6]) {
        assert_eq!(verdict(call, args), libc::SECCOMP_RET_ALLOW);
    }

    #[test]
    fn everyday_calls_are_allowed() {
        let calls = [libc::SYS_read, libc::SYS_openat, libc::SYS_execve, libc::SYS_futex, libc::SYS_setresuid, libc::SYS_kill];
        for call in calls.into_iter().chain([libc::SYS_capset, libc::SYS_wait4, libc::SYS_ppoll, libc::SYS_exit_group]) {
            assert_allowed(call, [0; 6]);
        }
        assert!(table::allowed().count() > 250);
    }

    #[test]
    fn kernel_surface_is_refused() {
        let refused = [
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_register,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_mount_setattr,
            libc::SYS_fsopen,
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_fspick,
            libc::SYS_open_by_handle_at,
            libc::SYS_setns,
            libc::SYS_unshare,
            libc::SYS_kexec_load,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_delete_module,
            libc::SYS_swapon,
            libc::SYS_reboot,
            libc::SYS_settimeofday,
            libc::SYS_clock_settime,
            libc::SYS_syslog,
            libc::SYS_quotactl,
            libc::SYS_acct,
            libc::SYS_pidfd_getfd,
            libc::SYS_kcmp,
            libc::SYS_sethostname,
        ];
        for call in refused {
            assert_refused(call, [0; 6], libc::EPERM);
        }
        assert_refused(libc::SYS_clone3, [0; 6], libc::ENOSYS);
    }

    #[test]
    fn clone_makes_threads_and_processes_but_no_namespaces() {
        assert_allowed(libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0, 0]);
        assert_allowed(libc::SYS_clone, [(libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND) as u64, 0, 0, 0, 0, 0]);
        let kinds = [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWPID, libc::CLONE_NEWNET, libc::CLONE_NEWCGROUP];
        for kind in kinds.into_iter().chain([libc::CLONE_NEWIPC, libc::CLONE_NEWUTS]) {
            assert_refused(libc::SYS_clone, [kind as u32 as u64, 0, 0, 0, 0, 0], libc::EPERM);
        }
    }

    #[test]
    fn sockets_are_unix_internet_or_routing() {
        let stream = (libc::SOCK_STREAM | libc::SOCK_CLOEXEC) as u64;
        let socket = |family: i32, kind: u64, protocol: i32| [family as u64, kind, protocol as u64, 0, 0, 0];
        assert_allowed(libc::SYS_socket, socket(libc::AF_UNIX, libc::SOCK_SEQPACKET as u64, 0));
        assert_allowed(libc::SYS_socket, socket(libc::AF_INET, stream, 0));
        assert_allowed(libc::SYS_socket, socket(libc::AF_INET6, libc::SOCK_DGRAM as u64, libc::IPPROTO_UDP));
        assert_allowed(libc::SYS_socket, socket(libc::AF_NETLINK, libc::SOCK_RAW as u64, libc::NETLINK_ROUTE));
        assert_refused(libc::SYS_socket, socket(libc::AF_NETLINK, libc::SOCK_RAW as u64, 12), libc::EPROTONOSUPPORT);
        assert_refused(libc::SYS_socket, socket(libc::AF_INET, libc::SOCK_RAW as u64, libc::IPPROTO_ICMP), libc::EPERM);
        assert_refused(libc::SYS_socket, socket(libc::AF_INET, stream, libc::IPPROTO_SCTP), libc::EPROTONOSUPPORT);
        for family in [libc::AF_VSOCK, libc::AF_PACKET, libc::AF_ALG, libc::AF_BLUETOOTH, libc::AF_CAN, libc::AF_XDP, 0] {
            assert_refused(libc::SYS_socket, socket(family, stream, 0), libc::EAFNOSUPPORT);
        }
    }

    #[test]
    fn terminals_personalities_and_listeners() {
        let ioctl = |request: u64| [0, request, 0, 0, 0, 0];
        assert_allowed(libc::SYS_ioctl, ioctl(libc::TIOCGWINSZ));
        // The kernel looks at 32 bits of the request; so must the filter.
        for request in [libc::TIOCSTI, libc::TIOCSTI | 1 << 32, u64::from(TIOCLINUX), u64::from(TIOCSETD)] {
            assert_refused(libc::SYS_ioctl, ioctl(request), libc::EPERM);
        }
        assert_allowed(libc::SYS_personality, [0xffff_ffff, 0, 0, 0, 0, 0]);
        assert_refused(libc::SYS_personality, [libc::ADDR_NO_RANDOMIZE as u64, 0, 0, 0, 0, 0], libc::EPERM);
        assert_allowed(libc::SYS_seccomp, [1, 0, 0, 0, 0, 0]);
        assert_refused(libc::SYS_seccomp, [1, u64::from(NEW_LISTENER), 0, 0, 0, 0], libc::EPERM);
    }

    #[test]
    fn other_architectures_and_unknown_calls_do_not_exist() {
        let program = program();
        let i386 = 0x4000_0003;
        for number in 0..table::LAST_KNOWN {
            assert_eq!(interpret(&program, i386, number, [0; 6]), refused(libc::ENOSYS));
            assert_eq!(interpret(&program, table::AUDIT_ARCH, number | X32, [0; 6]), refused(libc::ENOSYS));
        }
        assert_eq!(interpret(&program, table::AUDIT_ARCH, table::LAST_KNOWN + 1, [0; 6]), refused(libc::ENOSYS));
        assert_eq!(interpret(&program, table::AUDIT_ARCH, u32::MAX, [0; 6]), refused(libc::ENOSYS));
    }

    #[test]
    fn the_program_is_as_long_as_it_was() {
        // A change here is a change of the rules, or of how they are compiled: look at both before changing the number.
        #[cfg(target_arch = "x86_64")]
        assert_eq!(program().len(), 273);
        assert!(program().len() < 4096);
    }
}
