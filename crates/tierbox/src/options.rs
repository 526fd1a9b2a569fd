//! What one start changes of its profile.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tierbox_core::{Audit, CopyIn, GuestPath, Hold, MountSpec, Progress};
use tierbox_profile::Overrides;

/// What one start changes of its profile: the same task with other values per sample.
///
/// These are a layer above the profile. They may tighten it; what would weaken it is refused unless
/// [`allow_weaker`](Self::allow_weaker) is set, and is then listed in the report. Only [`overrides`](Self::overrides) need
/// no permission: code that sets them means them. What they weaken is listed all the same.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct StartOptions {
    /// Settings by their path in the profile, such as `("limits.memory", "512MiB")`. Later ones win.
    pub set: Vec<(String, String)>,
    /// Typed changes, above everything else.
    pub overrides: Overrides,
    /// Variables of every exec, on top of the profile's.
    pub env: BTreeMap<String, String>,
    /// Files and directories that are copied in before anything runs, after the profile's.
    pub files: Vec<CopyIn>,
    /// Host directories that are visible inside, beside the profile's.
    pub mounts: Vec<MountSpec>,
    /// A name for `tierbox ls` and [`attach`](crate::Tierbox::attach), unique among all environments.
    pub name: Option<String>,
    /// Who keeps the environment. [`Hold::Process`] (it ends with the returned [`Running`](crate::Running)) where `None`.
    /// With another hold it is detached: it lives on whatever happens to this process.
    pub hold: Option<Hold>,
    /// Be ready for [`Running::keep`](crate::Running::keep) and [`Running::detach`](crate::Running::detach). Implied by a
    /// `hold` that is not [`Hold::Process`]; off by default, because it costs a listening socket.
    pub keepable: bool,
    /// The life of the environment; the profile's `limits.lifetime` where `None`.
    pub lifetime: Option<Duration>,
    /// Permit what weakens the profile.
    pub allow_weaker: bool,
    /// Permit [`set`](Self::set) to weaken the profile, and nothing else: neither the user's file nor the environment.
    pub weaker_set: bool,
    /// Notes of the caller's own, kept with the lease and shown in [`Listed::labels`](crate::Listed::labels). Never a secret.
    pub labels: BTreeMap<String, String>,
    /// Hears of the steps.
    pub progress: Option<Arc<dyn Progress>>,
    /// Keeps every command, file operation and decision of this environment. Nothing is kept where `None`.
    pub audit: Option<Arc<dyn Audit>>,
    /// Keep an operation log and an attestation in the state directory, for [`Tierbox::run`](crate::Tierbox::run). What
    /// commands print is then written down, redacted. Off by default, and always on where the profile binds its agent by T1,
    /// T2 or approvals, so that every decision is on record.
    pub log: bool,
}

impl StartOptions {
    /// The profile as it is.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets one setting by its path in the profile.
    #[must_use]
    pub fn set(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.set.push((key.into(), value.into()));
        self
    }
    /// Sets a variable of every exec.
    #[must_use]
    pub fn env(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(key.into(), value.into());
        self
    }
    /// Adds typed changes.
    #[must_use]
    pub fn overrides(mut self, changes: Overrides) -> Self {
        self.overrides = self.overrides.and(changes);
        self
    }
    /// Copies a host file or directory in; `guest` is relative to the working directory unless absolute.
    #[must_use]
    pub fn copy_in(mut self, host: impl Into<PathBuf>, guest: impl Into<GuestPath>) -> Self {
        self.files.push(CopyIn { host: host.into(), guest: guest.into() });
        self
    }
    /// Makes a host directory visible inside, read-only.
    #[must_use]
    pub fn mount(mut self, host: impl Into<PathBuf>, guest: impl Into<String>) -> Self {
        self.mounts.push(MountSpec { host: host.into(), guest: guest.into(), writable: false });
        self
    }
    /// Names the environment.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }
    /// Sets who keeps it.
    #[must_use]
    pub fn hold(mut self, hold: Hold) -> Self {
        self.hold = Some(hold);
        self
    }
    /// Makes it ready to be kept or detached later.
    #[must_use]
    pub fn keepable(mut self) -> Self {
        self.keepable = true;
        self
    }
    /// Limits its life.
    #[must_use]
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = Some(lifetime);
        self
    }
    /// Permits what weakens the profile.
    #[must_use]
    pub fn allow_weaker(mut self) -> Self {
        self.allow_weaker = true;
        self
    }
    /// Permits the settings by name to weaken the profile, and nothing else.
    #[must_use]
    pub fn weaker_set(mut self) -> Self {
        self.weaker_set = true;
        self
    }
    /// Notes something with the environment, for [`Tierbox::list`](crate::Tierbox::list). Never a secret.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }
    /// Tells the steps to somebody.
    #[must_use]
    pub fn progress(mut self, progress: Arc<dyn Progress>) -> Self {
        self.progress = Some(progress);
        self
    }
    /// Keeps an operation log and an attestation in the state directory.
    #[must_use]
    pub fn log(mut self) -> Self {
        self.log = true;
        self
    }
    /// Gives every command, file operation and decision to somebody who keeps them.
    #[must_use]
    pub fn audit(mut self, audit: Arc<dyn Audit>) -> Self {
        self.audit = Some(audit);
        self
    }
}

impl fmt::Debug for StartOptions {
    /// Shows the names of variables and settings, and never their values: they may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartOptions")
            .field("set", &self.set.iter().map(|(key, _)| key).collect::<Vec<_>>())
            .field("overrides", &self.overrides)
            .field("env", &self.env.keys().collect::<Vec<_>>())
            .field("files", &self.files)
            .field("mounts", &self.mounts)
            .field("name", &self.name)
            .field("hold", &self.hold)
            .field("keepable", &self.keepable)
            .field("lifetime", &self.lifetime)
            .field("allow_weaker", &self.allow_weaker)
            .field("weaker_set", &self.weaker_set)
            .field("log", &self.log)
            .field("labels", &self.labels)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn debug_shows_no_values() {
        let options = StartOptions::new().env("TOKEN", "s3cret").set("local.token", "s3cret");
        let shown = format!("{options:?}");
        assert!(shown.contains("TOKEN") && shown.contains("local.token") && !shown.contains("s3cret"), "{shown}");
    }
}
