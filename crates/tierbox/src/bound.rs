//! A command of the agent's, which ends with its run.

use async_trait::async_trait;
use tierbox_core::{ByteReader, ByteWriter, Completed, ExecHandle, ExecId, KillReason, PtySize, Result, Signal};

use crate::termination::Termination;

/// A command that a termination of the run kills.
pub(crate) struct Bound {
    pub inner: Box<dyn ExecHandle>,
    pub termination: Termination,
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.termination.let_go(self.inner.id());
    }
}

#[async_trait]
impl ExecHandle for Bound {
    fn id(&self) -> ExecId {
        self.inner.id()
    }
    fn take_stdin(&mut self) -> Option<ByteWriter> {
        self.inner.take_stdin()
    }
    fn take_stdout(&mut self) -> Option<ByteReader> {
        self.inner.take_stdout()
    }
    fn take_stderr(&mut self) -> Option<ByteReader> {
        self.inner.take_stderr()
    }
    async fn signal(&self, signal: Signal) -> Result<()> {
        self.inner.signal(signal).await
    }
    async fn resize(&self, size: PtySize) -> Result<()> {
        self.inner.resize(size).await
    }
    fn kill(&self, reason: KillReason) {
        self.inner.kill(reason);
    }
    async fn wait(&mut self) -> Result<Completed> {
        self.inner.wait().await
    }
}
