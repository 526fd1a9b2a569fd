//! A profile with all its layers applied.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tierbox_core::{
    AgentPolicy, EnvironmentSpec, Error, ErrorKind, Hold, Limits, NetworkSpec, Registry, Result, Secrets, Tier,
    looks_like_a_secret, names_a_secret,
};

use crate::builder::{Overrides, ProfileBuilder};
use crate::check::{check, check_table};
use crate::diagnostic::{Diagnostic, Severity, first_error};
use crate::groups;
use crate::inspect::{Mark, inspect};
use crate::layer::Provenance;
use crate::loader::{known_backend, leave_names_unused, of_code};
use crate::node::{Node, Place};
use crate::secret::SecretRef;
use crate::settings::{EnvValue, Settings};
use crate::surroundings::Surroundings;
use crate::weaken::{Weakening, weaker};

/// A profile with all its layers applied and checked: what can be started.
///
/// It holds references to secrets, not the secrets: those are read by [`spec`](Self::spec).
#[derive(Debug, Clone)]
pub struct Profile {
    pub(crate) name: String,
    pub(crate) path: Option<PathBuf>,
    pub(crate) settings: Settings,
    pub(crate) provenances: BTreeMap<String, Provenance>,
    pub(crate) weakened: Vec<Weakening>,
    pub(crate) warnings: Vec<Diagnostic>,
    pub(crate) base: PathBuf,
    pub(crate) schema: Arc<Value>,
    pub(crate) surroundings: Arc<Surroundings>,
}

/// A value as `tierbox config show` prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownValue {
    /// The dotted key.
    pub key: String,
    /// The value as people write it; `none` where nothing is set, `***` for a secret that code set.
    pub value: String,
    /// Where it comes from.
    pub provenance: Provenance,
}

impl Profile {
    /// Starts a profile in code: no file, no user's file, no variables; the same checks.
    pub fn builder(name: impl Into<String>, tier: Tier) -> ProfileBuilder {
        ProfileBuilder::new(name.into(), tier)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Its file; `None` for a ready profile and one made in code.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }
    /// The tier that must be enforced.
    pub fn tier(&self) -> Tier {
        self.settings.tier
    }
    /// The backend's name.
    pub fn backend(&self) -> &str {
        &self.settings.backend
    }
    /// One line for people.
    pub fn description(&self) -> Option<&str> {
        self.settings.description.as_deref()
    }
    /// Why H0 or N0 is acceptable.
    pub fn reason(&self) -> Option<&str> {
        self.settings.reason.as_deref()
    }
    /// Its limits.
    pub fn limits(&self) -> &Limits {
        &self.settings.limits
    }
    /// Whether the command line may mount directories writable.
    pub fn allows_writable_mounts(&self) -> bool {
        self.settings.writable_mounts
    }
    /// The rules that bind the agent.
    pub fn policy(&self) -> AgentPolicy {
        self.settings.agent.policy(self.settings.tier.tooling(), self.settings.programs.clone())
    }
    /// What is doubtful about it.
    pub fn warnings(&self) -> &[Diagnostic] {
        &self.warnings
    }
    /// What layers above the profile weakened, with permission.
    pub fn weakened(&self) -> &[Weakening] {
        &self.weakened
    }

    /// Every value, with where it comes from. Secrets show as their reference.
    pub fn values(&self) -> Vec<ShownValue> {
        let provenance = |key: &str| self.provenances.get(key).cloned().unwrap_or_else(Provenance::of_default);
        let entries = self.settings.entries().into_iter();
        entries.map(|(key, value)| ShownValue { provenance: provenance(&key), key, value }).collect()
    }

    /// The same profile with other values, for one environment. What they weaken is listed.
    ///
    /// # Errors
    /// `InvalidProfile` where the result makes no sense; `UnknownBackend`.
    pub fn with(&self, overrides: &Overrides) -> Result<Self> {
        let mut profile = self.clone();
        overrides.apply(&mut profile.settings);
        leave_names_unused(&self.settings, &mut profile.settings);
        profile.settle(&self.settings)?;
        let changes = weaker(&self.settings, &profile.settings, &self.schema);
        profile.weakened.extend(changes.into_iter().map(|change| Weakening {
            key: change.key,
            from: change.from,
            to: change.to,
            provenance: of_code(),
        }));
        Ok(profile)
    }

    /// Checks values that code has set, and notes that they come from there.
    pub(crate) fn settle(&mut self, before: &Settings) -> Result<()> {
        known_backend(&self.schema, &self.settings.backend)?;
        let directory = self.surroundings.directory().to_path_buf();
        let mut found = Vec::new();
        for (backend, table) in &mut self.settings.tables {
            if before.tables.get(backend) != Some(table) {
                found.extend(check_table(&self.schema, backend, table, &directory, &self.surroundings));
            }
        }
        self.settings.settle_host_paths(&directory, &self.surroundings)?;
        let old: BTreeMap<String, String> = before.entries().into_iter().collect();
        for (key, value) in self.settings.entries() {
            if old.get(&key) != Some(&value) {
                self.provenances.insert(key, of_code());
            }
        }
        let place = |key: &str| self.place(key);
        found.extend(literal_secrets(&self.settings, before));
        found.extend(check(&self.settings, &self.surroundings, &place));
        if let Some(error) = first_error(&found) {
            return Err(error);
        }
        self.warnings = found.into_iter().filter(|diagnostic| diagnostic.severity == Severity::Warning).collect();
        Ok(())
    }

