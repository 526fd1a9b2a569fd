//! Where an environment's files are, and the surroundings in which Vagrant runs for it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tierbox_core::{Error, ErrorKind, Result};

use crate::BACKEND;
use crate::isolation::Isolated;

/// The file that Vagrant evaluates in place of the Vagrantfile.
const SHIM: &str = include_str!("shim.rb");

/// What identifies an environment to Vagrant, and where it is. Kept in the lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Eight hex digits in every name that the environment gives to something.
    pub token: String,
    /// Its own files: the dotfile directory, keys, logs. Mode 0700.
    pub directory: PathBuf,
    /// The Vagrantfile.
    pub vagrantfile: PathBuf,
    /// The provider's name.
    pub provider: String,
    /// The network that N2 rests on.
    pub isolated: Option<Isolated>,
}

/// Which Vagrantfile counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The one that the environment was made from.
    Own,
    /// None: the machines are those that the dotfile directory knows.
    Gone,
}

/// A new token.
///
/// # Errors
/// `Internal` if the system has no random numbers.
pub fn new_token() -> Result<String> {
    let number = getrandom::u32().map_err(|error| Error::new(ErrorKind::Internal, "make token", error.to_string()))?;
    Ok(format!("{number:08x}"))
}

impl Place {
    /// What begins the names of domains, containers, volumes and networks.
    pub fn prefix(&self) -> String {
        prefix(&self.token)
    }

    /// What begins the names of bridges, which have 15 bytes at most.
    pub fn bridge(&self) -> String {
        format!("tbx{}", self.token)
    }

    /// What ends the names of machines that the Vagrantfile wants unique.
    pub fn suffix(&self) -> String {
        format!("-{}", self.token)
    }

    /// Vagrant's own directory for this environment.
    pub fn dotfile(&self) -> PathBuf {
        self.directory.join("dot")
    }

    /// A file or directory of the environment's own.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Writes what Vagrant reads. `env` are the Vagrantfile's variables, which may be secrets; `is_pooled` says whether others may be
    /// given its machines later.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, env: &BTreeMap<String, String>, is_pooled: bool) -> Result<()> {
        for directory in [self.directory.clone(), self.dotfile(), self.file("ssh"), self.file("log")] {
            make_directory(&directory)?;
        }
        let settings = serde_json::json!({
            "prefix": self.prefix(),
            "bridge": self.bridge(),
            "provider": self.provider,
            "pooled": is_pooled,
            "isolated": self.isolated.as_ref().map(|network| serde_json::json!({
                "network": network.name,
                "address": network.subnet(),
            })),
            "vagrantfile": self.vagrantfile,
            "directory": self.directory,
        });
        write_private(&self.file("shim.json"), settings.to_string().as_bytes())?;
        let mut kept = env.clone();
        // Who removes it may have another home than who made it.
        if let Some(home) = vagrant_home() {
            kept.entry(VAGRANT_HOME.to_owned()).or_insert(home);
        }
        write_private(&self.file("env.json"), serde_json::json!(kept).to_string().as_bytes())?;
        write_private(&self.file("Vagrantfile"), SHIM.as_bytes())
    }

    /// The directory that Vagrant runs in.
    pub fn working_directory(&self, source: Source) -> &Path {
        match (source, self.vagrantfile.parent()) {
            (Source::Own, Some(parent)) => parent,
            _ => &self.directory,
        }
    }

    fn kept_variables(&self) -> Result<BTreeMap<String, String>> {
        let failed = |error| Error::io("read variables of the Vagrantfile", error).with_backend(BACKEND);
        let text = std::fs::read_to_string(self.file("env.json")).map_err(failed)?;
        serde_json::from_str(&text).map_err(|_| {
            Error::new(ErrorKind::Internal, "read variables of the Vagrantfile", "they are not as they were written")
        })
    }

    /// Vagrant's own home, as it was when the environment was made; `None` if that is not known.
    pub fn home(&self) -> Option<PathBuf> {
        self.kept_variables().ok()?.remove(VAGRANT_HOME).map(PathBuf::from)
    }

    /// The variables that Vagrant gets beside this process's own.
    ///
    /// # Errors
    /// What the file system says.
    pub fn variables(&self, source: Source) -> Result<Vec<(String, OsString)>> {
        let mut variables: Vec<(String, OsString)> =
            self.kept_variables()?.into_iter().map(|(name, value)| (name, OsString::from(value))).collect();
        let own: [(&str, OsString); 10] = [
            ("VAGRANT_CWD", self.working_directory(source).into()),
            ("VAGRANT_VAGRANTFILE", self.file("Vagrantfile").into()),
            ("VAGRANT_DOTFILE_PATH", self.dotfile().into()),
            ("VAGRANT_DEFAULT_PROVIDER", self.provider.clone().into()),
            ("VAGRANT_CHECKPOINT_DISABLE", "1".into()),
            ("VAGRANT_NO_COLOR", "1".into()),
            ("TIERBOX_VM_SUFFIX", self.suffix().into()),
            ("INSPECT_VM_SUFFIX", self.suffix().into()),
            (MARK, self.token.clone().into()),
            (GONE, "1".into()),
        ];
        let count = if source == Source::Gone { own.len() } else { own.len() - 1 };
        variables.extend(own.into_iter().take(count).map(|(name, value)| (name.to_owned(), value)));
        Ok(variables)
    }
}

