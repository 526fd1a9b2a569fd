//! What a profile takes from the process around it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

/// The environment variables, home and working directory that profiles are read with: those of this process, or others
/// for a test or a harness that wants none of its own to count.
#[derive(Clone)]
pub struct Surroundings {
    variables: BTreeMap<OsString, OsString>,
    home: Option<PathBuf>,
    directory: PathBuf,
    profile_directories: Vec<PathBuf>,
    has_user_file: bool,
}

impl Surroundings {
    /// Those of this process.
    pub fn of_process() -> Self {
        Self {
            variables: std::env::vars_os().collect(),
            home: std::env::home_dir(),
            directory: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            profile_directories: Vec::new(),
            has_user_file: true,
        }
    }

    /// No variable and no home; `directory` is where relative paths begin.
    pub fn empty(directory: impl Into<PathBuf>) -> Self {
        Self {
            variables: BTreeMap::new(),
            home: None,
            directory: directory.into(),
            profile_directories: Vec::new(),
            has_user_file: true,
        }
    }

    /// Sets a variable. `HOME` sets the home directory too.
    #[must_use]
    pub fn with_variable(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        let (name, value) = (name.into(), value.into());
        if name == "HOME" {
            self.home = Some(PathBuf::from(&value));
        }
        self.variables.insert(name, value);
        self
    }

    /// Looks for profiles in this directory first, by name. A relative path starts from the working directory.
    #[must_use]
    pub fn with_profile_directory(mut self, directory: impl AsRef<Path>) -> Self {
        self.profile_directories.push(self.directory.join(directory));
        self
    }

    /// Leaves the user's own file and profiles out: what a harness runs does then not depend on who runs it.
    #[must_use]
    pub fn without_user_files(mut self) -> Self {
        self.has_user_file = false;
        self
    }

    /// Every variable, sorted.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        self.variables.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str()))
    }

    /// A variable that must be there and be text. The error never holds its value.
    pub(crate) fn variable(&self, name: &OsStr) -> Result<String, &'static str> {
        let value = self.variables.get(name).ok_or("is not set")?;
        value.to_str().map(str::to_owned).ok_or("is not UTF-8")
    }

    pub(crate) fn home(&self) -> Option<&Path> {
        self.home.as_deref().filter(|home| home.is_absolute())
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// `$XDG_CONFIG_HOME/tierbox`, else `~/.config/tierbox`.
    pub(crate) fn config_directory(&self) -> Option<PathBuf> {
        if !self.has_user_file {
            return None;
        }
        let stated = self.variables.get(OsStr::new("XDG_CONFIG_HOME")).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = stated.or_else(|| self.home().map(|home| home.join(".config")))?;
        Some(base.join("tierbox"))
    }

    /// Where profiles are looked for by name. The directories of `TIERBOX_PROFILES` are separated by colons; relative
    /// ones do not count.
    pub(crate) fn profile_directories(&self) -> Vec<PathBuf> {
        let stated = self.variables.get(OsStr::new("TIERBOX_PROFILES")).into_iter();
        let stated = stated.flat_map(|list| std::env::split_paths(list).collect::<Vec<_>>());
        let own = self.config_directory().map(|config| config.join("profiles"));
        let first = self.profile_directories.iter().cloned();
        first.chain(stated.filter(|path| path.is_absolute())).chain(own).collect()
    }
}

impl Default for Surroundings {
    fn default() -> Self {
        Self::of_process()
    }
}

/// Variables may hold secrets: only their number is shown.
impl fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Surroundings")
            .field("variables", &self.variables.len())
            .field("home", &self.home)
            .field("directory", &self.directory)
            .finish()
    }
}
