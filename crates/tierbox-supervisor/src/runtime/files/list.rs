//! Facts about paths, and listings.

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::answer::{Context, Fail, Result};
use super::serve::Engine;
use super::walk;
use crate::protocol::{Entry, Failure, FromSupervisor, Kind, Meta};

/// The most names that one listing holds: they are sorted, so all are held at once.
const MAX_NAMES: usize = 1_000_000;

/// Size after which a part of a listing is sent.
const FRAME: usize = 192 << 10;

/// The facts in the protocol's words.
pub fn meta(stat: &Stat, target: Option<Vec<u8>>) -> Meta {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        _ => Kind::Other,
    };
    let modified_ns = i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec);
    Meta {
        kind,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        modified_ns: i64::try_from(modified_ns).unwrap_or(if modified_ns < 0 { i64::MIN } else { i64::MAX }),
        target: target.map(Into::into),
    }
}

/// Facts about one path.
pub fn stat(path: &[u8], follow: bool) -> Result<Meta> {
    facts(CWD, path, follow)
}

fn facts(dir: impl std::os::fd::AsFd, path: &[u8], follow: bool) -> Result<Meta> {
    let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
    let stat = rustix::fs::statat(&dir, path, flags)?;
    let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
    let target = if is_link { rustix::fs::readlinkat(&dir, path, Vec::new()).ok() } else { None };
    Ok(meta(&stat, target.map(|target| target.into_bytes())))
}

/// Sends a directory's entries, sorted by name.
pub fn list(engine: &mut Engine, path: &[u8]) -> Result<FromSupervisor> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let dir = rustix::fs::open(path, flags, Mode::empty())?;
    let mut names = walk::names(&dir, MAX_NAMES).during("read the directory")?;
    if names.len() > MAX_NAMES {
        return Err(Fail::new(Failure::TooLarge, format!("the directory holds more than {MAX_NAMES} names")));
    }
    names.sort_unstable();
    let (mut entries, mut size) = (Vec::new(), 0);
    for name in names {
        let meta = match facts(&dir, &name, false) {
            Ok(meta) => meta,
            Err(Fail::Failed { errno, .. }) if errno == Errno::NOENT.raw_os_error() => continue,
            Err(error) => return Err(error),
        };
        size += name.len() + meta.target.as_ref().map_or(0, |target| target.0.len()) + 64;
        entries.push(Entry { name: name.into_vec().into(), meta });
        if size >= FRAME {
            engine.send(&FromSupervisor::Entries { entries: std::mem::take(&mut entries) })?;
            size = 0;
        }
    }
    if !entries.is_empty() {
        engine.send(&FromSupervisor::Entries { entries })?;
    }
    Ok(FromSupervisor::Finished)
}
