//! One error type for every backend. Match on [`ErrorKind`], never on text.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

/// Shorthand for a result with tierbox's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of thing went wrong. This is what programs match on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An argument is malformed: an empty argv, a NUL byte, a bad environment key, a hostile name.
    InvalidInput,
    /// A profile cannot be used as written: unknown key, wrong type, contradictory settings, a literal secret.
    InvalidProfile,
    /// A layer above a profile (the user's file, an environment variable, `--set`) would weaken it.
    WeakerRefused,
    /// No profile of that name was found.
    UnknownProfile,
    /// No backend of that name is compiled in.
    UnknownBackend,
    /// The backend cannot enforce the tier that the profile states.
    TierRefused,
    /// A limit that the profile requires cannot be enforced here.
    LimitRefused,
    /// The backend does not offer this operation. Nothing was done.
    Unsupported,
    /// This host forbids or lacks something that the backend needs (namespaces, memory files, `/proc`).
    HostUnable,
    /// The engine (vagrant, docker, …) is not installed or does not answer.
    MissingEngine,
    /// Credentials are missing or refused.
    Credentials,
    /// The agent's policy (tooling axis T, rules) forbids this.
    PolicyDenied,
    /// A file, environment, lease or exec of that name does not exist. ENOTDIR counts as this too.
    NotFound,
    /// Something of that name exists already.
    AlreadyExists,
    /// The sandbox's user may not do that.
    PermissionDenied,
    /// A file was expected and the path is a directory.
    IsADirectory,
    /// A regular file was expected and the path is a FIFO, a socket or a device; or a directory was expected.
    NotAFile,
    /// More bytes than the caller's limit.
    TooLarge,
    /// No space or no inodes left in the sandbox.
    NoSpace,
    /// A count limit was reached, such as `max-environments`.
    LimitReached,
    /// The operation did not finish in its time.
    Timeout,
    /// The caller cancelled.
    Cancelled,
    /// The machine or the line to it went away. It is unknown whether the operation took effect.
    Lost,
    /// The same, because the lifetime of the sandbox was over.
    Expired,
    /// The other side broke the protocol; the channel was closed.
    Protocol,
    /// An archive entry was refused (`..`, absolute, link out, device, setuid).
    UnsafeArchive,
    /// An operating system error with no better kind.
    Io,
    /// A defect in tierbox.
    Internal,
}

