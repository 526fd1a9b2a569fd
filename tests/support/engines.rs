//! Engines that a script under `tests/engines` starts, and that tell by variables where they are.

use std::sync::Arc;

use tierbox::{Backend, EnvironmentSpec};
use tierbox_testkit::{Absence, BackendFactory, Factory};

/// A small Debian that the engine's script makes.
pub const DEBIAN: &str = "tierbox-test/debian:1";

/// The engine's address, or why there is none.
pub fn address(engine: &str) -> Result<String, Absence> {
    let variable = format!("TIERBOX_ENGINE_{}", engine.to_uppercase());
    std::env::var(&variable).map_err(|_| Absence {
        reason: format!("{variable} is not set: tests/engines/{engine}.sh was not started"),
        install: format!("cargo xtask test --engine {engine}"),
    })
}

/// A ready profile of the docker backend with an image of the tests', on an engine.
pub fn docker_spec(engine: &str, profile: &str, image: &str) -> EnvironmentSpec {
    let mut spec = super::spec(profile);
    let host = address(engine).unwrap_or_default();
    let settings = spec.settings.as_object_mut().expect("a profile's settings are a table");
    settings.insert("image".to_owned(), image.into());
    settings.insert("pull".to_owned(), "never".into());
    if !host.is_empty() {
        settings.insert("host".to_owned(), host.into());
    }
    spec
}

/// Environments of a ready profile of the docker backend.
pub fn docker(engine: &str, profile: &str) -> Arc<dyn Factory> {
    Arc::new(docker_of(engine, docker_spec(engine, profile, DEBIAN)))
}

/// The same without the supervisor inside.
pub fn docker_plain(engine: &str, profile: &str) -> Arc<dyn Factory> {
    let mut spec = docker_spec(engine, profile, DEBIAN);
    spec.settings["transport"] = "plain".into();
    // Every script is a process of the engine's, some 60 ms each.
    Arc::new(docker_of(engine, spec).patient(std::time::Duration::from_secs(45)))
}

fn docker_of(engine: &str, spec: EnvironmentSpec) -> BackendFactory {
    let backend: Arc<dyn Backend> = Arc::new(tierbox::docker::DockerBackend::new());
    BackendFactory::new(engine, backend, spec, address(engine).err())
}
