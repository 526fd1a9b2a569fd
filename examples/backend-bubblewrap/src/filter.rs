//! The seccomp filter: calls that reach parts of the kernel which namespaces do not divide.

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::io::Write;
use std::path::Path;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use tierbox_core::{Error, ErrorKind, Result};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const AF_UNIX: u64 = 1;
const AF_INET: u64 = 2;
const AF_INET6: u64 = 10;
const AF_NETLINK: u64 = 16;
const NETLINK_ROUTE: u64 = 0;
/// Pushes bytes into a terminal's input.
const TIOCSTI: u64 = 0x5412;
/// The same by the paste buffer of a console.
const TIOCLINUX: u64 = 0x541c;
/// Every `CLONE_NEW*` flag of clone(2) and unshare(2).
const CLONE_NEW: u64 = 0x7e02_0080;

/// Refused with EPERM, whatever the arguments: keys, modules, other kernels, tracing, mounts, clocks, handles of files,
/// and interfaces that run work past this filter. Numbers of x86_64.
const REFUSED: &[i64] = &[
    101, 310, 311, // ptrace, process_vm_readv, process_vm_writev
    155, 161, 165, 166, 428, 429, 430, 431, 432, 433, 442, // pivot_root, chroot, mount and its successors
    163, 167, 168, 169, 170, 171, 172, 173, // acct, swapon, swapoff, reboot, names of the host, I/O ports
    175, 176, 246, 313, 320, // modules and kexec
    103, 159, 164, 227, 305, // syslog and clocks
    248, 249, 250, // keys
    272, 308, // unshare, setns
    298, 321, 323, // perf_event_open, bpf, userfaultfd
    303, 304, // file handles
    425, 426, 427, // io_uring
    135, 179, 443, // personality, quotactl, quotactl_fd
    438, // pidfd_getfd
];

/// Refused with ENOSYS: its flags lie in memory, where a filter cannot see them; the C library falls back to clone(2).
const CLONE3: i64 = 435;
const IOCTL: i64 = 16;
const CLONE: i64 = 56;
const SOCKET: i64 = 41;
const SECCOMP: i64 = 317;
/// Asks for the end of a filter that decides by message: a way to answer one's own calls.
const NEW_LISTENER: u64 = 8;

fn refused(error: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::HostUnable, "make seccomp filter", error.to_string())
}

fn when(conditions: Vec<SeccompCondition>) -> Result<SeccompRule> {
    SeccompRule::new(conditions).map_err(refused)
}

fn argument(index: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value).map_err(refused)
}

/// The rules that look at arguments. Of the rules of one call, any that matches refuses.
fn by_argument() -> Result<BTreeMap<i64, Vec<SeccompRule>>> {
    let equals = |value| argument(1, SeccompCmpOp::Eq, value).and_then(|condition| when(vec![condition]));
    let mut namespaces = Vec::new();
    for bit in (0..32).map(|bit| 1_u64 << bit).filter(|bit| CLONE_NEW & bit != 0) {
        namespaces.push(when(vec![argument(0, SeccompCmpOp::MaskedEq(bit), bit)?])?);
    }
    let mut family = Vec::new();
    for allowed in [AF_UNIX, AF_INET, AF_INET6, AF_NETLINK] {
        family.push(argument(0, SeccompCmpOp::Ne, allowed)?);
    }
    let audit = vec![argument(0, SeccompCmpOp::Eq, AF_NETLINK)?, argument(2, SeccompCmpOp::Ne, NETLINK_ROUTE)?];
    let listener = when(vec![argument(1, SeccompCmpOp::MaskedEq(NEW_LISTENER), NEW_LISTENER)?])?;
    let sockets = vec![when(family)?, when(audit)?];
    Ok([(IOCTL, vec![equals(TIOCSTI)?, equals(TIOCLINUX)?]), (CLONE, namespaces), (SOCKET, sockets), (SECCOMP, vec![listener])]
        .into())
}

fn compile(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: u32) -> Result<BpfProgram> {
    let arch = TargetArch::try_from(ARCH).map_err(refused)?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno), arch).map_err(refused)?;
    BpfProgram::try_from(filter).map_err(refused)
}

/// The kernel's form of a program: eight bytes an instruction.
fn bytes(program: &BpfProgram) -> Vec<u8> {
    let instruction = |step: &seccompiler::sock_filter| {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&step.code.to_ne_bytes());
        (bytes[2], bytes[3]) = (step.jt, step.jf);
        bytes[4..].copy_from_slice(&step.k.to_ne_bytes());
        bytes
    };
    program.iter().flat_map(instruction).collect()
}

/// Writes the two filters that bubblewrap loads, one for each errno, and returns how many instructions they have.
///
/// # Errors
/// `HostUnable` on another architecture than x86_64; `Io`.
pub fn write(refuse: &Path, absent: &Path) -> Result<usize> {
    if ARCH != "x86_64" {
        return Err(refused(format!("the numbers of calls here are of x86_64, and this is {ARCH}")));
    }
    let mut rules = by_argument()?;
    rules.extend(REFUSED.iter().map(|call| (*call, Vec::new())));
    let programs = [(refuse, compile(rules, EPERM)?), (absent, compile([(CLONE3, Vec::new())].into(), ENOSYS)?)];
    for (path, program) in &programs {
        let written = std::fs::File::create(path).and_then(|mut file| file.write_all(&bytes(program)));
        written.map_err(|error| Error::io("write seccomp filter", error))?;
    }
    Ok(programs.iter().map(|(_, program)| program.len()).sum())
}
