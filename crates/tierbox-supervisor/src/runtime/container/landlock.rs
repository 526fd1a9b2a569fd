//! Landlock: a second, independent statement of what may be written, and a wall around signals and abstract sockets.
//!
//! Mounts alone enforce the same. Should a mistake or a kernel bug open a way to another mount, this still holds.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags};

use crate::runtime::machine::CgroupDir;
use crate::runtime::sys::{self, LandlockRuleset};

const EXECUTE: u64 = 1 << 0;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
/// Making and removing names of every kind, renaming between directories, truncating: `REMOVE_DIR` to `TRUNCATE`.
const CHANGE: u64 = ((1 << 15) - 1) & !(EXECUTE | WRITE_FILE | READ_FILE | READ_DIR);
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;
const LOOK: u64 = EXECUTE | READ_FILE | READ_DIR;
/// What can be allowed on a file, as against a directory.
const OF_FILES: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE;

const SCOPE_ABSTRACT_UNIX_SOCKET: u64 = 1 << 0;
const SCOPE_SIGNAL: u64 = 1 << 1;

/// Restricts this process and all it starts. Tells the version of the kernel's interface.
///
/// # Errors
/// ENOSYS or EOPNOTSUPP where the kernel has none; any other failure of a call.
pub fn restrict(writable: &[Vec<u8>], cgroups: &[CgroupDir]) -> io::Result<u32> {
    let version = sys::landlock_version()?;
    let (governed, size) = governed(version);
    let rules = sys::landlock_create(governed, size)?;
    let allow = |dir: &OwnedFd, access: u64| sys::landlock_allow(rules.as_fd(), dir.as_fd(), access & governed.fs);
    if writable.is_empty() {
        allow(&open(b"/")?, LOOK | WRITE_FILE | CHANGE)?;
    } else {
        allow(&open(b"/")?, LOOK)?;
        // Devices and the settings that a process has of itself; what may really be written there the kernel decides.
        allow(&open(b"/dev")?, LOOK | WRITE_FILE | TRUNCATE)?;
        allow(&open(b"/proc")?, LOOK | WRITE_FILE | TRUNCATE)?;
        for path in writable {
            let target = open(path)?;
            let directory = FileType::from_raw_mode(rustix::fs::fstat(&target)?.st_mode) == FileType::Directory;
            allow(&target, if directory { LOOK | WRITE_FILE | CHANGE } else { OF_FILES })?;
        }
    }
    for group in cgroups {
        allow(&group.dir, LOOK | WRITE_FILE | CHANGE)?;
    }
    sys::landlock_enforce(rules.as_fd())?;
    Ok(version)
}

/// What a version of the interface can govern, and how much of the structure it knows.
fn governed(version: u32) -> (LandlockRuleset, usize) {
    let mut fs = LOOK | WRITE_FILE | CHANGE;
    if version < 2 {
        fs &= !REFER;
    }
    if version < 3 {
        fs &= !TRUNCATE;
    }
    let scoped = if version < 6 { 0 } else { SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL };
    let size = match version {
        0..4 => 8,
        4..6 => 16,
        _ => 24,
    };
    (LandlockRuleset { fs, net: 0, scoped }, size)
}

fn open(path: &[u8]) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}
