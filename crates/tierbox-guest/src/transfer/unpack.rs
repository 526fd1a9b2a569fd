//! A hostile tar stream into a directory of this host.

use std::io::{BufReader, Read, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use tierbox_core::{Error, ErrorKind, Result};
use tierbox_supervisor::archive::{ArchiveError, Entry, Kind, Reader, components, link_stays_inside};

use super::beneath::{Beneath, Obstacle, Sort, refuse_link};
use super::{TransferReport, UnpackLimits, host_error, refused, stream_error};

/// How much is read and written at once.
const BUFFER: usize = 128 << 10;

const TRIED: &str = "unpack";

/// Unpacks the stream to its end.
pub fn unpack<T: Beneath>(tar: impl Read, host_target: &Path, limits: UnpackLimits) -> Result<TransferReport> {
    refuse_link(host_target)?;
    std::fs::create_dir_all(host_target).map_err(|error| host_error(TRIED, host_target, error))?;
    let tree = T::target(host_target).map_err(|error| host_error(TRIED, host_target, error))?;
    let archive = Reader::new(BufReader::with_capacity(BUFFER, tar));
    let mut unpacker = Unpacker { tree, archive, limits, report: TransferReport::default(), buffer: vec![0; BUFFER] };
    while let Some(entry) = unpacker.archive.next_entry().map_err(unreadable)? {
        unpacker.entry(&entry)?;
    }
    unpacker.archive.drain().map_err(unreadable)?;
    Ok(unpacker.report)
}

fn unreadable(error: ArchiveError) -> Error {
    match error {
        ArchiveError::Io(error) => stream_error(TRIED, error),
        error => Error::new(ErrorKind::UnsafeArchive, TRIED, error.to_string()),
    }
}

struct Unpacker<T, R> {
    tree: T,
    archive: Reader<R>,
    limits: UnpackLimits,
    report: TransferReport,
    buffer: Vec<u8>,
}

impl<T: Beneath, R: Read> Unpacker<T, R> {
    fn entry(&mut self, entry: &Entry) -> Result<()> {
        self.report.entries += 1;
        if self.report.entries > self.limits.entries {
            let message = format!("the archive holds more than {} entries", self.limits.entries);
            return Err(Error::new(ErrorKind::TooLarge, TRIED, message));
        }
        let steps = components(&entry.path).map_err(|reason| refused(&entry.path, reason))?;
        let refuse = |reason: &str| Err(refused(&entry.path, reason));
        let Some((name, dir)) = steps.split_last() else {
            return if entry.kind == Kind::Directory { Ok(()) } else { refuse("has no name") };
        };
        let name = *name;
        if entry.mode & 0o6000 != 0 && matches!(entry.kind, Kind::File { .. } | Kind::Directory) {
            return refuse("has a setuid or setgid bit");
        }
        let blocked = |obstacle: Obstacle| obstacle.error(TRIED, &entry.path);
        match &entry.kind {
            Kind::File { size } => {
                self.allow(*size)?;
                self.make_parents(dir).map_err(blocked)?;
                self.file(entry, dir, name)
            }
            Kind::Directory => {
                self.make_parents(dir).map_err(blocked)?;
                self.directory(dir, name, entry.mode & 0o777 | 0o700).map_err(blocked)
            }
            Kind::Symlink { target } if !link_stays_inside(dir.len(), target) => refuse("is a link that leads out"),
            Kind::Symlink { target } => {
                self.make_parents(dir).map_err(blocked)?;
                self.tree.clear(dir, name).map_err(blocked)?;
                self.tree.make_link(dir, name, target).map_err(blocked)
            }
            Kind::HardLink { target } => {
                self.make_parents(dir).map_err(blocked)?;
                self.twin(entry, target, dir, name)
            }
            Kind::Other(_) => refuse("is a device, a FIFO or something unknown"),
        }
    }

    /// Checks a file's size before anything is written; what it really holds cannot be more.
    fn allow(&mut self, size: u64) -> Result<()> {
        self.report.bytes = self.report.bytes.saturating_add(size);
        if self.report.bytes <= self.limits.bytes {
            return Ok(());
        }
        let message = format!("the archive holds more than {} bytes", self.limits.bytes);
        Err(Error::new(ErrorKind::TooLarge, TRIED, message))
    }

    fn file(&mut self, entry: &Entry, dir: &[&[u8]], name: &[u8]) -> Result<()> {
        let blocked = |obstacle: Obstacle| obstacle.error(TRIED, &entry.path);
        self.tree.clear(dir, name).map_err(blocked)?;
        let mut file = self.tree.make_file(dir, name, entry.mode & 0o777).map_err(blocked)?;
        loop {
            match self.archive.read_data(&mut self.buffer).map_err(unreadable)? {
                0 => break,
                count => file.write_all(&self.buffer[..count]).map_err(|error| blocked(error.into()))?,
            }
        }
        if let Some(modified) = u64::try_from(entry.modified).ok().and_then(time) {
            // A date that the file system cannot hold is no reason to refuse the contents.
            let _ = file.set_modified(modified);
        }
        Ok(())
    }

    fn directory(&mut self, dir: &[&[u8]], name: &[u8], mode: u32) -> Result<(), Obstacle> {
        match self.tree.facts(dir, name) {
            Ok(facts) if facts.sort == Sort::Directory => return Ok(()),
            Ok(_) => self.tree.clear(dir, name)?,
            Err(obstacle) if obstacle.is_gone() => {}
            Err(obstacle) => return Err(obstacle),
        }
        self.tree.make_dir(dir, name, mode)
    }

    fn twin(&mut self, entry: &Entry, target: &[u8], dir: &[&[u8]], name: &[u8]) -> Result<()> {
        let steps = components(target).map_err(|_| refused(&entry.path, "is a hard link that leads out"))?;
        let Some((old, old_dir)) = steps.split_last() else {
            return Err(refused(&entry.path, "is a hard link to the directory itself"));
        };
        if (old_dir, *old) == (dir, name) {
            return Ok(());
        }
        let blocked = |obstacle: Obstacle| obstacle.error(TRIED, &entry.path);
        if self.tree.facts(old_dir, old).map_err(blocked)?.sort != Sort::File {
            // A link may lead inside from where it is, and outside from elsewhere.
            return Err(refused(&entry.path, "is a hard link to something that is no file"));
        }
        self.tree.clear(dir, name).map_err(blocked)?;
        self.tree.make_twin(old_dir, old, dir, name).map_err(blocked)
    }

    /// Makes the directories on the way. What stands there and is none is in the way, above all a link.
    fn make_parents(&mut self, dir: &[&[u8]]) -> Result<(), Obstacle> {
        let Some((last, above)) = dir.split_last() else { return Ok(()) };
        match self.tree.facts(above, last) {
            Ok(facts) => match facts.sort {
                Sort::Directory => Ok(()),
                Sort::Link => Err(Obstacle::Link(last.to_vec())),
                Sort::File | Sort::Other => Err(std::io::Error::from(std::io::ErrorKind::NotADirectory).into()),
            },
            Err(obstacle) if obstacle.is_gone() => {
                (0..dir.len()).try_for_each(|depth| match self.tree.make_dir(&dir[..depth], dir[depth], 0o755) {
                    Err(Obstacle::Io(error)) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
                    other => other,
                })
            }
            Err(obstacle) => Err(obstacle),
        }
    }
}

fn time(seconds: u64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}
