//! The `[vagrant]` table of a profile.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tierbox_core::{Error, ErrorKind, Result};

use crate::BACKEND;
use crate::place::{GONE, MARK};
use crate::provider::Provider;

/// The `[vagrant]` table of a profile.
///
/// `Debug` shows of `env`, which may hold secrets, the keys only.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// The Vagrantfile, relative to the profile's directory. By default what `VAGRANTFILE_PATH` names, else `Vagrantfile` in
    /// the working directory.
    #[schemars(extend("x-path" = true))]
    pub vagrantfile: Option<PathBuf>,
    /// The provider: `libvirt`, `qemu`, `virtualbox`, `lxc`, … By default what `VAGRANT_DEFAULT_PROVIDER` names; one of the
    /// two must say it.
    pub provider: Option<String>,
    /// The machine that commands go to unless they name another. By default the only one of the Vagrantfile, or the first that
    /// starts by itself.
    pub primary: Option<String>,
    /// The machines to start, by name. By default those that `vagrant up` would start.
    pub machines: Vec<String>,
    /// Variables for the evaluation of the Vagrantfile. The machines do not see them.
    #[schemars(extend("x-env" = true))]
    pub env: BTreeMap<String, String>,
    /// How commands get into the machines: `auto` over a supervisor that is put there, and at H0, where that cannot run, over
    /// scripts alone; `never` over scripts alone, which takes `/bin/sh` and small tools in the machine and gives H0 at most.
    pub supervisor: Supervisor,
    /// How many `vagrant up` may run at once on this host, for this user. By default `INSPECT_MAX_VAGRANT_STARTUPS`, else the
    /// number of CPUs.
    #[schemars(range(min = 1), extend("x-variable" = "TIERBOX_MAX_VAGRANT_STARTUPS", "x-tunable" = true))]
    pub max_startups: Option<u32>,
    /// How many machines' environments are kept, put back to a snapshot of their first moment, for the next start of the same
    /// kind. None by default. Providers without snapshots ignore it, with a note in the report.
    #[schemars(extend("x-tunable" = true))]
    pub pool: u32,
}

/// Whether the supervisor is put into the machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Supervisor {
    /// Where it can run.
    #[default]
    Auto,
    /// Not at all.
    Never,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("vagrantfile", &self.vagrantfile)
            .field("provider", &self.provider)
            .field("primary", &self.primary)
            .field("machines", &self.machines)
            .field("env", &self.env.keys())
            .field("supervisor", &self.supervisor)
            .field("max_startups", &self.max_startups)
            .field("pool", &self.pool)
            .finish()
    }
}

/// Variables that decide what tierbox relies on, so that a profile cannot set them.
const RESERVED: [&str; 8] = [
    "VAGRANT_CWD",
    "VAGRANT_VAGRANTFILE",
    "VAGRANT_DOTFILE_PATH",
    "VAGRANT_DEFAULT_PROVIDER",
    "TIERBOX_VM_SUFFIX",
    "INSPECT_VM_SUFFIX",
    MARK,
    GONE,
];

impl Settings {
    /// Reads the table; nothing at all is the default.
    ///
    /// # Errors
    /// `InvalidProfile` with what is wrong.
    pub fn from_value(value: &serde_json::Value) -> Result<Self> {
        if value.is_null() {
            return Ok(Self::default());
        }
        if !value.is_object() {
            return Err(invalid("[vagrant] is not a table"));
        }
        let settings = Self::deserialize(value).map_err(|error| invalid(format!("[vagrant]: {error}")))?;
        settings.check()?;
        Ok(settings)
    }

