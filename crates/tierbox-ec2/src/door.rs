//! The door between a machine's users and its metadata service, as the machine told of it.

use crate::call::shown;

/// What closes the metadata service, and to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Door {
    /// The user may become root, so that nothing in the machine binds it.
    pub(crate) is_root: bool,
    /// What closes the service; empty for nothing.
    pub(crate) by: String,
    /// The service answers root, and so would answer others if nothing closed it.
    pub(crate) has_metadata: bool,
    /// It did not answer the user.
    pub(crate) is_closed: bool,
}

impl Door {
    /// Reads what a script printed.
    pub(crate) fn read(text: &str) -> Self {
        Self {
            is_root: line(text, "rights").is_some(),
            by: shown(line(text, "metadata").unwrap_or_default()),
            has_metadata: line(text, "control").is_some(),
            is_closed: line(text, "closed").is_some(),
        }
    }

    /// Something closes it to the user, and it was seen to be closed.
    pub(crate) fn holds(&self) -> bool {
        self.is_closed && !self.by.is_empty()
    }
}

/// A line `key=value` of a machine's answer.
pub(crate) fn line<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
}
