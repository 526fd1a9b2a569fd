//! Steps through a tree that may change meanwhile: never through a link, at any depth with two descriptors.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;

use super::answer::{Fail, Result};
use crate::protocol::Failure;

/// What tells one directory from another.
pub type DirId = (u64, u64);

/// A name in a directory.
pub type Name = Box<[u8]>;

/// Opens a directory by its name in another; a link is not followed.
pub fn down(dir: impl AsFd, name: &[u8]) -> rustix::io::Result<(OwnedFd, DirId)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    let id = id(&dir)?;
    Ok((dir, id))
}

/// Opens a directory's parent, which must be the directory that the walk came through.
pub fn up(dir: impl AsFd, expected: DirId) -> Result<OwnedFd> {
    let (parent, id) = down(dir, b"..")?;
    if id == expected { Ok(parent) } else { Err(Fail::new(Failure::Io, "a directory was moved meanwhile")) }
}

fn id(dir: &OwnedFd) -> rustix::io::Result<DirId> {
    let stat = rustix::fs::fstat(dir)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// The names in a directory, unsorted; stops soon after `limit`.
pub fn names(dir: &OwnedFd, limit: usize) -> rustix::io::Result<Vec<Name>> {
    // A directory that was read in part before is read again from its start.
    rustix::fs::seek(dir, SeekFrom::Start(0))?;
    let mut buffer = [MaybeUninit::uninit(); 32 << 10];
    let mut entries = RawDir::new(dir, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = match entry {
            // The directory was removed while it was read.
            Err(Errno::NOENT) => break,
            other => other?,
        };
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(name.into());
        }
        if names.len() > limit {
            break;
        }
    }
    Ok(names)
}