    /// Its JSON Schema.
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Settings).to_value()
    }

    fn check(&self) -> Result<()> {
        if self.max_startups == Some(0) {
            return Err(invalid("vagrant.max-startups is 0, so nothing could ever start").with_help("leave it out, or write 1"));
        }
        for name in self.machines.iter().chain(&self.primary) {
            if !is_machine_name(name) {
                return Err(invalid(format!("{name:?} cannot be a machine's name"))
                    .with_help("names are letters, digits, dots, dashes and underscores, and do not begin with a dash"));
            }
        }
        for key in self.env.keys() {
            if key.is_empty() || key.contains(['=', '\0']) {
                return Err(invalid(format!("vagrant.env: {key:?} cannot be the name of a variable")));
            }
            if RESERVED.contains(&key.as_str()) {
                return Err(invalid(format!("vagrant.env: {key} is set by tierbox, for each environment anew"))
                    .with_help("use vagrant.provider for the provider, and leave the others out"));
            }
        }
        if let Some(key) = self.env.iter().find(|(_, value)| value.contains('\0')).map(|(key, _)| key) {
            return Err(invalid(format!("vagrant.env.{key} holds a NUL byte")));
        }
        Ok(())
    }

    /// The Vagrantfile, absolute.
    ///
    /// # Errors
    /// `InvalidProfile` if there is none.
    pub fn vagrantfile(&self, base_dir: &Path) -> Result<PathBuf> {
        let from_variable = || std::env::var_os("VAGRANTFILE_PATH").filter(|path| !path.is_empty()).map(PathBuf::from);
        let path = match &self.vagrantfile {
            Some(path) => base_dir.join(path),
            None => std::path::absolute(from_variable().unwrap_or_else(|| "Vagrantfile".into()))
                .map_err(|error| Error::io("find Vagrantfile", error).with_backend(BACKEND))?,
        };
        if path.is_file() {
            return Ok(path);
        }
        Err(invalid(format!("there is no Vagrantfile at {}", path.display()))
            .with_help("name one with vagrant.vagrantfile, relative to the profile, or start where a Vagrantfile is"))
    }

    /// The provider that the profile or the environment names.
    ///
    /// # Errors
    /// `InvalidProfile` if neither does.
    pub fn provider(&self) -> Result<Provider> {
        let usual = || std::env::var("VAGRANT_DEFAULT_PROVIDER").ok().filter(|name| !name.is_empty());
        let name = self.provider.clone().or_else(usual).ok_or_else(|| {
            invalid("no provider is named, and which one Vagrant would pick decides what isolates the machine")
                .with_help("write vagrant.provider = \"libvirt\" (or qemu, virtualbox, …), or set VAGRANT_DEFAULT_PROVIDER")
        })?;
        Provider::new(&name)
    }
}

/// Whether Vagrant could take this as a machine's name, and a command line as a plain word.
pub(crate) fn is_machine_name(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !name.is_empty() && name.len() <= 100 && !name.starts_with(['-', '.']) && name.bytes().all(legal)
}

/// A mistake in the profile.
pub(crate) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidProfile, "check profile", message).with_backend(BACKEND)
}

#[cfg(test)]
mod unit {
    use super::*;

    fn read(json: &str) -> Result<Settings> {
        Settings::from_value(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn what_could_reach_a_command_line_or_break_isolation_is_refused() {
        for bad in [
            r#"{"vagrantfil": "x"}"#,
            r#"{"primary": "--force"}"#,
            r#"{"primary": ""}"#,
            r#"{"machines": ["a;b"]}"#,
            r#"{"machines": ["$(id)"]}"#,
            r#"{"env": {"A=B": "1"}}"#,
            r#"{"env": {"VAGRANT_DOTFILE_PATH": "/x"}}"#,
            r#"{"env": {"TIERBOX_VAGRANT_GONE": "1"}}"#,
            r#"{"env": {"TIERBOX_VAGRANT_TOKEN": "0a1b2c3d"}}"#,
            r#"{"env": {"A": "\u0000"}}"#,
            r#"{"max-startups": 0}"#,
            "[]",
        ] {
            assert_eq!(read(bad).unwrap_err().kind(), ErrorKind::InvalidProfile, "{bad}");
        }
        assert_eq!(read("null").unwrap(), Settings::default());
        read(r#"{"primary": "web-1.example_2", "env": {"BOX": "x"}, "pool": 2}"#).unwrap();
    }

    #[test]
    fn secrets_of_the_vagrantfile_are_not_shown() {
        let shown = format!("{:?}", read(r#"{"env": {"TOKEN": "hunter2"}}"#).unwrap());
        assert!(shown.contains("TOKEN") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn the_vagrantfile_starts_from_the_profile() {
        let dir = tempfile::tempdir().unwrap();
        let settings = read(r#"{"vagrantfile": "sub/Vagrantfile"}"#).unwrap();
        let error = settings.vagrantfile(dir.path()).unwrap_err();
        assert!(error.message().contains("sub/Vagrantfile"), "{error}");
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("sub/Vagrantfile"), "").unwrap();
        assert_eq!(settings.vagrantfile(dir.path()).unwrap(), dir.path().join("sub/Vagrantfile"));
    }

    #[test]
    fn every_setting_is_documented_in_the_schema() {
        let schema = Settings::schema();
        let properties = schema["properties"].as_object().unwrap();
        assert_eq!(properties.len(), 8);
        for (name, property) in properties {
            assert!(property["description"].as_str().is_some_and(|text| !text.is_empty()), "{name} has no description");
        }
        assert_eq!(properties["max-startups"]["x-variable"], "TIERBOX_MAX_VAGRANT_STARTUPS");
        assert!(properties["vagrantfile"]["x-path"] == true && properties["env"]["x-env"] == true);
    }
}
