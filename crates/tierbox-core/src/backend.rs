//! A way to make machines.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    AgentSettings, Capabilities, CodeSettings, Environment, Error, ErrorKind, GuestPath, Hold, LeaseHandle, LeaseRecord, Lifted,
    Limits, Result, Secrets, Tier,
};

/// A host directory that is visible inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// An absolute path on the host.
    #[serde(with = "crate::written")]
    pub host: PathBuf,
    /// An absolute path inside.
    pub guest: String,
    /// Whether the sandbox may change it.
    pub writable: bool,
}

/// A host file or directory that is copied in after the start, before anything runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyIn {
    /// An absolute path on the host.
    #[serde(with = "crate::written")]
    pub host: PathBuf,
    /// A path inside, relative to the working directory unless absolute.
    #[serde(with = "crate::written")]
    pub guest: GuestPath,
}

/// The network part of a profile.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// Names that N1 allows.
    pub allow: Vec<String>,
    /// Whether the machines of one environment are kept from each other. By default they reach each other as the backend's own
    /// files (a compose file, a Vagrantfile) say.
    #[serde(default)]
    pub apart: bool,
}

/// What an environment should be: a profile after all layers are applied, its secrets read.
///
/// `Debug` shows of `env` and `settings`, which may hold secrets, the keys only.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct EnvironmentSpec {
    /// The profile's name.
    pub profile: String,
    /// The tier that must be enforced.
    pub tier: Tier,
    /// The backend's name.
    pub backend: String,
    /// Limits.
    pub limits: Limits,
    /// Variables of every exec.
    pub env: BTreeMap<String, String>,
    /// The directory where execs start and relative paths begin; the backend's own default where `None`.
    pub workdir: Option<String>,
    /// The user that execs and files use; the backend's own default where `None`.
    pub user: Option<String>,
    /// Directories that are mounted.
    pub mounts: Vec<MountSpec>,
    /// Files that are copied in. The facade copies them; backends only see them for the record.
    pub files: Vec<CopyIn>,
    /// Network rules.
    pub network: NetworkSpec,
    /// The backend's own table, validated by the backend.
    pub settings: serde_json::Value,
    /// The directory that relative paths in `settings` start from: the profile file's.
    pub base_dir: PathBuf,
    /// Who keeps the environment.
    pub hold: Hold,
    /// The profile's reason for H0 or N0.
    pub reason: Option<String>,
    /// What weakens the profile, for the report.
    pub weakened: Vec<String>,
    /// T1: programs that the agent may run.
    pub programs: Vec<String>,
    /// What else binds the agent: T1's rules and approvals.
    #[serde(default)]
    pub agent: AgentSettings,
    /// Code tasks.
    #[serde(default)]
    pub code: CodeSettings,
    /// The secret values among the above, which nothing that is written down may hold. Not part of its serialized form.
    #[serde(skip)]
    pub secrets: Secrets,
    /// When the isolation is verified from inside; the backend's usual where `None`.
    #[serde(default)]
    pub verify: Option<Verify>,
}

impl EnvironmentSpec {
    /// A specification that asks for a tier and nothing else: default limits, no variables, mounts, files or settings, held by this
    /// process. Its profile is called as the backend; relative paths start from `/`.
    pub fn new(backend: impl Into<String>, tier: Tier) -> Self {
        let backend = backend.into();
        Self {
            profile: backend.clone(),
            tier,
            backend,
            limits: Limits::default(),
            env: BTreeMap::new(),
            workdir: None,
            user: None,
            mounts: Vec::new(),
            files: Vec::new(),
            network: NetworkSpec::default(),
            settings: serde_json::Value::Null,
            base_dir: PathBuf::from("/"),
            hold: Hold::Process,
            reason: None,
            weakened: Vec::new(),
            programs: Vec::new(),
            agent: AgentSettings::default(),
            code: CodeSettings::default(),
            secrets: Secrets::new(),
            verify: None,
        }
    }
}

impl fmt::Debug for EnvironmentSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings: Vec<&String> = self.settings.as_object().into_iter().flat_map(|table| table.keys()).collect();
        f.debug_struct("EnvironmentSpec")
            .field("profile", &self.profile)
            .field("tier", &self.tier)
            .field("backend", &self.backend)
            .field("limits", &self.limits)
            .field("env", &self.env.keys())
            .field("workdir", &self.workdir)
            .field("user", &self.user)
            .field("mounts", &self.mounts)
            .field("files", &self.files)
            .field("network", &self.network)
            .field("settings", &settings)
            .field("base_dir", &self.base_dir)
            .field("hold", &self.hold)
            .field("reason", &self.reason)
            .field("weakened", &self.weakened)
            .field("programs", &self.programs)
            .field("agent", &self.agent)
            .field("code", &self.code)
            .field("secrets", &self.secrets)
            .field("verify", &self.verify)
            .finish()
    }
}

