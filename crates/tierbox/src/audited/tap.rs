//! Streams that count what passes and keep the first of it.

use std::borrow::Cow;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tierbox_core::{Audit, AuditData, AuditSpill, ByteReader, ByteWriter};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::AuditLayer;

/// What passed through a stream.
pub(super) struct Passed {
    stream: Cow<'static, str>,
    /// The most that is held in memory; nothing at all is kept where it is 0.
    limit: usize,
    audit: Arc<dyn Audit>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    total: u64,
    kept: Vec<u8>,
    /// Where all of it goes once it is too long; what is more is counted if that is nowhere.
    spill: Option<Option<Box<dyn AuditSpill>>>,
    ended: bool,
}

impl Passed {
    pub(super) fn new(stream: &'static str, limit: usize, layer: &AuditLayer) -> Arc<Self> {
        Arc::new(Self { stream: stream.into(), limit, audit: layer.audit.clone(), state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, bytes: &[u8]) {
        let mut state = self.lock();
        let State { total, kept, spill, .. } = &mut *state;
        *total += bytes.len() as u64;
        if self.limit > 0 && spill.is_none() && kept.len() + bytes.len() > self.limit {
            let mut begun = self.audit.spill(&self.stream);
            if let Some(begun) = &mut begun {
                begun.write(&std::mem::take(kept));
            }
            *spill = Some(begun);
        }
        match spill {
            Some(Some(spill)) => spill.write(bytes),
            _ => kept.extend_from_slice(&bytes[..self.limit.saturating_sub(kept.len()).min(bytes.len())]),
        }
    }

    /// Nothing more comes.
    pub(super) fn end(&self) {
        self.lock().ended = true;
    }

    /// Takes what passed so far.
    pub(super) fn take(&self) -> AuditData {
        let State { total, kept, spill, ended } = std::mem::take(&mut *self.lock());
        match spill.flatten() {
            Some(spill) => AuditData::in_file(self.stream.clone(), total, spill.finish(ended)),
            None => AuditData::new(self.stream.clone(), total, kept),
        }
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
            Poll::Ready(Ok(())) if buffer.filled().len() == before && room > 0 => {
                self.passed.end();
                self.end(Some(Ok(())));
            }
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
