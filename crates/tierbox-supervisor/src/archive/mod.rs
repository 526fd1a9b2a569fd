//! Tar streams, read as hostile and written as GNU tar does.
//!
//! Own code because both sides of the boundary read what the other may have forged: nothing here is buffered beyond a
//! small bound, every length is checked against the stream, and sparse files (whose size is free to claim) are refused.
//! Names are bytes throughout.

mod header;
mod name;
mod reader;
mod writer;

pub use name::{components, link_stays_inside, printable};
pub use reader::Reader;
pub use writer::Writer;

use std::fmt;
use std::io;

/// The longest name or link target, in bytes.
pub const MAX_NAME: usize = 32 << 10;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file; its contents follow.
    File {
        /// How many bytes.
        size: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Where it points.
        target: Vec<u8>,
    },
    /// Another name of an entry of this archive.
    HardLink {
        /// That entry's path.
        target: Vec<u8>,
    },
    /// A device, FIFO or something unknown, with its type byte.
    Other(u8),
}

/// One entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path, exactly as it stands there: check it with [`components`].
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, `0o7777` at most.
    pub mode: u32,
    /// Last change of its contents, in seconds since 1970.
    pub modified: i64,
}

/// Why an archive cannot be read.
#[derive(Debug)]
pub enum ArchiveError {
    /// The stream itself failed.
    Io(io::Error),
    /// The stream is no archive, or ends too early.
    Malformed(&'static str),
    /// An entry is refused, whatever it holds.
    Refused {
        /// Its path, escaped.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl fmt::Display for ArchiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::Malformed(what) => write!(f, "the archive {what}"),
            Self::Refused { path, reason } => write!(f, "the entry \"{path}\" {reason}"),
        }
    }
}

impl std::error::Error for ArchiveError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for ArchiveError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
