//! The `[docker]` table of a profile.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tierbox_core::{Error, ErrorKind, Result};

use crate::BACKEND;

/// When an image is fetched from its registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Pull {
    /// If the engine does not have it.
    #[default]
    Missing,
    /// Not at all: an image that the engine does not have refuses the start.
    Never,
}

/// How commands and files go into a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// Over one stream to tierbox's supervisor, which is the container's first process.
    #[default]
    Supervisor,
    /// By scripts, each a process that the engine starts: nothing of tierbox's is in the container, and the image needs a shell and the
    /// usual tools. Takes root on the engine's own host.
    Plain,
}

/// The `[docker]` table of a profile. One of `image`, `dockerfile` and `compose` is needed; a profile that names one of them replaces
/// the one of the profile that it extends.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
#[schemars(extend("x-alternatives" = [["image"], ["dockerfile", "context"], ["compose", "primary"]]))]
pub struct Settings {
    /// An image's name, for example `debian:12`. Its `ENV`, `WORKDIR` and `USER` count; its command is not run.
    pub image: Option<String>,
    /// A Dockerfile to build the image from; relative to the profile's directory. It is trusted like code.
    #[schemars(extend("x-path" = true))]
    pub dockerfile: Option<PathBuf>,
    /// The directory that a Dockerfile may copy from; the Dockerfile's own by default.
    #[schemars(extend("x-path" = true))]
    pub context: Option<PathBuf>,
    /// A compose file; relative to the profile's directory. Every service is a machine.
    #[schemars(extend("x-path" = true))]
    pub compose: Option<PathBuf>,
    /// The service that is the primary machine: by default the one named `default`, or marked `x-default: true`, or the only one.
    pub primary: Option<String>,
    /// The engine's socket, as `unix:///path`. By default `DOCKER_HOST`, else `/var/run/docker.sock`, else podman's.
    pub host: Option<String>,
    /// `missing` (default) or `never`: when an image is fetched from its registry.
    pub pull: Pull,
    /// `supervisor` (default) or `plain`: how commands and files go in.
    pub transport: Transport,
    /// The engine's runtime, for example `runsc` for gVisor; the engine's own default where absent. One that brings a kernel of its own
    /// (gVisor, Kata, krun) goes without tierbox's filter of system calls and with N2 alone.
    pub runtime: Option<String>,
    /// Whether the root file system is read-only (default). `false` lets the sandbox's user change what the image lets him.
    pub read_only: Option<bool>,
    /// Capabilities that root inside has beyond the few that changing users and owners takes, for example
    /// `["NET_BIND_SERVICE"]`. Only capabilities that Docker gives by default can be named. The default user has none.
    pub capabilities: Vec<String>,
}

/// What root inside always has: to be other users, to give them files, and to end their processes.
pub const BASE_CAPABILITIES: [&str; 6] = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID"];

/// Runtimes whose containers have a kernel of their own, which is what their system calls reach instead of this host's.
const OWN_KERNEL: [&str; 3] = ["runsc", "kata", "krun"];

/// What may be added: Docker's own default without what reaches the network below TCP, makes devices or changes the root.
const MORE_CAPABILITIES: [&str; 4] = ["AUDIT_WRITE", "FSETID", "NET_BIND_SERVICE", "SETFCAP"];

impl Settings {
    /// Reads the table and checks each key by itself.
    ///
    /// # Errors
    /// `InvalidProfile` with what is wrong.
    pub fn from_value(value: &serde_json::Value) -> Result<Self> {
        let settings = if value.is_null() {
            Self::default()
        } else if value.is_object() {
            Self::deserialize(value).map_err(|error| invalid(format!("[docker]: {error}")))?
        } else {
            return Err(invalid("[docker] is not a table"));
        };
        settings.check()?;
        Ok(settings)
    }

    /// Its JSON Schema.
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Settings).to_value()
    }

    fn check(&self) -> Result<()> {
        let sources = [self.image.is_some(), self.dockerfile.is_some(), self.compose.is_some()];
        if sources.iter().filter(|given| **given).count() != 1 {
            return Err(invalid("[docker] needs exactly one of image, dockerfile and compose")
                .with_help("for example `image = \"debian:12\"`"));
        }
        if self.context.is_some() && self.dockerfile.is_none() {
            return Err(invalid("docker.context is for docker.dockerfile"));
        }
        if self.primary.is_some() && self.compose.is_none() {
            return Err(invalid("docker.primary is for docker.compose: an image is one machine, named `default`"));
        }
        if self.transport == Transport::Plain && self.compose.is_some() {
            return Err(invalid("docker.transport = \"plain\" is for one machine: services take the supervisor")
                .with_help("use docker.image or docker.dockerfile, or leave docker.transport out"));
        }
        if let Some(image) = &self.image {
            check_image(image)?;
        }
        if let Some(host) = &self.host {
            socket_of(host)?;
        }
        if let Some(runtime) = &self.runtime
            && !is_name(runtime)
        {
            return Err(invalid(format!("docker.runtime {runtime:?} is not a runtime's name")));
        }
        self.capabilities.iter().try_for_each(|name| check_capability(name).map(drop))
    }

    /// Whether the root file system is read-only.
    pub fn is_read_only(&self) -> bool {
        self.read_only.unwrap_or(true)
    }

    /// The runtime, if it is known to bring a kernel of its own: tierbox's filter of system calls is not for that. Any other, `runc` by
    /// another name too, runs containers on this host's.
    pub fn own_kernel(&self) -> Option<&str> {
        let runtime = self.runtime.as_deref()?;
        let short = runtime.strip_prefix("io.containerd.").unwrap_or(runtime);
        let is_of = |family: &str| short.strip_prefix(family).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '.']));
        OWN_KERNEL.into_iter().any(is_of).then_some(runtime)
    }

    /// Every capability that root inside has.
    pub fn all_capabilities(&self) -> Vec<String> {
        let more = self.capabilities.iter().filter_map(|name| check_capability(name).ok());
        let mut all: Vec<String> = BASE_CAPABILITIES.into_iter().chain(more).map(str::to_owned).collect();
        all.sort();
        all.dedup();
        all
    }

    /// Keys that make the sandbox weaker than this backend's default, for the report.
    pub fn weakened(&self) -> Vec<String> {
        let mut weakened = Vec::new();
        if !self.is_read_only() {
            weakened.push("docker.read-only = false: the root file system can be changed".to_owned());
        }
        if !self.capabilities.is_empty() {
            weakened.push(format!("docker.capabilities: root inside also has {}", self.capabilities.join(", ")));
        }
        if let Some(runtime) = self.own_kernel() {
            weakened
                .push(format!("docker.runtime = {runtime:?}: system calls are left to its own kernel, without tierbox's filter"));
        }
        weakened
    }
}

