//! Framed streams: a buffer that the other side may fill as far as it was granted, and input that waits for credit.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use tierbox_supervisor::protocol::{CHUNK, ToSupervisor, WINDOW};
use tierbox_supervisor::wire::Blob;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::channel::Channel;
use crate::errors::{Fault, lock, wake};

/// Consumed bytes are granted again in pieces of at least this size.
const GRANT: u32 = WINDOW / 4;

/// Data from the machine, at most a window of it.
pub(crate) struct Inflow {
    operation: &'static str,
    state: Mutex<InState>,
}

struct InState {
    buffer: VecDeque<u8>,
    /// Bytes that the other side may still send.
    window: u32,
    /// Bytes that were consumed and not granted again.
    owed: u32,
    /// Position after the last byte received.
    position: u64,
    /// Positions may jump forward: bytes that the other side no longer holds.
    gaps: bool,
    end: Option<Result<(), Fault>>,
    discard: bool,
    waker: Option<Waker>,
}

impl Inflow {
    /// A stream that starts at `position`.
    pub(crate) fn new(operation: &'static str, position: u64, gaps: bool) -> Arc<Self> {
        let state =
            InState { buffer: VecDeque::new(), window: WINDOW, owed: 0, position, gaps, end: None, discard: false, waker: None };
        Arc::new(Self { operation, state: Mutex::new(state) })
    }

    /// Takes in what arrived. Returns what may be granted at once.
    pub(crate) fn push(&self, offset: u64, data: &[u8]) -> Result<Option<u32>, &'static str> {
        let mut state = lock(&self.state);
        if data.len() > CHUNK {
            return Err("a piece of output is longer than allowed");
        }
        let length = data.len() as u32;
        if length > state.window {
            return Err("output exceeds its window");
        }
        let fits = if state.gaps { offset >= state.position } else { offset == state.position };
        if !fits || state.end.is_some() {
            return Err("output is not where it belongs in its stream");
        }
        state.window -= length;
        state.position = offset.checked_add(u64::from(length)).ok_or("output is beyond the end of numbers")?;
        if state.discard {
            return Ok(state.consumed(length));
        }
        state.buffer.extend(data);
        let waker = state.waker.take();
        drop(state);
        wake([waker]);
        Ok(None)
    }

    /// Nothing more comes. The first end stands.
    pub(crate) fn end(&self, end: Result<(), Fault>) {
        let mut state = lock(&self.state);
        state.end.get_or_insert(end);
        let waker = state.waker.take();
        drop(state);
        wake([waker]);
    }

    /// Throws away what is there and what comes. Returns what may be granted.
    pub(crate) fn discard(&self) -> Option<u32> {
        let mut state = lock(&self.state);
        state.discard = true;
        let dropped = state.buffer.len() as u32;
        state.buffer = VecDeque::new();
        state.consumed(dropped)
    }

    /// Reads what is there. The second value may be granted.
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> (Poll<io::Result<()>>, Option<u32>) {
        let mut state = lock(&self.state);
        if state.buffer.is_empty() {
            return match &state.end {
                Some(Ok(())) => (Poll::Ready(Ok(())), None),
                Some(Err(fault)) => (Poll::Ready(Err(fault.io_error(self.operation, "stream"))), None),
                None => {
                    state.waker = Some(cx.waker().clone());
                    (Poll::Pending, None)
                }
            };
        }
        let mut taken = 0;
        let (front, back) = state.buffer.as_slices();
        for part in [front, back] {
            let count = part.len().min(buf.remaining());
            buf.put_slice(&part[..count]);
            taken += count;
        }
        state.buffer.drain(..taken);
        let grant = state.consumed(taken as u32);
        (Poll::Ready(Ok(())), grant)
    }
}

impl InState {
    fn consumed(&mut self, bytes: u32) -> Option<u32> {
        self.owed += bytes;
        if self.owed < GRANT || self.end.is_some() {
            return None;
        }
        let grant = std::mem::take(&mut self.owed);
        self.window += grant;
        Some(grant)
    }
}

/// The reader of a framed stream.
pub(crate) struct FramedReader {
    channel: Channel,
    call: u32,
    stream: u8,
    flow: Arc<Inflow>,
}

impl FramedReader {
    pub(crate) fn new(channel: Channel, call: u32, stream: u8, flow: Arc<Inflow>) -> Self {
        Self { channel, call, stream, flow }
    }

    /// Throws away the rest of the stream.
    pub(crate) fn discard(&self) {
        self.grant(self.flow.discard());
    }

