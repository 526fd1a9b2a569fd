//! Unpacking a tar stream beneath a directory.
//!
//! Every path is walked step by step from the directory itself; a step is never a link and never `..`, so nothing can
//! lead out, whatever the archive holds and whoever changes the tree meanwhile.

use std::io::{BufReader, Read};
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::{Errno, retry_on_intr};

use super::answer::{Context, Fail, Result};
use super::place;
use super::pump::write_all;
use super::serve::Engine;
use crate::archive::{self, ArchiveError, Entry, Kind, Reader};
use crate::protocol::{Failure, FromSupervisor};

/// How much is read and written at once.
const BUFFER: usize = 128 << 10;

/// How many directories may wait for a mode that would shut their owner out.
const MAX_WAITING: usize = 100_000;

/// Unpacks the stream to its end, and waits for the commit.
pub fn unpack(engine: &mut Engine, path: &[u8], pipe: OwnedFd) -> Result<FromSupervisor> {
    place::make_dir_all(path)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let top = rustix::fs::open(path, flags, Mode::empty()).during("open the directory")?;
    let archive = Reader::new(BufReader::with_capacity(BUFFER, Source(pipe)));
    let mut unpacker = Unpacker { archive, top, last: None, waiting: Vec::new(), buffer: vec![0; BUFFER] };
    while let Some(entry) = unpacker.archive.next_entry()? {
        unpacker.entry(&entry)?;
    }
    unpacker.set_waiting()?;
    unpacker.archive.drain()?;
    engine.committed()?;
    Ok(FromSupervisor::Finished)
}

/// The pipe as a stream.
struct Source(OwnedFd);

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        Ok(retry_on_intr(|| rustix::io::read(&self.0, &mut *buffer))?)
    }
}

impl From<ArchiveError> for Fail {
    fn from(error: ArchiveError) -> Self {
        match error {
            ArchiveError::Io(error) => error.into(),
            ArchiveError::Malformed(_) => Self::new(Failure::Invalid, error.to_string()),
            ArchiveError::Refused { .. } => Self::new(Failure::UnsafeArchive, error.to_string()),
        }
    }
}

fn refused(path: &[u8], reason: &'static str) -> Fail {
    ArchiveError::Refused { path: archive::printable(path), reason }.into()
}

struct Unpacker {
    archive: Reader<BufReader<Source>>,
    top: OwnedFd,
    /// The directory of the entry before, which is mostly that of the next.
    last: Option<(Vec<u8>, OwnedFd)>,
    /// Directories that stay open for their owner until everything is in.
    waiting: Vec<(Vec<u8>, u32)>,
    buffer: Vec<u8>,
}

impl Unpacker {
    fn entry(&mut self, entry: &Entry) -> Result<()> {
        let steps = archive::components(&entry.path).map_err(|reason| refused(&entry.path, reason))?;
        let Some((name, parents)) = steps.split_last() else {
            let is_top = entry.kind == Kind::Directory;
            return if is_top { Ok(()) } else { Err(refused(&entry.path, "has no name")) };
        };
        let result = match &entry.kind {
            Kind::File { .. } => self.file(entry, parents, name),
            Kind::Directory => self.directory(entry, parents, name),
            Kind::Symlink { target } => self.symlink(target, parents, name),
            Kind::HardLink { target } => self.hard_link(entry, target, parents, name),
            Kind::Other(_) => Err(refused(&entry.path, "is a device, a FIFO or something unknown")),
        };
        result.during(&format!("unpack \"{}\"", archive::printable(&entry.path)))
    }