    /// Where a value was written; an item of a list goes by its list.
    fn place(&self, key: &str) -> Place {
        let known = std::iter::successors(Some(key), |key| key.rsplit_once('.').map(|(list, _)| list));
        known.filter_map(|key| self.provenances.get(key)).next().map_or(Place::Default, |provenance| provenance.place.clone())
    }

    /// What the backend is given: secrets are read, and the backend checks the whole.
    ///
    /// # Errors
    /// `UnknownBackend`; `Credentials` for a secret that is not there; what [`Backend::validate`](tierbox_core::Backend::validate) says.
    pub fn spec(&self, registry: &Registry, hold: Hold) -> Result<EnvironmentSpec> {
        let backend = registry.get(&self.settings.backend)?;
        let settings = &self.settings;
        let mut secrets = Secrets::new();
        let spec = EnvironmentSpec {
            profile: self.name.clone(),
            tier: settings.tier,
            backend: settings.backend.clone(),
            limits: settings.limits.clone(),
            env: self.environment(&mut secrets)?,
            workdir: settings.workdir.clone(),
            user: settings.user.clone(),
            mounts: settings.mounts.clone(),
            files: settings.files.clone(),
            network: NetworkSpec {
                allow: groups::expand(&settings.allow, settings.groups.as_deref())?,
                apart: !settings.between_machines,
            },
            settings: self.table(&mut secrets)?,
            verify: settings.verify,
            base_dir: self.base.clone(),
            hold,
            reason: settings.reason.clone(),
            weakened: self.weakened.iter().map(ToString::to_string).collect(),
            programs: settings.programs.clone(),
            agent: settings.agent.clone(),
            code: settings.code.clone(),
            secrets: Secrets::new(),
        };
        let spec = EnvironmentSpec { secrets, ..spec };
        backend.validate(&spec)?;
        Ok(spec)
    }

    fn environment(&self, secrets: &mut Secrets) -> Result<BTreeMap<String, String>> {
        let mut resolve = |(key, value): (&String, &EnvValue)| {
            let secret = !matches!(value, EnvValue::Plain(_));
            let value = match value {
                EnvValue::Plain(text) => text.clone(),
                EnvValue::Secret(secret) => secret.expose().to_owned(),
                EnvValue::Reference(reference) => {
                    reference.resolve(&format!("env.{key}"), &self.surroundings)?.expose().to_owned()
                }
            };
            if secret {
                secrets.add(&value);
            }
            Ok((key.clone(), value))
        };
        self.settings.env.iter().map(&mut resolve).collect()
    }

    /// The backend's table with its secrets in place of their references.
    fn table(&self, secrets: &mut Secrets) -> Result<Value> {
        let mut table = self.settings.table();
        let backend = &self.settings.backend;
        let (Some(schema), Some(node)) = (self.schema["properties"].get(backend), Node::from_json(&table, &Place::Default))
        else {
            return Ok(table);
        };
        for (path, mark) in inspect(&self.schema, schema, &node).marks {
            match mark {
                Mark::HostPath => {}
                Mark::Secret => self.reveal(&mut table, &path, secrets)?,
                Mark::Env => {
                    let keys = node.find(&path).and_then(Node::table).into_iter().flat_map(|map| map.keys());
                    for key in keys.filter(|key| names_a_secret(key)) {
                        let path: Vec<String> = path.iter().chain([key]).cloned().collect();
                        self.reveal(&mut table, &path, secrets)?;
                    }
                }
            }
        }
        Ok(table)
    }

    fn reveal(&self, table: &mut Value, path: &[String], secrets: &mut Secrets) -> Result<()> {
        let Some(Value::String(text)) = path.iter().try_fold(table, step_into) else { return Ok(()) };
        if let Some(reference) = SecretRef::parse(text) {
            let key = format!("{}.{}", self.settings.backend, path.join("."));
            *text = reference.resolve(&key, &self.surroundings)?.expose().to_owned();
            secrets.add(&*text);
        }
        Ok(())
    }
}

fn step_into<'a>(value: &'a mut Value, step: &String) -> Option<&'a mut Value> {
    match value {
        Value::Object(map) => map.get_mut(step),
        Value::Array(items) => items.get_mut(step.parse::<usize>().ok()?),
        _ => None,
    }
}

/// Values that code gave to variables which take a secret.
fn literal_secrets(settings: &Settings, before: &Settings) -> Vec<Diagnostic> {
    let is_literal = |(key, value): &(&String, &EnvValue)| {
        let is_new = before.env.get(*key) != Some(*value);
        is_new && matches!(value, EnvValue::Plain(text) if looks_like_a_secret(text) || (names_a_secret(key) && !text.is_empty()))
    };
    let refuse = |(key, _): (&String, &EnvValue)| {
        let message = format!("`env.{key}` holds a secret that was given as plain text");
        let help = "call `secret_env` with a `Secret`, or with a reference".to_owned();
        Diagnostic::error(Place::Code, &["env".to_owned(), key.clone()], message).with_help(help)
    };
    settings.env.iter().filter(is_literal).map(refuse).collect()
}

/// An error of a profile that was made in code.
pub(crate) fn bad_name(name: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, "build profile", format!("{} is not a profile's name", crate::inspect::shown(name)))
        .with_help("use letters, digits, `-`, `_` and `.`, at most 64, a letter or digit first")
}
