//! A machine whose every operation is recorded.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;
use tierbox_core::{
    AuditData, AuditEntry, AuditOperation, AuditOutcome, ByteReader, ByteStream, Capabilities, Completed, DialTarget, DirEntry,
    ExecHandle, ExecId, ExecInfo, ExecRequest, FileMeta, GuestPath, KillReason, Limits, Principal, ReadOptions, Result, Sandbox,
    Signal, Stdin, WriteOptions, audit_text,
};

use super::handle::{AuditedHandle, Orders};
use super::tap::{Passed, ReadTap};
use super::{AuditLayer, Pending};

pub(super) struct Audited {
    inner: Arc<dyn Sandbox>,
    layer: AuditLayer,
    principal: Principal,
}

impl Audited {
    pub(super) fn new(inner: Arc<dyn Sandbox>, layer: AuditLayer, principal: Principal) -> Self {
        Self { inner, layer, principal }
    }

    fn begin(&self, operation: AuditOperation) -> Result<Pending> {
        self.layer.begin(self.inner.name(), self.principal, operation)
    }

    fn begin_path(&self, operation: AuditOperation, path: &GuestPath) -> Result<Pending> {
        let mut pending = self.begin(operation)?;
        pending.change(|entry| entry.argument("path", audit_text(path.as_bytes())));
        Ok(pending)
    }

    fn begin_exec(&self, operation: AuditOperation, id: ExecId) -> Result<Pending> {
        let mut pending = self.begin(operation)?;
        pending.change(|entry| entry.exec(id));
        Ok(pending)
    }

    fn orders(&self) -> Orders {
        Orders { layer: self.layer.clone(), machine: self.inner.name().to_owned(), principal: self.principal }
    }

    /// A handle whose end is an entry of its own, after the entry of its start.
    fn follow(&self, handle: Box<dyn ExecHandle>, mut start: Pending) -> Result<Box<dyn ExecHandle>> {
        let id = handle.id();
        let operation = start.entry.as_ref().map_or(AuditOperation::Exec, |entry| entry.operation.clone());
        start.change(|entry| entry.exec(id));
        let since = start.since;
        start.end(AuditOutcome::Started, Vec::new());
        let entry = self.layer.entry(self.principal, operation).machine(self.inner.name()).exec(id);
        let end = Pending { layer: self.layer.clone(), entry: Some(entry), since };
        Ok(Box::new(AuditedHandle::new(handle, self.orders(), end)))
    }

    /// A reader whose end is the end of the operation.
    fn recorded(&self, pending: Pending, stream: &'static str, keep: usize, inner: ByteReader) -> ByteReader {
        let passed = Passed::new(stream, keep, &self.layer);
        let (seen, mut pending) = (passed.clone(), Some(pending));
        let ended = move |how: Option<io::Result<()>>| {
            let outcome = match how {
                Some(Ok(())) => AuditOutcome::Done,
                Some(Err(error)) => AuditOutcome::failed(&tierbox_core::Error::io("read", error)),
                None => AuditOutcome::Abandoned,
            };
            if let Some(pending) = pending.take() {
                pending.end(outcome, vec![seen.take()]);
            }
        };
        Box::new(ReadTap { inner, passed, ended: Some(ended) })
    }

    /// A source that counts what is read from it.
    fn counted(&self, stream: &'static str, keep: usize, inner: ByteReader) -> (ByteReader, Arc<Passed>) {
        let passed = Passed::new(stream, keep, &self.layer);
        (Box::new(ReadTap { inner, passed: passed.clone(), ended: None::<fn(Option<io::Result<()>>)> }), passed)
    }
}

/// A value as JSON; these have no form that could fail.
pub(super) fn json(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap_or(Value::Null)
}

