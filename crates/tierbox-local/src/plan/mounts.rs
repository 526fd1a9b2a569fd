//! Which host paths may be visible inside, and where.
//!
//! A mount opens a hole on purpose, so what is refused here is what would open the whole host: system directories, home
//! roots, keys, and sockets that take orders.

use std::path::{Path, PathBuf};

use tierbox_core::{ENGINE_SOCKETS, MountSpec, Result, engine_socket_below, holds_keys, malformed_path};
use tierbox_supervisor::setup::Bind;
use tierbox_supervisor::wire::Blob;

use crate::plan::{bytes, homes};
use crate::settings::{BindSetting, Settings, invalid};

/// Directories that are refused themselves and with all that is below them.
const CLOSED: &[&str] = &["/boot", "/dev", "/etc", "/proc", "/run", "/sys", "/var/lib/docker", "/var/lib/containerd", "/var/run"];

/// Directories that are refused themselves; single directories below them may be mounted.
const CLOSED_ROOTS: &[&str] =
    &["/", "/bin", "/home", "/lib", "/lib32", "/lib64", "/libx32", "/media", "/mnt", "/opt", "/root", "/sbin", "/srv", "/tmp"];
const MORE_CLOSED_ROOTS: &[&str] = &["/usr", "/var", "/var/lib", "/var/tmp", "/var/spool"];

