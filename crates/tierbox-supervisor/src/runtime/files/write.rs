//! Writing a file atomically.

use std::os::fd::OwnedFd;

use rustix::fs::{Access, AtFlags, FileType, Mode};
use rustix::io::Errno;

use super::answer::{Context, Fail, Result};
use super::place::{self, Place};
use super::pump::{pump, write_all};
use super::serve::Engine;
use super::temp::Temp;
use crate::protocol::{Failure, FromSupervisor};

/// Where the contents come from.
pub enum Contents {
    /// They came with the request.
    Inline(Vec<u8>),
    /// A pipe, to its end; then a commit.
    Stream(OwnedFd),
}

/// How the file is written.
pub struct Options {
    /// Permission bits; otherwise those of the file that is replaced, or 0644.
    pub mode: Option<u32>,
    /// Refuse if something of that name exists.
    pub create_new: bool,
}

/// Replaces or makes the file; on any failure the old one stands.
pub fn write(engine: &mut Engine, path: &[u8], options: Options, contents: Contents) -> Result<FromSupervisor> {
    let place = place::locate_for_write(path, !options.create_new)?;
    let kept = check_target(&place, options.create_new)?;
    let temp = Temp::new(&place)?;
    match contents {
        Contents::Inline(bytes) => write_all(&temp.file, &bytes).during("write the contents")?,
        Contents::Stream(pipe) => {
            pump(&pipe, &temp.file, u64::MAX).during("write the contents")?;
            engine.committed()?;
        }
    }
    let mode = options.mode.map_or(kept, |mode| mode & 0o7777);
    rustix::fs::fchmod(&temp.file, Mode::from_raw_mode(mode)).during("set the mode")?;
    temp.publish(options.create_new)?;
    Ok(FromSupervisor::Finished)
}

/// Whether what is there may be replaced; the mode that the new file gets.
fn check_target(place: &Place, create_new: bool) -> Result<u32> {
    let stat = match rustix::fs::statat(&place.dir, &place.name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(0o644),
        Err(error) => return Err(error.into()),
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => return Err(Fail::new(Failure::IsADirectory, "it is a directory")),
        _ if create_new => return Err(Errno::EXIST.into()),
        FileType::RegularFile => {}
        _ => return Err(Fail::new(Failure::NotAFile, "it is no regular file")),
    }
    // A rename asks only for rights to the directory. A file that its user may not write stays as it is.
    rustix::fs::accessat(&place.dir, &place.name, Access::WRITE_OK, AtFlags::EACCESS).during("write to the file")?;
    Ok(stat.st_mode & 0o777)
}
