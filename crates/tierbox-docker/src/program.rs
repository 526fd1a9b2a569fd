//! The supervisor's program on this host, as containers get it mounted.
//!
//! All environments of a state directory have the same file by links of their own: what the kernel holds of it in memory is there once,
//! and not once for each machine. Nothing in a container can write it, and nobody but this user could here.

use std::fs::{File, OpenOptions};
use std::io::{Read, Result as IoResult, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use tierbox_core::{Error, ErrorKind, Result};
use tierbox_guest::supervisor;

use crate::BACKEND;

/// What the names of the common files begin with, in the state directory.
const COMMON: &str = "supervisor-";
/// The program's name in an environment's directory.
const NAME: &str = "supervisor";

/// Puts the program into an environment's directory.
///
/// # Errors
/// `HostUnable` where this build carries none; what the file system says.
pub fn put(directory: &Path) -> Result<PathBuf> {
    let bytes = supervisor::BYTES.ok_or_else(|| {
        Error::new(ErrorKind::HostUnable, "start environment", "this build of tierbox carries no supervisor")
            .with_backend(BACKEND)
    })?;
    let path = directory.join(NAME);
    let hash = supervisor::sha256().unwrap_or_default();
    let hash: String = hash[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    // `STATE/environments/ID`.
    let common = directory.parent().and_then(Path::parent).map(|state| state.join(format!("{COMMON}{hash}")));
    let put = match common.map(|common| link(&common, &path, bytes)) {
        Some(Ok(())) => Ok(()),
        // Whatever is in the way of one for all is not in the way of one of its own.
        _ => write(&path, bytes),
    };
    put.map_err(|error| Error::io("write the supervisor", error).with_backend(BACKEND).with_context("path", path.display()))?;
    Ok(path)
}

/// Gives the common file another name, having made it if there is none that can be believed.
fn link(common: &Path, path: &Path, bytes: &[u8]) -> IoResult<()> {
    if !is_right(common, bytes) {
        let unfinished = path.with_extension("new");
        let made = write(&unfinished, bytes).and_then(|()| std::fs::rename(&unfinished, common));
        if made.is_err() {
            let _ = std::fs::remove_file(&unfinished);
        }
        made?;
        remove_others(common);
    }
    std::fs::hard_link(common, path)?;
    // What was looked at by its name may have been another by then.
    if is_right(path, bytes) {
        return Ok(());
    }
    std::fs::remove_file(path)?;
    Err(std::io::ErrorKind::InvalidData.into())
}

/// Whether a file is this program, byte for byte, and nobody but this user could change that.
fn is_right(path: &Path, bytes: &[u8]) -> bool {
    let read = || -> IoResult<bool> {
        let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap_or_default();
        let mut file = File::options().read(true).custom_flags(flags).open(path)?;
        let meta = file.metadata()?;
        let is_ours = meta.uid() == rustix::process::geteuid().as_raw() && meta.mode() & 0o7777 == 0o555;
        if !meta.is_file() || !is_ours || meta.len() != bytes.len() as u64 {
            return Ok(false);
        }
        let (mut rest, mut chunk) = (bytes, vec![0; 64 << 10]);
        while !rest.is_empty() {
            let count = file.read(&mut chunk)?;
            match rest.split_at_checked(count) {
                Some((next, after)) if count > 0 && next == &chunk[..count] => rest = after,
                _ => return Ok(false),
            }
        }
        Ok(true)
    };
    read().unwrap_or(false)
}

fn write(path: &Path, bytes: &[u8]) -> IoResult<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o555).open(path)?;
    // Whatever this process takes away from what it makes.
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o555))?;
    file.write_all(bytes)
}

/// Those of other builds. Environments that have one keep it by their own name.
fn remove_others(common: &Path) {
    let entries = common.parent().map(std::fs::read_dir).into_iter().flatten().flatten().flatten();
    for entry in entries.filter(|entry| entry.path() != common) {
        if entry.file_name().to_str().is_some_and(|name| name.strip_prefix(COMMON).is_some_and(|rest| rest.len() == 16)) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod unit {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn environments_share_one_file_that_nobody_else_could_have_written() {
        let state = tempfile::tempdir().unwrap();
        let environment = |id: &str| {
            let directory = state.path().join("environments").join(id);
            std::fs::create_dir_all(&directory).unwrap();
            directory
        };
        let (one, other) = (environment("a").join(NAME), environment("b").join(NAME));
        let common = state.path().join(format!("{COMMON}0123456789abcdef"));
        let old = state.path().join(format!("{COMMON}fedcba9876543210"));
        std::fs::write(&old, "of another build").unwrap();
        link(&common, &one, b"program").unwrap();
        link(&common, &other, b"program").unwrap();
        let inode = |path: &Path| std::fs::metadata(path).unwrap().ino();
        assert!(inode(&one) == inode(&other) && !old.exists());
        assert_eq!(std::fs::metadata(&one).unwrap().mode() & 0o7777, 0o555);
        // One that is something else, that others may write, or that is a link is made anew.
        let harms: [fn(&Path); 3] = [
            |path| {
                std::fs::remove_file(path).unwrap();
                std::fs::write(path, b"progran").unwrap();
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o555)).unwrap();
            },
            |path| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o577)).unwrap(),
            |path| {
                std::fs::rename(path, path.with_extension("moved")).unwrap();
                std::os::unix::fs::symlink(path.with_extension("moved"), path).unwrap();
            },
        ];
        for (number, harm) in harms.iter().enumerate() {
            harm(&common);
            let path = environment(&format!("c{number}")).join(NAME);
            link(&common, &path, b"program").unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"program");
            assert!(std::fs::symlink_metadata(&common).unwrap().is_file() && inode(&path) == inode(&common), "{number}");
        }
    }

    #[test]
    fn where_nothing_can_be_shared_it_has_one_of_its_own() {
        let state = tempfile::tempdir().unwrap();
        let directory = state.path().join("environments/a");
        std::fs::create_dir_all(&directory).unwrap();
        // A directory is in the way of the common file.
        if let Some(hash) = supervisor::sha256() {
            let hash: String = hash[..8].iter().map(|byte| format!("{byte:02x}")).collect();
            std::fs::create_dir_all(state.path().join(format!("{COMMON}{hash}")).join("x")).unwrap();
            let path = put(&directory).unwrap();
            assert_eq!(std::fs::read(path).unwrap(), supervisor::BYTES.unwrap());
            assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
        }
    }
}
