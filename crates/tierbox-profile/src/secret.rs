//! Secrets: named in a profile, read at the start, never shown.

use std::ffi::OsStr;
use std::fmt;
use std::io::Read;
use std::path::PathBuf;

use tierbox_core::{Error, ErrorKind, Result};

use crate::hostpath;
use crate::surroundings::Surroundings;

/// The largest secret file that is read.
const MAX_FILE: u64 = 64 * 1024;

/// A secret value. It shows as `***`, in `Debug` too.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value, for the one who needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where a secret is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretRef {
    /// In an environment variable of this process: `env:NAME`.
    Variable(String),
    /// In a file on this host: `file:PATH`. One newline at its end is not part of it.
    File(PathBuf),
}

impl SecretRef {
    /// Reads `env:NAME` or `file:PATH`. `None` for anything else, which may be a literal secret: never show it.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(name) = text.strip_prefix("env:") {
            let named = !name.is_empty() && name.len() <= 256 && !name.contains(['=', '\0']);
            return named.then(|| Self::Variable(name.to_owned()));
        }
        let path = text.strip_prefix("file:").filter(|path| !path.is_empty() && !path.contains('\0'))?;
        Some(Self::File(PathBuf::from(path)))
    }

    /// Reads the secret. `key` is the dotted key that refers to it, for messages.
    ///
    /// # Errors
    /// `Credentials`, naming the key and the reference.
    pub fn resolve(&self, key: &str, surroundings: &Surroundings) -> Result<Secret> {
        let value = match self {
            Self::Variable(name) => surroundings.variable(OsStr::new(name)).map_err(|why| self.failed(key, why))?,
            Self::File(path) => read_file(path).map_err(|why| self.failed(key, &why))?,
        };
        if value.contains('\0') {
            return Err(self.failed(key, "holds a NUL byte"));
        }
        Ok(Secret(value))
    }

    fn failed(&self, key: &str, why: &str) -> Error {
        Error::new(ErrorKind::Credentials, "read secret", format!("`{key}` refers to {self}, which {why}"))
            .with_help("set it, or point the profile to where the secret is")
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

fn read_file(path: &std::path::Path) -> Result<String, String> {
    let file = hostpath::open_regular(path).map_err(|why| format!("cannot be read: {why}"))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err("is larger than 64KiB".to_owned());
    }
    let mut text = String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?}"), "*** ***");
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn references_are_read_and_nothing_else_is() {
        assert_eq!(SecretRef::parse("env:TOKEN"), Some(SecretRef::Variable("TOKEN".into())));
        assert_eq!(SecretRef::parse("file:/run/secret"), Some(SecretRef::File("/run/secret".into())));
        for text in ["", "env:", "file:", "TOKEN", "Env:TOKEN", "env:A=B", "env:A\0"] {
            assert_eq!(SecretRef::parse(text), None, "{text:?}");
        }
    }
}
