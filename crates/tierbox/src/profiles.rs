//! From a profile to a specification.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tierbox_core::{EnvironmentSpec, Error, ErrorKind, Hold, Registry, Result};
use tierbox_profile::{Loader, Overrides, Profile, ProfileBuilder, Surroundings};

use crate::StartOptions;

/// What to start.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ProfileSource {
    /// A profile by its name; a text with a `/` or ending in `.toml` is the path of its file.
    Name(String),
    /// A profile that was loaded or built before. Neither the user's file nor variables are laid over it.
    Ready(Box<Profile>),
    /// A profile in code, which is checked when it is used.
    Builder(Box<ProfileBuilder>),
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
impl From<Profile> for ProfileSource {
    fn from(profile: Profile) -> Self {
        Self::Ready(Box::new(profile))
    }
}
impl From<&Profile> for ProfileSource {
    fn from(profile: &Profile) -> Self {
        Self::Ready(Box::new(profile.clone()))
    }
}
impl From<ProfileBuilder> for ProfileSource {
    fn from(builder: ProfileBuilder) -> Self {
        Self::Builder(Box::new(builder))
    }
}

/// Where profiles come from.
#[derive(Debug, Clone)]
pub(crate) struct Profiles {
    pub directories: Vec<PathBuf>,
    pub user_config: bool,
    /// Made once: the schema takes longer than all the rest of reading a profile.
    loader: OnceLock<Loader>,
}

impl Default for Profiles {
    fn default() -> Self {
        Self { directories: Vec::new(), user_config: true, loader: OnceLock::new() }
    }
}

impl Profiles {
    /// A loader with these directories, and the user's layers where they are wanted.
    pub fn loader(&self, registry: &Registry) -> Result<Loader> {
        let loader = self.loader.get_or_init(|| Loader::new(registry)).clone();
        if self.user_config && self.directories.is_empty() {
            return Ok(loader.surroundings(Surroundings::of_process()));
        }
        let mut surroundings = if self.user_config { Surroundings::of_process() } else { without_user() };
        let stated = std::env::var_os("TIERBOX_PROFILES").filter(|_| self.user_config);
        let own = self.directories.iter().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()));
        let all = own.chain(stated.iter().flat_map(|list| std::env::split_paths(list).collect::<Vec<_>>()));
        let joined = std::env::join_paths(all).map_err(|error| {
            Error::new(ErrorKind::InvalidInput, "use profile directories", error.to_string())
                .with_help("a directory of profiles cannot have a colon in its path")
        })?;
        if !joined.is_empty() {
            surroundings = surroundings.with_variable("TIERBOX_PROFILES", joined);
        }
        Ok(loader.surroundings(surroundings))
    }

    /// The profile with all that the options change.
    pub fn load(&self, registry: &Registry, source: ProfileSource, options: &StartOptions) -> Result<Profile> {
        let profile = match source {
            ProfileSource::Name(name) => {
                let mut loader = self.loader(registry)?.allow_weaker(options.allow_weaker).weaker_set(options.weaker_set);
                for (key, value) in &options.set {
                    loader = loader.set(&format!("{key}={value}"))?;
                }
                loader.load(&name)?
            }
            ProfileSource::Ready(profile) => refuse_set(*profile, options)?,
            ProfileSource::Builder(builder) => refuse_set(builder.build(registry)?, options)?,
        };
        let profile = apply(&profile, options)?;
        if options.overrides.is_empty() { Ok(profile) } else { profile.with(&options.overrides) }
    }

    pub fn resolve(&self, registry: &Registry, source: ProfileSource, options: &StartOptions) -> Result<EnvironmentSpec> {
        let hold = match options.hold {
            // A backend that is told of a hold gets ready to be found again.
            None | Some(Hold::Process) if options.keepable => Hold::Kept,
            stated => stated.unwrap_or(Hold::Process),
        };
        self.load(registry, source, options)?.spec(registry, hold)
    }
}

/// The variables of this process that secrets may refer to, and nothing that chooses a user's configuration.
fn without_user() -> Surroundings {
    let directory = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let chooses = |name: &OsString| {
        let name = name.to_string_lossy();
        name == "HOME" || name == "XDG_CONFIG_HOME" || name.starts_with("TIERBOX_")
    };
    let variables = std::env::vars_os().filter(|(name, _)| !chooses(name));
    variables.fold(Surroundings::empty(directory), |all, (name, value)| all.with_variable(name, value))
}

fn refuse_set(profile: Profile, options: &StartOptions) -> Result<Profile> {
    match options.set.first() {
        None => Ok(profile),
        Some((key, _)) => Err(Error::new(
            ErrorKind::InvalidInput,
            "start environment",
            format!("{key} cannot be set by name on a profile that was loaded or built before"),
        )
        .with_help("use StartOptions::overrides, which are typed")),
    }
}

