//! Keeping one command, and all that it starts, to named executables, without a way to write a file.
//!
//! Landlock holds it: rights to execute exist on the named files alone, rights to write on a few devices alone, so that no
//! path is both. A file that lies in memory only has no path and no rules, so a small filter refuses to make one.
//!
//! A program's loader must be executable for the kernel to start the program, and executed by itself it starts any file at all.
//! So the same filter lets only the call pass that makes this process the command: it carries random numbers in registers behind
//! its arguments, which the kernel clears when the command begins.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};

use crate::runtime::sys::{self, BpfInsn, LandlockRuleset};

const EXECUTE: u64 = 1 << 0;
const WRITE_FILE: u64 = 1 << 1;
const TRUNCATE: u64 = 1 << 14;
/// Making and removing names of every kind, renaming between directories: `REMOVE_DIR` to `REFER`.
const CHANGE: u64 = ((1 << 14) - 1) & !((1 << 4) - 1);

/// Signals to processes outside and abstract sockets of others, from version 6 on.
const SCOPES: u64 = (1 << 0) | (1 << 1);

/// The first version that governs truncation, without which "cannot write" would not be true.
const LEAST_VERSION: u32 = 3;

/// What everybody may write to without effect.
const DEVICES: [&CStr; 6] = [c"/dev/null", c"/dev/zero", c"/dev/full", c"/dev/tty", c"/dev/ptmx", c"/dev/pts"];

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;

/// What a command is kept to.
#[derive(Debug)]
pub struct Bounds {
    /// Absolute paths.
    pub executables: Vec<CString>,
    /// Whether it may execute more than once.
    pub children: bool,
}

/// Restricts this process and all that it starts. What is named and does not exist cannot be executed, either. Returns what the
/// call that executes the command must carry.
///
/// # Errors
/// EOPNOTSUPP where the kernel's Landlock is too old; any failure of a call. The process must then not go on.
pub fn confine(bounds: &Bounds) -> io::Result<[u64; 2]> {
    let version = sys::landlock_version()?;
    if version < LEAST_VERSION {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    let scoped = if version < 6 { 0 } else { SCOPES };
    let size = if version < 6 { 8 } else { 24 };
    let rules = sys::landlock_create(LandlockRuleset { fs: EXECUTE | WRITE_FILE | TRUNCATE | CHANGE, net: 0, scoped }, size)?;
    for device in DEVICES {
        allow(&rules, device, WRITE_FILE)?;
    }
    for executable in &bounds.executables {
        allow(&rules, executable, EXECUTE)?;
    }
    rustix::thread::set_no_new_privs(true)?;
    sys::landlock_enforce(rules.as_fd())?;
    let password = sys::random_numbers()?;
    sys::seccomp_install(&filter(if bounds.children { None } else { Some(password) }))?;
    Ok(password)
}

fn allow(rules: &OwnedFd, path: &CStr, access: u64) -> io::Result<()> {
    match rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Ok(target) => sys::landlock_allow(rules.as_fd(), target.as_fd(), access),
        // What cannot even be reached has no rights, which is the stricter side.
        Err(_) => Ok(()),
    }
}

