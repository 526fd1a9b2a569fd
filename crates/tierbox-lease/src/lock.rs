//! Advisory locks on open files.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use tierbox_core::{Error, ErrorKind, Result};

/// How long a lock is waited for that is only ever held for moments.
const PATIENCE: Duration = Duration::from_secs(10);

/// Takes the lock if nobody has it. Says whether it did.
pub(crate) fn try_exclusive(file: impl AsFd) -> Result<bool> {
    attempt(file, FlockOperation::NonBlockingLockExclusive)
}

/// Whether somebody holds the lock exclusively. Takes it shared for a moment, which disturbs no other test of this kind.
pub(crate) fn is_held(file: impl AsFd) -> Result<bool> {
    let file = file.as_fd();
    if !attempt(file, FlockOperation::NonBlockingLockShared)? {
        return Ok(true);
    }
    release(file)?;
    Ok(false)
}

/// Takes the lock if no owner has it; a test that another process happens to make is waited out. Says whether it did.
pub(crate) fn try_exclusive_past_tests(file: impl AsFd) -> Result<bool> {
    let file = file.as_fd();
    let started = Instant::now();
    loop {
        if try_exclusive(file)? {
            return Ok(true);
        }
        if is_held(file)? || started.elapsed() > PATIENCE {
            return Ok(false);
        }
        std::thread::yield_now();
    }
}

/// Gives the lock up.
pub(crate) fn release(file: impl AsFd) -> Result<()> {
    flock(file, FlockOperation::Unlock).map_err(|error| Error::io("unlock", error.into()))
}

/// A lock that is held for moments, on a file of its own. Dropping it releases it.
#[derive(Debug)]
pub(crate) struct Gate(#[expect(dead_code, reason = "the lock lives as long as the descriptor")] File);

impl Gate {
    /// Waits for the lock on `path`, which is made if need be.
    pub(crate) fn enter(path: &Path) -> Result<Self> {
        let file = open_lock_file(path)?;
        let started = Instant::now();
        while !try_exclusive(&file)? {
            if started.elapsed() > PATIENCE {
                return Err(Error::new(
                    ErrorKind::Timeout,
                    "lock state",
                    format!("{} stayed locked for {} s", path.display(), PATIENCE.as_secs()),
                )
                .with_help("another tierbox process is stopped or stuck: `fuser` on that file names it"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Self(file))
    }
}

/// Opens a file that exists for its lock alone.
pub(crate) fn open_lock_file(path: &Path) -> Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|error| Error::io("open lock file", error.into()).with_context("path", path.display()))?;
    Ok(file.into())
}

fn attempt(file: impl AsFd, operation: FlockOperation) -> Result<bool> {
    loop {
        match flock(&file, operation) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(error) => return Err(Error::io("lock", error.into())),
        }
    }
}
