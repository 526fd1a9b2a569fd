//! File operations, done by a worker process with the agent's identity.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use super::identity::Identity;
use crate::protocol::{FileOp, FromSupervisor};

/// A process that does one file operation at a time as one user.
#[derive(Debug)]
pub struct Worker {
    socket: OwnedFd,
    pid: i32,
}

impl Worker {
    /// Forks a worker. It drops to `identity`, becomes non-dumpable, closes every descriptor but its socket, and waits.
    ///
    /// # Errors
    /// If no process or socket can be had.
    pub fn fork(identity: &Identity, workdir: &[u8]) -> io::Result<Self> {
        let _ = (identity, workdir);
        Err(io::Error::from_raw_os_error(38))
    }

    /// Its process id; the engine reaps it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The socket to poll for [`receive`](Self::receive).
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.socket.as_fd()
    }

    /// Starts an operation. `data` is the reading end (write, unpack) or writing end (read, pack) of a pipe.
    ///
    /// # Errors
    /// If the worker is gone.
    pub fn submit(&mut self, op: &FileOp, data: Option<OwnedFd>) -> io::Result<()> {
        let _ = (op, data);
        Err(io::Error::from_raw_os_error(38))
    }

    /// Tells it that the data of a write or unpack was complete.
    ///
    /// # Errors
    /// If the worker is gone.
    pub fn commit(&mut self) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(38))
    }

    /// What it answered so far. `Finished`, `Failed`, `Meta` or `Contents` is an operation's last answer.
    ///
    /// # Errors
    /// If the worker is gone: the operation was interrupted.
    pub fn receive(&mut self) -> io::Result<Vec<FromSupervisor>> {
        Err(io::Error::from_raw_os_error(38))
    }
}
