//! Host trees that become visible inside, as private copies attached nowhere.
//!
//! They are taken before pid 1 becomes its mapped user: afterwards it could no longer reach what only the caller may see.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::CWD;
use rustix::io::Errno;

use super::mount::{READ_ONLY, WRITABLE, clone_host};
use super::refusal::{AtStep, Step, shown};
use crate::runtime::sys::{self, MOUNT_ATTR_IDMAP, MountAttr};
use crate::setup::{Bind, Root, Setup, UserMap};

/// Entries of `/` that belong to `/usr` on a merged host, and are directories of their own on others.
const TOP_LEVEL: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// Device nodes that every program may expect.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// An entry of `/` inside.
#[derive(Debug)]
pub enum TopLevel {
    /// A link with this target.
    Link(Vec<u8>),
    /// A directory of the host's.
    Tree(OwnedFd),
}

/// What the caller's rights are needed for, where the caller has the right to take it for pid 1.
#[derive(Debug, Default)]
pub struct Granted {
    root: Option<OwnedFd>,
    binds: Vec<Option<OwnedFd>>,
}

/// Everything that comes from the host.
#[derive(Debug)]
pub struct Sources {
    /// The directory that the root is made of; `None` for the host's own `/usr`.
    pub directory: Option<OwnedFd>,
    /// `/usr` and its links.
    pub top: Vec<(&'static str, TopLevel)>,
    /// Device nodes.
    pub devices: Vec<(&'static str, OwnedFd)>,
    /// One per entry of `Setup::binds`; `None` for an optional one that does not exist.
    pub binds: Vec<Option<OwnedFd>>,
}

impl Granted {
    /// Takes what pid 1 might not reach. Only a caller that is privileged on the host can, and only it needs to: with its
    /// new ids pid 1 loses the way into directories that are closed to others, while a plain caller's pid 1 stays that user.
    ///
    /// # Errors
    /// The refusal of step `mount <path>`.
    pub fn take(setup: &Setup) -> Step<Self> {
        let mut granted = Self { root: None, binds: Vec::new() };
        if !matches!(setup.users, UserMap::Direct { .. }) {
            return Ok(granted);
        }
        if let Root::Directory { path } = &setup.root {
            granted.root = permitted(clone_host(&path.0, READ_ONLY)).at_step(|| mounting(&path.0))?;
        }
        for bind in &setup.binds {
            granted.binds.push(permitted(open_bind(bind)).at_step(|| mounting(&bind.host.0))?.flatten());
        }
        Ok(granted)
    }

    /// Makes the directory's owners appear inside under the same numbers, where kernel and file system can.
    pub fn translate_owners(&self, pid: i32) {
        let Some(tree) = &self.root else { return };
        let Ok(namespace) = rustix::fs::open(format!("/proc/{pid}/ns/user"), rustix::fs::OFlags::CLOEXEC, 0.into()) else {
            return;
        };
        let userns_fd = rustix::fd::AsRawFd::as_raw_fd(&namespace) as u64;
        // Without it the directory's files belong to nobody inside: readable, but not to be copied up. So it is worth a try,
        // and no reason to refuse.
        let _ = sys::mount_setattr(tree.as_fd(), true, MountAttr { set: MOUNT_ATTR_IDMAP, userns_fd, ..MountAttr::default() });
    }

    /// Makes what belongs to the owner of a writable bind the agent's inside, where kernel and file system can. What the agent
    /// makes there belongs to that owner on the host. Without it the agent may do there what others may.
    pub fn lend_to_agent(&self, setup: &Setup) {
        let UserMap::Direct { first, .. } = setup.users else { return };
        let agent = (first + setup.agent.uid, first + setup.agent.gid);
        for (_, tree) in setup.binds.iter().zip(&self.binds).filter(|(bind, _)| bind.writable) {
            let Some(tree) = tree else { continue };
            let Ok(stat) = rustix::fs::fstat(tree) else { continue };
            let Ok(lens) = super::idmap::lens((stat.st_uid, stat.st_gid), agent) else { continue };
            let userns_fd = rustix::fd::AsRawFd::as_raw_fd(&lens) as u64;
            let _ =
                sys::mount_setattr(tree.as_fd(), true, MountAttr { set: MOUNT_ATTR_IDMAP, userns_fd, ..MountAttr::default() });
        }
    }
}

impl Sources {
    /// Takes everything else, with pid 1's rights.
    ///
    /// # Errors
    /// The refusal of step `mount <path>`.
    pub fn gather(setup: &Setup, granted: Granted) -> Step<Self> {
        let (directory, top) = match &setup.root {
            Root::Host => (None, top_level()?),
            Root::Directory { path } => {
                let tree = match granted.root {
                    Some(tree) => tree,
                    None => clone_host(&path.0, READ_ONLY).at_step(|| mounting(&path.0))?,
                };
                (Some(tree), Vec::new())
            }
        };
        let devices = DEVICES.into_iter().map(device).collect::<Step<_>>()?;
        let mut given = granted.binds.into_iter();
        let binds = setup.binds.iter().map(|bind| match given.next().flatten() {
            Some(tree) => Ok(Some(tree)),
            None => open_bind(bind).at_step(|| mounting(&bind.host.0)),
        });
        Ok(Self { directory, top, devices, binds: binds.collect::<Step<_>>()? })
    }
}

fn mounting(path: &[u8]) -> String {
    format!("mount {}", shown(path))
}

/// `None` where this user may not make mounts at all: then pid 1 has to.
fn permitted<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(None),
        other => other.map(Some),
    }
}

fn open_bind(bind: &Bind) -> io::Result<Option<OwnedFd>> {
    match clone_host(&bind.host.0, if bind.writable { WRITABLE } else { READ_ONLY }) {
        Err(error) if bind.optional && matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        other => other.map(Some),
    }
}

fn top_level() -> Step<Vec<(&'static str, TopLevel)>> {
    let mut entries = Vec::with_capacity(TOP_LEVEL.len() + 1);
    entries.push(("usr", TopLevel::Tree(clone_host(b"/usr", READ_ONLY).at("mount /usr")?)));
    for name in TOP_LEVEL {
        let path = format!("/{name}");
        match rustix::fs::readlinkat(CWD, &path, Vec::new()) {
            Ok(target) => entries.push((name, TopLevel::Link(target.into_bytes()))),
            Err(Errno::NOENT) => {}
            Err(_) => {
                let tree = clone_host(path.as_bytes(), READ_ONLY).at_step(|| format!("mount {path}"))?;
                entries.push((name, TopLevel::Tree(tree)));
            }
        }
    }
    Ok(entries)
}

fn device(name: &'static str) -> Step<(&'static str, OwnedFd)> {
    let path = format!("/dev/{name}");
    // Not read-only yet: the whole root becomes so in one call.
    let tree = super::mount::clone_tree(CWD, path.as_bytes()).at_step(|| format!("mount {path}"))?;
    Ok((name, tree))
}
