//! A machine whose line is replaced when the machine is put back to a snapshot: handles on it stay valid.

use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use tierbox_core::{
    ByteReader, ByteStream, Capabilities, Completed, DialTarget, DirEntry, ExecHandle, ExecId, ExecInfo, ExecRequest, FileMeta,
    GuestPath, KillReason, Limits, ReadOptions, Result, Sandbox, Signal, WriteOptions,
};

use crate::way::Way;

/// The machine.
pub struct Swap {
    first: Arc<dyn Sandbox>,
    now: RwLock<Way>,
}

impl Swap {
    /// A machine with its first line.
    pub fn new(first: Way) -> Self {
        Self { first: first.sandbox(), now: RwLock::new(first) }
    }

    /// The line of the moment.
    pub fn way(&self) -> Way {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn now(&self) -> Arc<dyn Sandbox> {
        self.way().sandbox()
    }

    /// Goes on with another line.
    pub fn replace(&self, next: Way) {
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = next;
    }
}

#[async_trait]
impl Sandbox for Swap {
    fn name(&self) -> &str {
        self.first.name()
    }

    fn capabilities(&self) -> &Capabilities {
        self.first.capabilities()
    }

    fn limits(&self) -> &Limits {
        self.first.limits()
    }

    async fn spawn(&self, request: ExecRequest) -> Result<Box<dyn ExecHandle>> {
        self.now().spawn(request).await
    }

    async fn spawn_detached(&self, request: ExecRequest) -> Result<ExecId> {
        self.now().spawn_detached(request).await
    }

    async fn execs(&self) -> Result<Vec<ExecInfo>> {
        self.now().execs().await
    }

    async fn attach(&self, id: ExecId, stdout_from: u64, stderr_from: u64) -> Result<Box<dyn ExecHandle>> {
        self.now().attach(id, stdout_from, stderr_from).await
    }

    async fn signal(&self, id: ExecId, signal: Signal) -> Result<()> {
        self.now().signal(id, signal).await
    }

    async fn kill(&self, id: ExecId, reason: KillReason) -> Result<()> {
        self.now().kill(id, reason).await
    }

    async fn wait(&self, id: ExecId) -> Result<Completed> {
        self.now().wait(id).await
    }

    async fn read(&self, path: &GuestPath, options: ReadOptions) -> Result<(FileMeta, ByteReader)> {
        self.now().read(path, options).await
    }

    async fn write(&self, path: &GuestPath, contents: ByteReader, options: WriteOptions) -> Result<()> {
        self.now().write(path, contents, options).await
    }

    async fn stat(&self, path: &GuestPath, follow: bool) -> Result<FileMeta> {
        self.now().stat(path, follow).await
    }

    async fn list(&self, path: &GuestPath) -> Result<Vec<DirEntry>> {
        self.now().list(path).await
    }

    async fn remove(&self, path: &GuestPath, recursive: bool) -> Result<()> {
        self.now().remove(path, recursive).await
    }

    async fn make_dir(&self, path: &GuestPath) -> Result<()> {
        self.now().make_dir(path).await
    }

    async fn unpack(&self, path: &GuestPath, tar: ByteReader) -> Result<()> {
        self.now().unpack(path, tar).await
    }

    async fn pack(&self, path: &GuestPath) -> Result<ByteReader> {
        self.now().pack(path).await
    }

    async fn dial(&self, target: DialTarget) -> Result<Box<dyn ByteStream>> {
        self.now().dial(target).await
    }
}
