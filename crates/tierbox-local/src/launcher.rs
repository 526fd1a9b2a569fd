//! The installed launcher: the supervisor at a fixed path, for hosts that bind user namespaces to a program's path or forbid
//! memory files.
//!
//! Ubuntu 24.04 denies plain users' namespaces to every program without an AppArmor profile that says `userns`. A profile
//! needs a path, so one root-owned copy of the supervisor serves the command line and every program that embeds tierbox.
//! No kernel with AppArmor was tried.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tierbox_core::{Error, ErrorKind, Result};
use tierbox_guest::supervisor;

use crate::BACKEND;

/// Where the launcher is installed.
pub const LAUNCHER: &str = "/usr/local/libexec/tierbox/tierbox-supervisor";

/// Where its AppArmor profile is installed.
pub const PROFILE: &str = "/etc/apparmor.d/tierbox";

const PROFILE_TEXT: &str = "# Lets tierbox's supervisor make user namespaces; it confines what it runs itself.\n\
    abi <abi/4.0>,\n\
    include <tunables/global>\n\
    \n\
    profile tierbox-supervisor /usr/local/libexec/tierbox/tierbox-supervisor flags=(unconfined) {\n\
    \x20 userns,\n\
    \n\
    \x20 include if exists <local/tierbox-supervisor>\n\
    }\n";

/// A file that the installation writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedFile {
    /// Its path.
    pub path: PathBuf,
    /// Its permission bits. Its owner is root.
    pub mode: u32,
    /// Its contents.
    pub contents: Vec<u8>,
    /// What it is for, for people.
    pub purpose: &'static str,
}

/// What the installation of the launcher would write: the supervisor, and an AppArmor profile where AppArmor is there.
///
/// # Errors
/// `HostUnable` if this program carries no supervisor.
pub fn install_launcher() -> Result<Vec<PlannedFile>> {
    let contents = supervisor::BYTES.ok_or_else(no_supervisor)?.to_vec();
    let purpose = "the supervisor, as a program with a fixed path";
    let mut files = vec![PlannedFile { path: LAUNCHER.into(), mode: 0o755, contents, purpose }];
    if Path::new("/etc/apparmor.d").is_dir() {
        let purpose = "the AppArmor profile that lets it make user namespaces";
        files.push(PlannedFile { path: PROFILE.into(), mode: 0o644, contents: PROFILE_TEXT.into(), purpose });
    }
    Ok(files)
}

/// Writes the files of [`install_launcher`], each atomically, and loads the AppArmor profile. Needs root.
///
/// # Errors
/// `PermissionDenied` for anybody but root; what the file system says.
pub fn write_launcher(files: &[PlannedFile]) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::new(ErrorKind::PermissionDenied, "install launcher", "only root can install it")
            .with_backend(BACKEND)
            .with_help("run the same command with sudo"));
    }
    for file in files {
        write_file(file).map_err(|error| Error::io("install launcher", error).with_context("path", file.path.display()))?;
    }
    if files.iter().any(|file| file.path == Path::new(PROFILE)) {
        load_profile()?;
    }
    Ok(())
}

fn write_file(file: &PlannedFile) -> std::io::Result<()> {
    let parent = file.path.parent().unwrap_or(Path::new("/"));
    make_parents(parent)?;
    let name = file.path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = parent.join(format!(".{name}.{}", std::process::id()));
    let written = write_new(&temporary, file).and_then(|()| fs::rename(&temporary, &file.path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Makes directories that everybody can enter, whatever the umask says.
fn make_parents(dir: &Path) -> std::io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        make_parents(parent)?;
    }
    fs::create_dir(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
}

fn write_new(path: &Path, planned: &PlannedFile) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(&planned.contents)?;
    file.set_permissions(fs::Permissions::from_mode(planned.mode))?;
    file.sync_all()
}

fn load_profile() -> Result<()> {
    let Some(parser) = crate::plan::find_program("apparmor_parser") else { return Ok(()) };
    let output = std::process::Command::new(parser).args(["-r", PROFILE]).env_clear().output();
    let output = output.map_err(|error| Error::io("load AppArmor profile", error))?;
    if output.status.success() {
        return Ok(());
    }
    let said: String = String::from_utf8_lossy(&output.stderr).chars().filter(|c| !c.is_control()).take(500).collect();
    Err(Error::new(ErrorKind::HostUnable, "load AppArmor profile", format!("apparmor_parser refused {PROFILE}: {said}"))
        .with_backend(BACKEND)
        .with_help(format!("the files are in place; try `sudo apparmor_parser -r {PROFILE}` yourself")))
}

/// The installed launcher if it can be trusted and is this version's, else the reason.
pub fn find() -> std::result::Result<PathBuf, String> {
    find_at(Path::new(LAUNCHER), 0)
}

fn find_at(path: &Path, owner: u32) -> std::result::Result<PathBuf, String> {
    let shown = path.display();
    let file = File::open(path).map_err(|error| format!("{shown}: {error}"))?;
    // From the open file, not the path: what is checked is what is read.
    let metadata = file.metadata().map_err(|error| format!("{shown}: {error}"))?;
    if !metadata.is_file() || metadata.uid() != owner || metadata.mode() & 0o022 != 0 {
        return Err(format!("{shown} is not a file that only its owner, root, can write"));
    }
    let expected = supervisor::BYTES.ok_or("this program carries no supervisor to compare it with")?;
    let mut contents = Vec::with_capacity(expected.len() + 1);
    let limit = expected.len() as u64 + 1;
    let read = file.take(limit).read_to_end(&mut contents);
    read.map_err(|error| format!("{shown}: {error}"))?;
    if contents != expected {
        return Err(format!("{shown} is another version than this program's"));
    }
    Ok(path.to_path_buf())
}

/// This program was built without the supervisor in it.
pub fn no_supervisor() -> Error {
    Error::new(ErrorKind::HostUnable, "start supervisor", "this program carries no supervisor for this kind of host")
        .with_backend(BACKEND)
        .with_help("build tierbox on Linux, or point TIERBOX_SUPERVISOR at a prebuilt supervisor while building")
}

#[cfg(test)]
mod unit {
    use super::*;

    fn own_uid() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    #[test]
    fn the_plan_names_every_file() {
        let files = install_launcher().unwrap();
        assert_eq!(files[0].path, Path::new(LAUNCHER));
        assert_eq!(files[0].mode, 0o755);
        assert!(PROFILE_TEXT.contains("userns,") && PROFILE_TEXT.contains(LAUNCHER));
    }

    #[test]
    fn files_are_written_whole_with_their_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/launcher");
        let file = PlannedFile { path: path.clone(), mode: 0o755, contents: b"x".to_vec(), purpose: "" };
        write_file(&file).unwrap();
        write_file(&file).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"x");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o755);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn only_the_same_program_in_safe_hands_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("launcher");
        assert!(find_at(&path, own_uid()).is_err());
        fs::write(&path, supervisor::BYTES.unwrap()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find_at(&path, own_uid()), Ok(path.clone()));
        assert!(find_at(&path, own_uid() + 1).is_err(), "another owner");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o775)).unwrap();
        assert!(find_at(&path, own_uid()).is_err(), "the group can write it");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        File::options().append(true).open(&path).unwrap().write_all(b"x").unwrap();
        assert!(find_at(&path, own_uid()).unwrap_err().contains("another version"));
    }
}