/// A capability that may be added, without its prefix.
///
/// # Errors
/// `InvalidProfile` for any other.
pub fn check_capability(name: &str) -> Result<&'static str> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let known = BASE_CAPABILITIES.iter().chain(&MORE_CAPABILITIES).find(|known| **known == short);
    known.copied().ok_or_else(|| {
        invalid(format!("the capability {:?} is not given to a sandbox", cut(name)))
            .with_help(format!("there are {} beyond the default ones", MORE_CAPABILITIES.join(", ")))
    })
}

/// Checks an image's name: it goes into a URL, and nothing else than a reference may be there.
///
/// # Errors
/// `InvalidProfile`.
pub fn check_image(image: &str) -> Result<()> {
    let fine = !image.is_empty()
        && image.len() <= 512
        && image.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte))
        && image.starts_with(|first: char| first.is_ascii_alphanumeric())
        && !image.contains("..")
        && !image.contains("//");
    if fine {
        return Ok(());
    }
    Err(invalid(format!("{:?} is not an image's name", cut(image)))
        .with_help("for example debian:12, or registry.example/team/image:tag"))
}

/// The path of a `unix://` address.
///
/// # Errors
/// `InvalidProfile` for any other address: a remote engine would be another tier.
pub fn socket_of(host: &str) -> Result<PathBuf> {
    match host.strip_prefix("unix://") {
        Some(path) if path.starts_with('/') && !path.contains('\0') => Ok(PathBuf::from(path)),
        _ => Err(invalid(format!("the engine's address {:?} is not unix:///path", cut(host)))
            .with_help("only an engine on this machine is supported")),
    }
}

/// Whether a text is a short name that needs no quoting anywhere.
pub fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 63
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// A text for a message: short, and without what a terminal would act on.
pub fn cut(text: &str) -> String {
    text.chars().take(80).map(|char| if char.is_control() { '\u{fffd}' } else { char }).collect()
}

/// A mistake in the profile.
pub fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidProfile, "check profile", message).with_backend(BACKEND)
}

#[cfg(test)]
mod unit {
    use serde_json::json;

    use super::*;

    #[test]
    fn exactly_one_source_is_needed() {
        for bad in [
            json!({}),
            json!({"image": "a", "compose": "c.yaml"}),
            json!({"image": "a", "context": "."}),
            json!({"image": "a", "primary": "x"}),
            json!({"imgae": "a"}),
            json!([]),
        ] {
            assert_eq!(Settings::from_value(&bad).unwrap_err().kind(), ErrorKind::InvalidProfile, "{bad}");
        }
        assert!(Settings::from_value(&json!({"image": "debian:12"})).unwrap().is_read_only());
    }

    #[test]
    fn hostile_names_are_refused() {
        for bad in ["", "-v", "a b", "a/../b", "a\nb", "$(id)", "a?x=y", "a#b", "../x", "http://x", &"x".repeat(600)] {
            assert!(check_image(bad).is_err(), "{bad:?}");
        }
        for fine in ["debian:12", "localhost:5000/a/b:1", "a@sha256:0123"] {
            check_image(fine).unwrap();
        }
        for bad in ["tcp://1.2.3.4:2375", "unix://relative", "ssh://x", "/var/run/docker.sock"] {
            assert!(socket_of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_runtimes_with_a_kernel_of_their_own_go_without_the_filter() {
        let with = |runtime: &str| Settings { runtime: Some(runtime.to_owned()), ..Settings::default() };
        for own in ["runsc", "runsc-kvm", "kata", "kata-qemu", "krun", "io.containerd.runsc.v1", "io.containerd.kata.v2"] {
            assert_eq!(with(own).own_kernel(), Some(own));
            assert!(with(own).weakened().iter().any(|told| told.contains(own)), "{own}");
        }
        for shared in ["runc", "crun", "youki", "io.containerd.runc.v2", "runscx", "my-runsc", "nvidia"] {
            assert_eq!(with(shared).own_kernel(), None);
            assert!(with(shared).weakened().is_empty(), "{shared}");
        }
        assert_eq!(Settings::default().own_kernel(), None);
    }

    #[test]
    fn only_harmless_capabilities_can_be_added() {
        for bad in ["SYS_ADMIN", "NET_RAW", "ALL", "cap_sys_ptrace", "MKNOD", "SYS_CHROOT", ""] {
            assert!(check_capability(bad).is_err(), "{bad}");
        }
        let settings = Settings::from_value(&json!({"image": "a", "capabilities": ["cap_net_bind_service"]})).unwrap();
        assert!(settings.all_capabilities().contains(&"NET_BIND_SERVICE".to_owned()));
        assert_eq!(settings.weakened().len(), 1);
    }
}
