//! What the suites share: factories for the local backend's modes, and for a supervisor behind pipes.
#![allow(dead_code, reason = "every suite uses a part")]

pub mod again;
pub mod browser;
pub mod engines;
pub mod framed;
pub mod joined;
pub mod plain;
pub mod remains;

use std::sync::Arc;

use tierbox::{Backend, EnvironmentSpec, Hold, Registry};
use tierbox_core::CheckStatus;
use tierbox_testkit::{Absence, BackendFactory, Factory};

/// Engines that CI must have.
pub const REQUIRED: &str = include_str!("../engines-required.txt");

/// A profile of this repository, resolved without the layers of whoever runs the tests.
pub fn spec(profile: &str) -> EnvironmentSpec {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../profiles");
    let tierbox = tierbox::Tierbox::builder().profile_dir(path).user_config(false).build().expect("the facade");
    let profile = tierbox.load(profile, &tierbox::StartOptions::new()).expect("a ready profile");
    profile.spec(&Registry::linked(), Hold::Process).expect("a ready profile's specification")
}

/// Environments of a ready profile of the local backend, under an engine's name.
pub fn local(engine: &str, profile: &str) -> Arc<dyn Factory> {
    let backend: Arc<dyn Backend> = Arc::new(tierbox::local::LocalBackend::new());
    Arc::new(BackendFactory::new(engine, backend, spec(profile), None))
}

/// Why containers cannot be started here, asked of the backend itself.
pub fn containers_absent() -> Option<Absence> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let checks = runtime.block_on(tierbox::local::LocalBackend::new().doctor());
    let failed = checks.into_iter().find(|check| check.status == CheckStatus::Fail)?;
    Some(Absence { reason: format!("{}: {}", failed.name, failed.detail), install: failed.remedy })
}

/// Copies a program. Not by this process: a child that another thread forks meanwhile would hold the copy open for writing, and nobody
/// could run it.
pub fn copy_program(from: &std::path::Path, to: &std::path::Path) -> std::io::Result<()> {
    let status = std::process::Command::new("cp").arg(from).arg(to).status()?;
    if status.success() { Ok(()) } else { Err(std::io::Error::other(format!("cp {}: {status}", from.display()))) }
}

/// Writes a skip down, and fails it on CI for an engine that must be there.
pub fn skip(engine: &str, test: &str, absence: &Absence) -> Result<(), String> {
    tierbox_testkit::skipped(engine, test, absence, REQUIRED)
}