    fn grant(&self, bytes: Option<u32>) {
        if let Some(bytes) = bytes {
            self.channel.shared().send(self.call, &ToSupervisor::Credit { stream: self.stream, bytes });
        }
    }
}

impl Drop for FramedReader {
    fn drop(&mut self) {
        self.discard();
    }
}

impl AsyncRead for FramedReader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (ready, grant) = self.flow.poll_read(cx, buf);
        self.grant(grant);
        ready
    }
}

/// Input of the machine's, as far as it granted credit.
#[derive(Default)]
pub(crate) struct Outflow(Mutex<OutState>);

struct OutState {
    credit: u32,
    closed: bool,
    waker: Option<Waker>,
}

impl Default for OutState {
    fn default() -> Self {
        Self { credit: WINDOW, closed: false, waker: None }
    }
}

impl Outflow {
    /// The other side consumed so much.
    pub(crate) fn grant(&self, bytes: u32) -> Result<(), &'static str> {
        let mut state = lock(&self.0);
        state.credit = state.credit.checked_add(bytes).filter(|credit| *credit <= WINDOW).ok_or("more credit than was used")?;
        let waker = state.waker.take();
        drop(state);
        wake([waker]);
        Ok(())
    }

    /// Nobody reads any more.
    pub(crate) fn close(&self) {
        let mut state = lock(&self.0);
        state.closed = true;
        let waker = state.waker.take();
        drop(state);
        wake([waker]);
    }

    fn poll_take(&self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        let mut state = lock(&self.0);
        if state.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if state.credit == 0 {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = wanted.min(CHUNK).min(state.credit as usize);
        state.credit -= count as u32;
        Poll::Ready(Ok(count))
    }
}

/// The writer of a framed stream. Shutting it down or dropping it is end of file.
pub(crate) struct FramedWriter {
    channel: Channel,
    call: u32,
    flow: Arc<Outflow>,
    ended: bool,
}

impl FramedWriter {
    pub(crate) fn new(channel: Channel, call: u32, flow: Arc<Outflow>) -> Self {
        Self { channel, call, flow, ended: false }
    }

    /// Drops it without telling the other side.
    pub(crate) fn abandon(mut self) {
        self.ended = true;
    }

    fn end(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            self.channel.shared().send(self.call, &ToSupervisor::InputEnd);
        }
    }
}

impl Drop for FramedWriter {
    fn drop(&mut self) {
        self.end();
    }
}

impl AsyncWrite for FramedWriter {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let count = match self.flow.poll_take(cx, buf.len()) {
            Poll::Ready(Ok(count)) => count,
            other => return other,
        };
        let data = Blob::from(&buf[..count]);
        if self.channel.shared().send(self.call, &ToSupervisor::Input { data }) {
            Poll::Ready(Ok(count))
        } else {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn output_beyond_its_window_is_a_violation() {
        let flow = Inflow::new("exec", 0, false);
        let piece = vec![0; CHUNK];
        let pieces = WINDOW as usize / CHUNK;
        for index in 0..pieces {
            assert_eq!(flow.push((index * CHUNK) as u64, &piece), Ok(None));
        }
        assert!(flow.push(u64::from(WINDOW), b"x").is_err());
    }

    #[test]
    fn output_must_be_where_it_belongs() {
        let strict = Inflow::new("exec", 0, false);
        assert!(strict.push(1, b"x").is_err());
        let lax = Inflow::new("attach", 5, true);
        assert_eq!(lax.push(9, b"x"), Ok(None));
        assert!(lax.push(9, b"x").is_err(), "the same byte came twice");
        assert!(lax.push(u64::MAX, b"x").is_err());
    }

    #[test]
    fn discarded_output_is_granted_again() {
        let flow = Inflow::new("exec", 0, false);
        assert_eq!(flow.push(0, b"abc"), Ok(None));
        assert_eq!(flow.discard(), None);
        let piece = vec![0; CHUNK];
        let granted: u32 = (0..32).filter_map(|index| flow.push(3 + (index * CHUNK) as u64, &piece).unwrap()).sum();
        assert!(granted >= WINDOW, "{granted}");
    }

    #[test]
    fn credit_that_was_never_used_is_a_violation() {
        let flow = Outflow::default();
        assert!(flow.grant(1).is_err());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(matches!(flow.poll_take(&mut cx, 10), Poll::Ready(Ok(10))));
        assert_eq!(flow.grant(10), Ok(()));
    }
}
