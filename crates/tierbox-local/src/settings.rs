//! The `[local]` table of a profile.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tierbox_core::{Error, ErrorKind, HostIsolation, Result, Tier};

use crate::BACKEND;

/// What the backend makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Own namespaces, own root, seccomp: H1.
    Container,
    /// Processes on this host without isolation: H0.
    Process,
}

impl Mode {
    /// The host isolation that this mode gives.
    pub fn isolation(self) -> HostIsolation {
        match self {
            Self::Container => HostIsolation::H1,
            Self::Process => HostIsolation::H0,
        }
    }

    /// Its name in a profile.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Process => "process",
        }
    }
}

/// Which users exist inside a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Users {
    /// A range where this host gives one, else only the agent.
    #[default]
    Auto,
    /// Only the agent, who is the caller seen from the host.
    Single,
    /// A range (root, the agent, service users), or the start is refused.
    Range,
}

/// Which program gives a container with N0 its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkHelper {
    /// pasta if it is installed and this host has a default route, else slirp4netns.
    #[default]
    Auto,
    /// pasta, from the package passt.
    Pasta,
    /// slirp4netns.
    Slirp4netns,
}

/// A host path that is visible inside, read-only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum BindSetting {
    /// The same path on the host and inside; `~/` is the caller's home on the host.
    #[schemars(extend("x-path" = true))]
    Same(String),
    /// Different paths.
    Moved(MovedBind),
}

/// A host path and where it appears inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MovedBind {
    /// A path on the host; relative to the profile's directory, or to the home if it starts with `~/`.
    #[schemars(extend("x-path" = true))]
    pub host: String,
    /// An absolute path inside.
    pub guest: String,
}

/// The `[local]` table of a profile.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// `container` or `process`. Follows the tier by default: `process` for H0, `container` for H1.
    pub mode: Option<Mode>,
    /// A directory that becomes the container's root, copy on write; relative to the profile's directory. The host's
    /// `/usr`, read-only, by default.
    #[schemars(extend("x-path" = true))]
    pub root: Option<PathBuf>,
    /// Toolchains outside `/usr`, for example `~/.rustup`: host paths, or `{ host, guest }`. Always read-only. A home
    /// directory as a whole, and what holds keys or tokens, is refused.
    pub binds: Vec<BindSetting>,
    /// `auto` (default), `single` or `range`: which users exist inside a container.
    #[schemars(extend("x-weakest-first" = ["single", "auto", "range"]))]
    pub users: Users,
    /// `auto` (default), `pasta` or `slirp4netns`: the helper that gives a container with N0 its way out.
    pub network: NetworkHelper,
}

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
            return Err(invalid("[local] is not a table"));
        }
        Self::deserialize(value).map_err(|error| invalid(format!("[local]: {error}")))
    }

    /// Its JSON Schema.
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Settings).to_value()
    }

    /// The mode that the tier and the settings agree on.
    ///
    /// # Errors
    /// `InvalidProfile` if they contradict each other, `TierRefused` for an isolation that no mode gives.
    pub fn mode_for(&self, tier: Tier) -> Result<Mode> {
        let from_tier = match tier.host() {
            HostIsolation::H0 => Mode::Process,
            HostIsolation::H1 => Mode::Container,
            HostIsolation::H2 | HostIsolation::H3 => return Err(refuse_isolation(tier)),
        };
        match self.mode {
            Some(mode) if mode != from_tier => {
                Err(invalid(format!("local.mode = \"{}\" gives {}, but the tier is {tier}", mode.as_str(), mode.isolation()))
                    .with_help(format!("remove local.mode, or write it as \"{}\"", from_tier.as_str())))
            }
            _ => Ok(from_tier),
        }
    }

    /// The root directory, absolute.
    pub fn root_path(&self, base_dir: &Path) -> Option<PathBuf> {
        self.root.as_ref().map(|root| base_dir.join(root))
    }
}

fn refuse_isolation(tier: Tier) -> Error {
    let nearest = format!("{}.H1.{}", tier.tooling(), tier.network());
    Error::new(
        ErrorKind::TierRefused,
        "check profile",
        format!("{} is a {}, and this backend makes containers and processes on this host", tier.host(), tier.host().meaning()),
    )
    .with_backend(BACKEND)
    .with_help(format!("the nearest tier that local can enforce is {nearest}; for {} choose another backend", tier.host()))
}

/// A mistake in the profile.
pub(crate) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidProfile, "check profile", message).with_backend(BACKEND)
}

#[cfg(test)]
mod unit {
    use super::*;

    fn tier(text: &str) -> Tier {
        text.parse().unwrap()
    }

    #[test]
    fn the_mode_follows_the_tier_unless_they_contradict() {
        let settings = Settings::default();
        assert_eq!(settings.mode_for(tier("T0.H0.N0")).unwrap(), Mode::Process);
        assert_eq!(settings.mode_for(tier("T0.H1.N2")).unwrap(), Mode::Container);
        let process = Settings { mode: Some(Mode::Process), ..Settings::default() };
        assert_eq!(process.mode_for(tier("T0.H1.N2")).unwrap_err().kind(), ErrorKind::InvalidProfile);
    }

    #[test]
    fn stronger_tiers_are_refused_with_the_nearest() {
        for text in ["T0.H2.N2", "T1.H3.N0"] {
            let error = Settings::default().mode_for(tier(text)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TierRefused);
            assert!(error.help().unwrap().contains(".H1."), "{error}");
        }
    }

    #[test]
    fn unknown_keys_and_values_are_refused() {
        for bad in [r#"{"moed": "container"}"#, r#"{"mode": "vm"}"#, r#"{"binds": [{"host": "/x", "to": "/y"}]}"#, "[]"] {
            let value = serde_json::from_str(bad).unwrap();
            assert_eq!(Settings::from_value(&value).unwrap_err().kind(), ErrorKind::InvalidProfile, "{bad}");
        }
        assert_eq!(Settings::from_value(&serde_json::Value::Null).unwrap(), Settings::default());
    }

    /// Whoever reads the profile makes such paths absolute, starting at the file that states them.
    #[test]
    fn host_paths_are_marked_in_the_schema() {
        let schema = Settings::schema();
        let marked = |pointer: &str| schema.pointer(pointer).is_some_and(|place| place["x-path"] == true);
        assert!(marked("/properties/root"));
        assert!(marked("/$defs/BindSetting/anyOf/0"));
        assert!(marked("/$defs/MovedBind/properties/host") && !marked("/$defs/MovedBind/properties/guest"));
    }

    /// Demanding a range of users tightens; the default may not be loosened to a single one.
    #[test]
    fn users_are_ranked_in_the_schema() {
        let schema = Settings::schema();
        let users = &schema["properties"]["users"];
        assert_eq!(users["x-weakest-first"], serde_json::json!(["single", "auto", "range"]));
        assert_eq!(users["default"], "auto");
    }

    #[test]
    fn every_setting_is_documented_in_the_schema() {
        let schema = Settings::schema();
        let properties = schema["properties"].as_object().unwrap();
        assert_eq!(properties.len(), 5);
        for (name, property) in properties {
            assert!(property["description"].as_str().is_some_and(|text| !text.is_empty()), "{name} has no description");
        }
    }
}
