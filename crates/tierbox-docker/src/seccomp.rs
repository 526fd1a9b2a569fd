//! The system calls of a container without a supervisor: the engine filters them, by the same list.
//!
//! An engine's own default depends on its age: those of before 2023 let a container make io_uring's calls and sockets of the
//! hypervisor's, which no network namespace holds. Where the supervisor is inside, it installs its own filter; else this is given to the
//! engine in its form.

use serde_json::{Value, json};
use tierbox_supervisor::calls;

/// Namespaces that `clone` could make.
const CLONE_NEW: u32 = 0x7e02_0000;
/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`.
const NEW_LISTENER: u32 = 0x8;
/// `TIOCSTI`, `TIOCLINUX` and `TIOCSETD`: input of a terminal's, a console's clipboard, old line disciplines.
const TERMINALS: [u32; 3] = [0x5412, 0x541c, 0x5423];
/// Linux and Linux 2.6 version numbers, each with or without a 32-bit machine name, and the question.
const PERSONALITIES: [u32; 5] = [u32::MAX, 0, 0x0008, 0x0002_0000, 0x0002_0008];
/// `SOCK_CLOEXEC` and `SOCK_NONBLOCK`, which stand in a socket's type.
const SOCKET_FLAGS: u32 = 0o2_004_000;
/// `AF_UNIX`, `AF_INET`, `AF_INET6`, `AF_NETLINK`.
const FAMILIES: [u32; 4] = [1, 2, 10, 16];
/// `SOCK_STREAM` and `SOCK_DGRAM`.
const KINDS: [u32; 2] = [1, 2];
/// None, TCP, UDP, ICMP and ICMPv6.
const PROTOCOLS: [u32; 5] = [0, 6, 17, 1, 58];
/// `ENOSYS`: programs then use `clone`, whose arguments a filter can see.
const ENOSYS: u32 = 38;

/// The list in the form of the engine's `seccomp` option.
pub fn profile() -> Value {
    let always: Vec<&str> = calls::names().collect();
    let mut rules = vec![
        json!({"names": always, "action": "SCMP_ACT_ALLOW"}),
        json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS}),
        when("clone", &[masked(0, CLONE_NEW, 0)]),
        when("seccomp", &[masked(1, NEW_LISTENER, 0)]),
    ];
    rules.extend(PERSONALITIES.map(|which| when("personality", &[equal(0, which)])));
    // Several conditions on one argument would mean that any of them suffices.
    rules.extend(all_but(&TERMINALS).into_iter().map(|(mask, value)| when("ioctl", &[masked(1, mask, value)])));
    rules.extend(sockets());
    json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": [architecture()], "syscalls": rules})
}

fn sockets() -> Vec<Value> {
    let [unix, inet, inet6, netlink] = FAMILIES;
    let mut rules = vec![when("socket", &[equal(0, unix)]), when("socket", &[equal(0, netlink), equal(2, 0)])];
    for family in [inet, inet6] {
        for kind in KINDS {
            let kind = masked(1, !SOCKET_FLAGS, kind);
            rules.extend(PROTOCOLS.map(|protocol| when("socket", &[equal(0, family), kind.clone(), equal(2, protocol)])));
        }
    }
    rules
}

fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "SCMP_ARCH_AARCH64" } else { "SCMP_ARCH_X86_64" }
}

fn when(call: &str, conditions: &[Value]) -> Value {
    json!({"names": [call], "action": "SCMP_ACT_ALLOW", "args": conditions})
}

/// Arguments are of 64 bits, of which the kernel takes 32 here.
fn equal(index: u32, value: u32) -> Value {
    masked(index, u32::MAX, value)
}

fn masked(index: u32, mask: u32, value: u32) -> Value {
    json!({"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"})
}

/// Every number but these, as masks and what is left under them.
fn all_but(values: &[u32]) -> Vec<(u32, u32)> {
    let mut found = Vec::new();
    let mut waiting = vec![(0_u32, 0_u32)];
    while let Some((mask, prefix)) = waiting.pop() {
        if !values.iter().any(|value| value & mask == prefix) {
            found.push((mask, prefix));
        } else if mask != u32::MAX {
            let next = mask >> 1 | 1 << 31;
            waiting.extend([(next, prefix), (next, prefix | (next & !mask))]);
        }
    }
    found
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn all_numbers_but_these() {
        let kept = all_but(&TERMINALS);
        let holds = |number: u32| kept.iter().filter(|(mask, prefix)| number & mask == *prefix).count();
        assert!(TERMINALS.iter().all(|number| holds(*number) == 0));
        for number in [0, 1, 0x5401, 0x5411, 0x5413, 0x541b, 0x541d, 0x5422, 0x5424, 0x8000_0000, u32::MAX] {
            assert_eq!(holds(number), 1, "{number:#x}");
        }
        assert!(kept.len() < 100, "{}", kept.len());
    }

    #[test]
    fn what_is_closed_is_not_named() {
        let profile = profile();
        let named: Vec<&str> = calls::names().collect();
        for closed in [
            "io_uring_setup",
            "bpf",
            "mount",
            "keyctl",
            "clone3",
            "socket",
            "ioctl",
            "clone",
            "personality",
            "seccomp",
            "unshare",
            "setns",
        ] {
            assert!(!named.contains(&closed), "{closed}");
        }
        assert!(named.len() > 250 && ["read", "openat", "execve", "cachestat"].iter().all(|call| named.contains(call)));
        assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    }
}
