//! One file to or from this host.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tierbox_core::{Error, ErrorKind, Result};

use super::beneath::refuse_link;

use super::{TransferReport, host_error, stream_error};

/// How much is read and written at once.
const BUFFER: usize = 128 << 10;

/// The permission bits that a copy gets.
pub fn mode(found: &Metadata) -> u32 {
    found.mode() & 0o777
}

/// A file of this host as a stream.
pub fn send(host: &Path, mut out: impl Write) -> Result<TransferReport> {
    let mut file = File::open(host).map_err(|error| host_error("upload", host, error))?;
    let mut buffer = vec![0; BUFFER];
    let mut report = TransferReport { entries: 1, ..TransferReport::default() };
    loop {
        let count = read_some(&mut file, &mut buffer).map_err(|error| host_error("upload", host, error))?;
        if count == 0 {
            return Ok(report);
        }
        out.write_all(&buffer[..count]).map_err(|error| stream_error("upload", error))?;
        report.bytes += count as u64;
    }
}

/// Puts a stream in the place of a file, in one step when it is complete.
pub fn receive(mut contents: impl Read, target: &Path, mode: u32, limit: u64) -> Result<TransferReport> {
    refuse_link(target)?;
    if target.is_dir() {
        return Err(Error::new(ErrorKind::IsADirectory, "download", format!("{} is a directory", target.display())));
    }
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(|error| host_error("download", parent, error))?;
    let (temp, mut file) = fresh(parent, mode & 0o777).map_err(|error| host_error("download", target, error))?;
    let mut report = TransferReport { entries: 1, ..TransferReport::default() };
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = read_some(&mut contents, &mut buffer).map_err(|error| stream_error("download", error))?;
        report.bytes += count as u64;
        if report.bytes > limit {
            return Err(Error::new(ErrorKind::TooLarge, "download", format!("the file holds more than {limit} bytes")));
        }
        if count == 0 {
            break;
        }
        file.write_all(&buffer[..count]).map_err(|error| host_error("download", target, error))?;
    }
    // A link that appeared meanwhile is replaced like any other name, not followed.
    fs::rename(&temp.0, target).map_err(|error| host_error("download", target, error))?;
    std::mem::forget(temp);
    Ok(report)
}

/// A file that is removed unless it was moved to its place.
struct Temp(PathBuf);

impl Drop for Temp {
    fn drop(&mut self) {
        // It may be gone already; there is nobody to tell either way.
        let _ = fs::remove_file(&self.0);
    }
}

/// A new file of a name that nobody has. The name need not be secret: nothing that exists is ever opened.
fn fresh(dir: &Path, mode: u32) -> io::Result<(Temp, File)> {
    use std::hash::{BuildHasher, RandomState};
    for attempt in 0..64 {
        let path = dir.join(format!(".tierbox-{:016x}", RandomState::new().hash_one((attempt, std::process::id()))));
        match OpenOptions::new().write(true).create_new(true).mode(mode).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => return other.map(|file| (Temp(path), file)),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn read_some(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match source.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
