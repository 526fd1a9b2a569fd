//! The backend where it cannot work.

use std::sync::Arc;

use async_trait::async_trait;
use tierbox_core::{
    Backend, Capabilities, Check, CheckStatus, DestroyReport, Environment, EnvironmentSpec, Error, ErrorKind, LeaseHandle,
    LeaseRecord, Progress, Result,
};

use crate::{BACKEND, Settings};

const NEEDS: &str = "local needs Linux: use docker or vagrant";

/// The backend `local`, which needs Linux.
#[derive(Debug, Clone, Copy, Default)]
pub struct LocalBackend;

impl LocalBackend {
    /// The backend.
    pub fn new() -> Self {
        Self
    }
}

fn refuse<T>(operation: &'static str) -> Result<T> {
    Err(Error::new(ErrorKind::HostUnable, operation, NEEDS).with_backend(BACKEND))
}

#[async_trait]
impl Backend for LocalBackend {
    fn name(&self) -> &'static str {
        BACKEND
    }

    fn settings_schema(&self) -> serde_json::Value {
        Settings::schema()
    }

    fn validate(&self, _spec: &EnvironmentSpec) -> Result<()> {
        refuse("check profile")
    }

    fn capabilities(&self, _spec: &EnvironmentSpec) -> Result<Capabilities> {
        refuse("check profile")
    }

    async fn start(
        &self,
        _spec: &EnvironmentSpec,
        _lease: Arc<dyn LeaseHandle>,
        _progress: &dyn Progress,
    ) -> Result<Box<dyn Environment>> {
        refuse("start sandbox")
    }

    async fn attach(&self, _lease: &LeaseRecord) -> Result<Box<dyn Environment>> {
        refuse("attach")
    }

    async fn is_alive(&self, _lease: &LeaseRecord) -> bool {
        false
    }

    async fn destroy(&self, _lease: &LeaseRecord) -> Result<DestroyReport> {
        refuse("destroy sandbox")
    }

    async fn doctor(&self) -> Vec<Check> {
        vec![Check {
            name: "Linux".to_owned(),
            status: CheckStatus::Fail,
            detail: NEEDS.to_owned(),
            remedy: "use the docker or vagrant backend".to_owned(),
        }]
    }
}
