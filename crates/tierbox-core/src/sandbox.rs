//! Handles on what runs: a machine, and the environment it belongs to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::files::{ByteReader, ByteStream};
use crate::{
    Capabilities, Completed, Decision, DirEntry, Error, ErrorKind, ExecHandle, ExecId, ExecInfo, ExecRequest, FileMeta,
    GuestPath, KillReason, Limits, ReadOptions, Report, Result, Signal, WriteOptions,
};

/// What a stream into a machine is opened to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DialTarget {
    /// A TCP port on the machine's loopback address.
    Tcp(u16),
    /// A Unix socket inside the machine.
    Unix(GuestPath),
}

/// How a person gets a shell in a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// The command to type on the host, as argv.
    pub argv: Vec<String>,
    /// Programs that it needs on the host beside its first word.
    pub needs: Vec<String>,
    /// A remark for people; may be empty.
    pub note: String,
}

/// A handle on one machine.
///
/// Everything here is what a backend (or rather `tierbox-guest`, once for all of them) implements; what is convenient
/// is in [`SandboxExt`](crate::SandboxExt). Each method checks its arguments before any side effect. What a backend does
/// not declare in its [`Capabilities`] is [`Unsupported`](crate::ErrorKind::Unsupported).
#[async_trait]
pub trait Sandbox: Send + Sync {
    /// The machine's name within its environment.
    fn name(&self) -> &str;

    /// What it can do.
    fn capabilities(&self) -> &Capabilities;

    /// Its limits; `exec` and `output` are the defaults of a request that sets none.
    fn limits(&self) -> &Limits;

    /// Launches a command. Returns when the launch is on its way; [`ExecHandle::wait`] tells whether it ran.
    ///
    /// # Errors
    /// `InvalidInput` for a malformed request, `Unsupported` for what is not declared, `Lost` if the machine is gone.
    async fn spawn(&self, request: ExecRequest) -> Result<Box<dyn ExecHandle>>;

    /// Launches a command that outlives this client. Its output is retained, up to 1 MiB per stream, oldest bytes dropped.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn), and as [`Outcome::NotStarted`](crate::Outcome::NotStarted) turned into an error.
    async fn spawn_detached(&self, request: ExecRequest) -> Result<ExecId>;

    /// Lists the commands that the machine knows of: running ones and ended detached ones.
    ///
    /// # Errors
    /// `Unsupported`, `Lost`.
    async fn execs(&self) -> Result<Vec<ExecInfo>>;

    /// Follows a command from a byte position in each of its streams. Dropping this handle does not kill the command.
    ///
    /// # Errors
    /// `NotFound` for an unknown id.
    async fn attach(&self, id: ExecId, stdout_from: u64, stderr_from: u64) -> Result<Box<dyn ExecHandle>>;

    /// Sends a signal to a command by id.
    ///
    /// # Errors
    /// `NotFound` for an id that is unknown or ended.
    async fn signal(&self, id: ExecId, signal: Signal) -> Result<()>;

    /// Kills a command's whole tree by id.
    ///
    /// # Errors
    /// `NotFound` for an id that is unknown or ended.
    async fn kill(&self, id: ExecId, reason: KillReason) -> Result<()>;

    /// Waits for a command by id.
    ///
    /// # Errors
    /// `NotFound` for an unknown id.
    async fn wait(&self, id: ExecId) -> Result<Completed>;

    /// Reads a regular file.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied`, `IsADirectory`, `NotAFile`, `TooLarge`.
    async fn read(&self, path: &GuestPath, options: ReadOptions) -> Result<(FileMeta, ByteReader)>;

    /// Writes a file from a stream, to its end, atomically. Parent directories are made.
    ///
    /// # Errors
    /// `PermissionDenied`, `IsADirectory`, `NotAFile`, `NoSpace`, `AlreadyExists`. The old contents then stand.
    async fn write(&self, path: &GuestPath, contents: ByteReader, options: WriteOptions) -> Result<()>;

    /// Facts about a path. A link is not followed unless `follow`.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied`.
    async fn stat(&self, path: &GuestPath, follow: bool) -> Result<FileMeta>;

    /// The entries of a directory, sorted by name.
    ///
    /// # Errors
    /// `NotFound` (also for a file in place of the directory), `PermissionDenied`.
    async fn list(&self, path: &GuestPath) -> Result<Vec<DirEntry>>;

