//! A file that is not there yet: filled aside, then put in place in one step.

use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::SystemTime;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::answer::{Context, Result};
use super::place::Place;

/// New contents for a place, in its own directory so that they can be moved there.
pub struct Temp<'a> {
    place: &'a Place,
    /// Where the contents go.
    pub file: OwnedFd,
    /// Its passing name. None while it has no name at all: such a file vanishes with the worker, however that ends.
    name: Option<Vec<u8>>,
}

impl<'a> Temp<'a> {
    /// An empty file that only its owner can use.
    pub fn new(place: &'a Place) -> Result<Self> {
        let private = Mode::from_raw_mode(0o600);
        if let Ok(file) = rustix::fs::openat(&place.dir, ".", OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, private)
            && rustix::fs::access(by_number(&file), rustix::fs::Access::EXISTS).is_ok()
        {
            return Ok(Self { place, file, name: None });
        }
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
        let (name, file) = with_fresh_name(|name| rustix::fs::openat(&place.dir, name, flags, private))
            .during("make a file in the directory")?;
        Ok(Self { place, file, name: Some(name) })
    }

    /// Puts it in its place, over a file that is there unless `create_new`.
    pub fn publish(mut self, create_new: bool) -> Result<()> {
        if self.name.is_none() {
            match self.link(&self.place.name) {
                Err(Errno::EXIST) if !create_new => {
                    self.name = Some(with_fresh_name(|name| self.link(name)).during("name the new file")?.0);
                }
                other => return other.during("name the new file"),
            }
        }
        let name = self.name.as_deref().unwrap_or_default();
        let flags = if create_new { RenameFlags::NOREPLACE } else { RenameFlags::empty() };
        let Place { dir, name: target } = self.place;
        rustix::fs::renameat_with(dir, name, dir, target, flags).during("replace the file")?;
        self.name = None;
        Ok(())
    }

    fn link(&self, name: &[u8]) -> rustix::io::Result<()> {
        rustix::fs::linkat(CWD, by_number(&self.file), &self.place.dir, name, AtFlags::SYMLINK_FOLLOW)
    }
}

impl Drop for Temp<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // It may be gone already; there is nobody to tell either way.
            let _ = rustix::fs::unlinkat(&self.place.dir, name, AtFlags::empty());
        }
    }
}

fn by_number(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Tries names until one is not taken. They need not be secret: nothing that exists is ever opened.
fn with_fresh_name<T>(mut make: impl FnMut(&[u8]) -> rustix::io::Result<T>) -> rustix::io::Result<(Vec<u8>, T)> {
    let random = RandomState::new();
    for attempt in 0..64 {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let name = format!(".tierbox-{:016x}", random.hash_one((attempt, now, std::process::id()))).into_bytes();
        match make(&name) {
            Err(Errno::EXIST) => {}
            other => return other.map(|made| (name, made)),
        }
    }
    Err(Errno::EXIST)
}
