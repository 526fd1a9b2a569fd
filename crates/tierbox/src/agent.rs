//! The handle that the agent's tools get.

use std::sync::Arc;

use tierbox_code::{CodeOutcome, CodeRunner, CodeStatus, CodeTask, SessionInfo, TaskCleanup, TaskFile, TaskFiles};
use tierbox_core::{
    AgentPolicy, Approver, ByteReader, Capabilities, Confinement, DirEntry, Error, ErrorKind, ExecHandle, ExecId, ExecRequest,
    ExecResult, FileMeta, GuestPath, KillReason, Limits, ReadOptions, Result, Sandbox, SandboxExt, Sensitive, Tooling,
};
use tokio::sync::OnceCell;
use tracing::Span;

use crate::around::Around;
use crate::asked::{Asked, shown};
use crate::confinement;
use crate::gate::{Gate, over};

/// A machine as the agent may use it: everything is checked against the tooling axis of the tier and the profile's approvals.
///
/// - T0 allows what the profile grants. T1 allows the named programs with the arguments that their rules list, and reading
///   files; the machine's kernel holds the programs to that as well. T2 allows nothing.
/// - Sensitive actions (commands, code, writes) then need the consent that `[tools.approvals]` asks for.
/// - Every decision is in the operation log.
/// - A decision that terminates the run ends what the agent runs, too.
///
/// The harness itself is not bound: it uses [`Running::sandbox`](crate::Running::sandbox).
#[derive(Clone)]
pub struct AgentSandbox {
    sandbox: Arc<dyn Sandbox>,
    /// The same machine, as what ends the agent's commands uses it.
    ender: Arc<dyn Sandbox>,
    policy: Arc<AgentPolicy>,
    gate: Arc<Gate>,
    code: Option<CodeRunner>,
    executables: Arc<OnceCell<Vec<GuestPath>>>,
}

impl AgentSandbox {
    pub(crate) fn new(
        sandbox: Arc<dyn Sandbox>,
        ender: Arc<dyn Sandbox>,
        policy: AgentPolicy,
        gate: Gate,
        code: Option<CodeRunner>,
    ) -> Self {
        Self { sandbox, ender, policy: Arc::new(policy), gate: Arc::new(gate), code, executables: Arc::default() }
    }

    /// Sees to it that T1 can be kept in this machine: finds the named programs and has the kernel refuse one. Without this
    /// call the first command does so.
    ///
    /// # Errors
    /// `TierRefused` where the kernel cannot be shown to keep T1; `PolicyDenied` for a named program that is a shell by
    /// another name.
    pub async fn ready(&self) -> Result<()> {
        if self.tooling() == Tooling::T1 {
            self.executables().await?;
        }
        Ok(())
    }

    /// Runs a command to its end and collects what it prints.
    ///
    /// # Errors
    /// `PolicyDenied` before any side effect; else as [`SandboxExt::run`].
    pub async fn run(&self, request: ExecRequest) -> Result<ExecResult> {
        let request = self.admit(request).await?;
        self.while_alive(self.sandbox.run(request)).await
    }

    /// What the machine can do, as [`Sandbox::capabilities`].
    pub fn capabilities(&self) -> &Capabilities {
        self.sandbox.capabilities()
    }

    /// The machine's limits, as [`Sandbox::limits`].
    pub fn limits(&self) -> &Limits {
        self.sandbox.limits()
    }

    /// Launches a command.
    ///
    /// # Errors
    /// `PolicyDenied` before any side effect; else as [`Sandbox::spawn`].
    pub async fn spawn(&self, request: ExecRequest) -> Result<Box<dyn ExecHandle>> {
        let request = self.admit(request).await?;
        let inner = self.sandbox.spawn(request).await?;
        let bond = self.gate.termination.bind(inner.id(), self.ender.clone());
        let bound = Around::new(inner, Span::none(), bond);
        // What came too late to be ended with the others is dropped, which kills it.
        self.gate.check_alive()?;
        Ok(Box::new(bound))
    }

