//! Framed streams: bytes held between a descriptor and the clients that follow it, under flow control.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;

use crate::protocol::{CHUNK, FromSupervisor, WINDOW};
use crate::wire::Blob;

/// What a read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// So many bytes; there may be more.
    Bytes(usize),
    /// Nothing at the moment.
    Nothing,
    /// The end, or an error that means the same.
    End,
}

/// Reads once from a descriptor that does not block.
pub fn read_some(fd: impl AsFd, scratch: &mut [u8]) -> Found {
    match rustix::io::read(fd, scratch) {
        Ok(0) => Found::End,
        Ok(count) => Found::Bytes(count),
        Err(Errno::AGAIN | Errno::INTR) => Found::Nothing,
        // A terminal whose last user is gone says EIO.
        Err(_) => Found::End,
    }
}

/// Output on its way to clients: what they have not acknowledged, or (for a detached command) the newest part.
#[derive(Debug, Default)]
pub struct Outlet {
    held: VecDeque<u8>,
    /// Position of the first byte held.
    base: u64,
    /// Whether no byte comes any more.
    pub closed: bool,
}

impl Outlet {
    /// Bytes that came, in all.
    pub fn total(&self) -> u64 {
        self.base + self.held.len() as u64
    }

    /// Bytes held.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Bytes held that come at or after a position.
    pub fn held_from(&self, position: u64) -> u64 {
        self.total().saturating_sub(position.max(self.base))
    }

    /// How much more may be held.
    pub fn room(&self) -> usize {
        (WINDOW as usize).saturating_sub(self.held.len())
    }

    /// Adds bytes; with `drop_oldest` as much of the old goes as is needed to keep to the bound.
    pub fn push(&mut self, bytes: &[u8], drop_oldest: bool) {
        self.held.extend(bytes);
        if drop_oldest && self.held.len() > WINDOW as usize {
            self.forget(self.total() - u64::from(WINDOW));
        }
    }

    /// Drops what comes before a position.
    pub fn forget(&mut self, before: u64) {
        let count = before.saturating_sub(self.base).min(self.held.len() as u64);
        self.held.drain(..count as usize);
        self.base += count;
    }

    /// The next frame for a client, if there is data and credit for one.
    pub fn next_frame(&self, tap: &mut Tap, stream: u8) -> Option<FromSupervisor> {
        let offset = tap.cursor.max(self.base);
        let there = self.total().saturating_sub(offset).min(u64::from(tap.credit)).min(CHUNK as u64) as usize;
        if there == 0 {
            return None;
        }
        let start = (offset - self.base) as usize;
        let data: Vec<u8> = self.held.range(start..start + there).copied().collect();
        tap.cursor = offset + there as u64;
        tap.credit -= there as u32;
        Some(FromSupervisor::Output { stream, offset, data: Blob(data) })
    }

    /// Whether a client has got all there will ever be.
    pub fn exhausted_by(&self, tap: &Tap) -> bool {
        self.closed && tap.cursor >= self.total()
    }
}

/// One client's place in an [`Outlet`].
#[derive(Debug)]
pub struct Tap {
    /// Position of the next byte to send.
    pub cursor: u64,
    credit: u32,
    /// Whether the end was told.
    pub ended: bool,
}

impl Tap {
    /// A client that wants everything from a position on.
    pub fn from(cursor: u64) -> Self {
        Self { cursor, credit: WINDOW, ended: false }
    }

    /// The client consumed so much.
    pub fn grant(&mut self, bytes: u32) {
        self.credit = self.credit.saturating_add(bytes).min(WINDOW);
    }

    /// Everything before this position was consumed by the client.
    pub fn acknowledged(&self) -> u64 {
        self.cursor.saturating_sub(u64::from(WINDOW - self.credit))
    }
}

/// What became of an attempt to write on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Everything is written, and more may come.
    Drained,
    /// The descriptor takes no more at the moment.
    Blocked,
    /// Everything is written, and that was the end.
    Ended,
    /// Nobody reads any more.
    Broken,
}

/// Input on its way from a client to a descriptor.
#[derive(Debug)]
pub struct Inlet {
    /// Where it goes; `None` once closed.
    pub fd: Option<OwnedFd>,
    queue: VecDeque<u8>,
    ended: bool,
    /// How often a terminal was told of the end.
    pub told_ends: u32,
    consumed: u32,
    /// Whether the descriptor is watched for room.
    pub blocked: bool,
    /// The client, and its call, that sent last.
    pub writer: Option<(u32, u32)>,
}

