//! Removal of a directory whose contents a sandbox may have made.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

const OPEN: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes a directory and all in it. Links are removed, never followed. Depth costs neither stack nor descriptors, and
/// directories without permission bits are opened up first. A directory that does not exist is fine.
///
/// # Errors
/// What the file system says.
pub fn remove_tree(path: &Path) -> std::io::Result<()> {
    let top = match open_directory(CWD, path) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    // Subdirectories are emptied one level at a time: what they hold is moved up beside them under fresh names.
    let mut fresh = 0_u64;
    loop {
        let directories = remove_files(&top)?;
        if directories.is_empty() {
            break;
        }
        for name in &directories {
            flatten(&top, name, &mut fresh)?;
        }
    }
    drop(top);
    match rustix::fs::rmdir(path) {
        Err(Errno::NOENT) => Ok(()),
        other => Ok(other?),
    }
}

/// Removes everything in `directory` but directories, which are returned.
fn remove_files(directory: &OwnedFd) -> rustix::io::Result<Vec<std::ffi::CString>> {
    let mut directories = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if is_directory(directory, name, entry.file_type())? {
            directories.push(name.to_owned());
        } else {
            ignore_missing(rustix::fs::unlinkat(directory, name, AtFlags::empty()))?;
        }
    }
    Ok(directories)
}

/// Empties the directory `name`, moving its own directories up into `top`, and removes it.
fn flatten(top: &OwnedFd, name: &std::ffi::CStr, fresh: &mut u64) -> rustix::io::Result<()> {
    let directory = open_directory(top, name)?;
    for inner in remove_files(&directory)? {
        loop {
            let target = format!(".removed-{fresh}");
            *fresh += 1;
            // Moving a directory rewrites its `..`, for which it must be writable itself.
            match rename_new(&directory, &inner, top, &target) {
                Err(Errno::EXIST | Errno::NOTEMPTY) => {}
                Err(Errno::ACCESS) => rustix::fs::chmodat(&directory, &*inner, Mode::RWXU, AtFlags::empty())?,
                other => break ignore_missing(other)?,
            }
        }
    }
    ignore_missing(rustix::fs::unlinkat(top, name, AtFlags::REMOVEDIR))
}

fn rename_new(from: &OwnedFd, name: &std::ffi::CStr, to: &OwnedFd, target: &str) -> rustix::io::Result<()> {
    // A plain rename onto an existing name would replace an empty directory of that name: harmless, it goes anyway.
    rustix::fs::renameat(from, name, to, target)
}

fn open_directory(at: impl AsFd, path: impl rustix::path::Arg + Copy) -> rustix::io::Result<OwnedFd> {
    let at = at.as_fd();
    match rustix::fs::openat(at, path, OPEN, Mode::empty()) {
        Err(Errno::ACCESS) => {
            rustix::fs::chmodat(at, path, Mode::RWXU, AtFlags::empty())?;
            rustix::fs::openat(at, path, OPEN, Mode::empty())
        }
        Ok(directory) => {
            // Reading is not enough: names are removed from it too.
            if rustix::fs::fstat(&directory)?.st_mode & 0o700 != 0o700 {
                rustix::fs::fchmod(&directory, Mode::RWXU)?;
            }
            Ok(directory)
        }
        other => other,
    }
}

fn is_directory(at: &OwnedFd, name: &std::ffi::CStr, known: FileType) -> rustix::io::Result<bool> {
    if known != FileType::Unknown {
        return Ok(known == FileType::Directory);
    }
    match rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

fn ignore_missing(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod unit {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn links_are_not_followed_and_closed_directories_are_opened() {
        let outer = tempfile::tempdir().unwrap();
        let kept = outer.path().join("kept");
        std::fs::create_dir(&kept).unwrap();
        std::fs::write(kept.join("file"), "x").unwrap();
        let tree = outer.path().join("tree");
        std::fs::create_dir_all(tree.join("a/b/c")).unwrap();
        std::fs::create_dir_all(tree.join(".removed-0/x")).unwrap();
        symlink(&kept, tree.join("a/link")).unwrap();
        std::fs::write(tree.join("a/b/file"), "x").unwrap();
        for closed in ["a/b/c", "a/b", "a"] {
            std::fs::set_permissions(tree.join(closed), std::fs::Permissions::from_mode(0o0)).unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert!(kept.join("file").exists());
        remove_tree(&tree).unwrap();
    }

    #[test]
    fn a_very_deep_tree_goes() {
        let outer = tempfile::tempdir().unwrap();
        let tree = outer.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        let mut at: OwnedFd = rustix::fs::openat(CWD, &tree, OPEN, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, "d", OPEN, Mode::empty()).unwrap();
        }
        drop(at);
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }
}
