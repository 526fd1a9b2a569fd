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
    let head = if expected <= u64::from(INLINE) { read_some(&file, ceiling.min(u64::from(INLINE) + 1))? } else { Vec::new() };
    if expected <= u64::from(INLINE) && head.len() <= INLINE as usize {
        check_end(&file, &range, head.len() as u64)?;
        return Ok(contents(facts, head));
    }
    let pipe = need(data)?;
    engine.send(&FromSupervisor::Opened { meta: facts })?;
    write_all(&pipe, &head).during("send the contents")?;
    let moved = head.len() as u64 + pump(&file, &pipe, ceiling - head.len() as u64).during("send the contents")?;
    check_end(&file, &range, moved)?;
    Ok(FromSupervisor::Finished)
}

/// Whether the limit was really enough: the file may have grown meanwhile, or never told its size.
fn check_end(file: &OwnedFd, range: &Range, moved: u64) -> Result<()> {
    let cut = range.max == Some(moved) && range.length.is_none_or(|length| length > moved);
    if cut && !read_some(file, 1)?.is_empty() { Err(too_large()) } else { Ok(()) }
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

/// How many bytes are sent at most. A file that grows is not chased: without a bound it is read to the size that it had.
fn ceiling(range: &Range, available: u64, file: &OwnedFd) -> u64 {
    match (range.length, range.max) {
        (Some(length), Some(max)) => length.min(max),
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

/// The next bytes, `wanted` of them or all that are left. Only for few.
fn read_some(file: &OwnedFd, wanted: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(wanted).unwrap_or(0)];
    let mut filled = 0;
    while filled < bytes.len() {
        match retry_on_intr(|| rustix::io::read(file, &mut bytes[filled..])).during("read")? {
            0 => break,
            count => filled += count,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}
