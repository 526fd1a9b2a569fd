//! How an operation fails, in the protocol's words.

use std::io;

use rustix::io::Errno;

use crate::protocol::{Failure, FromSupervisor};

/// Shorthand for an operation's result.
pub type Result<T> = std::result::Result<T, Fail>;

/// Why an operation did not succeed.
#[derive(Debug)]
pub enum Fail {
    /// It failed; the engine is told.
    Failed {
        /// What kind.
        failure: Failure,
        /// The errno, or 0.
        errno: i32,
        /// Particulars. Names in it are escaped.
        detail: String,
    },
    /// The engine went away, so nobody can be told.
    Gone,
}

impl Fail {
    /// A failure that no errno describes.
    pub fn new(failure: Failure, detail: impl Into<String>) -> Self {
        Self::Failed { failure, errno: 0, detail: detail.into() }
    }

    /// The message for the engine, if there is one to tell.
    pub fn into_answer(self) -> Option<FromSupervisor> {
        match self {
            Self::Failed { failure, errno, detail } => Some(FromSupervisor::Failed { failure, errno, detail }),
            Self::Gone => None,
        }
    }
}

impl From<Errno> for Fail {
    fn from(errno: Errno) -> Self {
        Self::Failed { failure: kind(errno), errno: errno.raw_os_error(), detail: String::new() }
    }
}

impl From<io::Error> for Fail {
    fn from(error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(errno) => errno.into(),
            None => Self::new(Failure::Io, error.to_string()),
        }
    }
}

/// Says during what an error happened.
pub trait Context<T> {
    /// Adds the particulars, unless there are some already.
    fn during(self, what: &str) -> Result<T>;
}

impl<T, E: Into<Fail>> Context<T> for std::result::Result<T, E> {
    fn during(self, what: &str) -> Result<T> {
        self.map_err(|error| match error.into() {
            Fail::Failed { failure, errno, detail } if detail.is_empty() => {
                Fail::Failed { failure, errno, detail: what.to_owned() }
            }
            other => other,
        })
    }
}

fn kind(errno: Errno) -> Failure {
    match errno {
        Errno::NOENT | Errno::NOTDIR => Failure::NotFound,
        Errno::ACCESS | Errno::PERM | Errno::ROFS => Failure::PermissionDenied,
        Errno::ISDIR => Failure::IsADirectory,
        // ENXIO is what opening a socket gives.
        Errno::NXIO | Errno::NODEV => Failure::NotAFile,
        Errno::FBIG | Errno::OVERFLOW => Failure::TooLarge,
        Errno::NOSPC | Errno::DQUOT => Failure::NoSpace,
        Errno::EXIST => Failure::AlreadyExists,
        Errno::NAMETOOLONG | Errno::INVAL => Failure::Invalid,
        _ => Failure::Io,
    }
}