/// What was asked for: everything but what is the default.
fn describe(mut entry: AuditEntry, request: &ExecRequest) -> AuditEntry {
    entry = entry.argument("argv", request.argv.iter().map(|arg| audit_text(arg)).collect::<Vec<_>>());
    if let Some(cwd) = &request.cwd {
        entry = entry.argument("cwd", audit_text(cwd.as_bytes()));
    }
    if let Some(user) = &request.user {
        entry = entry.argument("user", user.as_str());
    }
    if !request.env.is_empty() {
        let variable = |(name, value): (&Vec<u8>, &Vec<u8>)| (String::from_utf8_lossy(name).into_owned(), audit_text(value));
        entry = entry.argument("env", request.env.iter().map(variable).collect::<serde_json::Map<_, _>>());
    }
    for (name, limit) in [("timeout-ms", request.timeout), ("idle-timeout-ms", request.idle_timeout)] {
        if let Some(limit) = limit {
            entry = entry.argument(name, u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
        }
    }
    for (name, set) in [("env-clear", request.env_clear), ("pty", request.pty.is_some())] {
        if set {
            entry = entry.argument(name, true);
        }
    }
    entry
}

fn input(request: &ExecRequest, layer: &AuditLayer) -> Option<AuditData> {
    let Stdin::Bytes(bytes) = &request.stdin else { return None };
    if bytes.len() <= layer.keep {
        return Some(AuditData::new("stdin", bytes.len() as u64, bytes.clone()));
    }
    let passed = Passed::new("stdin", layer.keep, layer);
    passed.add(bytes);
    passed.end();
    Some(passed.take())
}

#[async_trait]
impl Sandbox for Audited {
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
        let mut pending = self.begin(AuditOperation::Exec)?;
        pending.change(|entry| describe(entry, &request));
        if let Some(entry) = &mut pending.entry {
            entry.data.extend(input(&request, &self.layer));
        }
        match self.inner.spawn(request).await {
            Ok(handle) => self.follow(handle, pending),
            Err(error) => {
                pending.end(AuditOutcome::failed(&error), Vec::new());
                Err(error)
            }
        }
    }

    async fn spawn_detached(&self, request: ExecRequest) -> Result<ExecId> {
        let mut pending = self.begin(AuditOperation::ExecDetached)?;
        pending.change(|entry| describe(entry, &request));
        if let Some(entry) = &mut pending.entry {
            entry.data.extend(input(&request, &self.layer));
        }
        let result = self.inner.spawn_detached(request).await;
        if let Ok(id) = &result {
            pending.change(|entry| entry.exec(*id));
        }
        let outcome = if result.is_ok() { AuditOutcome::Started } else { AuditOutcome::of(&result) };
        pending.end(outcome, Vec::new());
        result
    }

    async fn execs(&self) -> Result<Vec<ExecInfo>> {
        let pending = self.begin(AuditOperation::Execs)?;
        let result = self.inner.execs().await;
        pending.end(AuditOutcome::of(&result), Vec::new());
        result
    }

    async fn attach(&self, id: ExecId, stdout_from: u64, stderr_from: u64) -> Result<Box<dyn ExecHandle>> {
        let mut pending = self.begin_exec(AuditOperation::Attach, id)?;
        pending.change(|entry| entry.argument("stdout-from", stdout_from).argument("stderr-from", stderr_from));
        match self.inner.attach(id, stdout_from, stderr_from).await {
            Ok(handle) => self.follow(handle, pending),
            Err(error) => {
                pending.end(AuditOutcome::failed(&error), Vec::new());
                Err(error)
            }
        }
    }

    async fn signal(&self, id: ExecId, signal: Signal) -> Result<()> {
        let mut pending = self.begin_exec(AuditOperation::Signal, id)?;
        pending.change(|entry| entry.argument("signal", signal.number()));
        let result = self.inner.signal(id, signal).await;
        pending.end(AuditOutcome::of(&result), Vec::new());
        result
    }

    async fn kill(&self, id: ExecId, reason: KillReason) -> Result<()> {
        let mut pending = self.begin_exec(AuditOperation::Kill, id)?;
        pending.change(|entry| entry.argument("reason", json(&reason)));
        let result = self.inner.kill(id, reason).await;
        pending.end(AuditOutcome::of(&result), Vec::new());
        result
    }

    async fn wait(&self, id: ExecId) -> Result<Completed> {
        let pending = self.begin_exec(AuditOperation::Wait, id)?;
        let result = self.inner.wait(id).await;
        let outcome = match &result {
            Ok(completed) => AuditOutcome::Ended { completed: *completed },
            Err(error) => AuditOutcome::failed(error),
        };
        pending.end(outcome, Vec::new());
        result
    }

    async fn read(&self, path: &GuestPath, options: ReadOptions) -> Result<(FileMeta, ByteReader)> {
        let mut pending = self.begin_path(AuditOperation::Read, path)?;
        for (name, value) in [("offset", Some(options.offset).filter(|offset| *offset > 0)), ("length", options.length)] {
            if let Some(value) = value {
                pending.change(|entry| entry.argument(name, value));
            }
        }
        match self.inner.read(path, options).await {
            Ok((meta, reader)) => Ok((meta, self.recorded(pending, "contents", self.layer.keep, reader))),
            Err(error) => {
                pending.end(AuditOutcome::failed(&error), Vec::new());
                Err(error)
            }
        }
    }

    async fn write(&self, path: &GuestPath, contents: ByteReader, options: WriteOptions) -> Result<()> {
        let mut pending = self.begin_path(AuditOperation::Write, path)?;
        if let Some(mode) = options.mode {
            pending.change(|entry| entry.argument("mode", format!("{mode:04o}")));
        }
        let (contents, passed) = self.counted("contents", self.layer.keep, contents);
        let result = self.inner.write(path, contents, options).await;
        pending.end(AuditOutcome::of(&result), vec![passed.take()]);
        result
    }

    async fn stat(&self, path: &GuestPath, follow: bool) -> Result<FileMeta> {
        let pending = self.begin_path(AuditOperation::Stat, path)?;
        let result = self.inner.stat(path, follow).await;
        pending.end(AuditOutcome::of(&result), Vec::new());
        result
    }

    async fn list(&self, path: &GuestPath) -> Result<Vec<DirEntry>> {
        let pending = self.begin_path(AuditOperation::List, path)?;
        let result = self.inner.list(path).await;
        pending.end(AuditOutcome::of(&result), Vec::new());
        result
    }

    async fn remove(&self, path: &GuestPath, recursive: bool) -> Result<()> {
        let mut pending = self.begin_path(AuditOperation::Remove, path)?;
        pending.change(|entry| entry.argument("recursive", recursive));
        let result = self.inner.remove(path, recursive).await;
        pending.end(AuditOutcome::of(&result), Vec::new());
        result
    }

    async fn make_dir(&self, path: &GuestPath) -> Result<()> {
        let pending = self.begin_path(AuditOperation::MakeDir, path)?;
        let result = self.inner.make_dir(path).await;
        pending.end(AuditOutcome::of(&result), Vec::new());
        result
    }

    async fn unpack(&self, path: &GuestPath, tar: ByteReader) -> Result<()> {
        let pending = self.begin_path(AuditOperation::Unpack, path)?;
        let (tar, passed) = self.counted("contents", self.layer.keep, tar);
        let result = self.inner.unpack(path, tar).await;
        pending.end(AuditOutcome::of(&result), vec![passed.take()]);
        result
    }

    async fn pack(&self, path: &GuestPath) -> Result<ByteReader> {
        let pending = self.begin_path(AuditOperation::Pack, path)?;
        match self.inner.pack(path).await {
            Ok(reader) => Ok(self.recorded(pending, "contents", self.layer.keep, reader)),
            Err(error) => {
                pending.end(AuditOutcome::failed(&error), Vec::new());
                Err(error)
            }
        }
    }

    async fn dial(&self, target: DialTarget) -> Result<Box<dyn ByteStream>> {
        let mut pending = self.begin(AuditOperation::Dial)?;
        pending.change(|entry| match &target {
            DialTarget::Tcp(port) => entry.argument("tcp", *port),
            DialTarget::Unix(path) => entry.argument("unix", audit_text(path.as_bytes())),
        });
        let result = self.inner.dial(target).await;
        pending.end(AuditOutcome::of(&result), Vec::new());
        result
    }
}