/// Refuses files that lie in memory only, and every call by the numbers of another architecture. With a password, also refuses
/// every call that executes and does not carry it.
fn filter(password: Option<[u64; 2]>) -> [BpfInsn; 19] {
    const LOAD: u16 = 0x20;
    const EQUAL: u16 = 0x15;
    const AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const X32: u32 = 0x4000_0000;
    /// Where the low half of an argument is in `struct seccomp_data`, and its high half.
    const fn halves(argument: u32) -> [u32; 2] {
        [16 + 8 * argument, 20 + 8 * argument]
    }
    let insn = |code, jump_true, jump_false, k| BpfInsn { code, jump_true, jump_false, k };
    let refuse = |errno: i32| insn(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32);
    let allow = insn(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW);
    let [first, second] = password.unwrap_or_default();
    let ([low3, high3], [low4, high4]) = (halves(3), halves(4));
    // How far it is to the comparison, to the refusal; without a password to what allows.
    let (execve, execveat) = if password.is_some() { (2, 9) } else { (1, 0) };
    [
        insn(LOAD, 0, 0, 4),
        insn(EQUAL, 0, 16, AUDIT_ARCH),
        insn(LOAD, 0, 0, 0),
        insn(AT_LEAST, 14, 0, X32),
        insn(EQUAL, 13, 0, libc::SYS_memfd_create as u32),
        insn(EQUAL, execve, 0, libc::SYS_execve as u32),
        insn(EQUAL, execveat, 0, libc::SYS_execveat as u32),
        allow,
        insn(LOAD, 0, 0, low3),
        insn(EQUAL, 0, 6, first as u32),
        insn(LOAD, 0, 0, high3),
        insn(EQUAL, 0, 4, (first >> 32) as u32),
        insn(LOAD, 0, 0, low4),
        insn(EQUAL, 0, 2, second as u32),
        insn(LOAD, 0, 0, high4),
        insn(EQUAL, 1, 0, (second >> 32) as u32),
        // As Landlock says it of what is not named.
        refuse(libc::EACCES),
        allow,
        refuse(libc::EPERM),
    ]
}

#[cfg(test)]
mod unit {
    use super::*;

    const PASSWORD: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];

    /// Follows the program, which only loads, compares and returns.
    fn verdict(program: &[BpfInsn], arch: u32, call: u32, args: [u64; 6]) -> u32 {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let insn = program[at];
            let jumps = match insn.code {
                0x20 => {
                    loaded = match insn.k {
                        0 => call,
                        4 => arch,
                        offset => (args[(offset as usize - 16) / 8] >> (8 * (offset % 8))) as u32,
                    };
                    0
                }
                0x15 if loaded == insn.k => insn.jump_true,
                0x35 if loaded >= insn.k => insn.jump_true,
                0x15 | 0x35 => insn.jump_false,
                _ => return insn.k,
            };
            at += 1 + usize::from(jumps);
        }
    }

    #[test]
    fn only_the_call_with_the_password_executes() {
        let refused = libc::SECCOMP_RET_ERRNO | libc::EACCES as u32;
        let with = |third, fourth| [1, 2, 3, third, fourth, 6];
        let of = |call: libc::c_long, args| verdict(&filter(Some(PASSWORD)), AUDIT_ARCH, call as u32, args);
        assert_eq!(of(libc::SYS_execve, with(PASSWORD[0], PASSWORD[1])), libc::SECCOMP_RET_ALLOW);
        for bit in 0..64 {
            assert_eq!(of(libc::SYS_execve, with(PASSWORD[0] ^ 1 << bit, PASSWORD[1])), refused);
            assert_eq!(of(libc::SYS_execve, with(PASSWORD[0], PASSWORD[1] ^ 1 << bit)), refused);
        }
        assert_eq!(of(libc::SYS_execveat, with(PASSWORD[0], PASSWORD[1])), refused);
        assert_eq!(verdict(&filter(None), AUDIT_ARCH, libc::SYS_execve as u32, [0; 6]), libc::SECCOMP_RET_ALLOW);
        assert_eq!(verdict(&filter(None), AUDIT_ARCH, libc::SYS_execveat as u32, [0; 6]), libc::SECCOMP_RET_ALLOW);
    }

    #[test]
    fn files_in_memory_and_other_architectures_are_refused() {
        let refused = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
        for program in [filter(None), filter(Some(PASSWORD))] {
            let of = |arch, call: libc::c_long| verdict(&program, arch, call as u32, [0; 6]);
            assert_eq!(of(AUDIT_ARCH, libc::SYS_read), libc::SECCOMP_RET_ALLOW);
            assert_eq!(of(AUDIT_ARCH, libc::SYS_memfd_create), refused);
            assert_eq!(of(AUDIT_ARCH, libc::SYS_execve | 0x4000_0000), refused);
            assert_eq!(of(0x4000_0003, libc::SYS_read), refused);
        }
    }
}