    /// Launches a command that outlives this client.
    ///
    /// # Errors
    /// `PolicyDenied` before any side effect; else as [`Sandbox::spawn_detached`].
    pub async fn spawn_detached(&self, request: ExecRequest) -> Result<ExecId> {
        let request = self.admit(request).await?;
        let id = self.sandbox.spawn_detached(request).await?;
        let termination = &self.gate.termination;
        termination.hold(id, self.ender.clone());
        if let Err(over) = self.gate.check_alive() {
            self.ender.kill(id, KillReason::Cancelled).await?;
            return Err(over);
        }
        termination.forget_ended(&self.ender).await;
        Ok(id)
    }

    /// Runs a piece of code. Allowed at T0 only.
    ///
    /// # Errors
    /// `PolicyDenied` before any side effect; else as [`CodeRunner::run_code`].
    pub async fn run_code(&self, task: &CodeTask) -> Result<CodeOutcome> {
        self.require(Tooling::T0, Sensitive::Code, "run code")?;
        self.gate.pass(self.sandbox.name(), Asked::code(task)).await?;
        self.while_alive(self.code()?.run_code(task)).await
    }

    /// The files of a task. Allowed at T0 and T1.
    ///
    /// # Errors
    /// `PolicyDenied`; else as [`CodeRunner::get_files`].
    pub async fn get_files(&self, task_hash: &str, name: Option<&[u8]>, max: u64) -> Result<Vec<TaskFile>> {
        self.require_look("read files")?;
        self.code()?.get_files(task_hash, name, max).await
    }

    /// The names and sizes of a task's files. Allowed at T0 and T1.
    ///
    /// # Errors
    /// `PolicyDenied`; else as [`CodeRunner::list_files`].
    pub async fn list_task_files(&self, task_hash: &str) -> Result<TaskFiles> {
        self.require_look("read files")?;
        self.code()?.list_files(task_hash).await
    }

    /// Removes old tasks. Allowed at T0 only.
    ///
    /// # Errors
    /// `PolicyDenied`; else as [`CodeRunner::cleanup_tasks`].
    pub async fn cleanup_tasks(&self, older_than: Option<std::time::Duration>) -> Result<TaskCleanup> {
        self.require(Tooling::T0, Sensitive::Write, "remove tasks")?;
        let what = older_than.map_or("expired tasks".to_owned(), |age| format!("tasks older than {} s", age.as_secs()));
        self.gate.pass(self.sandbox.name(), Asked::cleanup(what)).await?;
        self.code()?.cleanup_tasks(older_than).await
    }

    /// The sessions. Allowed at T0 and T1.
    ///
    /// # Errors
    /// `PolicyDenied`; else as [`CodeRunner::sessions`].
    pub async fn sessions(&self) -> Result<Vec<SessionInfo>> {
        self.require_look("list sessions")?;
        self.code()?.sessions().await
    }

    /// How code tasks stand. Allowed at T0 and T1.
    ///
    /// # Errors
    /// `PolicyDenied`; else as [`CodeRunner::status`].
    pub async fn code_status(&self) -> Result<CodeStatus> {
        self.require_look("ask for the status of tasks")?;
        self.code()?.status().await
    }

    /// Reads a whole file of at most `max` bytes. Allowed at T0 and T1.
    ///
    /// # Errors
    /// `PolicyDenied`; else as [`SandboxExt::read_bytes`].
    pub async fn read_bytes(&self, path: impl Into<GuestPath> + Send, max: u64) -> Result<Vec<u8>> {
        self.require_look("read files")?;
        self.sandbox.read_bytes(path, max).await
    }

