//! Profiles and changes to profiles in code, with types.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tierbox_core::{
    AgentSettings, CodeSettings, CopyIn, GuestPath, Limits, MountSpec, Preset, ProgramRule, Registry, Result, Tier,
};

use crate::find;
use crate::hostpath;
use crate::profile::{Profile, bad_name};
use crate::schema::schema;
use crate::secret::{Secret, SecretRef};
use crate::settings::{EnvValue, Settings};
use crate::surroundings::Surroundings;

/// Values that code sets on top of a profile: another tier, other limits, more files, for this one environment.
///
/// ```
/// use std::time::Duration;
/// use tierbox_profile::Overrides;
///
/// let overrides = Overrides::new().env("SEED", "7").limits(|limits| limits.exec = Some(Duration::from_secs(30)));
/// assert!(!overrides.is_empty());
/// ```
#[derive(Clone, Default)]
pub struct Overrides {
    changes: Vec<Change>,
}

type Change = Arc<dyn Fn(&mut Settings) + Send + Sync>;

impl Overrides {
    /// No change.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// These changes, then those of `later`.
    #[must_use]
    pub fn and(mut self, later: Self) -> Self {
        self.changes.extend(later.changes);
        self
    }

    /// Sets the tier.
    #[must_use]
    pub fn tier(self, tier: Tier) -> Self {
        self.change(move |settings| settings.tier = tier)
    }

    fn change(mut self, change: impl Fn(&mut Settings) + Send + Sync + 'static) -> Self {
        self.changes.push(Arc::new(change));
        self
    }

    pub(crate) fn apply(&self, settings: &mut Settings) {
        self.changes.iter().for_each(|change| change(settings));
    }
}

/// Values may hold secrets: only the number of changes is shown.
impl fmt::Debug for Overrides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overrides").field("changes", &self.changes.len()).finish()
    }
}

/// A profile in code.
///
/// ```no_run
/// use tierbox_core::{Limit, Registry};
/// use tierbox_profile::Profile;
/// # let registry = Registry::linked();
///
/// let profile = Profile::builder("my-task", "T0.H1.N2".parse()?)
///     .limits(|limits| limits.memory = Some(Limit::best(1 << 30)))
///     .env("LANG", "C.UTF-8")
///     .build(&registry)?;
/// assert_eq!(profile.backend(), "local");
/// # Ok::<(), tierbox_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct ProfileBuilder {
    name: String,
    tier: Tier,
    overrides: Overrides,
    surroundings: Surroundings,
}

impl ProfileBuilder {
    pub(crate) fn new(name: String, tier: Tier) -> Self {
        Self { name, tier, overrides: Overrides::new(), surroundings: Surroundings::of_process() }
    }

    /// Takes the secrets' variables and the directory of relative paths from elsewhere than this process.
    #[must_use]
    pub fn surroundings(mut self, surroundings: Surroundings) -> Self {
        self.surroundings = surroundings;
        self
    }

    /// Checks the profile as if it had been read from a file.
    ///
    /// # Errors
    /// `InvalidInput` for a hostile name, `InvalidProfile` for values that make no sense, `UnknownBackend`.
    pub fn build(self, registry: &Registry) -> Result<Profile> {
        if find::check_name(&self.name).is_err() {
            return Err(bad_name(&self.name));
        }
        let before = Settings::new(self.tier);
        let mut settings = before.clone();
        self.overrides.apply(&mut settings);
        let mut profile = Profile {
            name: self.name,
            path: None,
            settings,
            provenances: BTreeMap::new(),
            weakened: Vec::new(),
            warnings: Vec::new(),
            base: self.surroundings.directory().to_path_buf(),
            schema: Arc::new(schema(registry)),
            surroundings: Arc::new(self.surroundings),
        };
        profile.provenances.insert("tier".to_owned(), crate::loader::of_code());
        profile.settle(&before)?;
        Ok(profile)
    }

    fn change(mut self, change: impl Fn(&mut Settings) + Send + Sync + 'static) -> Self {
        self.overrides = self.overrides.change(change);
        self
    }
}

