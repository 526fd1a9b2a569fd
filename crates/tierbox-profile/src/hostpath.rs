//! Paths on the host: what they are relative to, and which must never be visible inside a sandbox.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Component, Path, PathBuf};

use tierbox_core::{ENGINE_SOCKETS, Error, ErrorKind, Result, holds_keys, homes_of_people};

use crate::surroundings::Surroundings;

/// Parts of the host that are its own business.
const SYSTEM_DIRECTORIES: &[&str] = &["/proc", "/sys", "/dev", "/etc", "/boot", "/run", "/var/run"];

/// Makes a path absolute: `~/` is the home directory, anything else relative starts from `base`.
pub(crate) fn absolute(path: impl AsRef<Path>, base: &Path, surroundings: &Surroundings) -> Result<PathBuf, &'static str> {
    let path = path.as_ref();
    if path.as_os_str().is_empty() {
        return Err("is empty");
    }
    if path.as_os_str().as_encoded_bytes().contains(&0) {
        return Err("holds a NUL byte");
    }
    let path = match (path.strip_prefix("~"), surroundings.home()) {
        (Ok(rest), Some(home)) => home.join(rest),
        (Ok(_), None) => return Err("starts with ~ and there is no home directory"),
        (Err(_), _) => base.join(path),
    };
    Ok(tidy(&surroundings.directory().join(path)))
}

/// Takes `.` and what `..` undoes out of a path.
fn tidy(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut done, part| {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(done.pop()),
            other => done.push(other),
        }
        done
    })
}

/// Refuses a path of the host that must not be visible in a sandbox, nor be copied into one: the root, home directories
/// as a whole, key directories, engine sockets, and the system's own directories. Links are looked through.
///
/// # Errors
/// `InvalidProfile` that names the rule.
pub fn check_exposed(path: &Path, home: Option<&Path>) -> Result<()> {
    let real = path.canonicalize().ok();
    let homes: Vec<PathBuf> = home.map(Path::to_path_buf).into_iter().chain(homes_of_people()).collect();
    let why = [Some(path), real.as_deref()].into_iter().flatten().find_map(|path| forbidden(path, &homes));
    match why {
        None => Ok(()),
        Some(why) => Err(Error::new(
            ErrorKind::InvalidProfile,
            "check host path",
            format!("{} is never given to a sandbox: {why}", path.display()),
        )
        .with_help("name the directory that the sandbox needs, and no more")),
    }
}

fn forbidden(path: &Path, homes: &[PathBuf]) -> Option<String> {
    let parts: Vec<_> = path.components().collect();
    if parts.len() <= 1 {
        return Some("it is the root of the host".to_owned());
    }
    if path.file_name().and_then(OsStr::to_str).is_some_and(|name| ENGINE_SOCKETS.contains(&name)) {
        return Some("it is the socket of an engine".to_owned());
    }
    if let Some(system) = SYSTEM_DIRECTORIES.iter().find(|system| path.starts_with(system) || Path::new(system).starts_with(path))
    {
        return Some(format!("{system} is the host's own"));
    }
    if homes.iter().any(|home| home.starts_with(path)) || is_home_root(path) {
        return Some("it holds a whole home directory".to_owned());
    }
    holds_keys(path, homes)
}

/// `/home`, `/home/NAME`, `/Users/NAME`, `/root`.
fn is_home_root(path: &Path) -> bool {
    if path == Path::new("/root") {
        return true;
    }
    ["/home", "/Users"].iter().any(|all| path == Path::new(all) || path.parent() == Some(Path::new(all)))
}

/// Opens a regular file, and nothing that could block or never end.
pub(crate) fn open_regular(path: &Path) -> Result<File, String> {
    let facts = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if !facts.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    File::open(path).map_err(|error| error.to_string())
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn relative_paths_start_from_the_file() {
        let around = Surroundings::empty("/work/dir").with_variable("HOME", "/home/ann");
        for (text, expected) in [
            ("../x", "/profiles/x"),
            ("./a/./b", "/profiles/here/a/b"),
            ("/abs/../y", "/y"),
            ("~/code", "/home/ann/code"),
            ("../../../..", "/"),
        ] {
            assert_eq!(absolute(text, Path::new("/profiles/here"), &around).unwrap(), Path::new(expected), "{text}");
        }
        assert!(absolute("~/x", Path::new("/p"), &Surroundings::empty("/")).is_err());
        assert!(absolute("a\0b", Path::new("/p"), &around).is_err());
    }

    #[test]
    fn what_must_not_be_seen_is_refused() {
        let home = Some(Path::new("/srv/people/ann"));
        for path in [
            "/",
            "/home",
            "/home/bob",
            "/root",
            "/srv/people/ann",
            "/srv/people",
            "/srv",
            "/srv/people/ann/.ssh/id",
            "/home/bob/.aws",
            "/home/bob/.config",
            "/home/bob/.local/state",
            "/srv/people/ann/.local/state/tierbox/env",
            "/srv/people/ann/.npmrc",
            "/srv/people/ann/.config/tierbox",
            "/x/homes/bob/.ssh",
            "/root/.gnupg",
            "/run/docker.sock",
            "/var/run/docker.sock",
            "/x/podman.sock",
            "/etc",
            "/proc/1",
            "/sys",
            "/dev/kvm",
            "/var",
        ] {
            assert!(check_exposed(Path::new(path), home).is_err(), "{path}");
        }
        for path in
            ["/srv/people/ann/code", "/home/bob/project", "/opt/data", "/usr/share", "/root/work", "/srv/people/ann/.cargo"]
        {
            assert!(check_exposed(Path::new(path), home).is_ok(), "{path}");
        }
    }

    #[test]
    fn links_are_looked_through() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("innocent");
        std::os::unix::fs::symlink("/etc", &link).unwrap();
        assert!(check_exposed(&link, None).is_err());
    }
}
