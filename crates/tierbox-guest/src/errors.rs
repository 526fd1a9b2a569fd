//! What the other side's failures are called.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use tierbox_core::{Error, ErrorKind, is_deceptive};
use tierbox_supervisor::protocol::Failure;

/// Locks what cannot be left inconsistent: every holder only moves values.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Wakes those who wait, each once: one task often waits for several things, and a wake-up is a system call. Called without
/// any lock: whoever is woken may come back at once.
pub(crate) fn wake<const N: usize>(mut wakers: [Option<Waker>; N]) {
    for index in 0..N {
        let Some(waker) = wakers[index].take() else { continue };
        if !wakers[index + 1..].iter().flatten().any(|other| other.will_wake(&waker)) {
            waker.wake();
        }
    }
}

/// Text that came out of a machine, made fit to show: one line, printable, at most `max` characters.
pub(crate) fn printable(text: &str, max: usize) -> String {
    let mut out = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == max {
            out.push('…');
            break;
        }
        if is_deceptive(character) { out.extend(character.escape_default()) } else { out.push(character) }
    }
    out
}

/// Why a channel ended.
#[derive(Debug, Clone)]
pub(crate) struct Closed {
    how: How,
    message: Cow<'static, str>,
}

/// How a channel ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// The other side went away.
    Lost,
    /// The other side broke the protocol.
    Protocol,
    /// The other side did not let it begin, since it has too many.
    Busy,
}

impl Closed {
    pub(crate) fn lost(message: impl Into<Cow<'static, str>>) -> Self {
        Self { how: How::Lost, message: message.into() }
    }

    pub(crate) fn protocol(message: impl Into<Cow<'static, str>>) -> Self {
        Self { how: How::Protocol, message: message.into() }
    }

    pub(crate) fn busy(message: impl Into<Cow<'static, str>>) -> Self {
        Self { how: How::Busy, message: message.into() }
    }

    pub(crate) fn error(&self, operation: &'static str) -> Error {
        match self.how {
            How::Lost => Error::new(ErrorKind::Lost, operation, self.to_string()),
            How::Protocol => Error::new(ErrorKind::Protocol, operation, self.to_string()),
            How::Busy => Error::new(ErrorKind::LimitReached, operation, self.to_string())
                .with_help("nothing was asked of it yet; try again when others are done")
                .retryable(),
        }
    }
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.how {
            How::Lost => f.write_str(&self.message),
            How::Protocol => {
                write!(f, "the machine's supervisor broke the protocol and its channel was closed: {}", self.message)
            }
            How::Busy => write!(f, "the machine's supervisor takes no more clients now: {}", self.message),
        }
    }
}

/// An operation that the supervisor refused.
#[derive(Debug, Clone)]
pub(crate) struct Failed {
    pub(crate) failure: Failure,
    pub(crate) errno: i32,
    pub(crate) detail: String,
}

impl Failed {
    pub(crate) fn error(&self, operation: &'static str, subject: &str) -> Error {
        let kind = match self.failure {
            Failure::NotFound => ErrorKind::NotFound,
            Failure::PermissionDenied => ErrorKind::PermissionDenied,
            Failure::IsADirectory => ErrorKind::IsADirectory,
            Failure::NotAFile => ErrorKind::NotAFile,
            Failure::TooLarge => ErrorKind::TooLarge,
            Failure::NoSpace => ErrorKind::NoSpace,
            Failure::AlreadyExists => ErrorKind::AlreadyExists,
            Failure::UnsafeArchive => ErrorKind::UnsafeArchive,
            Failure::Invalid => ErrorKind::InvalidInput,
            Failure::Unsupported => ErrorKind::Unsupported,
            Failure::Interrupted | Failure::Io => ErrorKind::Io,
        };
        let mut message = format!("{subject}: {}", self.what());
        if !self.detail.is_empty() {
            message.push_str(&format!(" ({})", printable(&self.detail, 300)));
        }
        let error = Error::new(kind, operation, message);
        if self.failure == Failure::Interrupted { error.retryable() } else { error }
    }

    fn what(&self) -> Cow<'static, str> {
        let text = match self.failure {
            Failure::NotFound => "not found",
            Failure::PermissionDenied => "permission denied",
            Failure::IsADirectory => "is a directory",
            Failure::NotAFile => "is not a regular file, or not a directory where one is needed",
            Failure::TooLarge => "is larger than allowed",
            Failure::NoSpace => "no space left in the sandbox",
            Failure::AlreadyExists => "exists already",
            Failure::UnsafeArchive => "the archive holds an entry that is not allowed",
            Failure::Invalid => "the request makes no sense",
            Failure::Unsupported => "not supported by this machine's supervisor",
            Failure::Interrupted => "a process in the sandbox killed the operation; nothing was changed",
            Failure::Io if (1..4096).contains(&self.errno) => {
                return std::io::Error::from_raw_os_error(self.errno).to_string().into();
            }
            Failure::Io => "input or output error",
        };
        text.into()
    }
}

/// Why a call came to nothing.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    Closed(Closed),
    Failed(Failed),
    /// More than this side is willing to hold.
    TooMuch(&'static str),
}

impl Fault {
    /// As an error: `operation` was tried on `subject`, which is printable.
    pub(crate) fn error(&self, operation: &'static str, subject: &str) -> Error {
        match self {
            Self::Closed(closed) => closed.error(operation),
            Self::Failed(failed) => failed.error(operation, subject),
            Self::TooMuch(what) => Error::new(ErrorKind::TooLarge, operation, format!("{subject}: {what}")),
        }
    }

    /// As the error of a stream, with ours inside.
    pub(crate) fn io_error(&self, operation: &'static str, subject: &str) -> std::io::Error {
        let kind = match self {
            Self::Closed(_) => std::io::ErrorKind::ConnectionAborted,
            _ => std::io::ErrorKind::Other,
        };
        std::io::Error::new(kind, self.error(operation, subject))
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn text_from_a_machine_is_one_bounded_printable_line() {
        assert_eq!(printable("a\x1b[31m\nb\u{202e}", 100), "a\\u{1b}[31m\\nb\\u{202e}");
        assert_eq!(printable("abcdef", 3), "abc…");
    }

    #[test]
    fn an_interrupted_operation_may_be_tried_again() {
        let failed = Failed { failure: Failure::Interrupted, errno: 0, detail: String::new() };
        assert!(Fault::Failed(failed).error("write", "x").is_retryable());
        let failed = Failed { failure: Failure::NotFound, errno: 2, detail: "evil\x07".to_owned() };
        let error = Fault::Failed(failed).error("read", "x");
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::NotFound, false));
        assert_eq!(error.message(), "x: not found (evil\\u{7})");
    }
}
