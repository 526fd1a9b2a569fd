//! The backend `local`: processes (H0) and containers (H1) on this machine.
//!
//! It plans and configures; the mechanics are in `tierbox-supervisor`, which makes the namespaces and becomes the first
//! process of a container, and the sandbox is the one of `tierbox-guest`. See [`Settings`] for what a profile's `[local]`
//! table takes.
//!
//! Which users exist in a container depends on who asks: root maps a range of 65536 ids of the host, above 0x70000000 and
//! different for each container; a plain user maps his own range from `/etc/subuid` through newuidmap, or only himself.
//!
//! On other systems than Linux the backend is there and refuses every start.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod settings;

#[cfg(target_os = "linux")]
mod backend;
#[cfg(target_os = "linux")]
mod crash;
#[cfg(target_os = "linux")]
mod destroy;
#[cfg(target_os = "linux")]
mod doctor;
#[cfg(target_os = "linux")]
mod environment;
#[cfg(target_os = "linux")]
mod identity;
#[cfg(target_os = "linux")]
mod launcher;
#[cfg(target_os = "linux")]
mod machine;
#[cfg(target_os = "linux")]
mod mounts;
#[cfg(target_os = "linux")]
mod plan;
#[cfg(target_os = "linux")]
mod reaper;
#[cfg(target_os = "linux")]
mod refusal;
#[cfg(target_os = "linux")]
mod scope;
#[cfg(target_os = "linux")]
mod selfcheck;
#[cfg(target_os = "linux")]
mod spawn;
#[cfg(target_os = "linux")]
mod twin;

#[cfg(not(target_os = "linux"))]
mod elsewhere;

#[cfg(target_os = "linux")]
pub use backend::LocalBackend;
#[cfg(not(target_os = "linux"))]
pub use elsewhere::LocalBackend;
#[cfg(target_os = "linux")]
pub use launcher::{LAUNCHER, PROFILE, PlannedFile, install_launcher, write_launcher};
#[cfg(target_os = "linux")]
pub use selfcheck::SelfCheck;
pub use settings::{BindSetting, Mode, MovedBind, NetworkHelper, Settings, Users};

/// The backend's name.
pub const BACKEND: &str = "local";

tierbox_core::register_backend!(|| std::sync::Arc::new(LocalBackend::new()));
