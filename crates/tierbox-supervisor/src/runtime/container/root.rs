//! The root of a container: one tmpfs, so that one limit on bytes and one on files hold for everything that can be written,
//! with the host's programs read-only in it (or a directory's copy on write under it).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::mount::{Owner, attach, attach_at, clone_tree, make_dirs, make_file, new_filesystem, open_in, resolve, split};
use super::refusal::{AtStep, Refusal, Step, shown};
use super::sources::{Sources, TopLevel};
use crate::runtime::sys::{self, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, MountAttr};
use crate::setup::{Agent, MadeFile, Root, Setup};

/// Directories of a root that is made from nothing, parents first.
const SKELETON: [&str; 11] = ["usr", "etc", "proc", "sys", "dev", "dev/pts", "dev/shm", "run", "tmp", "var", "var/tmp"];

/// Links of every `/dev`.
const DEVICE_LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// Mounts that may lie on top of a new root: the old one, and what the new one was built on.
const MOST_LAYERS: usize = 4;

/// A directory inside, with a mount of it.
type Place = (Vec<u8>, OwnedFd);

/// A root that is complete but not yet entered.
#[derive(Debug)]
pub struct NewRoot {
    /// Its mount.
    pub root: OwnedFd,
    /// Directories inside that the agent may write to. Empty if all of the root may be written to.
    pub writable: Vec<Vec<u8>>,
}

/// Builds the root on top of the current one.
///
/// # Errors
/// The refusal of step `mount <what>`.
pub fn build(setup: &Setup, sources: Sources) -> Step<NewRoot> {
    let store = new_store(setup)?;
    attach_at(store.as_fd(), CWD, "/").at("mount root")?;
    let (root, store) = match &sources.directory {
        Some(directory) => (copy_on_write(store.as_fd(), directory.as_fd())?, Some(store)),
        None => {
            skeleton(store.as_fd(), &sources.top).at("mount root")?;
            (store, None)
        }
    };
    devices(root.as_fd(), &sources.devices)?;
    for file in &setup.files {
        write_file(root.as_fd(), file, &setup.root).at_step(|| format!("file {}", shown(&file.path.0)))?;
    }
    let writable = writable_directories(setup, root.as_fd())?;
    make_bind_targets(root.as_fd(), setup, &sources.binds, &writable)?;
    let host = sources.directory.is_none();
    if host {
        let attr = MountAttr { set: MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, ..MountAttr::default() };
        sys::mount_setattr(root.as_fd(), true, attr).at("read-only root")?;
    }
    for (path, tree) in &writable {
        let target = resolve(root.as_fd(), path).at_step(|| format!("mount {}", shown(path)))?;
        attach(tree.as_fd(), target.as_fd()).at_step(|| format!("mount {}", shown(path)))?;
    }
    terminals(root.as_fd())?;
    super::proc::mount(root.as_fd())?;
    attach_binds(root.as_fd(), setup, &sources.binds)?;
    if let Some(count) = setup.inodes {
        limit_inodes(store.as_ref().unwrap_or(&root).as_fd(), count).at("mount tmpfs")?;
    }
    if !host {
        return Ok(NewRoot { root, writable: Vec::new() });
    }
    let shared = setup.binds.iter().zip(&sources.binds).filter(|(bind, tree)| bind.writable && tree.is_some());
    let shared = shared.map(|(bind, _)| bind.guest.0.clone());
    Ok(NewRoot { root, writable: writable.into_iter().map(|(path, _)| path).chain(shared).collect() })
}

/// Makes the new root the only one.
///
/// # Errors
/// The refusal of step `pivot root`.
pub fn enter(root: &NewRoot) -> Step {
    rustix::process::fchdir(&root.root).at("pivot root")?;
    rustix::process::pivot_root(".", ".").at("pivot root")?;
    // The old root now lies on top of the new one, at the same place, and on it what the new one was built on. Who goes up
    // from the root steps onto the topmost.
    for _ in 0..MOST_LAYERS {
        if mount_id(CWD, "..")? == mount_id(root.root.as_fd(), "")? {
            return rustix::process::chdir("/").at("pivot root");
        }
        rustix::mount::unmount("..", rustix::mount::UnmountFlags::DETACH).at("pivot root")?;
    }
    Err(Refusal::because("pivot root", "there is still something on top of the new root"))
}

/// The kernel's number of the mount that a path leads to.
fn mount_id(dir: BorrowedFd<'_>, path: &str) -> Step<u64> {
    let found = rustix::fs::statx(dir, path, rustix::fs::AtFlags::EMPTY_PATH, rustix::fs::StatxFlags::MNT_ID).at("pivot root")?;
    if found.stx_mask & rustix::fs::StatxFlags::MNT_ID.bits() == 0 {
        return Err(Refusal::because("pivot root", "this kernel does not tell mounts apart (Linux 5.8 does)"));
    }
    Ok(found.stx_mnt_id)
}

