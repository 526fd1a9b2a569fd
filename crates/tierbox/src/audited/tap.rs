//! Streams that count what passes and keep the first of it.

use std::borrow::Cow;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tierbox_core::{AuditData, ByteReader, ByteWriter};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What passed through a stream.
#[derive(Debug)]
pub(super) struct Passed {
    stream: Cow<'static, str>,
    limit: usize,
    state: Mutex<(u64, Vec<u8>)>,
}

impl Passed {
    pub(super) fn new(stream: &'static str, limit: usize) -> Arc<Self> {
        Arc::new(Self { stream: stream.into(), limit, state: Mutex::default() })
    }

    fn add(&self, bytes: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 += bytes.len() as u64;
        let room = self.limit.saturating_sub(state.1.len()).min(bytes.len());
        state.1.extend_from_slice(&bytes[..room]);
    }

    /// Takes what passed so far.
    pub(super) fn take(&self) -> AuditData {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (total, kept) = std::mem::take(&mut *state);
        AuditData::new(self.stream.clone(), total, kept)
    }
}

/// A reader that tells what it read, and once how it ended: by its end or an error (`true`), or by being dropped.
pub(super) struct ReadTap<F: FnMut(Option<io::Result<()>>) + Send + Sync + Unpin> {
    pub(super) inner: ByteReader,
    pub(super) passed: Arc<Passed>,
    pub(super) ended: Option<F>,
}

impl<F: FnMut(Option<io::Result<()>>) + Send + Sync + Unpin> ReadTap<F> {
    fn end(&mut self, how: Option<io::Result<()>>) {
        if let Some(mut ended) = self.ended.take() {
            ended(how);
        }
    }
}

impl<F: FnMut(Option<io::Result<()>>) + Send + Sync + Unpin> AsyncRead for ReadTap<F> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let room = buffer.remaining();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buffer);
        match &polled {
            Poll::Pending => (),
            Poll::Ready(Ok(())) if buffer.filled().len() == before && room > 0 => self.end(Some(Ok(()))),
            Poll::Ready(Ok(())) => self.passed.add(&buffer.filled()[before..]),
            Poll::Ready(Err(error)) => {
                let error = io::Error::new(error.kind(), error.to_string());
                self.end(Some(Err(error)));
            }
        }
        polled
    }
}

impl<F: FnMut(Option<io::Result<()>>) + Send + Sync + Unpin> Drop for ReadTap<F> {
    fn drop(&mut self) {
        self.end(None);
    }
}

/// A writer that tells what was written.
pub(super) struct WriteTap {
    pub(super) inner: ByteWriter,
    pub(super) passed: Arc<Passed>,
}

impl AsyncWrite for WriteTap {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, bytes);
        if let Poll::Ready(Ok(count)) = &polled {
            self.passed.add(&bytes[..*count]);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
