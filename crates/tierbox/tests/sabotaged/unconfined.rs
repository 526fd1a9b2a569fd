//! A machine that takes the list of programs that a command may execute, and does nothing with it.

use std::sync::Arc;

use tierbox::{
    ByteReader, ByteStream, Capabilities, Completed, DialTarget, DirEntry, ExecHandle, ExecId, ExecInfo, ExecRequest, FileMeta,
    GuestPath, KillReason, Limits, ReadOptions, Result, Sandbox, Signal, WriteOptions,
};

pub struct Unconfined(pub Arc<dyn Sandbox>);

#[async_trait::async_trait]
impl Sandbox for Unconfined {
    fn name(&self) -> &str {
        self.0.name()
    }
    fn capabilities(&self) -> &Capabilities {
        self.0.capabilities()
    }
    fn limits(&self) -> &Limits {
        self.0.limits()
    }
    async fn spawn(&self, mut request: ExecRequest) -> Result<Box<dyn ExecHandle>> {
        request.confine = None;
        self.0.spawn(request).await
    }
    async fn spawn_detached(&self, mut request: ExecRequest) -> Result<ExecId> {
        request.confine = None;
        self.0.spawn_detached(request).await
    }
    async fn execs(&self) -> Result<Vec<ExecInfo>> {
        self.0.execs().await
    }
    async fn attach(&self, id: ExecId, stdout_from: u64, stderr_from: u64) -> Result<Box<dyn ExecHandle>> {
        self.0.attach(id, stdout_from, stderr_from).await
    }
    async fn signal(&self, id: ExecId, signal: Signal) -> Result<()> {
        self.0.signal(id, signal).await
    }
    async fn kill(&self, id: ExecId, reason: KillReason) -> Result<()> {
        self.0.kill(id, reason).await
    }
    async fn wait(&self, id: ExecId) -> Result<Completed> {
        self.0.wait(id).await
    }
    async fn read(&self, path: &GuestPath, options: ReadOptions) -> Result<(FileMeta, ByteReader)> {
        self.0.read(path, options).await
    }
    async fn write(&self, path: &GuestPath, contents: ByteReader, options: WriteOptions) -> Result<()> {
        self.0.write(path, contents, options).await
    }
    async fn stat(&self, path: &GuestPath, follow: bool) -> Result<FileMeta> {
        self.0.stat(path, follow).await
    }
    async fn list(&self, path: &GuestPath) -> Result<Vec<DirEntry>> {
        self.0.list(path).await
    }
    async fn remove(&self, path: &GuestPath, recursive: bool) -> Result<()> {
        self.0.remove(path, recursive).await
    }
    async fn make_dir(&self, path: &GuestPath) -> Result<()> {
        self.0.make_dir(path).await
    }
    async fn unpack(&self, path: &GuestPath, tar: ByteReader) -> Result<()> {
        self.0.unpack(path, tar).await
    }
    async fn pack(&self, path: &GuestPath) -> Result<ByteReader> {
        self.0.pack(path).await
    }
    async fn dial(&self, target: DialTarget) -> Result<Box<dyn ByteStream>> {
        self.0.dial(target).await
    }
}