/// When the isolation of an environment is verified from inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verify {
    /// At every start.
    Always,
    /// At the first start of a configuration on this host; its record is reused until anything of it changes.
    Once,
    /// Never. The environment is then not called verified.
    Off,
}

impl Verify {
    /// Its name in a profile.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Once => "once",
            Self::Off => "off",
        }
    }
}

impl std::str::FromStr for Verify {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = [Self::Always, Self::Once, Self::Off];
        all.into_iter().find(|verify| verify.as_str() == text).ok_or_else(|| {
            Error::new(ErrorKind::InvalidInput, "read verify", format!("{text:?} is not \"always\", \"once\" or \"off\""))
        })
    }
}

/// How a check of this host came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckStatus {
    /// It is there.
    Ok,
    /// It is missing, and something works less well.
    Warn,
    /// It is missing, and the backend cannot start.
    Fail,
}

/// One line of `tierbox doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// How it came out.
    pub status: CheckStatus,
    /// What was found.
    pub detail: String,
    /// What to install or change; empty where all is well.
    pub remedy: String,
}

/// What [`Backend::destroy`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DestroyReport {
    /// What was removed.
    pub removed: Vec<String>,
    /// What could not be removed, and why.
    pub failed: Vec<String>,
    /// Commands that a person can run for what failed.
    pub manual: Vec<String>,
}

/// Hears of the steps of a long operation.
pub trait Progress: Send + Sync {
    /// A step began; one short line without control characters.
    fn step(&self, message: &str);
}

/// A [`Progress`] that hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn step(&self, _message: &str) {}
}

/// A way to make machines: a lifecycle, whose every step can be repeated.
#[async_trait]
pub trait Backend: Send + Sync {
    /// Its name: the value of `backend` in a profile, and the name of its settings table there.
    fn name(&self) -> &'static str;

    /// The JSON Schema of its settings table.
    fn settings_schema(&self) -> serde_json::Value;

    /// Checks the settings and the whole specification without side effects.
    ///
    /// # Errors
    /// `InvalidProfile` with the key that is wrong; `TierRefused` where the configuration could never enforce the tier.
    fn validate(&self, spec: &EnvironmentSpec) -> Result<()>;

    /// What it can do and enforce for this specification, on this host.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    fn capabilities(&self, spec: &EnvironmentSpec) -> Result<Capabilities>;

    /// Gets ready for a start that will come soon: does what takes time, needs no specification, and leaves nothing behind when this
    /// process ends, however it ends. Called on a thread of its own. What goes wrong here the start says. Nothing by default.
    fn prepare(&self) {}

    /// Makes an environment, or leaves nothing behind. Resources are recorded in the lease before they are made.
    ///
    /// # Errors
    /// `HostUnable`, `MissingEngine`, `TierRefused`, `LimitRefused`, `Timeout`, each with the engine's own diagnosis.
    async fn start(
        &self,
        spec: &EnvironmentSpec,
        lease: Arc<dyn LeaseHandle>,
        progress: &dyn Progress,
    ) -> Result<Box<dyn Environment>>;

    /// Makes a twin for verification: as [`start`](Self::start), but one rule does not hold in it.
    ///
    /// # Errors
    /// `Unsupported` where there is no such twin, which is the default; else as [`start`](Self::start).
    async fn twin(&self, spec: &EnvironmentSpec, lifted: &Lifted, lease: Arc<dyn LeaseHandle>) -> Result<Box<dyn Environment>> {
        let _ = (spec, lease);
        Err(Error::unsupported("start twin", format!("a twin without its {}", lifted.name())).with_backend(self.name()))
    }

    /// Finds a detached environment again.
    ///
    /// # Errors
    /// `NotFound` if it is gone, `Unsupported` where environments cannot be detached.
    async fn attach(&self, lease: &LeaseRecord) -> Result<Box<dyn Environment>>;

    /// Whether anything of the lease's environment still exists.
    async fn is_alive(&self, lease: &LeaseRecord) -> bool;

    /// Removes everything that a lease names. Succeeds if nothing is left. Never touches another lease's resources.
    ///
    /// # Errors
    /// When it cannot even tell; what could not be removed is in the report.
    async fn destroy(&self, lease: &LeaseRecord) -> Result<DestroyReport>;

    /// What this host can enforce, and what to change where it cannot.
    async fn doctor(&self) -> Vec<Check>;
}
