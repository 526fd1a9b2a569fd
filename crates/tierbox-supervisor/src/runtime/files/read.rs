//! Reading a regular file.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::retry_on_intr;

use super::answer::{Context, Fail, Result};
use super::list::meta;
use super::pump::{pump, write_all};
use super::serve::{Engine, need};
use crate::protocol::{Failure, FromSupervisor, INLINE, Meta};

/// Which part of the file is wanted, and how much at most.
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Bytes, or to the end.
    pub length: Option<u64>,
    /// Refuse with `TooLarge` beyond this.
    pub max: Option<u64>,
}

/// Answers with the contents, inline if they are small, else through the pipe.
pub fn read(engine: &mut Engine, path: &[u8], range: Range, data: Option<OwnedFd>) -> Result<FromSupervisor> {
    let (file, stat) = open(path)?;
    let facts = meta(&stat, None);
    let Ok(start) = i64::try_from(range.offset) else { return Ok(contents(facts, Vec::new())) };
    let available = facts.size.saturating_sub(range.offset);
    let expected = range.length.map_or(available, |length| length.min(available));
    if range.max.is_some_and(|max| expected > max) {
        return Err(too_large());
    }
    let ceiling = ceiling(&range, available, &file);
    rustix::fs::seek(&file, SeekFrom::Start(start.unsigned_abs())).during("seek")?;
    let head = if expected <= u64::from(INLINE) { read_head(&file, ceiling)? } else { Vec::new() };
    let within = |count: u64| range.max.is_none_or(|max| count <= max);
    if expected <= u64::from(INLINE) && head.len() <= INLINE as usize {
        return if within(head.len() as u64) { Ok(contents(facts, head)) } else { Err(too_large()) };
    }
    let pipe = need(data)?;
    engine.send(&FromSupervisor::Opened { meta: facts })?;
    write_all(&pipe, &head).during("send the contents")?;
    let moved = head.len() as u64 + pump(&file, &pipe, ceiling - head.len() as u64).during("send the contents")?;
    if within(moved) { Ok(FromSupervisor::Finished) } else { Err(too_large()) }
}

fn contents(meta: Meta, data: Vec<u8>) -> FromSupervisor {
    FromSupervisor::Contents { meta, data: data.into() }
}

fn too_large() -> Fail {
    Fail::new(Failure::TooLarge, "the file holds more bytes than the limit")
}

/// Opens a regular file, and only that: opening a device can act, and opening a FIFO can wait.
fn open(path: &[u8]) -> Result<(OwnedFd, Stat)> {
    regular(&rustix::fs::statat(CWD, path, AtFlags::empty())?)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).during("open")?;
    let stat = rustix::fs::fstat(&file)?;
    regular(&stat)?;
    Ok((file, stat))
}

fn regular(stat: &Stat) -> Result<()> {
    let (failure, detail) = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => return Ok(()),
        FileType::Directory => (Failure::IsADirectory, "it is a directory"),
        FileType::Fifo => (Failure::NotAFile, "it is a FIFO"),
        FileType::Socket => (Failure::NotAFile, "it is a socket"),
        _ => (Failure::NotAFile, "it is a device"),
    };
    Err(Fail::new(failure, detail))
}

/// How many bytes are read at most. A file that grows is not chased: without a bound it is read to the size that it had,
/// and with one just far enough to know that it is too large.
fn ceiling(range: &Range, available: u64, file: &OwnedFd) -> u64 {
    match (range.length, range.max.map(|max| max.saturating_add(1))) {
        (Some(length), Some(beyond)) => length.min(beyond),
        (Some(bound), None) | (None, Some(bound)) => bound,
        (None, None) if is_generated(file) => u64::MAX,
        (None, None) => available,
    }
}

/// Whether the kernel makes the contents up, so that the size says nothing.
fn is_generated(file: &OwnedFd) -> bool {
    // procfs, sysfs, cgroup, cgroup v2, debugfs, tracefs.
    const MAGIC: [u64; 6] = [0x9fa0, 0x6265_6572, 0x0027_e0eb, 0x6367_7270, 0x6462_6720, 0x7472_6163];
    rustix::fs::fstatfs(file).is_ok_and(|stat| MAGIC.contains(&(stat.f_type as u64)))
}

/// The first bytes: at most one more than fits a frame.
fn read_head(file: &OwnedFd, ceiling: u64) -> Result<Vec<u8>> {
    let wanted = usize::try_from(ceiling).unwrap_or(usize::MAX).min(INLINE as usize + 1);
    let mut head = vec![0; wanted];
    let mut filled = 0;
    while filled < wanted {
        match retry_on_intr(|| rustix::io::read(file, &mut head[filled..])).during("read")? {
            0 => break,
            count => filled += count,
        }
    }
    head.truncate(filled);
    Ok(head)
}
