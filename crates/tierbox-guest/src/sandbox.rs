//! A sandbox over a channel.

use std::future::poll_fn;
use std::task::Poll;

use async_trait::async_trait;
use tierbox_core::{
    ByteReader, ByteStream, Capabilities, Completed, DialTarget, DirEntry, Error, ExecHandle, ExecId, ExecInfo, ExecRequest,
    ExecState, FileMeta, GuestPath, KillReason, Limits, ReadOptions, Result, Sandbox, Signal, Stdin, UserSupport, WriteOptions,
};
use tierbox_supervisor::protocol::{self, FromSupervisor, ToSupervisor};

use crate::channel::Channel;
use crate::exec::{self, Ending, NewExec};
use crate::operation::{self, Operation, Running};
use crate::{dial, files};

/// What a backend says of its machine.
#[derive(Debug, Clone)]
pub struct GuestConfig {
    /// The machine's name within its environment.
    pub name: String,
    /// The backend's name, for errors.
    pub backend: &'static str,
    /// What the machine can do. What is not declared is refused before anything is sent.
    pub capabilities: Capabilities,
    /// Its limits; `exec` and `output` are defaults of commands.
    pub limits: Limits,
    /// The name of the user that commands run as unless told otherwise. Naming that user is always allowed.
    pub agent: String,
}

/// A machine behind a [`Channel`].
#[derive(Debug)]
pub struct GuestSandbox {
    channel: Channel,
    config: GuestConfig,
    agent_id: Option<u32>,
}

impl GuestSandbox {
    /// A sandbox over a channel on which [`Channel::hello`] was said.
    pub fn new(channel: Channel, config: GuestConfig) -> Self {
        Self { channel, config, agent_id: None }
    }

    /// Says the number of the default user, so that it can be named by its number too.
    #[must_use]
    pub fn with_agent_id(self, uid: u32) -> Self {
        Self { agent_id: Some(uid), ..self }
    }

    fn is_agent(&self, user: &str) -> bool {
        user == self.config.agent || self.agent_id.is_some_and(|uid| user == uid.to_string())
    }

    /// The channel to its supervisor.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    fn require(&self, declared: bool, operation: &'static str, what: &str) -> Result<()> {
        if declared { Ok(()) } else { Err(Error::unsupported(operation, what)) }
    }

    fn check_exec(&self, request: &ExecRequest) -> Result<()> {
        request.validate()?;
        let can = &self.config.capabilities;
        let streams = matches!(request.stdin, Stdin::Stream);
        self.require(can.streaming_stdin || !streams, "exec", "writing to stdin while a command runs")?;
        self.require(can.pty || request.pty.is_none(), "exec", "a pseudo-terminal")?;
        self.require(can.idle_timeout || request.idle_timeout.is_none(), "exec", "a limit on silence")?;
        self.require(can.confined_exec || request.confine.is_none(), "exec", "keeping a command to named executables")?;
        let other = request.user.as_ref().is_some_and(|user| !self.is_agent(user));
        self.require(can.users == UserSupport::Any || !other, "exec", "running a command as another user")
    }

    async fn launch(&self, mut request: ExecRequest, detached: bool) -> Result<exec::Handle> {
        // The machine need not know its default user by name.
        request.user = request.user.filter(|user| !self.is_agent(user));
        let timeout = request.time_limit(self.config.limits.exec);
        exec::launch(&self.channel, NewExec { request, timeout, detached }).await
    }

    async fn follow(&self, id: ExecId, stdout_from: u64, stderr_from: u64) -> Result<exec::Handle> {
        self.channel.shared().room().await;
        let (handle, pong) = exec::attach(&self.channel, id, stdout_from, stderr_from)?;
        self.channel.shared().heard(pong, "attach").await?;
        let refused = poll_fn(|cx| match handle.call.poll_ending(cx.waker()) {
            Poll::Ready(Ending::Refused(failed)) => Poll::Ready(Some(failed)),
            _ => Poll::Ready(None),
        });
        match refused.await {
            Some(failed) => Err(failed.error("attach", &format!("exec {id}"))),
            None => Ok(handle),
        }
    }

    fn files(&self, operation: &'static str, path: &GuestPath) -> Result<()> {
        self.require(self.config.capabilities.files, operation, "access to files")?;
        path.validate()
    }

    fn archives(&self, operation: &'static str, path: &GuestPath) -> Result<()> {
        self.require(self.config.capabilities.archives, operation, "moving directories")?;
        path.validate()
    }
}

/// Names the backend in an error.
trait Named<T> {
    fn named(self, backend: &'static str) -> Result<T>;
}

impl<T> Named<T> for Result<T> {
    fn named(self, backend: &'static str) -> Self {
        self.map_err(|error| error.with_backend(backend))
    }
}

#[async_trait]
impl Sandbox for GuestSandbox {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn capabilities(&self) -> &Capabilities {
        &self.config.capabilities
    }

    fn limits(&self) -> &Limits {
        &self.config.limits
    }

