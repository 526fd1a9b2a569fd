//! The directory by its path: each step is looked at before it is taken. For hosts without descriptors of directories in
//! the standard library; good against what an archive holds, not against somebody who changes the tree meanwhile.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use super::beneath::{Beneath, Facts, Obstacle, Sort, Steps};

/// A directory, by its path without links.
#[derive(Debug)]
pub struct Walked(PathBuf);

impl Walked {
    /// The path that steps lead to.
    fn enter(&self, steps: Steps<'_>) -> Result<PathBuf, Obstacle> {
        let mut path = self.0.clone();
        for step in steps {
            path.push(OsStr::from_bytes(step));
            match Facts::of(&fs::symlink_metadata(&path)?).sort {
                Sort::Directory => {}
                Sort::Link => return Err(Obstacle::Link(step.to_vec())),
                Sort::File | Sort::Other => return Err(io::Error::from(io::ErrorKind::NotADirectory).into()),
            }
        }
        Ok(path)
    }

    fn join(&self, dir: Steps<'_>, name: &[u8]) -> Result<PathBuf, Obstacle> {
        Ok(self.enter(dir)?.join(OsStr::from_bytes(name)))
    }
}

impl Beneath for Walked {
    fn source(path: &Path) -> io::Result<Self> {
        path.canonicalize().map(Self)
    }

    fn target(path: &Path) -> io::Result<Self> {
        path.canonicalize().map(Self)
    }

    fn names(&self, dir: Steps<'_>) -> Result<Vec<Vec<u8>>, Obstacle> {
        fs::read_dir(self.enter(dir)?)?.map(|entry| Ok(entry?.file_name().into_vec())).collect()
    }

    fn facts(&self, dir: Steps<'_>, name: &[u8]) -> Result<Facts, Obstacle> {
        Ok(Facts::of(&fs::symlink_metadata(self.join(dir, name)?)?))
    }

    fn open(&self, dir: Steps<'_>, name: &[u8]) -> Result<File, Obstacle> {
        let path = self.join(dir, name)?;
        match Facts::of(&fs::symlink_metadata(&path)?).sort {
            Sort::File => Ok(File::open(path)?),
            _ => Err(io::Error::from(io::ErrorKind::NotFound).into()),
        }
    }

    fn read_link(&self, dir: Steps<'_>, name: &[u8]) -> Result<Vec<u8>, Obstacle> {
        Ok(fs::read_link(self.join(dir, name)?)?.into_os_string().into_vec())
    }

    fn clear(&self, dir: Steps<'_>, name: &[u8]) -> Result<(), Obstacle> {
        match fs::remove_file(self.join(dir, name)?) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn make_dir(&self, dir: Steps<'_>, name: &[u8], mode: u32) -> Result<(), Obstacle> {
        Ok(fs::DirBuilder::new().mode(mode).create(self.join(dir, name)?)?)
    }

    fn make_file(&self, dir: Steps<'_>, name: &[u8], mode: u32) -> Result<File, Obstacle> {
        Ok(OpenOptions::new().write(true).create_new(true).mode(mode).open(self.join(dir, name)?)?)
    }

    fn make_link(&self, dir: Steps<'_>, name: &[u8], target: &[u8]) -> Result<(), Obstacle> {
        Ok(symlink(OsStr::from_bytes(target), self.join(dir, name)?)?)
    }

    fn make_twin(&self, old_dir: Steps<'_>, old: &[u8], dir: Steps<'_>, name: &[u8]) -> Result<(), Obstacle> {
        Ok(fs::hard_link(self.join(old_dir, old)?, self.join(dir, name)?)?)
    }
}
