//! This side's ends of pipes, and how descriptors join a reactor.
//!
//! An end joins the reactor of whichever runtime first has to wait for it, so a handle made in one runtime can be read in
//! another, and a pipe that is ready is never registered at all.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWrite, Interest};

/// Joins the reactor of the runtime that is entered.
#[allow(deprecated, reason = "its successor is unsafe for types that may change their descriptor; an OwnedFd never does")]
pub(crate) fn register<T: AsRawFd + AsFd>(descriptor: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(descriptor, interest)
}

/// A pipe whose reading end is this side's (and does not block) and whose writing end goes to the machine (and blocks).
pub(crate) fn incoming() -> io::Result<(ReadEnd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(&read, OFlags::NONBLOCK)?;
    Ok((ReadEnd(End::Idle(read)), write))
}

/// The other way round.
pub(crate) fn outgoing() -> io::Result<(OwnedFd, WriteEnd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(&write, OFlags::NONBLOCK)?;
    Ok((read, WriteEnd(End::Idle(write))))
}

enum End {
    Idle(OwnedFd),
    Waiting(AsyncFd<OwnedFd>),
    Closed,
}

impl End {
    fn get(&self) -> Option<&OwnedFd> {
        match self {
            Self::Idle(descriptor) => Some(descriptor),
            Self::Waiting(registered) => Some(registered.get_ref()),
            Self::Closed => None,
        }
    }

    fn register(&mut self, interest: Interest) -> io::Result<Option<&AsyncFd<OwnedFd>>> {
        if let Self::Idle(_) = self
            && let Self::Idle(descriptor) = std::mem::replace(self, Self::Closed)
        {
            *self = Self::Waiting(register(descriptor, interest)?);
        }
        Ok(if let Self::Waiting(registered) = self { Some(registered) } else { None })
    }

    fn take(&mut self) -> Option<OwnedFd> {
        match std::mem::replace(self, Self::Closed) {
            Self::Idle(descriptor) => Some(descriptor),
            Self::Waiting(registered) => Some(registered.into_inner()),
            Self::Closed => None,
        }
    }
}

/// A reading end.
pub(crate) struct ReadEnd(End);

impl ReadEnd {
    /// Reads what is there: 0 at the end, `WouldBlock` if there is nothing now.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(descriptor) = self.0.get() else { return Ok(0) };
        retry(|| rustix::io::read(descriptor, &mut *buffer))
    }

    /// Waits for something to read, and reads it.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let Some(registered) = self.0.register(Interest::READABLE)? else { return Poll::Ready(Ok(0)) };
        loop {
            let mut guard = ready!(registered.poll_read_ready(cx))?;
            if let Ok(result) = guard.try_io(|inner| retry(|| rustix::io::read(inner.get_ref(), &mut *buffer))) {
                return Poll::Ready(result);
            }
        }
    }

    /// Gives the descriptor away; it is at its end for this side from now on.
    pub(crate) fn take(&mut self) -> Option<OwnedFd> {
        self.0.take()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.0.get().is_none()
    }
}

/// A writing end.
pub(crate) struct WriteEnd(End);

impl WriteEnd {
    /// Writes what fits now.
    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let descriptor = self.0.get().ok_or(io::ErrorKind::BrokenPipe)?;
        retry(|| rustix::io::write(descriptor, bytes))
    }

    /// Closes it, which is end of file for the reader.
    pub(crate) fn close(&mut self) {
        drop(self.0.take());
    }
}

impl AsyncWrite for WriteEnd {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return Poll::Ready(result),
        }
        let Some(registered) = self.0.register(Interest::WRITABLE)? else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        loop {
            let mut guard = ready!(registered.poll_write_ready(cx))?;
            if let Ok(result) = guard.try_io(|inner| retry(|| rustix::io::write(inner.get_ref(), bytes))) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close();
        Poll::Ready(Ok(()))
    }
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}
