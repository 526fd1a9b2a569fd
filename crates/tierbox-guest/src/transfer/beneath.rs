//! A directory of this host that nothing below it can lead out of.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tierbox_core::{Error, ErrorKind, Result};

use super::{host_error, refused};

/// Names of directories, from the top down. None is a link, `.` or `..`.
pub type Steps<'a> = &'a [&'a [u8]];

/// What stands in the way of an operation.
#[derive(Debug)]
pub enum Obstacle {
    /// A step of the path is a link.
    Link(Vec<u8>),
    /// The host says no.
    Io(io::Error),
}

impl<E: Into<io::Error>> From<E> for Obstacle {
    fn from(error: E) -> Self {
        Self::Io(error.into())
    }
}

impl Obstacle {
    /// As an error about the entry at `path`.
    pub fn error(self, operation: &'static str, path: &[u8]) -> Error {
        match self {
            Self::Link(step) => refused(path, &format!("goes through the link \"{}\"", step.escape_ascii())),
            Self::Io(error) => host_error(operation, Path::new(OsStr::from_bytes(path)), error),
        }
    }

    /// Whether the entry vanished between two looks.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::NotFound)
    }
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    File,
    Directory,
    Link,
    Other,
}

/// The facts about a name.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    pub sort: Sort,
    pub mode: u32,
    /// Seconds since 1970.
    pub modified: i64,
}

impl Facts {
    pub fn of(found: &Metadata) -> Self {
        let sort = match found.file_type() {
            kind if kind.is_file() => Sort::File,
            kind if kind.is_dir() => Sort::Directory,
            kind if kind.is_symlink() => Sort::Link,
            _ => Sort::Other,
        };
        Self { sort, mode: found.mode() & 0o7777, modified: found.mtime() }
    }
}

/// A directory that is read or filled by steps and names. No method follows a link below the top.
pub trait Beneath: Sized {
    /// A directory to read from. The path may lead through links: the caller named it.
    fn source(path: &Path) -> io::Result<Self>;
    /// A directory to fill, which is there and was no link.
    fn target(path: &Path) -> io::Result<Self>;

    /// The names in a directory, unsorted.
    fn names(&self, dir: Steps<'_>) -> Result<Vec<Vec<u8>>, Obstacle>;
    /// The facts about a name.
    fn facts(&self, dir: Steps<'_>, name: &[u8]) -> Result<Facts, Obstacle>;
    /// A file for reading. Never waits for a FIFO.
    fn open(&self, dir: Steps<'_>, name: &[u8]) -> Result<File, Obstacle>;
    /// Where a link points.
    fn read_link(&self, dir: Steps<'_>, name: &[u8]) -> Result<Vec<u8>, Obstacle>;

    /// Removes a file or link, if there is one of that name.
    fn clear(&self, dir: Steps<'_>, name: &[u8]) -> Result<(), Obstacle>;
    /// Makes a directory. Directories on the way must be there.
    fn make_dir(&self, dir: Steps<'_>, name: &[u8], mode: u32) -> Result<(), Obstacle>;
    /// Makes a new file.
    fn make_file(&self, dir: Steps<'_>, name: &[u8], mode: u32) -> Result<File, Obstacle>;
    /// Makes a symbolic link.
    fn make_link(&self, dir: Steps<'_>, name: &[u8], target: &[u8]) -> Result<(), Obstacle>;
    /// Makes a second name for a file.
    fn make_twin(&self, old_dir: Steps<'_>, old: &[u8], dir: Steps<'_>, name: &[u8]) -> Result<(), Obstacle>;
}

/// Refuses a download's target that is a link: an earlier run could have put it there.
pub fn refuse_link(target: &Path) -> Result<()> {
    match std::fs::symlink_metadata(target) {
        Ok(found) if found.is_symlink() => Err(Error::new(
            ErrorKind::UnsafeArchive,
            "download",
            format!("the target {} is a symbolic link, which is not followed", target.display()),
        )
        .with_help("remove the link, or name the directory that it leads to")),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(host_error("download", target, error)),
    }
}
