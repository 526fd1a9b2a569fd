//! Backends that exist for their settings only, and directories full of profiles.
#![allow(dead_code, reason = "each test uses its part")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};
use tempfile::TempDir;
use tierbox_core::{
    Backend, Capabilities, Check, DestroyReport, Environment, EnvironmentSpec, Error, ErrorKind, LeaseHandle, LeaseRecord,
    Progress, Registry, Result,
};
use tierbox_profile::{Loader, Surroundings};

/// A backend that can be configured and nothing else.
pub struct Configurable {
    name: &'static str,
    schema: Value,
}

#[async_trait]
impl Backend for Configurable {
    fn name(&self) -> &'static str {
        self.name
    }
    fn settings_schema(&self) -> Value {
        self.schema.clone()
    }
    fn validate(&self, spec: &EnvironmentSpec) -> Result<()> {
        if spec.settings["mode"] == "broken" {
            return Err(Error::new(ErrorKind::InvalidProfile, "check settings", "mode is broken").with_backend(self.name));
        }
        Ok(())
    }
    fn capabilities(&self, _: &EnvironmentSpec) -> Result<Capabilities> {
        Err(Error::unsupported("ask capabilities", "anything"))
    }
    async fn start(&self, _: &EnvironmentSpec, _: Arc<dyn LeaseHandle>, _: &dyn Progress) -> Result<Box<dyn Environment>> {
        Err(Error::unsupported("start environment", "starting"))
    }
    async fn attach(&self, _: &LeaseRecord) -> Result<Box<dyn Environment>> {
        Err(Error::unsupported("attach environment", "attaching"))
    }
    async fn is_alive(&self, _: &LeaseRecord) -> bool {
        false
    }
    async fn destroy(&self, _: &LeaseRecord) -> Result<DestroyReport> {
        Ok(DestroyReport::default())
    }
    async fn doctor(&self) -> Vec<Check> {
        Vec::new()
    }
}

/// `local` and `vm`, whose settings use every annotation.
pub fn registry() -> Registry {
    let mut registry = Registry::empty();
    registry.register(Arc::new(Configurable {
        name: "local",
        schema: json!({
            "type": "object",
            "properties": {
                "mode": { "anyOf": [{ "$ref": "#/$defs/Mode" }, { "type": "null" }] },
                "users": { "type": "string", "enum": ["single", "auto", "range"], "default": "auto", "x-weakest-first": ["single", "auto", "range"] },
                "binds": { "type": "array", "items": { "type": "string", "x-path": true } }
            },
            "additionalProperties": false,
            "$defs": { "Mode": { "type": "string", "enum": ["container", "process", "broken"] } }
        }),
    }));
    registry.register(Arc::new(Configurable {
        name: "vm",
        schema: json!({
            "type": "object",
            "properties": {
                "image": { "type": "string", "x-path": true },
                "recipe": { "type": "string", "x-path": true },
                "stage": { "type": "string" },
                "token": { "type": "string", "x-secret": true },
                "max-startups": { "type": "integer", "minimum": 1, "maximum": 64, "x-tunable": true, "x-variable": "TIERBOX_MAX_VM_STARTUPS" },
                "env": { "type": "object", "additionalProperties": { "type": "string" }, "x-env": true },
                "network": { "type": "object", "properties": { "bridge": { "type": "string" } }, "additionalProperties": false }
            },
            "additionalProperties": false,
            "x-alternatives": [["image"], ["recipe", "stage"]]
        }),
    }));
    registry
}

/// A directory with a home, a place for profiles of one's own, and a working directory.
pub struct World {
    dir: TempDir,
}

impl World {
    pub fn new() -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir_all(world.path("here")).unwrap();
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file below the working directory (`here/`) or elsewhere in this world.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn surroundings(&self) -> Surroundings {
        Surroundings::empty(self.path("here")).with_variable("HOME", self.path("home"))
    }

    pub fn loader(&self) -> Loader {
        self.loader_with(&[])
    }

    pub fn loader_with(&self, variables: &[(&str, &str)]) -> Loader {
        let surroundings =
            variables.iter().fold(self.surroundings(), |surroundings, (name, value)| surroundings.with_variable(*name, *value));
        Loader::new(&registry()).surroundings(surroundings)
    }
}

pub fn fixtures(kind: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(kind);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    paths
}
