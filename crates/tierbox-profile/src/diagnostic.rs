//! What is wrong or doubtful about a profile, and where.

use std::fmt;

use tierbox_core::{Error, ErrorKind};

use crate::node::Place;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Severity {
    /// The profile cannot be used.
    Error,
    /// The profile can be used, and somebody should look at this.
    Warning,
}

/// One remark on a profile.
#[derive(Debug, Clone)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The kind of error that it is, or would be.
    pub kind: ErrorKind,
    /// Where it was written.
    pub place: Place,
    /// The dotted key; empty where it concerns the whole.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

impl Diagnostic {
    pub(crate) fn error(place: Place, key: &[String], message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            kind: ErrorKind::InvalidProfile,
            place,
            key: key.join("."),
            message: message.into(),
            help: None,
        }
    }

    pub(crate) fn warning(place: Place, key: &str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(place, &[key.to_owned()], message) }
    }

    pub(crate) fn with_kind(self, kind: ErrorKind) -> Self {
        Self { kind, ..self }
    }

    pub(crate) fn with_help(self, help: impl Into<Option<String>>) -> Self {
        Self { help: help.into(), ..self }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{}: {severity}: {}", self.place, self.message)?;
        if let Some(help) = &self.help {
            write!(f, "\nhelp: {help}")?;
        }
        Ok(())
    }
}

/// The first error as an [`Error`], which says how many follow.
pub(crate) fn first_error(diagnostics: &[Diagnostic]) -> Option<Error> {
    let errors: Vec<_> = diagnostics.iter().filter(|diagnostic| diagnostic.severity == Severity::Error).collect();
    let first = errors.first()?;
    let mut message = format!("{}: {}", first.place, first.message);
    if errors.len() > 1 {
        message.push_str(&format!(" (and {} more: `tierbox config validate` lists them)", errors.len() - 1));
    }
    let mut error = Error::new(first.kind, "read profile", message).with_context("key", &first.key);
    if let Some(help) = &first.help {
        error = error.with_help(help);
    }
    if let (Some(file), Some(line), Some(column)) = (first.place.file(), first.place.line(), first.place.column()) {
        error = error.with_context("file", file.display()).with_context("line", line).with_context("column", column);
    }
    Some(error)
}
