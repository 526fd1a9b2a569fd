//! Keeping one command, and all that it starts, to named executables, without a way to write a file.
//!
//! Landlock holds it: rights to execute exist on the named files alone, rights to write on a few devices alone, so that no
//! path is both. A file that lies in memory only has no path and no rules, so a small filter refuses to make one.

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

/// Restricts this process and all that it starts. What is named and does not exist cannot be executed, either.
///
/// # Errors
/// EOPNOTSUPP where the kernel's Landlock is too old; any failure of a call. The process must then not go on.
pub fn confine(executables: &[CString]) -> io::Result<()> {
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
    for executable in executables {
        allow(&rules, executable, EXECUTE)?;
    }
    rustix::thread::set_no_new_privs(true)?;
    sys::landlock_enforce(rules.as_fd())?;
    sys::seccomp_install(&no_files_in_memory())
}

fn allow(rules: &OwnedFd, path: &CStr, access: u64) -> io::Result<()> {
    match rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Ok(target) => sys::landlock_allow(rules.as_fd(), target.as_fd(), access),
        // What cannot even be reached has no rights, which is the stricter side.
        Err(_) => Ok(()),
    }
}

/// Refuses files that lie in memory only, and every call by the numbers of another architecture.
fn no_files_in_memory() -> [BpfInsn; 8] {
    const LOAD: u16 = 0x20;
    const EQUAL: u16 = 0x15;
    const AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const X32: u32 = 0x4000_0000;
    let insn = |code, jump_true, jump_false, k| BpfInsn { code, jump_true, jump_false, k };
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    [
        insn(LOAD, 0, 0, 4),
        insn(EQUAL, 1, 0, AUDIT_ARCH),
        insn(RETURN, 0, 0, refuse),
        insn(LOAD, 0, 0, 0),
        insn(AT_LEAST, 2, 0, X32),
        insn(EQUAL, 1, 0, libc::SYS_memfd_create as u32),
        insn(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        insn(RETURN, 0, 0, refuse),
    ]
}
