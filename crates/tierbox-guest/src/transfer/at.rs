//! The directory held open: every path is walked from it by descriptors, so that no change meanwhile can lead out.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::beneath::{Beneath, Facts, Obstacle, Sort, Steps};

/// A directory, held open.
#[derive(Debug)]
pub struct Held(OwnedFd);

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl Held {
    /// The directory that steps lead to.
    fn enter(&self, steps: Steps<'_>) -> Result<Place<'_>, Obstacle> {
        let mut place = Place::Top(self.0.as_fd());
        for step in steps {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            place = match rustix::fs::openat(place.as_fd(), *step, flags, Mode::empty()) {
                Ok(dir) => Place::Below(dir),
                Err(Errno::NOTDIR | Errno::LOOP) if is_link(place.as_fd(), step) => return Err(Obstacle::Link(step.to_vec())),
                Err(error) => return Err(error.into()),
            };
        }
        Ok(place)
    }
}

enum Place<'a> {
    Top(BorrowedFd<'a>),
    Below(OwnedFd),
}

impl AsFd for Place<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Top(dir) => *dir,
            Self::Below(dir) => dir.as_fd(),
        }
    }
}

fn is_link(dir: BorrowedFd<'_>, name: &[u8]) -> bool {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
}

impl Beneath for Held {
    fn source(path: &Path) -> io::Result<Self> {
        Ok(Self(rustix::fs::open(path, DIRECTORY, Mode::empty())?))
    }

    fn target(path: &Path) -> io::Result<Self> {
        Ok(Self(rustix::fs::open(path, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?))
    }

    fn names(&self, dir: Steps<'_>) -> Result<Vec<Vec<u8>>, Obstacle> {
        let mut names = Vec::new();
        // The walk's own descriptors only stand for places; this one can be read.
        let readable = rustix::fs::openat(self.enter(dir)?, ".", DIRECTORY, Mode::empty())?;
        for entry in Dir::new(readable)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                names.push(name.to_vec());
            }
        }
        Ok(names)
    }

    fn facts(&self, dir: Steps<'_>, name: &[u8]) -> Result<Facts, Obstacle> {
        let stat = rustix::fs::statat(self.enter(dir)?, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let sort = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Sort::File,
            FileType::Directory => Sort::Directory,
            FileType::Symlink => Sort::Link,
            _ => Sort::Other,
        };
        Ok(Facts { sort, mode: stat.st_mode & 0o7777, modified: stat.st_mtime })
    }

    fn open(&self, dir: Steps<'_>, name: &[u8]) -> Result<File, Obstacle> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(self.enter(dir)?, name, flags, Mode::empty())?.into())
    }

    fn read_link(&self, dir: Steps<'_>, name: &[u8]) -> Result<Vec<u8>, Obstacle> {
        Ok(rustix::fs::readlinkat(self.enter(dir)?, name, Vec::new())?.into_bytes())
    }

    fn clear(&self, dir: Steps<'_>, name: &[u8]) -> Result<(), Obstacle> {
        match rustix::fs::unlinkat(self.enter(dir)?, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn make_dir(&self, dir: Steps<'_>, name: &[u8], mode: u32) -> Result<(), Obstacle> {
        Ok(rustix::fs::mkdirat(self.enter(dir)?, name, Mode::from_raw_mode(mode))?)
    }

    fn make_file(&self, dir: Steps<'_>, name: &[u8], mode: u32) -> Result<File, Obstacle> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(self.enter(dir)?, name, flags, Mode::from_raw_mode(mode))?.into())
    }

    fn make_link(&self, dir: Steps<'_>, name: &[u8], target: &[u8]) -> Result<(), Obstacle> {
        Ok(rustix::fs::symlinkat(target, self.enter(dir)?, name)?)
    }

    fn make_twin(&self, old_dir: Steps<'_>, old: &[u8], dir: Steps<'_>, name: &[u8]) -> Result<(), Obstacle> {
        Ok(rustix::fs::linkat(self.enter(old_dir)?, old, self.enter(dir)?, name, AtFlags::empty())?)
    }
}
