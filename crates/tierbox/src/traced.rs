//! Spans: every operation in a machine is one, with its backend, its environment and, for a command, its exec id.
//!
//! The target is `tierbox::sandbox` and the level `info`; without a subscriber that wants them they cost next to nothing.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use tierbox_core::{
    ByteReader, ByteStream, Capabilities, Completed, DialTarget, DirEntry, Error, ErrorKind, ExecHandle, ExecId, ExecInfo,
    ExecRequest, FileMeta, GuestPath, KillReason, Limits, ReadOptions, Result, Sandbox, Signal, WriteOptions,
};
use tracing::field::{Empty, display};
use tracing::{Instrument, Span, info_span};

use crate::around::Around;

/// A machine whose operations are spans.
pub(crate) struct Traced {
    inner: Arc<dyn Sandbox>,
    backend: String,
    environment: String,
    /// When its lifetime is over.
    expires: Option<SystemTime>,
}

impl Traced {
    pub fn new(inner: Arc<dyn Sandbox>, backend: &str, environment: &str, expires: Option<SystemTime>) -> Self {
        Self { inner, backend: backend.to_owned(), environment: environment.to_owned(), expires }
    }

    /// What is lost because its time is over is told so.
    fn told<T>(&self, result: Result<T>) -> Result<T> {
        let over = self.expires.is_some_and(|end| end <= SystemTime::now());
        result.map_err(|error| match error.kind() {
            ErrorKind::Lost if over => {
                let message = format!("the lifetime of the sandbox is over: {}", error.message());
                Error::new(ErrorKind::Expired, error.operation().to_owned(), message)
                    .with_backend(self.backend.clone())
                    .with_help("start another, with a longer limits.lifetime (`--lifetime`)")
            }
            _ => error,
        })
    }

    fn span(&self, operation: &'static str) -> Span {
        let (backend, environment, machine) = (&*self.backend, &*self.environment, self.inner.name());
        info_span!(target: "tierbox::sandbox", "sandbox", operation, backend, environment, machine, exec = Empty, outcome = Empty)
    }

    fn of(&self, operation: &'static str, id: ExecId) -> Span {
        let span = self.span(operation);
        span.record("exec", display(id));
        span
    }

    fn handle(&self, span: Span, inner: Box<dyn ExecHandle>) -> Box<dyn ExecHandle> {
        if span.is_disabled() {
            return inner;
        }
        span.record("exec", display(inner.id()));
        Box::new(Around::new(inner, span, ()))
    }
}

#[async_trait]
impl Sandbox for Traced {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }
    fn limits(&self) -> &Limits {
        self.inner.limits()
    }
    async fn spawn(&self, request: ExecRequest) -> Result<Box<dyn ExecHandle>> {
        let span = self.span("exec");
        let handle = self.told(self.inner.spawn(request).instrument(span.clone()).await)?;
        Ok(self.handle(span, handle))
    }
    async fn spawn_detached(&self, request: ExecRequest) -> Result<ExecId> {
        let span = self.span("exec detached");
        let id = self.told(self.inner.spawn_detached(request).instrument(span.clone()).await)?;
        span.record("exec", display(id));
        Ok(id)
    }
    async fn execs(&self) -> Result<Vec<ExecInfo>> {
        self.told(self.inner.execs().instrument(self.span("execs")).await)
    }
    async fn attach(&self, id: ExecId, stdout_from: u64, stderr_from: u64) -> Result<Box<dyn ExecHandle>> {
        let span = self.of("attach", id);
        let handle = self.told(self.inner.attach(id, stdout_from, stderr_from).instrument(span.clone()).await)?;
        Ok(self.handle(span, handle))
    }
    async fn signal(&self, id: ExecId, signal: Signal) -> Result<()> {
        self.told(self.inner.signal(id, signal).instrument(self.of("signal", id)).await)
    }
    async fn kill(&self, id: ExecId, reason: KillReason) -> Result<()> {
        self.told(self.inner.kill(id, reason).instrument(self.of("kill", id)).await)
    }
    async fn wait(&self, id: ExecId) -> Result<Completed> {
        let span = self.of("wait", id);
        let completed = self.told(self.inner.wait(id).instrument(span.clone()).await)?;
        span.record("outcome", display(completed.outcome));
        Ok(completed)
    }
    async fn read(&self, path: &GuestPath, options: ReadOptions) -> Result<(FileMeta, ByteReader)> {
        self.told(self.inner.read(path, options).instrument(self.span("read")).await)
    }
    async fn write(&self, path: &GuestPath, contents: ByteReader, options: WriteOptions) -> Result<()> {
        self.told(self.inner.write(path, contents, options).instrument(self.span("write")).await)
    }
    async fn stat(&self, path: &GuestPath, follow: bool) -> Result<FileMeta> {
        self.told(self.inner.stat(path, follow).instrument(self.span("stat")).await)
    }
    async fn list(&self, path: &GuestPath) -> Result<Vec<DirEntry>> {
        self.told(self.inner.list(path).instrument(self.span("list")).await)
    }
    async fn remove(&self, path: &GuestPath, recursive: bool) -> Result<()> {
        self.told(self.inner.remove(path, recursive).instrument(self.span("remove")).await)
    }
    async fn make_dir(&self, path: &GuestPath) -> Result<()> {
        self.told(self.inner.make_dir(path).instrument(self.span("make-dir")).await)
    }
    async fn unpack(&self, path: &GuestPath, tar: ByteReader) -> Result<()> {
        self.told(self.inner.unpack(path, tar).instrument(self.span("unpack")).await)
    }
    async fn pack(&self, path: &GuestPath) -> Result<ByteReader> {
        self.told(self.inner.pack(path).instrument(self.span("pack")).await)
    }
    async fn dial(&self, target: DialTarget) -> Result<Box<dyn ByteStream>> {
        self.told(self.inner.dial(target).instrument(self.span("dial")).await)
    }
}
