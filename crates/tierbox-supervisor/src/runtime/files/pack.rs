//! A directory as a tar stream: links as links, nothing but files, directories and links.

use std::io::{BufWriter, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::{Errno, retry_on_intr};

use super::answer::{Context, Fail, Result};
use super::list::meta;
use super::serve::Engine;
use super::walk::{self, DirId, Name};
use crate::archive::{Entry, Kind, Writer};
use crate::protocol::{Failure, FromSupervisor};

/// How much is read and written at once.
const BUFFER: usize = 128 << 10;

/// The most names in one directory, which are held while it is packed.
const MAX_NAMES: usize = 1_000_000;

/// Packs what is below a directory. Entries that vanish meanwhile are left out, FIFOs, sockets and devices always.
pub fn pack(engine: &mut Engine, path: &[u8], pipe: OwnedFd) -> Result<FromSupervisor> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let top = rustix::fs::open(path, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&top)?;
    engine.send(&FromSupervisor::Opened { meta: meta(&stat, None) })?;
    let mut packer = Packer { archive: Writer::new(BufWriter::with_capacity(BUFFER, Sink(pipe))), path: Vec::new() };
    packer.tree(top, (stat.st_dev, stat.st_ino))?;
    packer.archive.finish().during("send the archive")?;
    Ok(FromSupervisor::Finished)
}

/// The pipe as a stream.
struct Sink(OwnedFd);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(retry_on_intr(|| rustix::io::write(&self.0, bytes))?)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A directory on the way from the top to where the walk is.
struct Level {
    id: DirId,
    /// What is still to be packed, last first.
    names: Vec<Name>,
    /// How long the path was before it.
    path_length: usize,
}

struct Packer {
    archive: Writer<BufWriter<Sink>>,
    /// Where the walk is, relative to the top.
    path: Vec<u8>,
}

impl Packer {
    fn tree(&mut self, top: OwnedFd, id: DirId) -> Result<()> {
        let mut dir = top;
        let mut levels = vec![Level { id, names: names(&dir)?, path_length: 0 }];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.pop() else {
                self.path.truncate(level.path_length);
                levels.pop();
                if let Some(parent) = levels.last() {
                    dir = walk::up(&dir, parent.id)?;
                }
                continue;
            };
            let path_length = self.path.len();
            if path_length > 0 {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(&name);
            match self.entry(&dir, &name)? {
                Some((child, id)) => {
                    levels.push(Level { id, names: names(&child)?, path_length });
                    dir = child;
                }
                None => self.path.truncate(path_length),
            }
        }
        Ok(())
    }

    /// Packs one entry; returns a directory to go down into.
    fn entry(&mut self, dir: &OwnedFd, name: &[u8]) -> Result<Option<(OwnedFd, DirId)>> {
        let packed = self.try_entry(dir, name);
        match packed {
            // It vanished, or became something else between two looks.
            Err(Fail::Failed { errno, .. }) if is_gone(errno) => Ok(None),
            other => other,
        }
    }

    fn try_entry(&mut self, dir: &OwnedFd, name: &[u8]) -> Result<Option<(OwnedFd, DirId)>> {
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.file(dir, name)?,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes();
                self.header(&stat, Kind::Symlink { target })?;
            }
            FileType::Directory => {
                let below = walk::down(dir, name).during("open a directory of the tree")?;
                self.header(&stat, Kind::Directory)?;
                return Ok(Some(below));
            }
            _ => {}
        }
        Ok(None)
    }

    fn file(&mut self, dir: &OwnedFd, name: &[u8]) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, name, flags, Mode::empty()).during("open a file of the tree")?;
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(());
        }
        let mut left = u64::try_from(stat.st_size).unwrap_or(0);
        self.header(&stat, Kind::File { size: left })?;
        let mut buffer = vec![0; BUFFER.min(usize::try_from(left).unwrap_or(BUFFER))];
        while left > 0 {
            // What the file lost meanwhile becomes zeros, what it gained is left out.
            let step = usize::try_from(left).unwrap_or(BUFFER).min(buffer.len());
            match retry_on_intr(|| rustix::io::read(&file, &mut buffer[..step])).during("read a file of the tree")? {
                0 => break,
                count => left = self.archive.data(&buffer[..count]).during("send the archive")?,
            }
        }
        Ok(())
    }

    fn header(&mut self, stat: &Stat, kind: Kind) -> Result<()> {
        let (path, mode) = (self.path.clone(), stat.st_mode & 0o7777);
        let entry = Entry { path, kind, mode, modified: stat.st_mtime };
        self.archive.entry(&entry).map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidInput => Fail::new(Failure::TooLarge, "a path in the tree is too long to be packed"),
            _ => error.into(),
        })
    }
}

fn names(dir: &OwnedFd) -> Result<Vec<Name>> {
    let mut names = walk::names(dir, MAX_NAMES).during("read a directory of the tree")?;
    if names.len() > MAX_NAMES {
        return Err(Fail::new(Failure::TooLarge, format!("a directory of the tree holds more than {MAX_NAMES} names")));
    }
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(names)
}

fn is_gone(errno: i32) -> bool {
    [Errno::NOENT, Errno::NOTDIR, Errno::LOOP, Errno::NXIO].iter().any(|gone| gone.raw_os_error() == errno)
}
