//! The end of a log, noted in a file elsewhere, so that lines which are cut off in whole are missed.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

use super::file::Head;

/// Digits of a count, and of a hash.
const COUNT: usize = 20;
const HASH: usize = 64;
/// The whole note: it is written in place, in one piece.
const LENGTH: usize = COUNT + 1 + HASH + 1;

/// An open note.
pub(super) struct Kept(File);

impl Kept {
    /// Opens the note, or begins it.
    pub(super) fn open(path: &Path) -> std::io::Result<Self> {
        if let Some(directory) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path).map(Self)
    }

    /// What is noted; `None` for nothing yet.
    pub(super) fn read(&self) -> std::io::Result<Option<Head>> {
        let mut note = [0; LENGTH];
        if self.0.metadata()?.len() == 0 {
            return Ok(None);
        }
        self.0.read_exact_at(&mut note, 0)?;
        parse(&note).map(Some).ok_or_else(|| std::io::Error::new(std::io::ErrorKind::InvalidData, "the note of its end is none"))
    }

    /// Notes where the log ends.
    pub(super) fn write(&self, head: &Head) -> std::io::Result<()> {
        self.0.write_all_at(format!("{:0COUNT$} {}\n", head.lines, head.hash).as_bytes(), 0)
    }
}

/// What is noted in a file; `None` if there is none.
pub(super) fn read(path: &Path) -> std::io::Result<Option<Head>> {
    match File::open(path) {
        Ok(file) => Kept(file).read(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse(note: &[u8]) -> Option<Head> {
    let text = std::str::from_utf8(note).ok()?.strip_suffix('\n')?;
    let (count, hash) = text.split_at_checked(COUNT)?;
    let hash = hash.strip_prefix(' ')?;
    let plain = hash.len() == HASH && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    Some(Head { lines: count.parse().ok()?, hash: hash.to_owned() }).filter(|_| plain)
}
