//! What is around a command's handle: a span of its operations, and what lasts as long as it.

use async_trait::async_trait;
use tierbox_core::{ByteReader, ByteWriter, Completed, ExecHandle, ExecId, KillReason, PtySize, Result, Signal};
use tracing::field::display;
use tracing::{Instrument, Span};

/// A handle whose operations are in a span, and something that ends with it.
pub(crate) struct Around<T> {
    /// Ends before the command is let go of.
    _lasting: T,
    inner: Box<dyn ExecHandle>,
    span: Span,
}

impl<T> Around<T> {
    pub fn new(inner: Box<dyn ExecHandle>, span: Span, lasting: T) -> Self {
        Self { _lasting: lasting, inner, span }
    }
}

#[async_trait]
impl<T: Send + Sync> ExecHandle for Around<T> {
    fn id(&self) -> ExecId {
        self.inner.id()
    }
    fn retained(&self) -> Option<[u64; 2]> {
        self.inner.retained()
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
        self.inner.signal(signal).instrument(self.span.clone()).await
    }
    async fn resize(&self, size: PtySize) -> Result<()> {
        self.inner.resize(size).await
    }
    fn kill(&self, reason: KillReason) {
        self.inner.kill(reason);
    }
    async fn wait(&mut self) -> Result<Completed> {
        let completed = self.inner.wait().instrument(self.span.clone()).await?;
        self.span.record("outcome", display(completed.outcome));
        Ok(completed)
    }
}
