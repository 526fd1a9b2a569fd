//! A sandbox over a *plain transport*: where no stream into the machine can be had (a run-command service), or where the
//! supervisor cannot run (another architecture, nothing executable).
//!
//! The transport runs a POSIX shell script in the machine and brings back what it printed. Everything else is here.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tierbox_core::Result;

/// What a transport may carry at once. What is larger goes in pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlainLimits {
    /// The longest script, in bytes. At least 16 KiB.
    pub script: usize,
    /// The most on standard input, in bytes. At least 4 KiB.
    pub stdin: usize,
    /// The most that comes back of standard output, in bytes. At least 4 KiB. Of standard error 4 KiB are enough.
    pub output: usize,
}

/// A script to run.
#[derive(Debug, Clone)]
pub struct PlainRun {
    /// The script: ASCII, without NUL, for `/bin/sh -c`. It may have many lines and any printable character.
    pub script: String,
    /// What it reads; then end of file.
    pub stdin: Bytes,
    /// When to give up waiting. The script ends itself before that, unless the machine hangs.
    pub limit: Duration,
}

/// What came of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainOutput {
    /// Its exit status, 0 to 255.
    pub status: i32,
    /// What it printed, all of it: a transport that had to cut returns `TooLarge`.
    pub stdout: Vec<u8>,
    /// What it complained; may be cut.
    pub stderr: Vec<u8>,
}

/// Runs scripts in a machine: a backend's way in where it has no channel.
///
/// Each call may be on a line of its own. Several may run at once. Dropping the future stops waiting; whether the script goes on
/// is no matter, since what must end in the machine is ended by another script.
#[async_trait]
pub trait PlainTransport: Send + Sync {
    /// What it may carry.
    fn limits(&self) -> PlainLimits;

    /// Runs `/bin/sh -c SCRIPT` in the machine, always as the same user, and brings back its bytes as they are.
    ///
    /// # Errors
    /// `Lost` where the script may have run. Any error that [is retryable](tierbox_core::Error::is_retryable) says that it did
    /// not; it is then tried again a few times. `TooLarge` for more output than [`PlainLimits::output`].
    async fn run(&self, run: PlainRun) -> Result<PlainOutput>;
}