    /// Reads a file of at most `max` bytes as a stream. Allowed at T0 and T1.
    ///
    /// # Errors
    /// `PolicyDenied`; else as [`Sandbox::read`].
    pub async fn read(&self, path: &GuestPath, max: u64) -> Result<ByteReader> {
        self.require_look("read files")?;
        let (_, reader) = self.sandbox.read(path, ReadOptions { max: Some(max), ..ReadOptions::default() }).await?;
        Ok(reader)
    }

    /// The entries of a directory. Allowed at T0 and T1.
    ///
    /// # Errors
    /// `PolicyDenied`; else as [`Sandbox::list`].
    pub async fn list(&self, path: &GuestPath) -> Result<Vec<DirEntry>> {
        self.require_look("list directories")?;
        self.sandbox.list(path).await
    }

    /// Facts about a path. Allowed at T0 and T1.
    ///
    /// # Errors
    /// `PolicyDenied`; else as [`Sandbox::stat`].
    pub async fn stat(&self, path: &GuestPath, follow: bool) -> Result<FileMeta> {
        self.require_look("look at files")?;
        self.sandbox.stat(path, follow).await
    }

    /// Writes a whole file. Allowed at T0 only: a file that the agent wrote would be a side effect.
    ///
    /// # Errors
    /// `PolicyDenied`; else as [`SandboxExt::write_bytes`].
    pub async fn write_bytes(&self, path: impl Into<GuestPath> + Send, contents: Vec<u8>) -> Result<()> {
        let path = path.into();
        self.change("write", &path, Some(&contents), "write files").await?;
        self.sandbox.write_bytes(path, contents).await
    }

    /// Removes a file, link or empty directory, or with `recursive` a whole tree. Allowed at T0 only.
    ///
    /// # Errors
    /// `PolicyDenied`; else as [`Sandbox::remove`].
    pub async fn remove(&self, path: &GuestPath, recursive: bool) -> Result<()> {
        self.change(if recursive { "remove all of" } else { "remove" }, path, None, "remove files").await?;
        self.sandbox.remove(path, recursive).await
    }

    /// Makes a directory and its parents. Allowed at T0 only.
    ///
    /// # Errors
    /// `PolicyDenied`; else as [`Sandbox::make_dir`].
    pub async fn make_dir(&self, path: &GuestPath) -> Result<()> {
        self.change("make directory", path, None, "make directories").await?;
        self.sandbox.make_dir(path).await
    }

    /// The machine behind it.
    #[cfg(target_os = "linux")]
    pub(crate) fn machine(&self) -> Arc<dyn Sandbox> {
        self.sandbox.clone()
    }

    /// Tries what a tooling level promises that the agent cannot do, each beside a handle of T0: the probes by which verification
    /// shows the tooling axis, for whoever binds an agent more than the profile does. What this handle allows by mistake is done, to
    /// no effect: programs, files and runtimes that are nowhere.
    ///
    /// Approvals may refuse or end what the tier allows: they are not looked at apart here.
    #[cfg(target_os = "linux")]
    pub async fn verify(&self, promised: Tooling) -> Vec<tierbox_verify::ProbeResult> {
        crate::tooling::of_handle(self, promised).await
    }

    /// What the agent may do.
    pub fn tooling(&self) -> Tooling {
        self.policy.tooling()
    }

    /// The programs and rules of T1.
    pub fn policy(&self) -> &AgentPolicy {
        &self.policy
    }

    /// Whether a decision ended what the agent may do. The harness should end the run.
    pub fn is_terminated(&self) -> bool {
        self.gate.termination.is_set()
    }

    /// Whether some action of this kind could get consent: not if every rule and the preset refuse it, or ask where nobody can
    /// be asked.
    pub fn may(&self, tool: Sensitive) -> bool {
        self.gate.may(tool)
    }

    /// Checks a command against the tooling axis, without running it and without asking anybody.
    ///
    /// # Errors
    /// `PolicyDenied`, naming the rule.
    pub fn check(&self, request: &ExecRequest) -> Result<()> {
        self.policy.check(request)
    }