    /// Removes a file, link or empty directory, or with `recursive` a whole tree. Links are never followed.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied`, `IsADirectory` for a non-empty directory without `recursive`.
    async fn remove(&self, path: &GuestPath, recursive: bool) -> Result<()>;

    /// Makes a directory and its parents. Succeeds if it exists.
    ///
    /// # Errors
    /// `PermissionDenied`, `AlreadyExists` for a file of that name, `NoSpace`.
    async fn make_dir(&self, path: &GuestPath) -> Result<()>;

    /// Unpacks a tar stream into a directory, which is made if need be.
    ///
    /// # Errors
    /// `UnsafeArchive`, `PermissionDenied`, `NoSpace`.
    async fn unpack(&self, path: &GuestPath, tar: ByteReader) -> Result<()>;

    /// A directory's contents as a tar stream, names relative to it. Treat the stream as hostile.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied`.
    async fn pack(&self, path: &GuestPath) -> Result<ByteReader>;

    /// Opens a stream to something that listens inside.
    ///
    /// # Errors
    /// `NotFound` when nothing listens, `PermissionDenied`, `Unsupported`.
    async fn dial(&self, target: DialTarget) -> Result<Box<dyn ByteStream>>;
}

/// What one `start` made: one or more machines, one of them primary.
#[async_trait]
pub trait Environment: Send + Sync {
    /// Its id, which is the id of its lease.
    fn id(&self) -> &str;

    /// The machines, primary first.
    fn machines(&self) -> Vec<Arc<dyn Sandbox>>;

    /// What was really enforced.
    fn report(&self) -> &Report;

    /// How a person gets a shell in a machine.
    ///
    /// # Errors
    /// `NotFound` for a name that is no machine's.
    fn connection(&self, machine: &str) -> Result<Connection>;

    /// Ends it: when this returns, every process and resource of it is gone. Safe to call again.
    ///
    /// # Errors
    /// What could not be removed, with the command that would.
    async fn stop(&self) -> Result<()>;

    /// Gives up the hold on a detached environment, which lives on.
    ///
    /// # Errors
    /// `Unsupported` where environments cannot be detached.
    async fn detach(&self) -> Result<()> {
        Err(Error::unsupported("detach environment", "a detached environment"))
    }

    /// Saves the state of all machines under a name: memory, processes and disks. They run on.
    ///
    /// # Errors
    /// `Unsupported` without the capability `snapshots`; `AlreadyExists` for a name that is taken; `InvalidInput` for one that
    /// is no name (letters, digits and dashes, at most 63).
    async fn snapshot(&self, _name: &str) -> Result<()> {
        Err(Error::unsupported("save snapshot", "a snapshot"))
    }

    /// Puts all machines back to what was saved. Commands that run meanwhile are lost; handles on machines stay valid.
    ///
    /// # Errors
    /// `Unsupported` without the capability `snapshots`; `NotFound` for a name that was never saved.
    async fn restore(&self, _name: &str) -> Result<()> {
        Err(Error::unsupported("restore snapshot", "a snapshot"))
    }

    /// Waits until the environment has ended by itself, for at most `limit`. Returns whether it ended.
    async fn ended(&self, limit: Duration) -> bool;

    /// What the N1 gateway decided so far, oldest first; empty without one.
    ///
    /// # Errors
    /// What the file system says of the log.
    async fn decisions(&self) -> Result<Vec<Decision>> {
        Ok(Vec::new())
    }

    /// What it was made of that its specification does not tell: the digest of its root or images, the version of its engine.
    /// A record of a verification counts for environments that were made of the same alone. `None`, by default, if that is
    /// not known: every start is then verified anew.
    fn identity(&self) -> Option<BTreeMap<String, String>> {
        None
    }

    /// The primary machine.
    fn primary(&self) -> Arc<dyn Sandbox> {
        self.machines().swap_remove(0)
    }

    /// A machine by name.
    ///
    /// # Errors
    /// `NotFound`, listing the names there are.
    fn machine(&self, name: &str) -> Result<Arc<dyn Sandbox>> {
        let machines = self.machines();
        if let Some(found) = machines.iter().find(|machine| machine.name() == name) {
            return Ok(found.clone());
        }
        let names: Vec<&str> = machines.iter().map(|machine| machine.name()).collect();
        Err(Error::new(
            ErrorKind::NotFound,
            "find machine",
            format!("no machine is named {name:?}; there are {}", names.join(", ")),
        ))
    }
}