    async fn spawn(&self, request: ExecRequest) -> Result<Box<dyn ExecHandle>> {
        let launched = match self.check_exec(&request) {
            Ok(()) => self.launch(request, false).await,
            Err(refused) => Err(refused),
        };
        launched.map(|handle| Box::new(handle) as Box<dyn ExecHandle>).named(self.config.backend)
    }

    async fn spawn_detached(&self, request: ExecRequest) -> Result<ExecId> {
        let launched = async {
            self.require(self.config.capabilities.detached_exec, "exec", "a detached command")?;
            self.check_exec(&request)?;
            let handle = self.launch(request, true).await?;
            handle.started().await?;
            let id = handle.call.id;
            handle.leave();
            Ok(id)
        };
        launched.await.named(self.config.backend)
    }

    async fn execs(&self) -> Result<Vec<ExecInfo>> {
        self.require(self.config.capabilities.detached_exec, "list commands", "listing commands").named(self.config.backend)?;
        list_execs(&self.channel).await.named(self.config.backend)
    }

    async fn attach(&self, id: ExecId, stdout_from: u64, stderr_from: u64) -> Result<Box<dyn ExecHandle>> {
        self.require(self.config.capabilities.detached_exec, "attach", "following a command").named(self.config.backend)?;
        let followed = self.follow(id, stdout_from, stderr_from).await.named(self.config.backend)?;
        Ok(Box::new(followed))
    }

    async fn signal(&self, id: ExecId, signal: Signal) -> Result<()> {
        self.require(self.config.capabilities.signals, "signal", "sending signals").named(self.config.backend)?;
        operation::signal(&self.channel, id, signal).await.named(self.config.backend)
    }

    async fn kill(&self, id: ExecId, reason: KillReason) -> Result<()> {
        operation::kill(&self.channel, id, reason).await.named(self.config.backend)
    }

    async fn wait(&self, id: ExecId) -> Result<Completed> {
        operation::wait(&self.channel, id).await.named(self.config.backend)
    }

    async fn read(&self, path: &GuestPath, options: ReadOptions) -> Result<(FileMeta, ByteReader)> {
        self.files("read", path).named(self.config.backend)?;
        files::read(&self.channel, path, options).await.named(self.config.backend)
    }

    async fn write(&self, path: &GuestPath, contents: ByteReader, options: WriteOptions) -> Result<()> {
        self.files("write", path).named(self.config.backend)?;
        files::write(&self.channel, path, contents, options).await.named(self.config.backend)
    }

    async fn stat(&self, path: &GuestPath, follow: bool) -> Result<FileMeta> {
        self.files("stat", path).named(self.config.backend)?;
        files::stat(&self.channel, path, follow).await.named(self.config.backend)
    }

    async fn list(&self, path: &GuestPath) -> Result<Vec<DirEntry>> {
        self.files("list", path).named(self.config.backend)?;
        files::list(&self.channel, path).await.named(self.config.backend)
    }

    async fn remove(&self, path: &GuestPath, recursive: bool) -> Result<()> {
        self.files("remove", path).named(self.config.backend)?;
        files::remove(&self.channel, path, recursive).await.named(self.config.backend)
    }

    async fn make_dir(&self, path: &GuestPath) -> Result<()> {
        self.files("make directory", path).named(self.config.backend)?;
        files::make_dir(&self.channel, path).await.named(self.config.backend)
    }

    async fn unpack(&self, path: &GuestPath, tar: ByteReader) -> Result<()> {
        self.archives("unpack", path).named(self.config.backend)?;
        files::unpack(&self.channel, path, tar).await.named(self.config.backend)
    }

    async fn pack(&self, path: &GuestPath) -> Result<ByteReader> {
        self.archives("pack", path).named(self.config.backend)?;
        files::pack(&self.channel, path).await.named(self.config.backend)
    }

    async fn dial(&self, target: DialTarget) -> Result<Box<dyn ByteStream>> {
        self.require(self.config.capabilities.dial, "dial", "a stream into the machine").named(self.config.backend)?;
        if let DialTarget::Unix(path) = &target {
            path.validate().named(self.config.backend)?;
        }
        dial::dial(&self.channel, target).await.named(self.config.backend)
    }
}

async fn list_execs(channel: &Channel) -> Result<Vec<ExecInfo>> {
    let message = ToSupervisor::ListExecs;
    let running = Running::start(channel, Operation::plain(), &message, "list commands", "machine".to_owned()).await?;
    let FromSupervisor::Execs { execs } = running.answer().await? else { return Err(running.unexpected()) };
    if execs.len() > 1024 {
        return Err(running.unexpected());
    }
    execs.into_iter().map(|info| exec_info(info).map_err(|_| running.unexpected())).collect()
}

fn exec_info(wire: protocol::ExecInfo) -> Result<ExecInfo, &'static str> {
    let state = match &wire.done {
        Some(done) => ExecState::Ended(exec::completed(done)?),
        None => ExecState::Running,
    };
    Ok(ExecInfo {
        id: ExecId(wire.id),
        argv: wire.argv.into_iter().map(|argument| argument.0).collect(),
        pid: wire.pid,
        detached: wire.detached,
        age: std::time::Duration::from_millis(wire.age_ms),
        state,
    })
}