    fn file(&mut self, entry: &Entry, parents: &[&[u8]], name: &[u8]) -> Result<()> {
        let dir = self.enter(parents, true)?;
        clear(dir, name)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))?;
        loop {
            match self.archive.read_data(&mut self.buffer)? {
                0 => break,
                count => write_all(&file, &self.buffer[..count])?,
            }
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode & 0o777))?;
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: entry.modified, tv_nsec: 0 },
        };
        // A date that the file system cannot hold is no reason to refuse the contents.
        let _ = rustix::fs::futimens(&file, &times);
        Ok(())
    }

    fn directory(&mut self, entry: &Entry, parents: &[&[u8]], name: &[u8]) -> Result<()> {
        let dir = self.enter(parents, true)?;
        let made = match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o700)) {
            Err(Errno::EXIST) if is_directory(dir, name)? => Ok(()),
            Err(Errno::EXIST) => {
                clear(dir, name)?;
                rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o700))
            }
            other => other,
        };
        made?;
        let mode = entry.mode & 0o777;
        if mode & 0o700 == 0o700 {
            return set_directory_mode(dir, name, mode);
        }
        if self.waiting.len() >= MAX_WAITING {
            return Err(refused(&entry.path, "comes after too many directories that their owner cannot use"));
        }
        self.waiting.push((entry.path.clone(), mode));
        Ok(())
    }

    fn symlink(&mut self, target: &[u8], parents: &[&[u8]], name: &[u8]) -> Result<()> {
        let dir = self.enter(parents, true)?;
        clear(dir, name)?;
        Ok(rustix::fs::symlinkat(target, dir, name)?)
    }

    fn hard_link(&mut self, entry: &Entry, target: &[u8], parents: &[&[u8]], name: &[u8]) -> Result<()> {
        let outside = |_| refused(&entry.path, "is a hard link that leads out");
        let steps = archive::components(target).map_err(outside)?;
        let Some((old, old_parents)) = steps.split_last() else {
            return Err(refused(&entry.path, "is a hard link to the directory itself"));
        };
        if (old_parents, *old) == (parents, name) {
            return Ok(());
        }
        let source = rustix::io::dup(self.enter(old_parents, false)?)?;
        let stat = rustix::fs::statat(&source, *old, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(refused(&entry.path, "is a hard link to something that is no file"));
        }
        let dir = self.enter(parents, true)?;
        clear(dir, name)?;
        Ok(rustix::fs::linkat(&source, *old, dir, name, AtFlags::empty())?)
    }

    /// The directory that steps lead to.
    fn enter(&mut self, steps: &[&[u8]], make: bool) -> Result<&OwnedFd> {
        if steps.is_empty() {
            return Ok(&self.top);
        }
        let joined = steps.join(&b'/');
        if self.last.as_ref().is_none_or(|(path, _)| *path != joined) {
            self.last = Some((joined, walk(&self.top, steps, make)?));
        }
        Ok(self.last.as_ref().map_or(&self.top, |(_, dir)| dir))
    }

    fn set_waiting(&mut self) -> Result<()> {
        // Deepest last in the archive, so first here: a parent may shut out.
        for (path, mode) in std::mem::take(&mut self.waiting).iter().rev() {
            let steps = archive::components(path).unwrap_or_default();
            if let Some((name, parents)) = steps.split_last() {
                let dir = self.enter(parents, false)?;
                set_directory_mode(dir, name, *mode)?;
            }
        }
        Ok(())
    }
}

fn walk(top: &OwnedFd, steps: &[&[u8]], make: bool) -> Result<OwnedFd> {
    let mut dir: Option<OwnedFd> = None;
    for &step in steps {
        let here = dir.as_ref().unwrap_or(top);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = match rustix::fs::openat(here, step, flags, Mode::empty()) {
            Err(Errno::NOENT) if make => {
                rustix::fs::mkdirat(here, step, Mode::from_raw_mode(0o755))?;
                rustix::fs::openat(here, step, flags, Mode::empty())
            }
            other => other,
        };
        dir = Some(match opened {
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(blocked(here, step)),
            other => other?,
        });
    }
    dir.ok_or_else(|| Fail::new(Failure::Invalid, "the path has no steps"))
}

/// Why a step is no directory.
fn blocked(dir: &OwnedFd, step: &[u8]) -> Fail {
    let stat = rustix::fs::statat(dir, step, AtFlags::SYMLINK_NOFOLLOW);
    match stat.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
        Ok(FileType::Symlink) => refused(step, "is a link, and the archive goes through it"),
        _ => Errno::NOTDIR.into(),
    }
}

/// Makes room for an entry; the last of several with one name stands.
fn clear(dir: &OwnedFd, name: &[u8]) -> Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn is_directory(dir: &OwnedFd, name: &[u8]) -> Result<bool> {
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn set_directory_mode(dir: &OwnedFd, name: &[u8], mode: u32) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    match rustix::fs::fchmod(&opened, Mode::from_raw_mode(mode)) {
        // Somebody else's directory that was there before keeps its mode.
        Ok(()) | Err(Errno::PERM) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
