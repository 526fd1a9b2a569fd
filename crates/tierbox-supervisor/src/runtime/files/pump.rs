//! Moves data between pipes and files inside the kernel where it can, else through one buffer.

use std::os::fd::OwnedFd;

use rustix::io::{Errno, read, retry_on_intr, write};
use rustix::pipe::{SpliceFlags, splice};

use super::answer::Result;

/// The most that is asked for at once.
const STEP: usize = 1 << 20;

/// The buffer where the kernel cannot move the data itself.
const BUFFER: usize = 64 << 10;

/// Moves everything from `source` to `sink`, or the first `limit` bytes; returns how many came.
///
/// Both are used at their own positions.
pub fn pump(source: &OwnedFd, sink: &OwnedFd, limit: u64) -> Result<u64> {
    let mut moved = 0;
    while moved < limit {
        let step = usize::try_from(limit - moved).unwrap_or(STEP).min(STEP);
        match retry_on_intr(|| splice(source, None, sink, None, step, SpliceFlags::MOVE)) {
            Ok(0) => return Ok(moved),
            Ok(count) => moved += count as u64,
            // Files of some file systems (and made-up ones as in /proc) cannot be spliced.
            Err(Errno::INVAL) => return Ok(moved + copy(source, sink, limit - moved)?),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(moved)
}

fn copy(source: &OwnedFd, sink: &OwnedFd, limit: u64) -> Result<u64> {
    let mut buffer = vec![0; BUFFER];
    let mut moved = 0;
    while moved < limit {
        let step = usize::try_from(limit - moved).unwrap_or(BUFFER).min(BUFFER);
        let count = retry_on_intr(|| read(source, &mut buffer[..step]))?;
        if count == 0 {
            break;
        }
        write_all(sink, &buffer[..count])?;
        moved += count as u64;
    }
    Ok(moved)
}

/// Writes all of it.
pub fn write_all(sink: &OwnedFd, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        let count = retry_on_intr(|| write(sink, bytes))?;
        bytes = &bytes[count..];
    }
    Ok(())
}
