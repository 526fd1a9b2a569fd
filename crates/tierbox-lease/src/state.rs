//! The state directory: where it is, and whether it can be trusted.

use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use tierbox_core::{Error, ErrorKind, Result};

/// The directory in which tierbox keeps leases and what belongs to running environments.
///
/// It and all below belong to the caller alone: whoever could write here could name resources to be destroyed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// Finds the directory: `TIERBOX_STATE_DIR`, else `$XDG_STATE_HOME/tierbox`, else `~/.local/state/tierbox`, else (for
    /// root without a home) `/var/lib/tierbox`. Does not make it.
    ///
    /// # Errors
    /// [`ErrorKind::HostUnable`] if none of these can be told.
    pub fn locate() -> Result<PathBuf> {
        let root = rustix::process::geteuid().is_root();
        locate_with(|name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from), root)
    }

    /// Opens a state directory, making it (mode 0700) if need be.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`] if it belongs to another user or others may write to it; [`ErrorKind::InvalidInput`] if its path
    /// is not UTF-8.
    pub fn open(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path).map_err(|error| Error::io("open state directory", error))?;
        if path.to_str().is_none() {
            let message = format!("{} is not UTF-8, and leases name what lies there as text", path.display());
            return Err(Error::new(ErrorKind::InvalidInput, "open state directory", message)
                .with_help("set TIERBOX_STATE_DIR to a directory with an ordinary name"));
        }
        if !trusted(&path)? {
            make_directory(&path)?;
            if !trusted(&path)? {
                return Err(Error::new(ErrorKind::NotFound, "open state directory", "it vanished while it was made"));
            }
        }
        let state = Self { path };
        for part in [state.leases(), state.locks(), state.environments()] {
            if !trusted(&part)? {
                make_directory(&part)?;
            }
        }
        Ok(state)
    }

    /// Its path, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn leases(&self) -> PathBuf {
        self.path.join("leases")
    }
    pub(crate) fn locks(&self) -> PathBuf {
        self.path.join("locks")
    }

    /// The directories of environments, each by its id.
    pub fn environments(&self) -> PathBuf {
        self.path.join("env")
    }
}

fn locate_with(variable: impl Fn(&str) -> Option<PathBuf>, root: bool) -> Result<PathBuf> {
    if let Some(path) = variable("TIERBOX_STATE_DIR") {
        return Ok(path);
    }
    // The XDG rules: a relative path is to be ignored.
    if let Some(path) = variable("XDG_STATE_HOME").filter(|path| path.is_absolute()) {
        return Ok(path.join("tierbox"));
    }
    if let Some(home) = variable("HOME").filter(|home| home.is_absolute() && (!root || home != Path::new("/"))) {
        return Ok(home.join(".local/state/tierbox"));
    }
    if root {
        return Ok(PathBuf::from("/var/lib/tierbox"));
    }
    Err(Error::new(ErrorKind::HostUnable, "find state directory", "neither TIERBOX_STATE_DIR nor XDG_STATE_HOME nor HOME is set")
        .with_help("set TIERBOX_STATE_DIR to a directory of your own"))
}

/// Makes a directory of the caller's own, and its parents. One that exists already is fine.
pub(crate) fn make_directory(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| unusable("make state directory", path, error))
}

/// That it cannot be used. A parent that is missing, or is no directory, is the host's state and not something that was asked for.
fn unusable(operation: &'static str, path: &Path, error: std::io::Error) -> Error {
    let message = format!("{}: {error}", path.display());
    let found = Error::io(operation, error);
    let kind = if found.kind() == ErrorKind::NotFound { ErrorKind::Io } else { found.kind() };
    Error::new(kind, operation, message)
        .with_help(format!("make {} a directory that you may write to, or set TIERBOX_STATE_DIR to another", path.display()))
}

/// Whether the directory exists; an error if it exists and others can write to it.
fn trusted(path: &Path) -> Result<bool> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(rustix::io::Errno::NOENT) => return Ok(false),
        Err(error) => return Err(unusable("open state directory", path, error.into())),
    };
    let stat = rustix::fs::fstat(&directory).map_err(|error| Error::io("open state directory", error.into()))?;
    let own = rustix::process::geteuid().as_raw();
    let problem = match () {
        () if stat.st_uid != own => format!("{} belongs to user {}, not to you ({own})", path.display(), stat.st_uid),
        () if stat.st_mode & 0o022 != 0 => format!("{} can be written to by others", path.display()),
        () => return Ok(true),
    };
    Err(Error::new(ErrorKind::PermissionDenied, "open state directory", problem)
        .with_help("set TIERBOX_STATE_DIR to a directory of your own, with mode 0700"))
}

#[cfg(test)]
mod unit {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn locate(set: &[(&str, &str)], root: bool) -> Option<PathBuf> {
        let find = |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value));
        locate_with(find, root).ok()
    }

    #[test]
    fn what_cannot_be_one_is_named() {
        for bad in ["/dev/null", "/proc/no-such-place"] {
            let refused = StateDir::open(Path::new(bad)).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Io, "{refused}");
            assert!(refused.message().contains(bad) && refused.help().is_some_and(|help| help.contains("TIERBOX_STATE_DIR")));
        }
    }

    #[test]
    fn the_first_of_the_places_wins() {
        let all = [("TIERBOX_STATE_DIR", "/a"), ("XDG_STATE_HOME", "/b"), ("HOME", "/c")];
        assert_eq!(locate(&all, false).unwrap(), Path::new("/a"));
        assert_eq!(locate(&all[1..], false).unwrap(), Path::new("/b/tierbox"));
        assert_eq!(locate(&all[2..], true).unwrap(), Path::new("/c/.local/state/tierbox"));
        assert_eq!(locate(&[("HOME", "/")], true).unwrap(), Path::new("/var/lib/tierbox"));
        assert_eq!(locate(&[("XDG_STATE_HOME", "relative")], false), None);
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        let outer = tempfile::tempdir().unwrap();
        let path = outer.path().join("deep/state");
        let state = StateDir::open(&path).unwrap();
        assert_eq!(std::fs::metadata(state.path()).unwrap().permissions().mode() & 0o777, 0o700);
        for mode in [0o720, 0o702, 0o1777] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(StateDir::open(&path).unwrap_err().kind(), ErrorKind::PermissionDenied, "{mode:o}");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        StateDir::open(&path).unwrap();
    }

    #[test]
    fn a_file_in_its_place_is_refused() {
        let outer = tempfile::tempdir().unwrap();
        let path = outer.path().join("state");
        std::fs::write(&path, "").unwrap();
        assert!(StateDir::open(&path).is_err());
    }
}