/// The variable by which a process of Vagrant's that outlived its harness is known.
pub const MARK: &str = "TIERBOX_VAGRANT_TOKEN";

/// The variable that says where Vagrant's home is.
const VAGRANT_HOME: &str = "VAGRANT_HOME";

/// Where Vagrant's home is for this process.
fn vagrant_home() -> Option<String> {
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    set(VAGRANT_HOME).or_else(|| set("HOME").map(|home| format!("{home}/.vagrant.d")))
}

/// The variable by which `up` waits to be told what to start.
pub const ASKS: &str = "TIERBOX_VAGRANT_ASKS";

/// The variable by which the Vagrantfile is left out.
pub const GONE: &str = "TIERBOX_VAGRANT_GONE";

/// What begins the names of an environment's things.
pub fn prefix(token: &str) -> String {
    format!("tbx-{token}-")
}

/// Makes a directory that only this user can enter. One that exists is fine.
///
/// # Errors
/// What the file system says.
pub fn make_directory(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| Error::io("make directory", error).with_backend(BACKEND).with_context("path", path.display()))
}

/// Writes a file that only this user can read.
///
/// # Errors
/// What the file system says.
pub fn write_private(path: &Path, contents: &[u8]) -> Result<()> {
    use std::io::Write;
    let failed = |error| Error::io("write file", error).with_backend(BACKEND).with_context("path", path.display());
    // A file of another mode is replaced, not filled.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(contents).map_err(failed)
}

#[cfg(test)]
mod unit {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_may_be_secret_is_readable_by_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place {
            token: new_token().unwrap(),
            directory: dir.path().join("p"),
            vagrantfile: "/srv/x/Vagrantfile".into(),
            provider: "libvirt".into(),
            isolated: None,
        };
        place.write(&BTreeMap::from([("API".to_owned(), "hunter2".to_owned())]), false).unwrap();
        for name in ["env.json", "shim.json", "Vagrantfile"] {
            assert_eq!(std::fs::metadata(place.file(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        }
        assert_eq!(std::fs::metadata(&place.directory).unwrap().permissions().mode() & 0o777, 0o700);
        let variables = place.variables(Source::Own).unwrap();
        let value = |name: &str| variables.iter().find(|(key, _)| key == name).map(|(_, value)| value.to_str().unwrap());
        assert_eq!(value("API"), Some("hunter2"));
        // Whoever removes it knows the same home of Vagrant's.
        assert_eq!(value("VAGRANT_HOME"), place.home().as_deref().and_then(Path::to_str));
        assert!(place.home().is_some());
        assert_eq!(value("VAGRANT_CWD"), Some("/srv/x"));
        assert_eq!(value("INSPECT_VM_SUFFIX"), Some(place.suffix().as_str()));
        assert_eq!(value("TIERBOX_VAGRANT_GONE"), None);
        assert!(place.bridge().len() + 2 <= 15, "{}", place.bridge());
        let gone = place.variables(Source::Gone).unwrap();
        assert!(gone.iter().any(|(key, value)| key == "VAGRANT_CWD" && *value == *place.directory.as_os_str()));
    }
}
