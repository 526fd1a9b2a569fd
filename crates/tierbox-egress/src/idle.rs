//! A connection that is cut when nothing moves on it, either way, for too long.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};

/// When something last moved.
#[derive(Debug, Clone)]
pub(crate) struct Pulse(Arc<Mutex<Instant>>, Instant);

impl Pulse {
    fn touch(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Whether anything has moved at all.
    pub(crate) fn is_felt(&self) -> bool {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) > self.1
    }

    /// Returns when nothing has moved for `patience`.
    pub(crate) async fn stopped(&self, patience: Duration) {
        loop {
            let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner) + patience;
            if Instant::now() >= until {
                return;
            }
            sleep_until(until).await;
        }
    }
}

/// A stream that keeps its pulse.
#[derive(Debug)]
pub(crate) struct Felt<C> {
    inner: C,
    pulse: Pulse,
}

impl<C> Felt<C> {
    /// The stream, and what tells when it stands still.
    pub(crate) fn new(inner: C) -> (Self, Pulse) {
        let now = Instant::now();
        let pulse = Pulse(Arc::new(Mutex::new(now)), now);
        (Self { inner, pulse: pulse.clone() }, pulse)
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Felt<C> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = std::task::ready!(Pin::new(&mut self.inner).poll_read(cx, buffer));
        self.pulse.touch();
        Poll::Ready(read)
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Felt<C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = std::task::ready!(Pin::new(&mut self.inner).poll_write(cx, bytes));
        self.pulse.touch();
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod unit {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn a_stream_stops_when_nothing_moves() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let patience = Duration::from_millis(300);
            let (near, mut far) = tokio::io::duplex(64);
            let (mut felt, pulse) = Felt::new(near);
            let start = Instant::now();
            let moves = async {
                for _ in 0..4 {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    far.write_all(b"x").await.unwrap();
                    felt.read_u8().await.unwrap();
                }
            };
            tokio::join!(moves, pulse.stopped(patience));
            assert!(start.elapsed() >= Duration::from_millis(700), "it stopped after {:?}", start.elapsed());
        });
    }
}
