//! Files inside a sandbox.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{Error, ErrorKind, Result};

/// A stream of bytes from a sandbox.
pub type ByteReader = Box<dyn AsyncRead + Send + Sync + Unpin>;
/// A stream of bytes to a sandbox.
pub type ByteWriter = Box<dyn AsyncWrite + Send + Sync + Unpin>;

/// A stream of bytes both ways.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> ByteStream for T {}

/// A path inside a sandbox: bytes, resolved there and nowhere else.
///
/// Relative paths start at the sandbox's working directory. Any byte but NUL is legal.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GuestPath(Vec<u8>);

impl GuestPath {
    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Checks that the path can name something.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if it is empty, holds a NUL byte, or is longer than 4095 bytes.
    pub fn validate(&self) -> Result<()> {
        let problem = match () {
            () if self.0.is_empty() => "is empty",
            () if self.0.contains(&0) => "holds a NUL byte",
            () if self.0.len() > 4095 => "is longer than 4095 bytes",
            () => return Ok(()),
        };
        Err(Error::new(ErrorKind::InvalidInput, "use path", format!("the path {problem}")).with_context("path", self))
    }
}

impl fmt::Display for GuestPath {
    /// Printable on one line: every byte that is not printable ASCII is escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(&self.0) {
            Ok(text) if !text.chars().any(char::is_control) => f.write_str(text),
            _ => write!(f, "{}", self.0.escape_ascii()),
        }
    }
}

impl fmt::Debug for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl From<&str> for GuestPath {
    fn from(path: &str) -> Self {
        Self(path.as_bytes().to_vec())
    }
}
impl From<String> for GuestPath {
    fn from(path: String) -> Self {
        Self(path.into_bytes())
    }
}
impl From<&[u8]> for GuestPath {
    fn from(path: &[u8]) -> Self {
        Self(path.to_vec())
    }
}
impl From<Vec<u8>> for GuestPath {
    fn from(path: Vec<u8>) -> Self {
        Self(path)
    }
}
impl From<&Path> for GuestPath {
    fn from(path: &Path) -> Self {
        Self(path.as_os_str().as_bytes().to_vec())
    }
}
impl From<PathBuf> for GuestPath {
    fn from(path: PathBuf) -> Self {
        Self::from(path.as_path())
    }
}

/// What a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A FIFO, socket or device.
    Other,
}

/// The facts about a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileMeta {
    /// What it is.
    pub kind: FileKind,
    /// Its size in bytes.
    pub size: u64,
    /// Its permission bits, `0o7777` at most.
    pub mode: u32,
    /// Its owner inside the machine.
    pub uid: u32,
    /// Its group inside the machine.
    pub gid: u32,
    /// Last change of its contents, in nanoseconds since 1970.
    pub modified_ns: i64,
    /// Where it points, for a symbolic link.
    pub target: Option<Vec<u8>>,
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The name: any byte but NUL and `/`.
    pub name: Vec<u8>,
    /// The facts about it; a link is not followed.
    pub meta: FileMeta,
}

/// Which part of a file is read, and how much at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadOptions {
    /// First byte.
    pub offset: u64,
    /// Bytes; to the end where `None`.
    pub length: Option<u64>,
    /// Refuse with [`ErrorKind::TooLarge`] if more bytes than this would be read.
    pub max: Option<u64>,
}

/// How a file is written. Writes are atomic: a reader sees the old contents or the new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteOptions {
    /// Permission bits; `None` keeps those of the file that is replaced, or 0644 for a new one.
    pub mode: Option<u32>,
    /// Refuse with [`ErrorKind::AlreadyExists`] if the file exists.
    pub create_new: bool,
}