fn new_store(setup: &Setup) -> Step<OwnedFd> {
    let size = setup.disk.map(|bytes| bytes.to_string());
    let mut options: Vec<(&str, &[u8])> = vec![("mode", b"0755")];
    options.extend(size.as_ref().map(|size| ("size", size.as_bytes())));
    let attr = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    new_filesystem("tmpfs", &options, attr).at("mount tmpfs")
}

/// Bounds the files of the store. Last of all, so that the limit is what the agent can use beside what the root itself took.
fn limit_inodes(store: BorrowedFd<'_>, count: u64) -> std::io::Result<()> {
    let used = rustix::fs::fstatvfs(store)?;
    let most = count.saturating_add(used.f_files.saturating_sub(used.f_ffree));
    super::mount::reconfigure(store, "nr_inodes", most.to_string().as_bytes())
}

/// Fills an empty root. Every path is our own, so nothing can lead out of it.
fn skeleton(root: BorrowedFd<'_>, top: &[(&'static str, TopLevel)]) -> std::io::Result<()> {
    for path in SKELETON {
        rustix::fs::mkdirat(root, path, Mode::from_raw_mode(0o755))?;
    }
    rustix::fs::symlinkat("/run", root, "var/run")?;
    for (name, entry) in top {
        match entry {
            TopLevel::Link(target) => rustix::fs::symlinkat(target.as_slice(), root, *name)?,
            TopLevel::Tree(tree) => {
                if *name != "usr" {
                    rustix::fs::mkdirat(root, *name, Mode::from_raw_mode(0o755))?;
                }
                attach_at(tree.as_fd(), root, name)?;
            }
        }
    }
    Ok(())
}

/// An overlay whose lower layer is a directory of the host's and whose upper layer lies in `store`.
fn copy_on_write(store: BorrowedFd<'_>, directory: BorrowedFd<'_>) -> Step<OwnedFd> {
    let step = "mount overlay";
    for name in ["lower", "upper", "work", "dev"] {
        rustix::fs::mkdirat(store, name, Mode::from_raw_mode(0o755)).at(step)?;
    }
    rustix::fs::mkdirat(store, "dev/pts", Mode::from_raw_mode(0o755)).at(step)?;
    rustix::fs::mkdirat(store, "dev/shm", Mode::from_raw_mode(0o755)).at(step)?;
    attach_at(directory, store, "lower").at(step)?;
    // Relative names: the layers' own paths could hold characters that mean something to the kernel's parser.
    rustix::process::fchdir(store).at(step)?;
    let layers: [(&str, &[u8]); 4] = [("lowerdir", b"lower"), ("upperdir", b"upper"), ("workdir", b"work"), ("userxattr", b"")];
    let attr = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let root = new_filesystem("overlay", &layers, attr).at(step)?;
    let devices = clone_tree(store, b"dev").at(step)?;
    attach_at(root.as_fd(), CWD, "/").at(step)?;
    for path in [&b"/dev"[..], b"/proc", b"/sys"] {
        make_dirs(root.as_fd(), path, None).at(step)?;
    }
    let target = resolve(root.as_fd(), b"/dev").at("mount /dev")?;
    attach(devices.as_fd(), target.as_fd()).at("mount /dev")?;
    Ok(root)
}

fn devices(root: BorrowedFd<'_>, nodes: &[(&'static str, OwnedFd)]) -> Step {
    let step = "mount /dev";
    let dir = open_in(root, b"/dev", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).at(step)?;
    for (name, node) in nodes {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        drop(rustix::fs::openat(&dir, *name, flags, Mode::from_raw_mode(0o666)).at(step)?);
        attach_at(node.as_fd(), dir.as_fd(), name).at_step(|| format!("mount /dev/{name}"))?;
    }
    for (target, name) in DEVICE_LINKS {
        rustix::fs::symlinkat(target, &dir, name).at(step)?;
    }
    Ok(())
}

/// Terminals of its own. After the root became read-only: the engine has to hand terminals over to their users.
fn terminals(root: BorrowedFd<'_>) -> Step {
    let options: [(&str, &[u8]); 3] = [("newinstance", b""), ("ptmxmode", b"0666"), ("mode", b"0620")];
    let pts = new_filesystem("devpts", &options, MountAttrFlags::MOUNT_ATTR_NOSUID).at("mount devpts")?;
    let target = resolve(root, b"/dev/pts").at("mount devpts")?;
    attach(pts.as_fd(), target.as_fd()).at("mount devpts")
}