/// Lays the options' own fields over the profile. What they weaken needs permission, as on the command line; files and
/// read-only mounts do not, since asking for them is the permission.
fn apply(profile: &Profile, options: &StartOptions) -> Result<Profile> {
    let changes = overrides(options);
    if changes.is_empty() {
        return Ok(profile.clone());
    }
    let writable = options.mounts.iter().find(|mount| mount.writable);
    if let Some(mount) = writable.filter(|_| !profile.allows_writable_mounts() && !options.allow_weaker) {
        let message = format!("{} would be writable, which the profile does not allow", mount.host.display());
        return Err(Error::new(ErrorKind::WeakerRefused, "mount directory", message)
            .with_help("mount it read-only, set `writable-mounts = true` in the profile, or allow weaker settings"));
    }
    let changed = profile.with(&changes)?;
    let is_asked_for = |key: &str| matches!(key, "files" | "mounts");
    let new = changed.weakened().get(profile.weakened().len()..).unwrap_or_default();
    match new.iter().find(|weakening| !is_asked_for(&weakening.key)) {
        Some(weakening) if !options.allow_weaker => {
            let message = format!("{} would weaken the profile", weakening.key);
            Err(Error::new(ErrorKind::WeakerRefused, "start environment", message)
                .with_context("from", &weakening.from)
                .with_context("to", &weakening.to)
                .with_help("allow weaker settings (--allow-weaker) to do so, or change the profile"))
        }
        _ => Ok(changed),
    }
}

fn overrides(options: &StartOptions) -> Overrides {
    let mut changes = Overrides::new();
    for (key, value) in &options.env {
        // Variables of one start may be secrets, whatever they are called.
        changes = changes.secret_env(key, tierbox_profile::Secret::new(value));
    }
    for mount in &options.mounts {
        changes = changes.mount(&mount.host, &mount.guest, mount.writable);
    }
    for file in &options.files {
        changes = changes.file(&file.host, file.guest.clone());
    }
    if let Some(lifetime) = options.lifetime {
        changes = changes.limits(move |limits| limits.lifetime = Some(lifetime));
    }
    changes
}

/// A profile's path as its name: one that no name could be.
impl From<&Path> for ProfileSource {
    fn from(path: &Path) -> Self {
        let text = path.to_string_lossy();
        Self::Name(if text.contains('/') { text.into_owned() } else { format!("./{text}") })
    }
}
impl From<PathBuf> for ProfileSource {
    fn from(path: PathBuf) -> Self {
        path.as_path().into()
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    fn profiles() -> Profiles {
        Profiles { user_config: false, ..Profiles::default() }
    }

    fn load(options: StartOptions) -> Result<Profile> {
        profiles().load(&Registry::linked(), "local".into(), &options)
    }

    #[test]
    fn options_lie_over_the_profile() {
        let options =
            StartOptions::new().env("TOKEN", "s3cret").set("limits.pids", "50").lifetime(std::time::Duration::from_secs(9));
        let profile = load(options).unwrap();
        assert_eq!(profile.limits().pids.unwrap().max, 50);
        assert_eq!(profile.limits().lifetime.unwrap().as_secs(), 9);
        let shown = format!("{:?}", profile.values());
        assert!(shown.contains("TOKEN") && !shown.contains("s3cret"), "{shown}");
    }

    #[test]
    fn writable_mounts_need_permission_and_read_only_ones_do_not() {
        let outer = tempfile::tempdir().unwrap();
        load(StartOptions::new().mount(outer.path(), "/mnt/x")).unwrap();
        let mut writable = StartOptions::new().mount(outer.path(), "/mnt/x");
        writable.mounts[0].writable = true;
        assert_eq!(load(writable.clone()).unwrap_err().kind(), ErrorKind::WeakerRefused);
        let profile = load(writable.allow_weaker()).unwrap();
        assert!(!profile.weakened().is_empty());
    }

    #[test]
    fn what_weakens_is_refused_by_name() {
        let error = load(StartOptions::new().set("tier", "T0.H1.N0")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WeakerRefused, "{error}");
        let built = Profile::builder("x", "T0.H1.N2".parse().unwrap())
            .limits(|limits| limits.lifetime = Some(std::time::Duration::from_secs(5)));
        let longer = StartOptions::new().lifetime(std::time::Duration::from_secs(6));
        let registry = Registry::linked();
        let error = profiles().load(&registry, built.clone().into(), &longer).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WeakerRefused, "{error}");
        let profile = profiles().load(&registry, built.into(), &longer.allow_weaker()).unwrap();
        assert_eq!(profile.limits().lifetime.unwrap().as_secs(), 6);
    }

    #[test]
    fn a_built_profile_takes_no_settings_by_name() {
        let built = Profile::builder("x", "T0.H1.N2".parse().unwrap());
        let error =
            profiles().load(&Registry::linked(), built.into(), &StartOptions::new().set("limits.exec", "1s")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}
