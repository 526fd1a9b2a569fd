//! `/proc` inside: fresh, with what describes the host hidden and what could change it read-only.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::mount::MountAttrFlags;

use super::mount::{attach_at, clone_tree, new_filesystem, resolve};
use super::refusal::{AtStep, Step};
use crate::runtime::sys::{self, MOUNT_ATTR_RDONLY, MountAttr};

/// Files that show the null device instead. Not every kernel has all.
const MASKED_FILES: [&str; 7] = ["kcore", "keys", "latency_stats", "timer_list", "timer_stats", "sched_debug", "interrupts"];

/// Directories that are empty instead.
const MASKED_DIRECTORIES: [&str; 3] = ["acpi", "asound", "scsi"];

/// Paths that cannot be written.
const READ_ONLY: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];

/// Mounts it at `/proc` of the new root.
///
/// # Errors
/// The refusal of step `mount proc`: EPERM where the host's own `/proc` has something mounted over parts of it, since a fresh
/// one would uncover them.
pub fn mount(root: BorrowedFd<'_>) -> Step {
    let attr = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let proc = new_filesystem("proc", &[], attr).at("mount proc")?;
    let target = resolve(root, b"/proc").at("mount proc")?;
    super::mount::attach(proc.as_fd(), target.as_fd()).at("mount proc")?;
    for name in READ_ONLY {
        read_only(proc.as_fd(), name).at_step(|| format!("mount /proc/{name}"))?;
    }
    cover(proc.as_fd(), &MASKED_FILES, || read_only_copy(root, b"/dev/null")).at("mask /proc")?;
    // Nothing is ever put there.
    cover(proc.as_fd(), &MASKED_DIRECTORIES, || read_only_copy(root, b"/sys")).at("mask /proc")
}

fn read_only(proc: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    if !exists(proc, name) {
        return Ok(());
    }
    let tree = clone_tree(proc, name.as_bytes())?;
    sys::mount_setattr(tree.as_fd(), false, MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() })?;
    attach_at(tree.as_fd(), proc, name)
}

fn cover(proc: BorrowedFd<'_>, names: &[&str], cloak: impl Fn() -> io::Result<OwnedFd>) -> io::Result<()> {
    names.iter().filter(|name| exists(proc, name)).try_for_each(|name| attach_at(cloak()?.as_fd(), proc, name))
}

/// Looked at first, because closing a mount that was never attached waits for every processor of the machine.
fn exists(proc: BorrowedFd<'_>, name: &str) -> bool {
    rustix::fs::accessat(proc, name, rustix::fs::Access::EXISTS, rustix::fs::AtFlags::empty()).is_ok()
}

fn read_only_copy(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    let tree = clone_tree(resolve(root, path)?.as_fd(), b"")?;
    sys::mount_setattr(tree.as_fd(), false, MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() })?;
    Ok(tree)
}
