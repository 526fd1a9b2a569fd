//! Removing files, links, directories and whole trees.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, unlinkat};
use rustix::io::Errno;

use super::answer::{Context, Fail, Result};
use super::place::{self, Place};
use super::walk::{self, DirId, Name};
use crate::protocol::{Failure, FromSupervisor};

/// How many names are taken from a directory at once.
const BATCH: usize = 4096;

/// How often a directory may turn out to have got new entries before the removal gives up.
const PATIENCE: usize = 64;

/// Removes what a path names; a link itself, never what it leads to.
pub fn remove(path: &[u8], recursive: bool) -> Result<FromSupervisor> {
    let place = place::locate(path, false).map_err(|fail| match fail {
        Fail::Failed { failure: Failure::IsADirectory, .. } => {
            Fail::new(Failure::Invalid, "such a path cannot be removed: name the directory from its parent")
        }
        other => other,
    })?;
    match remove_one(&place.dir, &place.name) {
        Ok(Removal::Done) => {}
        Ok(Removal::NotEmpty) if recursive => remove_tree(&place)?,
        Ok(Removal::NotEmpty) => return Err(Fail::new(Failure::IsADirectory, "the directory is not empty")),
        Err(error) => return Err(error.into()),
    }
    Ok(FromSupervisor::Finished)
}

#[derive(PartialEq)]
enum Removal {
    Done,
    NotEmpty,
}

/// Removes a file, link or empty directory.
fn remove_one(dir: &OwnedFd, name: &[u8]) -> rustix::io::Result<Removal> {
    let first = match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) => return Ok(Removal::Done),
        // Some file systems say EPERM of a directory.
        Err(error @ (Errno::ISDIR | Errno::PERM)) => error,
        Err(error) => return Err(error),
    };
    match unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) => Ok(Removal::Done),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(Removal::NotEmpty),
        Err(Errno::NOTDIR) => Err(first),
        Err(error) => Err(error),
    }
}

/// A directory on the way from the top to where the walk is.
struct Level {
    id: DirId,
    name: Name,
    /// Directories in it that hold something.
    full: Vec<Name>,
    /// Whether all its names were seen.
    swept: bool,
}

/// Removes a tree of any depth and width: the way back is kept as a list, and each step up is checked.
fn remove_tree(place: &Place) -> Result<()> {
    let (mut dir, mut levels) = (None, Vec::<Level>::new());
    let mut next: Option<Name> = Some(place.name.as_slice().into());
    let mut surprises = 0;
    loop {
        let here = dir.as_ref().unwrap_or(&place.dir);
        if let Some(name) = next.take() {
            match walk::down(here, &name) {
                Ok((child, id)) => {
                    levels.push(Level { id, name, full: Vec::new(), swept: false });
                    dir = Some(child);
                }
                // Gone, or no longer a directory: whoever did that is answered when the parent is removed.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if !levels.is_empty() => {}
                Err(error) => return Err(error).during("open a directory of the tree"),
            }
        } else if let Some(level) = levels.last_mut() {
            next = level.full.pop();
            if next.is_none() && !level.swept {
                level.swept = sweep(here, &mut level.full)?;
            } else if next.is_none() {
                let (parent, again) = leave(place, here, &mut levels)?;
                dir = parent;
                next = again;
                surprises += usize::from(next.is_some());
                if surprises > PATIENCE {
                    return Err(Fail::new(Failure::Io, "the tree is filled while it is removed"));
                }
            }
        } else {
            return Ok(());
        }
    }
}

/// Goes up and removes the directory that was emptied. Returns where the walk now is, and the name of the directory if
/// it has got new entries.
fn leave(place: &Place, here: &OwnedFd, levels: &mut Vec<Level>) -> Result<(Option<OwnedFd>, Option<Name>)> {
    let Some(done) = levels.pop() else { return Ok((None, None)) };
    let parent = levels.last().map(|level| walk::up(here, level.id)).transpose()?;
    match remove_one(parent.as_ref().unwrap_or(&place.dir), &done.name) {
        Ok(Removal::Done) | Err(Errno::NOENT) => Ok((parent, None)),
        Ok(Removal::NotEmpty) => Ok((parent, Some(done.name))),
        Err(error) => Err(error).during("remove a directory of the tree"),
    }
}

/// Removes what can be removed at once and collects the directories that hold something. Returns whether that was all.
fn sweep(dir: &OwnedFd, full: &mut Vec<Name>) -> Result<bool> {
    let names = walk::names(dir, BATCH).during("read a directory of the tree")?;
    let complete = names.len() <= BATCH;
    for name in names {
        match remove_one(dir, &name) {
            Ok(Removal::Done) | Err(Errno::NOENT) => {}
            Ok(Removal::NotEmpty) => full.push(name),
            Err(error) => return Err(error).during("remove an entry of the tree"),
        }
    }
    Ok(complete)
}