/// What both take.
macro_rules! setters {
    ($($target:ty),+) => { $(
        impl $target {
            /// Chooses the backend. Set it before [`setting`](Self::setting).
            #[must_use]
            pub fn backend(self, name: impl Into<String>) -> Self {
                let name = name.into();
                self.change(move |settings| settings.backend.clone_from(&name))
            }

            /// One line for people.
            #[must_use]
            pub fn description(self, text: impl Into<String>) -> Self {
                let text = text.into();
                self.change(move |settings| settings.description = Some(text.clone()))
            }

            /// Why H0 or N0 is acceptable.
            #[must_use]
            pub fn reason(self, text: impl Into<String>) -> Self {
                let text = text.into();
                self.change(move |settings| settings.reason = Some(text.clone()))
            }

            /// The directory where commands start.
            #[must_use]
            pub fn workdir(self, path: impl Into<String>) -> Self {
                let path = path.into();
                self.change(move |settings| settings.workdir = Some(path.clone()))
            }

            /// The user of commands and files.
            #[must_use]
            pub fn user(self, user: impl Into<String>) -> Self {
                let user = user.into();
                self.change(move |settings| settings.user = Some(user.clone()))
            }

            /// Changes the limits.
            #[must_use]
            pub fn limits(self, change: impl Fn(&mut Limits) + Send + Sync + 'static) -> Self {
                self.change(move |settings| change(&mut settings.limits))
            }

            /// Sets a variable of every command. One whose name says that it is a secret is refused: see
            /// [`secret_env`](Self::secret_env).
            #[must_use]
            pub fn env(self, key: impl Into<String>, value: impl Into<String>) -> Self {
                let (key, value) = (key.into(), EnvValue::Plain(value.into()));
                self.change(move |settings| drop(settings.env.insert(key.clone(), value.clone())))
            }

            /// Sets a variable of every command to a secret.
            #[must_use]
            pub fn secret_env(self, key: impl Into<String>, secret: Secret) -> Self {
                let (key, value) = (key.into(), EnvValue::Secret(secret));
                self.change(move |settings| drop(settings.env.insert(key.clone(), value.clone())))
            }

            /// Sets a variable of every command to a secret that is read at the start.
            #[must_use]
            pub fn secret_env_from(self, key: impl Into<String>, reference: SecretRef) -> Self {
                let (key, value) = (key.into(), EnvValue::Reference(reference));
                self.change(move |settings| drop(settings.env.insert(key.clone(), value.clone())))
            }

            /// Sets the names that N1 allows.
            #[must_use]
            pub fn allow(self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
                let names: Vec<String> = names.into_iter().map(Into::into).collect();
                self.change(move |settings| settings.allow.clone_from(&names))
            }

            /// Sets the file of the groups that `allow` names.
            #[must_use]
            pub fn groups(self, file: impl Into<std::path::PathBuf>) -> Self {
                let file = file.into();
                self.change(move |settings| settings.groups = Some(file.clone()))
            }

            /// Sets the programs that T1 allows, by absolute path.
            #[must_use]
            pub fn programs(self, paths: impl IntoIterator<Item = impl Into<String>>) -> Self {
                let paths: Vec<String> = paths.into_iter().map(Into::into).collect();
                self.change(move |settings| settings.programs.clone_from(&paths))
            }

            /// Adds a program that T1 allows with certain arguments.
            #[must_use]
            pub fn rule(self, rule: ProgramRule) -> Self {
                self.change(move |settings| settings.agent.rules.push(rule.clone()))
            }

            /// Sets what happens to what the agent does where no rule on approvals fits.
            #[must_use]
            pub fn approvals(self, preset: Preset) -> Self {
                self.change(move |settings| settings.agent.preset = preset)
            }

            /// Changes what binds the agent beside the tier: rules, approvals, how long an answer is waited for.
            #[must_use]
            pub fn agent(self, change: impl Fn(&mut AgentSettings) + Send + Sync + 'static) -> Self {
                self.change(move |settings| change(&mut settings.agent))
            }

            /// Changes what holds for code tasks.
            #[must_use]
            pub fn code(self, change: impl Fn(&mut CodeSettings) + Send + Sync + 'static) -> Self {
                self.change(move |settings| change(&mut settings.code))
            }

            /// Makes a directory of the host visible inside. A relative path starts from the working directory.
            #[must_use]
            pub fn mount(self, host: impl Into<PathBuf>, guest: impl Into<String>, writable: bool) -> Self {
                let mount = MountSpec { host: host.into(), guest: guest.into(), writable };
                self.change(move |settings| settings.mounts.push(mount.clone()))
            }

            /// Copies a file or directory of the host in after the start. A relative path starts from the working
            /// directory.
            #[must_use]
            pub fn file(self, host: impl Into<PathBuf>, guest: impl Into<GuestPath>) -> Self {
                let file = CopyIn { host: host.into(), guest: guest.into() };
                self.change(move |settings| settings.files.push(file.clone()))
            }

            /// Sets a key of the backend's own table.
            #[must_use]
            pub fn setting(self, key: impl Into<String>, value: impl Into<Value>) -> Self {
                let (key, value) = (key.into(), value.into());
                self.change(move |settings| {
                    let table = settings.tables.entry(settings.backend.clone()).or_insert_with(|| Value::Object(Default::default()));
                    table[&key] = value.clone();
                })
            }
        }
    )+ };
}

setters!(Overrides, ProfileBuilder);

impl Settings {
    /// Makes host paths absolute that code has given.
    pub(crate) fn settle_host_paths(&mut self, base: &Path, surroundings: &Surroundings) -> Result<()> {
        let hosts = self.mounts.iter_mut().map(|mount| &mut mount.host).chain(self.files.iter_mut().map(|file| &mut file.host));
        for host in hosts {
            *host = hostpath::absolute(&*host, base, surroundings).map_err(|why| bad_path(host, why))?;
        }
        Ok(())
    }
}

fn bad_path(path: &Path, why: &str) -> tierbox_core::Error {
    let message = format!("{} {why}", path.display());
    tierbox_core::Error::new(tierbox_core::ErrorKind::InvalidInput, "read host path", message)
}