impl Inlet {
    /// Input for a descriptor that does not block.
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd: Some(fd), queue: VecDeque::new(), ended: false, told_ends: 0, consumed: 0, blocked: false, writer: None }
    }

    /// Takes data from a client. False if more is there than clients may send in all.
    pub fn push(&mut self, data: &[u8], limit: usize) -> bool {
        if self.fd.is_none() || self.ended {
            return true;
        }
        self.queue.extend(data);
        self.queue.len() <= limit
    }

    /// No more will come.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// Writes as much as goes.
    pub fn pump(&mut self) -> Flow {
        let Some(fd) = &self.fd else { return Flow::Ended };
        while !self.queue.is_empty() {
            match rustix::io::write(fd, self.queue.as_slices().0) {
                Ok(count) => {
                    self.queue.drain(..count);
                    self.consumed = self.consumed.saturating_add(count as u32);
                }
                Err(Errno::AGAIN) => return Flow::Blocked,
                Err(Errno::INTR) => {}
                Err(_) => return Flow::Broken,
            }
        }
        if self.ended { Flow::Ended } else { Flow::Drained }
    }

    /// Closes it and drops what was not written.
    pub fn close(&mut self) -> Option<OwnedFd> {
        self.queue = VecDeque::new();
        self.fd.take()
    }

    /// What the client may send in addition, once that is worth a frame.
    pub fn credit(&mut self) -> Option<u32> {
        (self.consumed >= WINDOW / 4).then(|| std::mem::take(&mut self.consumed))
    }
}

/// A pipe whose end on this side does not block: (reading end, writing end).
///
/// # Errors
/// If there are no descriptors left.
pub fn pipe(own_is_reader: bool) -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // A fresh pipe has no other flags that could be set.
    rustix::fs::fcntl_setfl(if own_is_reader { &reader } else { &writer }, rustix::fs::OFlags::NONBLOCK)?;
    Ok((reader, writer))
}

/// Makes a descriptor's operations return instead of waiting.
///
/// # Errors
/// If it is not open.
pub fn unblock(fd: impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    Ok(rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?)
}

#[cfg(test)]
mod unit {
    use super::*;

    fn frame(outlet: &Outlet, tap: &mut Tap) -> Option<(u64, usize)> {
        match outlet.next_frame(tap, 1)? {
            FromSupervisor::Output { offset, data, .. } => Some((offset, data.0.len())),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn credit_bounds_what_is_sent_and_acknowledged_bytes_go() {
        let mut outlet = Outlet::default();
        let mut tap = Tap::from(0);
        outlet.push(&vec![7; WINDOW as usize], false);
        assert_eq!(outlet.room(), 0);
        let mut sent = 0;
        while let Some((offset, length)) = frame(&outlet, &mut tap) {
            assert_eq!(offset, sent);
            sent += length as u64;
        }
        assert_eq!((sent, tap.acknowledged()), (u64::from(WINDOW), 0));
        tap.grant(1000);
        outlet.forget(tap.acknowledged());
        assert_eq!((outlet.room(), outlet.total()), (1000, u64::from(WINDOW)));
        tap.grant(u32::MAX);
        assert_eq!(tap.acknowledged(), u64::from(WINDOW));
    }

    #[test]
    fn the_oldest_goes_and_offsets_stay_exact() {
        let mut outlet = Outlet::default();
        outlet.push(&vec![1; WINDOW as usize], true);
        outlet.push(&[2; 10], true);
        assert_eq!((outlet.total(), outlet.held()), (u64::from(WINDOW) + 10, WINDOW as usize));
        let mut late = Tap::from(0);
        assert_eq!(frame(&outlet, &mut late), Some((10, CHUNK)));
        let mut ahead = Tap::from(u64::from(WINDOW) + 100);
        assert_eq!(frame(&outlet, &mut ahead), None);
    }

    #[test]
    fn an_outlet_is_exhausted_only_when_closed() {
        let mut outlet = Outlet::default();
        let mut tap = Tap::from(0);
        outlet.push(b"abc", false);
        frame(&outlet, &mut tap);
        assert!(!outlet.exhausted_by(&tap));
        outlet.closed = true;
        assert!(outlet.exhausted_by(&tap));
    }

    #[test]
    fn input_beyond_the_window_is_a_broken_client() {
        let (_reader, writer) = pipe(false).unwrap();
        let mut inlet = Inlet::new(writer);
        assert!(inlet.push(&vec![0; WINDOW as usize], WINDOW as usize));
        assert_eq!(inlet.pump(), Flow::Blocked);
        assert!(!inlet.push(&vec![0; WINDOW as usize], WINDOW as usize));
    }
}
