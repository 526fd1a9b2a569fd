//! From a profile to a specification.

use std::path::PathBuf;

use tierbox_core::{EnvironmentSpec, Error, ErrorKind, Registry, Result};

use crate::StartOptions;

/// What to start.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ProfileSource {
    /// A profile by name; a text with a `/` or ending in `.toml` is a path.
    Name(String),
    /// A profile's file.
    File(PathBuf),
}

impl From<&str> for ProfileSource {
    fn from(name: &str) -> Self {
        Self::Name(name.to_owned())
    }
}
impl From<String> for ProfileSource {
    fn from(name: String) -> Self {
        Self::Name(name)
    }
}
impl From<PathBuf> for ProfileSource {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

/// A profile that can be started by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileEntry {
    /// Its name.
    pub name: String,
    /// What it says of itself.
    pub description: String,
    /// Its file; none for a ready profile.
    pub path: Option<PathBuf>,
}

/// Where profiles come from.
#[derive(Debug, Clone)]
pub(crate) struct Profiles {
    pub directories: Vec<PathBuf>,
    pub user_config: bool,
}

impl Default for Profiles {
    fn default() -> Self {
        Self { directories: Vec::new(), user_config: true }
    }
}

impl Profiles {
    pub fn resolve(&self, _registry: &Registry, source: ProfileSource, _options: &StartOptions) -> Result<EnvironmentSpec> {
        Err(Error::new(ErrorKind::UnknownProfile, "find profile", format!("{source:?}")))
    }
    pub fn list(&self) -> Result<Vec<ProfileEntry>> {
        Ok(Vec::new())
    }
}