/// Directories below which nothing may be writable: the host runs programs from there.
const READ_ONLY: &[&str] = &["/bin", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/sbin", "/usr", "/var/lib", "/var/spool"];

/// Where nothing may appear inside: the set-up puts its own things there.
const GUEST_CLOSED: &[&str] = &[
    "/proc", "/sys", "/dev", "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/run", "/var/run", "/boot",
];

/// Directories inside that may hold mounts but not be one.
const GUEST_CLOSED_ROOTS: &[&str] = &["/", "/home", "/tmp", "/var", "/var/tmp", "/root"];

/// All binds that a profile asks for, checked.
///
/// # Errors
/// `InvalidProfile` naming the path and the reason.
pub fn plan(mounts: &[MountSpec], settings: &Settings) -> Result<Vec<Bind>> {
    if mounts.is_empty() && settings.binds.is_empty() {
        return Ok(Vec::new());
    }
    let homes = homes();
    let mut binds = Vec::with_capacity(mounts.len() + settings.binds.len());
    for mount in mounts {
        let host = check_host(&mount.host, mount.writable, &homes)?;
        push(&mut binds, &host, &mount.guest, mount.writable)?;
    }
    for setting in &settings.binds {
        let (host, guest) = match setting {
            BindSetting::Same(path) => (path, None),
            BindSetting::Moved(moved) => (&moved.host, Some(&moved.guest)),
        };
        let host = expand_home(host, &homes)?;
        let guest = guest.map_or_else(|| host.display().to_string(), Clone::clone);
        let host = check_host(&host, false, &homes)?;
        push(&mut binds, &host, &guest, false)?;
    }
    Ok(binds)
}

fn push(binds: &mut Vec<Bind>, host: &Path, guest: &str, writable: bool) -> Result<()> {
    check_guest(guest)?;
    let guest = Blob::from(guest.trim_end_matches('/').as_bytes());
    if binds.iter().any(|bind| bind.guest == guest) {
        return Err(invalid(format!("two mounts would appear at {}", shown(&guest.0))));
    }
    binds.push(Bind { host: bytes(host), guest, writable, optional: false });
    Ok(())
}

fn expand_home(path: &str, homes: &[PathBuf]) -> Result<PathBuf> {
    match path.strip_prefix("~/") {
        None => Ok(PathBuf::from(path)),
        Some(rest) => homes
            .first()
            .map(|home| home.join(rest))
            .ok_or_else(|| invalid(format!("local.binds: {path:?} names the home directory, and HOME is not set"))),
    }
}

/// Checks a host path and returns it without links, so that what was checked is what is mounted.
fn check_host(path: &Path, writable: bool, homes: &[PathBuf]) -> Result<PathBuf> {
    let refuse = |why: &str| Err(invalid(format!("{} cannot be mounted: {why}", shown(path.as_os_str().as_encoded_bytes()))));
    if !path.is_absolute() {
        return refuse("the path on the host is not absolute");
    }
    let real = match path.canonicalize() {
        Ok(real) => real,
        Err(error) => return refuse(&error.to_string()),
    };
    // Both the written and the real path count: a link may not hide where it leads, nor a rule be dodged by a link.
    for candidate in [path, &real] {
        if let Some(why) = refusal(candidate, homes) {
            return refuse(&why);
        }
    }
    if let Some(why) = contents_refusal(&real) {
        return refuse(&why);
    }
    if writable && let Some(why) = writable_refusal(&real) {
        return refuse(&why);
    }
    Ok(real)
}

fn refusal(path: &Path, homes: &[PathBuf]) -> Option<String> {
    if let Some(root) = CLOSED.iter().find(|root| path.starts_with(root)) {
        return Some(format!("{root} belongs to the host alone"));
    }
    if CLOSED_ROOTS.iter().chain(MORE_CLOSED_ROOTS).any(|root| path == Path::new(root)) {
        return Some("it is a system directory or a home root; name a directory below it".to_owned());
    }
    if homes.iter().any(|home| home.starts_with(path)) {
        return Some("it is or holds a home directory; name a directory below it".to_owned());
    }
    if is_home_root(path) {
        return Some("it is a home directory; name a directory below it".to_owned());
    }
    holds_keys(path, homes)
}

/// `/home/NAME`, `/Users/NAME`.
fn is_home_root(path: &Path) -> bool {
    ["/home", "/Users"].iter().any(|all| path.parent() == Some(Path::new(all)))
}

fn writable_refusal(path: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    if READ_ONLY.iter().any(|root| path.starts_with(root)) {
        return Some("the host runs programs from there, so it can only be mounted read-only".to_owned());
    }
    let owner = path.metadata().map(|metadata| metadata.uid());
    // What the agent makes in a writable mount belongs to the mount's owner on the host, setuid programs included.
    let owned_by_root = rustix::process::geteuid().is_root() && owner.is_ok_and(|owner| owner == 0);
    owned_by_root.then(|| {
        let path = path.display();
        format!("it belongs to root, so the sandbox could make root's programs on this host; give it to a plain user: chown 1000:1000 {path}")
    })
}

fn contents_refusal(path: &Path) -> Option<String> {
    use std::os::unix::fs::FileTypeExt;
    let kind = match path.metadata() {
        Ok(metadata) => metadata.file_type(),
        Err(error) => return Some(error.to_string()),
    };
    if !kind.is_dir() && !kind.is_file() {
        let what = if kind.is_socket() { "a socket" } else { "a device or pipe" };
        return Some(format!("it is {what}, not a directory or file"));
    }
    let holds = |name: &&&str| path.join(name).symlink_metadata().is_ok();
    let found = kind.is_dir().then(|| ENGINE_SOCKETS.iter().find(holds)).flatten();
    if let Some(name) = found {
        return Some(format!("it contains {name}; name a directory without it"));
    }
    let socket = engine_socket_below(path)?;
    Some(format!("it contains {}, through which code inside could rule this host; name a directory without it", socket.display()))
}

/// Checks a path inside.
///
/// # Errors
/// `InvalidProfile` naming the path and the reason.
pub fn check_guest(path: &str) -> Result<()> {
    let refuse = |why: &str| Err(invalid(format!("nothing can be mounted at {}: {why}", shown(path.as_bytes()))));
    if let Some(why) = malformed_path(path) {
        return refuse(why);
    }
    let path = Path::new(path);
    if let Some(root) = GUEST_CLOSED.iter().find(|root| path.starts_with(root)) {
        return refuse(&format!("{root} inside is made by the set-up"));
    }
    if GUEST_CLOSED_ROOTS.iter().any(|root| path == Path::new(root)) {
        return refuse("it is a directory that the set-up makes; name one below it");
    }
    Ok(())
}

/// Checks the directory where commands start, in a root made from the host's.
///
/// # Errors
/// `InvalidProfile` naming the path and the reason.
pub fn check_workdir(path: &str) -> Result<()> {
    match GUEST_CLOSED.iter().find(|root| Path::new(path).starts_with(root)) {
        Some(root) => Err(invalid(format!("workdir = {:?}: {root} inside is made by the set-up", shown(path.as_bytes())))),
        None => Ok(()),
    }
}

/// A path for a message: bounded, without control characters.
pub fn shown(path: &[u8]) -> String {
    let cut = &path[..path.len().min(200)];
    cut.escape_ascii().to_string()
}

#[cfg(test)]
mod unit {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn homes() -> Vec<PathBuf> {
        vec!["/data/people/ann".into(), "/root".into()]
    }

    #[test]
    fn what_opens_the_host_is_refused() {
        for bad in [
            "/",
            "/home",
            "/root",
            "/root/.ssh",
            "/etc",
            "/etc/ssl/private",
            "/proc",
            "/proc/self",
            "/sys",
            "/dev",
            "/run",
            "/var/run",
            "/var",
            "/usr",
        ] {
            let path = Path::new(bad);
            assert!(refusal(path, &homes()).is_some(), "{bad} was allowed");
        }
        for bad in ["/data/people/ann", "/data/people", "/data", "/data/people/ann/.config", "/data/people/bob/.aws/cache"] {
            assert!(refusal(Path::new(bad), &homes()).is_some(), "{bad} was allowed");
        }
        for good in ["/data/people/ann/project", "/data/sets", "/opt/tool", "/usr/local/share", "/root/work"] {
            assert_eq!(refusal(Path::new(good), &homes()), None, "{good}");
        }
    }

    #[test]
    fn toolchains_below_a_home_may_be_seen_and_keys_may_not() {
        for good in [".cargo", ".cargo/bin", ".rustup", ".pyenv", ".nvm", ".local/bin", ".local/share/uv", ".config/nvim"] {
            for home in ["/data/people/ann", "/home/bob", "/root"] {
                assert_eq!(refusal(&Path::new(home).join(good), &homes()), None, "{home}/{good}");
            }
        }
        for bad in [
            "",
            ".ssh",
            ".ssh/id",
            ".config",
            ".config/gh/hosts.yml",
            ".local",
            ".local/share",
            ".local/share/keyrings/x",
            ".netrc",
            ".vault-token",
            ".cargo/credentials",
            ".cargo/credentials.toml",
        ] {
            for home in ["/data/people/ann", "/home/bob", "/root"] {
                assert!(refusal(&Path::new(home).join(bad), &homes()).is_some(), "{home}/{bad} was allowed");
            }
        }
    }

    #[test]
    fn a_toolchain_that_holds_a_token_is_refused() {
        for token in ["credentials", "credentials.toml"] {
            let home = tempfile::tempdir().unwrap();
            let homes = [home.path().to_path_buf()];
            let cargo = home.path().join(".cargo");
            std::fs::create_dir_all(cargo.join("bin")).unwrap();
            assert!(check_host(&cargo, false, &homes).is_ok());
            std::fs::write(cargo.join(token), "token").unwrap();
            assert!(check_host(&cargo, false, &homes).is_err(), "{token}");
            assert!(check_host(&cargo.join("bin"), false, &homes).is_ok());
        }
    }

    #[test]
    fn binds_pass_the_same_checks_as_mounts() {
        for bad in ["/etc", "/", "/root/.ssh", "~/", "~/.ssh", "relative"] {
            let settings = Settings { binds: vec![BindSetting::Same(bad.into())], ..Settings::default() };
            assert!(plan(&[], &settings).is_err(), "{bad} was allowed");
        }
    }

    #[test]
    fn links_do_not_hide_where_they_lead() {
        let dir = tempfile::tempdir().unwrap();
        for (name, target) in [("a", "/etc"), ("b", "/proc/self"), ("c", "/dev"), ("d", "/")] {
            let link = dir.path().join(name);
            symlink(target, &link).unwrap();
            assert!(check_host(&link, false, &homes()).is_err(), "{target} through a link");
        }
        symlink("/", dir.path().join("deep")).unwrap();
        assert!(check_host(&dir.path().join("deep/etc"), false, &homes()).is_err());
    }

    #[test]
    fn sockets_and_what_holds_them_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check_host(dir.path(), false, &homes()).is_ok());
        let socket = dir.path().join("docker.sock");
        let _listener = UnixListener::bind(&socket).unwrap();
        assert!(check_host(&socket, false, &homes()).is_err());
        assert!(check_host(dir.path(), false, &homes()).unwrap_err().message().contains("docker.sock"));
    }

    #[test]
    fn programs_of_the_host_are_never_writable() {
        assert!(check_host(Path::new("/usr/share"), false, &homes()).is_ok());
        assert!(check_host(Path::new("/usr/share"), true, &homes()).is_err());
        let dir = tempfile::tempdir().unwrap();
        let is_root = rustix::process::geteuid().is_root();
        assert_eq!(check_host(dir.path(), true, &homes()).is_err(), is_root, "root's own directories least of all");
        if is_root {
            std::os::unix::fs::chown(dir.path(), Some(1000), Some(1000)).unwrap();
            assert!(check_host(dir.path(), true, &homes()).is_ok());
        }
    }

    #[test]
    fn hostile_guest_paths_are_refused() {
        for bad in [
            "",
            "data",
            "/",
            "/..",
            "/data/../etc",
            "/data/./x",
            "//data",
            "/da\0ta",
            "/proc",
            "/proc/1",
            "/dev/shm",
            "/usr/lib",
            "/etc",
            "/tmp",
            "/home",
        ] {
            assert!(check_guest(bad).is_err(), "{bad:?} was allowed");
        }
        assert!(check_guest(&format!("/{}", "x".repeat(256))).is_err());
        for good in ["/data", "/workspace", "/workspace/in", "/opt/tool", "/home/agent/work", "/tmp/x"] {
            assert!(check_guest(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn two_mounts_at_one_place_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mount = MountSpec { host: dir.path().into(), guest: "/data".into(), writable: false };
        let again = MountSpec { guest: "/data/".into(), ..mount.clone() };
        assert!(plan(&[mount.clone(), again], &Settings::default()).is_err());
        assert_eq!(plan(&[mount], &Settings::default()).unwrap().len(), 1);
    }
}