impl ErrorKind {
    /// A stable name in kebab case, as shown in `--json` output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidInput => "invalid-input",
            Self::InvalidProfile => "invalid-profile",
            Self::WeakerRefused => "weaker-refused",
            Self::UnknownProfile => "unknown-profile",
            Self::UnknownBackend => "unknown-backend",
            Self::TierRefused => "tier-refused",
            Self::LimitRefused => "limit-refused",
            Self::Unsupported => "unsupported",
            Self::HostUnable => "host-unable",
            Self::MissingEngine => "missing-engine",
            Self::Credentials => "credentials",
            Self::PolicyDenied => "policy-denied",
            Self::NotFound => "not-found",
            Self::AlreadyExists => "already-exists",
            Self::PermissionDenied => "permission-denied",
            Self::IsADirectory => "is-a-directory",
            Self::NotAFile => "not-a-file",
            Self::TooLarge => "too-large",
            Self::NoSpace => "no-space",
            Self::LimitReached => "limit-reached",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::Lost => "lost",
            Self::Expired => "expired",
            Self::Protocol => "protocol",
            Self::UnsafeArchive => "unsafe-archive",
            Self::Io => "io",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What was tried, what happened, and what to do.
///
/// `Display` is one line (plus a `help:` line where there is a remedy); `Debug` shows everything. Neither ever holds a
/// secret: context values are put there by tierbox, never copied from an environment.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    operation: Cow<'static, str>,
    backend: Option<Cow<'static, str>>,
    message: String,
    help: Option<String>,
    retryable: bool,
    context: Vec<(&'static str, String)>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// A new error: its kind, what was tried (a short verb phrase such as `start sandbox`) and what happened.
    pub fn new(kind: ErrorKind, operation: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            operation: operation.into(),
            backend: None,
            message: message.into(),
            help: None,
            retryable: false,
            context: Vec::new(),
            source: None,
        }))
    }

    /// Shorthand for [`ErrorKind::Unsupported`]: the backend does not offer `what`.
    pub fn unsupported(operation: impl Into<Cow<'static, str>>, what: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Unsupported, operation, format!("{what} is not supported here; nothing was done"))
    }

    /// An error from the operating system, with the kind that its code has.
    pub fn io(operation: impl Into<Cow<'static, str>>, source: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match source.kind() {
            Io::NotFound | Io::NotADirectory => ErrorKind::NotFound,
            Io::PermissionDenied => ErrorKind::PermissionDenied,
            Io::IsADirectory => ErrorKind::IsADirectory,
            Io::AlreadyExists => ErrorKind::AlreadyExists,
            Io::StorageFull | Io::QuotaExceeded => ErrorKind::NoSpace,
            Io::FileTooLarge => ErrorKind::TooLarge,
            Io::TimedOut => ErrorKind::Timeout,
            _ => ErrorKind::Io,
        };
        Self::new(kind, operation, source.to_string()).with_source(source)
    }

    /// Names the backend in which it happened.
    #[must_use]
    pub fn with_backend(mut self, backend: impl Into<Cow<'static, str>>) -> Self {
        self.0.backend = Some(backend.into());
        self
    }

    /// Says what to do about it.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.0.help = Some(help.into());
        self
    }

    /// Adds a fact, shown in `Debug` and in JSON. Never put a secret here.
    #[must_use]
    pub fn with_context(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        self.0.context.push((key, value.to_string()));
        self
    }

    /// Keeps the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Marks it as worth another try: nothing was changed and the cause may pass.
    #[must_use]
    pub fn retryable(mut self) -> Self {
        self.0.retryable = true;
        self
    }

    /// What kind of thing went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }
    /// What was tried.
    pub fn operation(&self) -> &str {
        &self.0.operation
    }
    /// The backend in which it happened, where one was involved.
    pub fn backend(&self) -> Option<&str> {
        self.0.backend.as_deref()
    }
    /// What happened, without the operation.
    pub fn message(&self) -> &str {
        &self.0.message
    }
    /// What to do about it, where that is known.
    pub fn help(&self) -> Option<&str> {
        self.0.help.as_deref()
    }
    /// Whether the same call may succeed later and is safe to repeat.
    pub fn is_retryable(&self) -> bool {
        self.0.retryable
    }
    /// The facts collected on the way up, oldest first.
    pub fn context(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.context.iter().map(|(key, value)| (*key, value.as_str()))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.0;
        write!(f, "{}", inner.operation)?;
        if let Some(backend) = &inner.backend {
            write!(f, " ({backend})")?;
        }
        write!(f, ": {}", inner.message)?;
        if let Some(help) = &inner.help {
            write!(f, "\nhelp: {help}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.0;
        f.debug_struct("Error")
            .field("kind", &inner.kind)
            .field("operation", &inner.operation)
            .field("backend", &inner.backend)
            .field("message", &inner.message)
            .field("help", &inner.help)
            .field("retryable", &inner.retryable)
            .field("context", &inner.context)
            .field("source", &inner.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn display_says_what_was_tried_what_happened_and_what_to_do() {
        let error = Error::new(ErrorKind::HostUnable, "start sandbox", "user namespaces are denied")
            .with_backend("local")
            .with_help("run `tierbox doctor`");
        assert_eq!(error.to_string(), "start sandbox (local): user namespaces are denied\nhelp: run `tierbox doctor`");
    }

    #[test]
    fn os_errors_keep_their_kind() {
        let not_dir = std::io::Error::from_raw_os_error(20);
        assert_eq!(Error::io("read", not_dir).kind(), ErrorKind::NotFound);
        let full = std::io::Error::from_raw_os_error(28);
        assert_eq!(Error::io("write", full).kind(), ErrorKind::NoSpace);
    }
}
