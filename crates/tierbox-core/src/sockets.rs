//! Sockets that no sandbox may see.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

/// Names of sockets of engines that would obey a sandbox: whoever reaches one rules its host.
pub const ENGINE_SOCKETS: &[&str] = &[
    "docker.sock",
    "podman.sock",
    "containerd.sock",
    "crio.sock",
    "libvirt-sock",
    "virtqemud-sock",
    "buildkitd.sock",
    "system_bus_socket",
    "lxd.socket",
    "incus.socket",
];

/// How many entries of a tree are looked at, the upper ones first: some ten milliseconds.
const MOST_LOOKED_AT: usize = 10_000;

/// An engine's socket anywhere among the first 10,000 entries below a directory of this host: a connection to it needs neither a
/// network nor the right to write. Links are not followed, since inside they lead elsewhere. What cannot be read is passed over.
#[cfg(unix)]
pub fn engine_socket_below(directory: &Path) -> Option<PathBuf> {
    use std::os::unix::fs::FileTypeExt;
    let mut waiting = VecDeque::from([directory.to_path_buf()]);
    let mut seen = 0;
    while let Some(directory) = waiting.pop_front() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            seen += 1;
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_socket() && ENGINE_SOCKETS.iter().any(|name| entry.file_name() == *name) {
                return Some(entry.path());
            }
            if kind.is_dir() {
                waiting.push_back(entry.path());
            }
            if seen >= MOST_LOOKED_AT {
                return None;
            }
        }
    }
    None
}

#[cfg(all(test, unix))]
mod unit {
    use super::*;

    #[test]
    fn an_engines_socket_is_found_wherever_it_lies() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("var/engine");
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("docker.sock"), "a file of that name is none").unwrap();
        assert_eq!(engine_socket_below(dir.path()), None);
        std::fs::remove_file(deep.join("docker.sock")).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(deep.join("docker.sock")).unwrap();
        assert_eq!(engine_socket_below(dir.path()), Some(deep.join("docker.sock")));
        assert_eq!(engine_socket_below(&deep), Some(deep.join("docker.sock")));
    }
}
