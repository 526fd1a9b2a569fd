//! As whom commands run: as the agent, whom the tier binds, or as the harness.

use std::sync::Arc;

use tierbox::{AgentOptions, AgentSandbox, ExecHandle, ExecId, ExecRequest, OnExceed, OutputLimit, Result, Running, Sandbox};

use crate::approve;

/// One of the two principals, in one machine.
pub(crate) enum Actor {
    Agent(AgentSandbox),
    Harness(Arc<dyn Sandbox>),
}

impl Actor {
    /// The agent, unless the person at the command line acts as the harness. That is logged.
    ///
    /// # Errors
    /// As [`Running::for_agent`].
    pub async fn in_primary(running: &Running, as_harness: bool) -> Result<Self> {
        if as_harness {
            tracing::info!(target: "tierbox::op", id = running.id(), "acting as the harness: the tooling tier does not bind");
            Ok(Self::Harness(running.sandbox()))
        } else {
            let options = AgentOptions::new().approver(approve::terminal());
            Ok(Self::Agent(running.for_agent(options).await?))
        }
    }

    /// Whether a command here takes input while it runs.
    pub fn streams_stdin(&self) -> bool {
        match self {
            Self::Agent(agent) => agent.capabilities().streaming_stdin,
            Self::Harness(sandbox) => sandbox.capabilities().streaming_stdin,
        }
    }

    pub async fn spawn(&self, request: ExecRequest) -> Result<Box<dyn ExecHandle>> {
        match self {
            Self::Agent(agent) => agent.spawn(request).await,
            Self::Harness(sandbox) => sandbox.spawn(request).await,
        }
    }

    /// How much of each stream is kept of a command that states nothing.
    pub fn output_limit(&self) -> OutputLimit {
        let limits = match self {
            Self::Agent(agent) => agent.limits(),
            Self::Harness(sandbox) => sandbox.limits(),
        };
        OutputLimit { bytes: limits.output, on_exceed: OnExceed::Truncate }
    }

    pub async fn spawn_detached(&self, request: ExecRequest) -> Result<ExecId> {
        match self {
            Self::Agent(agent) => agent.spawn_detached(request).await,
            Self::Harness(sandbox) => sandbox.spawn_detached(request).await,
        }
    }
}
