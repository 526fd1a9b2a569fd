//! Paths: what they may be, where they lead, and the directories on the way.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::answer::{Context, Fail, Result};
use crate::protocol::{Failure, FromSupervisor};

/// How many links one path may lead through, as in the kernel.
const MAX_LINKS: usize = 40;

/// Refuses what cannot be a path.
pub fn check(path: &[u8]) -> Result<()> {
    match () {
        () if path.is_empty() => Err(Fail::new(Failure::Invalid, "the path is empty")),
        () if path.contains(&0) => Err(Fail::new(Failure::Invalid, "the path holds a NUL byte")),
        () if path.len() > 4095 => Err(Fail::new(Failure::Invalid, "the path is longer than 4095 bytes")),
        () => Ok(()),
    }
}

/// A name in a directory that is held open, so that later steps all mean the same directory.
pub struct Place {
    /// The directory.
    pub dir: OwnedFd,
    /// The name in it: no slash, neither `.` nor `..`.
    pub name: Vec<u8>,
}

/// Where a path's last name stands. The name itself is not looked at; trailing slashes do not count.
///
/// # Errors
/// `IsADirectory` for a path without a last name (`/`, `.`, `a/..`).
pub fn locate(path: &[u8], make_parents: bool) -> Result<Place> {
    locate_at(&open_start()?, path, make_parents)
}

/// Where a file at `path` would be written: the place that a link at its end finally names.
pub fn locate_for_write(path: &[u8], follow: bool) -> Result<Place> {
    if path.ends_with(b"/") {
        return Err(Fail::new(Failure::IsADirectory, "the path ends with a slash"));
    }
    let mut place = locate(path, true)?;
    for _ in 0..MAX_LINKS {
        match rustix::fs::readlinkat(&place.dir, &place.name, Vec::new()) {
            Ok(target) if follow => place = locate_at(&place.dir, target.as_bytes(), true)?,
            // A link that may not be followed is found to exist later on.
            Ok(_) | Err(Errno::INVAL | Errno::NOENT) => return Ok(place),
            Err(error) => return Err(error).during("read the link"),
        }
    }
    Err(Errno::LOOP.into())
}

fn open_start() -> Result<OwnedFd> {
    rustix::fs::open(".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).during("open the working directory")
}

fn locate_at(start: &OwnedFd, path: &[u8], make_parents: bool) -> Result<Place> {
    let end = path.iter().rposition(|&byte| byte != b'/').map_or(0, |last| last + 1);
    let (parent, name) = match path[..end].iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..=slash], &path[slash + 1..end]),
        None => (&b"."[..], &path[..end]),
    };
    if matches!(name, b"" | b"." | b"..") {
        return Err(Fail::new(Failure::IsADirectory, "the path names a directory itself"));
    }
    let open = || rustix::fs::openat(start, parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let dir = match open() {
        Err(Errno::NOENT) if make_parents => {
            make_all(start, parent)?;
            open()
        }
        other => other,
    };
    Ok(Place { dir: dir.during("open the parent directory")?, name: name.to_vec() })
}

/// Makes a directory and its parents.
fn make_all(start: &OwnedFd, path: &[u8]) -> Result<()> {
    let ends = (1..path.len()).filter(|&at| path[at] == b'/' && path[at - 1] != b'/').chain([path.len()]);
    for end in ends {
        match rustix::fs::mkdirat(start, &path[..end], Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            // A directory that cannot be made because it is there may lie in one that cannot be written.
            Err(error @ (Errno::ACCESS | Errno::ROFS | Errno::PERM)) if !exists(start, &path[..end]) => {
                return Err(error).during("make the parent directory");
            }
            Err(Errno::ACCESS | Errno::ROFS | Errno::PERM) => {}
            Err(error) => return Err(error).during("make the parent directory"),
        }
    }
    Ok(())
}

fn exists(start: &OwnedFd, path: &[u8]) -> bool {
    rustix::fs::statat(start, path, AtFlags::empty()).is_ok()
}

/// Makes a directory and its parents; content with one that is there.
pub fn make_dir(path: &[u8]) -> Result<FromSupervisor> {
    make_dir_all(path).map(|()| FromSupervisor::Finished)
}

/// As [`make_dir`], for other operations.
pub fn make_dir_all(path: &[u8]) -> Result<()> {
    make_all(&open_start()?, path)?;
    match rustix::fs::statat(CWD, path, AtFlags::empty()) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => Ok(()),
        Ok(_) => Err(Fail::Failed {
            failure: Failure::AlreadyExists,
            errno: Errno::EXIST.raw_os_error(),
            detail: "something else has that name".into(),
        }),
        Err(error) => Err(error).during("look at the directory"),
    }
}