/// Writes a file, or makes a directory if the mode says so.
///
/// In a directory's root its own users and groups win, everything else is replaced.
fn write_file(root: BorrowedFd<'_>, file: &MadeFile, kind: &Root) -> std::io::Result<()> {
    let path = file.path.0.as_slice();
    let mode = Mode::from_raw_mode(file.mode & 0o7777);
    if file.mode & libc::S_IFMT == libc::S_IFDIR {
        let dir = make_dirs(root, path, None)?;
        return Ok(rustix::fs::chmodat(&dir, ".", mode, rustix::fs::AtFlags::empty())?);
    }
    let (parent, name) = split(path).ok_or(Errno::ISDIR)?;
    let parent = make_dirs(root, parent, None)?;
    if let Root::Directory { .. } = kind {
        let keeps = matches!(path, b"/etc/passwd" | b"/etc/group");
        match rustix::fs::statat(&parent, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) if keeps => return Ok(()),
            Ok(_) => rustix::fs::unlinkat(&parent, name, rustix::fs::AtFlags::empty())?,
            Err(_) => {}
        }
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let out = rustix::fs::openat(&parent, name, flags, mode)?;
    let mut rest = file.contents.0.as_slice();
    while !rest.is_empty() {
        rest = &rest[rustix::io::write(&out, rest)?..];
    }
    Ok(())
}

/// Makes the agent's directories, and takes a writable mount of each before the root becomes read-only.
fn writable_directories(setup: &Setup, root: BorrowedFd<'_>) -> Step<Vec<Place>> {
    let own = [&setup.agent.home, &setup.workdir].into_iter().chain(&setup.writable).map(|path| (path.0.as_slice(), None));
    let shared = [&b"/tmp"[..], b"/var/tmp", b"/dev/shm"].into_iter().map(|path| (path, Some(Mode::from_raw_mode(0o1777))));
    let mut mounts: Vec<Place> = Vec::new();
    for (path, mode) in shared.chain(own) {
        if split(path).is_none() {
            continue; // The root itself is never the agent's.
        }
        let inner = mounts.iter().any(|(outer, _)| is_beneath(path, outer));
        let owner = inner.then_some(owner(&setup.agent));
        let dir = make_dirs(root, path, owner).at_step(|| format!("directory {}", shown(path)))?;
        match mode {
            Some(mode) => rustix::fs::chmodat(&dir, ".", mode, rustix::fs::AtFlags::empty()),
            None => give(dir.as_fd(), &setup.agent),
        }
        .at_step(|| format!("directory {}", shown(path)))?;
        if !inner {
            let tree = clone_tree(dir.as_fd(), b"").at_step(|| format!("mount {}", shown(path)))?;
            mounts.push((path.to_vec(), tree));
        }
    }
    Ok(mounts)
}

fn owner(agent: &Agent) -> Owner {
    (Uid::from_raw(agent.uid), Gid::from_raw(agent.gid))
}

/// Makes the agent a directory's owner. One that belongs to a user who does not exist inside stays as it is.
fn give(dir: BorrowedFd<'_>, agent: &Agent) -> rustix::io::Result<()> {
    let (uid, gid) = owner(agent);
    match rustix::fs::chownat(dir, "", Some(uid), Some(gid), rustix::fs::AtFlags::EMPTY_PATH) {
        Err(Errno::PERM | Errno::ROFS) => Ok(()),
        other => other,
    }
}

fn is_beneath(path: &[u8], outer: &[u8]) -> bool {
    path.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// Makes what binds are mounted on, while the root can be written.
fn make_bind_targets(root: BorrowedFd<'_>, setup: &Setup, trees: &[Option<OwnedFd>], writable: &[Place]) -> Step {
    for (bind, tree) in setup.binds.iter().zip(trees) {
        let Some(tree) = tree else { continue };
        // What is made on the way in the agent's directories is the agent's too.
        let owner = writable.iter().any(|(outer, _)| is_beneath(&bind.guest.0, outer)).then_some(owner(&setup.agent));
        let step = || format!("mount {}", shown(&bind.guest.0));
        let stat = rustix::fs::fstat(tree).at_step(step)?;
        let made = if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory {
            make_dirs(root, &bind.guest.0, owner)
        } else {
            make_file(root, &bind.guest.0, owner)
        };
        match made {
            // It lies in another bind, which is not attached yet.
            Err(error) if error.raw_os_error() == Some(libc::EROFS) => {}
            other => drop(other.at_step(step)?),
        }
    }
    Ok(())
}

/// Attaches binds, outer ones first.
fn attach_binds(root: BorrowedFd<'_>, setup: &Setup, trees: &[Option<OwnedFd>]) -> Step {
    let mut binds: Vec<_> = setup.binds.iter().zip(trees).filter_map(|(bind, tree)| Some((bind, tree.as_ref()?))).collect();
    binds.sort_by_key(|(bind, _)| bind.guest.0.len());
    for (bind, tree) in binds {
        let step = || format!("mount {}", shown(&bind.guest.0));
        let target = resolve(root, &bind.guest.0).at_step(step)?;
        attach(tree.as_fd(), target.as_fd()).at_step(step)?;
    }
    Ok(())
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn beneath_means_by_components() {
        assert!(is_beneath(b"/home/agent/w", b"/home/agent"));
        assert!(is_beneath(b"/tmp", b"/tmp"));
        assert!(!is_beneath(b"/tmpfoo", b"/tmp"));
    }
}
