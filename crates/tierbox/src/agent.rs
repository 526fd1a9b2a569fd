//! The handle that the agent's tools get.

use std::sync::Arc;

use tierbox_core::{
    AgentPolicy, DirEntry, Error, ErrorKind, ExecHandle, ExecId, ExecRequest, ExecResult, FileMeta, GuestPath, Result, Sandbox,
    SandboxExt, Tooling,
};

/// A machine as the agent may use it: every command is checked against the tooling axis of the tier first.
///
/// T0 allows everything; T1 the programs that the profile names, and reading files; T2 nothing. The harness itself is not
/// bound: it uses [`Running::sandbox`](crate::Running::sandbox).
#[derive(Clone)]
pub struct AgentSandbox {
    sandbox: Arc<dyn Sandbox>,
    tooling: Tooling,
    policy: AgentPolicy,
}

impl AgentSandbox {
    pub(crate) fn new(sandbox: Arc<dyn Sandbox>, tooling: Tooling, programs: Vec<String>) -> Self {
        Self { sandbox, tooling, policy: AgentPolicy::new(tooling, programs) }
    }

    /// Runs a command to its end and collects what it prints.
    ///
    /// # Errors
    /// `PolicyDenied` before any side effect; else as [`SandboxExt::run`].
    pub async fn run(&self, request: ExecRequest) -> Result<ExecResult> {
        self.policy.check(&request)?;
        self.sandbox.run(request).await
    }

    /// Launches a command.
    ///
    /// # Errors
    /// `PolicyDenied` before any side effect; else as [`Sandbox::spawn`].
    pub async fn spawn(&self, request: ExecRequest) -> Result<Box<dyn ExecHandle>> {
        self.policy.check(&request)?;
        self.sandbox.spawn(request).await
    }

    /// Launches a command that outlives this client.
    ///
    /// # Errors
    /// `PolicyDenied` before any side effect; else as [`Sandbox::spawn_detached`].
    pub async fn spawn_detached(&self, request: ExecRequest) -> Result<ExecId> {
        self.policy.check(&request)?;
        self.sandbox.spawn_detached(request).await
    }

    /// Reads a whole file of at most `max` bytes. Allowed at T0 and T1.
    ///
    /// # Errors
    /// `PolicyDenied`; else as [`SandboxExt::read_bytes`].
    pub async fn read_bytes(&self, path: impl Into<GuestPath> + Send, max: u64) -> Result<Vec<u8>> {
        self.require(Tooling::T1, "read files")?;
        self.sandbox.read_bytes(path, max).await
    }

    /// The entries of a directory. Allowed at T0 and T1.
    ///
    /// # Errors
    /// `PolicyDenied`; else as [`Sandbox::list`].
    pub async fn list(&self, path: &GuestPath) -> Result<Vec<DirEntry>> {
        self.require(Tooling::T1, "list directories")?;
        self.sandbox.list(path).await
    }

    /// Facts about a path. Allowed at T0 and T1.
    ///
    /// # Errors
    /// `PolicyDenied`; else as [`Sandbox::stat`].
    pub async fn stat(&self, path: &GuestPath, follow: bool) -> Result<FileMeta> {
        self.require(Tooling::T1, "look at files")?;
        self.sandbox.stat(path, follow).await
    }

    /// Writes a whole file. Allowed at T0 only: a file that the agent wrote would be a side effect.
    ///
    /// # Errors
    /// `PolicyDenied`; else as [`SandboxExt::write_bytes`].
    pub async fn write_bytes(&self, path: impl Into<GuestPath> + Send, contents: Vec<u8>) -> Result<()> {
        self.require(Tooling::T0, "write files")?;
        self.sandbox.write_bytes(path, contents).await
    }

    /// What the agent may do.
    pub fn tooling(&self) -> Tooling {
        self.tooling
    }

    /// Checks a command without running it.
    ///
    /// # Errors
    /// `PolicyDenied`, naming the rule.
    pub fn check(&self, request: &ExecRequest) -> Result<()> {
        self.policy.check(request)
    }

    fn require(&self, at_most: Tooling, what: &str) -> Result<()> {
        if self.tooling <= at_most {
            return Ok(());
        }
        let message = format!("{} ({}) does not let the agent {what}", self.tooling, self.tooling.meaning());
        Err(Error::new(ErrorKind::PolicyDenied, "act as agent", message))
    }
}