    /// Checks a command, has it approved, and makes it what T1 lets run.
    async fn admit(&self, mut request: ExecRequest) -> Result<ExecRequest> {
        // First of all, so that nobody is asked about, and no log holds, what can never run.
        request.validate()?;
        let machine = self.sandbox.name();
        if let Err(refused) = self.policy.check(&request) {
            return self.gate.refused(machine, Sensitive::Exec, || shown(&request.argv), refused);
        }
        if self.tooling() == Tooling::T1 {
            let (executables, children) = (self.executables().await?.clone(), self.policy.allows_children(&request));
            request.confine = Some(Confinement { executables, children });
        }
        self.gate.pass(machine, Asked::exec(&request)).await?;
        Ok(request)
    }

    /// Does something for the agent unless its run is terminated meanwhile: the work is then dropped, which kills its command.
    async fn while_alive<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.gate.termination.happened() => Err(over()),
            done = work => done,
        }
    }

    async fn executables(&self) -> Result<&Vec<GuestPath>> {
        self.executables.get_or_try_init(|| confinement::executables(self.sandbox.as_ref(), &self.policy)).await
    }

    async fn change(&self, verb: &str, path: &GuestPath, contents: Option<&[u8]>, what: &str) -> Result<()> {
        path.validate()?;
        self.require(Tooling::T0, Sensitive::Write, what)?;
        self.gate.pass(self.sandbox.name(), Asked::change(verb, path, contents)).await
    }

    fn code(&self) -> Result<&CodeRunner> {
        self.code.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::InvalidProfile, "run code", "the profile's [code] table makes no sense to this version")
        })
    }

    /// Looking needs no consent, but a living run.
    fn require_look(&self, what: &str) -> Result<()> {
        self.gate.check_alive()?;
        self.bound(Tooling::T1, what)
    }

    fn require(&self, at_most: Tooling, tool: Sensitive, what: &str) -> Result<()> {
        match self.bound(at_most, what) {
            Ok(()) => Ok(()),
            Err(refused) => self.gate.refused(self.sandbox.name(), tool, || what.to_owned(), refused),
        }
    }

    fn bound(&self, at_most: Tooling, what: &str) -> Result<()> {
        if self.tooling() <= at_most {
            return Ok(());
        }
        let message = format!("{} ({}) does not let the agent {what}", self.tooling(), self.tooling().meaning());
        Err(Error::new(ErrorKind::PolicyDenied, "act as agent", message))
    }
}

/// How an agent is bound beyond what its profile says.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct AgentOptions {
    /// Who is asked where approval is needed; without one, such actions are refused.
    pub approver: Option<Arc<dyn Approver>>,
    /// The machine; the primary one where `None`.
    pub machine: Option<String>,
    /// What binds this agent instead of the profile's tier and programs: something stricter.
    pub policy: Option<AgentPolicy>,
}

impl AgentOptions {
    /// The profile's policy on the primary machine, and nobody to ask.
    pub fn new() -> Self {
        Self::default()
    }

    /// Names who is asked.
    #[must_use]
    pub fn approver(mut self, approver: Arc<dyn Approver>) -> Self {
        self.approver = Some(approver);
        self
    }

    /// Binds this agent more than the profile does: a T0 profile's by T1 with programs and rules, any profile's by T2.
    #[must_use]
    pub fn policy(mut self, policy: AgentPolicy) -> Self {
        self.policy = Some(policy);
        self
    }

    /// Chooses the machine.
    #[must_use]
    pub fn machine(mut self, name: impl Into<String>) -> Self {
        self.machine = Some(name.into());
        self
    }
}

impl std::fmt::Debug for AgentOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let approver = self.approver.as_ref().map(|approver| approver.name());
        f.debug_struct("AgentOptions")
            .field("approver", &approver)
            .field("machine", &self.machine)
            .field("policy", &self.policy)
            .finish()
    }
}
