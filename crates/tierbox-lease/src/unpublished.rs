//! A lease's file before anybody can see it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

/// Files under construction have names that begin so, where a file cannot be made without a name.
pub(crate) const UNFINISHED: &str = ".new-";

/// A new file that is locked and written before it gets its name. Where the file system can, it has no name at all until
/// then: a creator that dies leaves nothing.
#[derive(Debug)]
pub(crate) struct Unpublished {
    /// The file, open for reading and writing, mode 0600.
    pub file: File,
    name: Option<PathBuf>,
}

impl Unpublished {
    /// Makes one in a directory of leases.
    pub fn make(leases: &Path, id: &str) -> io::Result<Self> {
        if let Some(file) = without_name(leases) {
            return Ok(Self { file, name: None });
        }
        let name = leases.join(format!("{UNFINISHED}{id}"));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(&name, flags, Mode::RUSR | Mode::WUSR)?.into();
        Ok(Self { file, name: Some(name) })
    }

    /// Gives it its name, unless there is one of that name.
    pub fn publish(&self, to: &Path) -> io::Result<()> {
        match &self.name {
            Some(from) => rename_new(from, to),
            None => link(&self.file, to),
        }
    }

    /// Gives it up.
    pub fn discard(self) {
        if let Some(name) = self.name {
            // It is empty or nobody's; a later clean-up sweeps what stays.
            let _ = std::fs::remove_file(name);
        }
    }
}

/// Not every file system has files without names, and without `/proc` they could not be named later.
#[cfg(target_os = "linux")]
fn without_name(leases: &Path) -> Option<File> {
    if !Path::new("/proc/self/fd").is_dir() {
        return None;
    }
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    rustix::fs::open(leases, flags, Mode::RUSR | Mode::WUSR).ok().map(File::from)
}

#[cfg(not(target_os = "linux"))]
fn without_name(_leases: &Path) -> Option<File> {
    None
}

#[cfg(target_os = "linux")]
fn link(file: &File, to: &Path) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::linkat(CWD, from, CWD, to, rustix::fs::AtFlags::SYMLINK_FOLLOW)?)
}

#[cfg(not(target_os = "linux"))]
fn link(_file: &File, _to: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS) => {
            std::fs::hard_link(from, to)?;
            std::fs::remove_file(from)
        }
        other => Ok(other?),
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    /// Both ways of making one, where this file system has both.
    fn both(leases: &Path) -> Vec<Unpublished> {
        let named = leases.join(".new-x");
        let file = File::options().read(true).write(true).create_new(true).open(&named).unwrap();
        vec![Unpublished::make(leases, "a").unwrap(), Unpublished { file, name: Some(named) }]
    }

    #[test]
    fn it_gets_its_name_once_and_takes_nobodys() {
        let leases = tempfile::tempdir().unwrap();
        for (index, unpublished) in both(leases.path()).into_iter().enumerate() {
            let taken = leases.path().join("taken");
            std::fs::write(&taken, "theirs").unwrap();
            assert_eq!(unpublished.publish(&taken).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(std::fs::read(&taken).unwrap(), b"theirs");
            let own = leases.path().join(format!("own-{index}"));
            unpublished.publish(&own).unwrap();
            assert!(own.exists());
        }
    }

    #[test]
    fn what_is_given_up_leaves_nothing() {
        let leases = tempfile::tempdir().unwrap();
        both(leases.path()).into_iter().for_each(Unpublished::discard);
        assert_eq!(std::fs::read_dir(leases.path()).unwrap().count(), 0);
    }
}
