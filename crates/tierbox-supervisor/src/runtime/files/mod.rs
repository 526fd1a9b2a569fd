//! File operations, done by a worker process with the agent's identity.
//!
//! The engine talks to a worker over a socket pair, in the protocol's own frames. The worker resolves every path itself,
//! inside the machine and with the agent's rights, so that no name, link or race can reach what the agent could not.
//! The engine never waits for a worker: it polls, and aborts an operation by killing the process.

mod answer;
mod list;
mod pack;
mod place;
mod process;
mod pump;
mod read;
mod remove;
mod serve;
mod temp;
mod unpack;
mod walk;
mod write;

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use super::identity::Identity;
use crate::protocol::{self, Decoder, FileOp, FromSupervisor, ToSupervisor};

/// The most that one [`Worker::receive`] takes in.
const RECEIVE: usize = 256 << 10;

/// A process that does one file operation at a time as one user.
#[derive(Debug)]
pub struct Worker {
    socket: OwnedFd,
    pid: i32,
    decoder: Decoder,
    closed: bool,
}

impl Worker {
    /// Forks a worker. It enters the cgroups whose files these `doors` are, drops to `identity`, becomes non-dumpable, closes every descriptor but its socket, and waits.
    ///
    /// If it cannot become that user, it answers every operation with `Failed`.
    ///
    /// # Errors
    /// If no process or socket can be had.
    pub fn fork(identity: &Identity, workdir: &[u8], doors: &[RawFd]) -> io::Result<Self> {
        let (socket, pid) = process::fork(identity, workdir, doors)?;
        Ok(Self { socket, pid, decoder: Decoder::default(), closed: false })
    }

    /// Its process id; the engine reaps it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The socket to poll for [`receive`](Self::receive).
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Starts an operation. `data` is the reading end (write, unpack) or writing end (read, pack) of a pipe.
    ///
    /// Never blocks: an operation of at most [`protocol::INLINE`] bytes and a path fits into an idle worker's socket.
    ///
    /// # Errors
    /// `InvalidInput` for an operation that is too big for that, after which the worker is still good. Any other error
    /// means that it is gone or does not read (stopped from inside the sandbox): kill it.
    pub fn submit(&mut self, op: &FileOp, data: Option<OwnedFd>) -> io::Result<()> {
        if oversized(op) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the contents are too long to travel inside a frame"));
        }
        self.send(&protocol::encode(0, &ToSupervisor::File { op: op.clone() }), data)
    }

    /// Tells it that the data of a write or unpack was complete.
    ///
    /// # Errors
    /// If the worker is gone.
    pub fn commit(&mut self) -> io::Result<()> {
        self.send(&protocol::encode(0, &ToSupervisor::Commit), None)
    }

    /// What it answered so far; empty if nothing. `Finished`, `Failed`, `Meta` or `Contents` is an operation's last answer.
    ///
    /// # Errors
    /// If the worker is gone: the operation was interrupted. What it answered before is returned first.
    pub fn receive(&mut self) -> io::Result<Vec<FromSupervisor>> {
        self.fill()?;
        let mut answers = Vec::new();
        while let Some(frame) = self.decoder.next_frame().map_err(io::Error::other)? {
            answers.push(frame.message);
        }
        if answers.is_empty() && self.closed { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(answers) }
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut buffer = [0; 64 << 10];
        let mut taken = 0;
        while taken < RECEIVE && !self.closed {
            match rustix::net::recv(&self.socket, &mut buffer, RecvFlags::DONTWAIT) {
                Ok((0, _)) | Err(rustix::io::Errno::CONNRESET) => self.closed = true,
                Ok((count, _)) => {
                    self.decoder.push(&buffer[..count]);
                    taken += count;
                }
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn send(&mut self, mut bytes: &[u8], data: Option<OwnedFd>) -> io::Result<()> {
        let descriptors: Vec<BorrowedFd<'_>> = data.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        while !bytes.is_empty() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let sent =
                rustix::io::retry_on_intr(|| rustix::net::sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, flags))?;
            // The descriptor travels with the first byte.
            control.clear();
            bytes = &bytes[sent..];
        }
        Ok(())
    }
}

fn oversized(op: &FileOp) -> bool {
    match op {
        FileOp::Write { inline: Some(contents), .. } => contents.0.len() > protocol::INLINE as usize,
        _ => false,
    }
}
