//! Mounts, by the kernel's newer interface: every mount is a descriptor first, is given its attributes while nobody can see it,
//! and is then attached to a place that is named by a descriptor too. No path is looked up twice.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};

use crate::runtime::sys::{self, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, MountAttr};

/// Attributes of a host tree that must not be changed through the sandbox.
pub const READ_ONLY: MountAttr = MountAttr {
    set: MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
    clear: 0,
    propagation: libc::MS_PRIVATE,
    userns_fd: 0,
};

/// Attributes of a host tree that may be changed through the sandbox.
pub const WRITABLE: MountAttr = MountAttr { set: MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, ..READ_ONLY };

/// A user and group.
pub type Owner = (Uid, Gid);

/// A private copy of the mounts from `path` on, attached nowhere.
///
/// # Errors
/// As `open_tree(2)`.
pub fn clone_tree(dir: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(rustix::mount::open_tree(dir, path, flags | OpenTreeFlags::AT_RECURSIVE)?)
}

/// A private copy of the host's mounts from the absolute `path` on, with attributes.
///
/// # Errors
/// As `open_tree(2)` and `mount_setattr(2)`.
pub fn clone_host(path: &[u8], attr: MountAttr) -> io::Result<OwnedFd> {
    let tree = clone_tree(CWD, path)?;
    sys::mount_setattr(tree.as_fd(), true, attr)?;
    Ok(tree)
}

/// A new file system of a type, with its options, attached nowhere.
///
/// # Errors
/// As `fsopen(2)`, `fsconfig(2)` and `fsmount(2)`: EPERM where the kernel does not let this user namespace mount it.
pub fn new_filesystem(kind: &str, options: &[(&str, &[u8])], attr: MountAttrFlags) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        if value.is_empty() {
            rustix::mount::fsconfig_set_flag(context.as_fd(), *key)?;
        } else {
            rustix::mount::fsconfig_set_string(context.as_fd(), *key, *value)?;
        }
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    Ok(rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attr)?)
}

/// Changes an option of the file system that a mount shows.
///
/// # Errors
/// As `fspick(2)` and `fsconfig(2)`.
pub fn reconfigure(mount: BorrowedFd<'_>, key: &str, value: &[u8]) -> io::Result<()> {
    let context = rustix::mount::fspick(mount, "", FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH)?;
    rustix::mount::fsconfig_set_string(context.as_fd(), key, value)?;
    Ok(rustix::mount::fsconfig_reconfigure(context.as_fd())?)
}

/// Attaches a mount at the place that `target` is open on.
///
/// # Errors
/// As `move_mount(2)`: ENOTDIR if one is a directory and the other is not.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, "", target, "", flags)?)
}

/// Attaches a mount at `path` beneath `dir`. Only for paths that this program itself made: links are followed.
///
/// # Errors
/// As `move_mount(2)`.
pub fn attach_at(mount: BorrowedFd<'_>, dir: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    Ok(rustix::mount::move_mount(mount, "", dir, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Opens a path as if `root` were the root directory, so that no link in it leads out.
///
/// # Errors
/// As `openat2(2)`.
pub fn resolve(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    open_in(root, path, OFlags::PATH, Mode::empty())
}

/// Opens a path as if `root` were the root directory, with flags and a mode.
///
/// # Errors
/// As `openat2(2)`.
pub fn open_in(root: BorrowedFd<'_>, path: &[u8], flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    let path: &[u8] = if path.is_empty() { b"/" } else { path };
    loop {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, mode, resolve) {
            // The kernel saw a rename somewhere while it walked.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Makes a directory and its parents beneath `root`, and opens it. What is made belongs to `owner`, or to this process.
///
/// # Errors
/// As `mkdirat(2)`; EEXIST or ENOTDIR if something else is in the way.
pub fn make_dirs(root: BorrowedFd<'_>, path: &[u8], owner: Option<Owner>) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    match open_in(root, path, flags, Mode::empty()) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        other => return other,
    }
    let Some((parent, name)) = split(path) else { return Err(Errno::NOENT.into()) };
    let parent = make_dirs(root, parent, owner)?;
    match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) => {}
        Err(Errno::EXIST) => return open_in(root, path, flags, Mode::empty()),
        Err(error) => return Err(error.into()),
    }
    let dir = open_in(root, path, flags, Mode::empty())?;
    if let Some((uid, gid)) = owner {
        rustix::fs::chownat(&dir, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    }
    Ok(dir)
}

/// Makes an empty file beneath `root` for something to be mounted on, unless there is something already.
///
/// # Errors
/// As `openat2(2)`.
pub fn make_file(root: BorrowedFd<'_>, path: &[u8], owner: Option<Owner>) -> io::Result<OwnedFd> {
    match resolve(root, path) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        other => return other,
    }
    let (parent, name) = split(path).ok_or(Errno::ISDIR)?;
    let parent = make_dirs(root, parent, owner)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    drop(rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644))?);
    resolve(root, path)
}

/// A path as its parent and its last name; `None` for the root and for paths that end in `..`.
pub fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = path.iter().rposition(|&byte| byte != b'/')? + 1;
    let path = &path[..end];
    let start = path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    let name = &path[start..];
    if name == b".." || name == b"." { None } else { Some((&path[..start], name)) }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_path_splits_into_parent_and_name() {
        assert_eq!(split(b"/a/b"), Some((&b"/a/"[..], &b"b"[..])));
        assert_eq!(split(b"/a//"), Some((&b"/"[..], &b"a"[..])));
        assert_eq!(split(b"a"), Some((&b""[..], &b"a"[..])));
        for none in [&b"/"[..], b"", b"/a/..", b"/a/.", b"//"] {
            assert_eq!(split(none), None, "{none:?}");
        }
    }
}
