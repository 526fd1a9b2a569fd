//! What a profile may not show its machines.

use std::path::{Path, PathBuf};

use tierbox_core::{EnvironmentSpec, Error, ErrorKind, Result};

/// Refuses a host path (a mount, a copy, one in the backend's settings) that would show a machine a state directory: who can reach
/// the sockets there commands other machines, and those without isolation are this host. Read-only does not keep anybody from
/// connecting to a socket. `settings_paths` are those that the settings name.
pub(crate) fn check_state(spec: &EnvironmentSpec, settings_paths: &[PathBuf], states: &[&Path]) -> Result<()> {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let states: Vec<_> = states.iter().map(|state| real(state)).collect();
    let meets = |path: &Path| states.iter().any(|state| state.starts_with(path) || path.starts_with(state));
    let mounted = spec.mounts.iter().map(|mount| &mount.host);
    let mut all = mounted.chain(spec.files.iter().map(|copy| &copy.host)).chain(settings_paths);
    match all.find(|host| meets(&real(host))) {
        None => Ok(()),
        Some(host) => {
            let message = format!("{} cannot be mounted or copied: it holds or is in tierbox's state directory", host.display());
            Err(Error::new(ErrorKind::InvalidProfile, "check profile", message)
                .with_backend(spec.backend.clone())
                .with_help("name a directory beside it, or keep the state elsewhere (TIERBOX_STATE_DIR)"))
        }
    }
}

#[cfg(test)]
mod unit {

    use tierbox_core::{CopyIn, MountSpec};

    use super::*;

    fn spec(tier: &str) -> EnvironmentSpec {
        EnvironmentSpec::new("b", tier.parse().unwrap())
    }

    #[test]
    fn a_state_directory_is_nobodys_to_see() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a/state");
        std::fs::create_dir_all(state.join("env")).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("a"), &link).unwrap();
        let mounting = |host: PathBuf| EnvironmentSpec {
            mounts: vec![MountSpec { host, guest: "/mnt/x".into(), writable: false }],
            ..spec("T0.H1.N2")
        };
        for host in [state.clone(), state.join("env"), dir.path().join("a"), link] {
            let copying =
                EnvironmentSpec { files: vec![CopyIn { host: host.clone(), guest: "/workspace/x".into() }], ..spec("T0.H1.N2") };
            for (spec, settings) in [(mounting(host.clone()), vec![]), (copying, vec![]), (spec("T0.H1.N2"), vec![host.clone()])]
            {
                let refused = check_state(&spec, &settings, &[&state]).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::InvalidProfile, "{}", host.display());
            }
        }
        std::fs::create_dir(dir.path().join("a/state2")).unwrap();
        assert!(check_state(&mounting(dir.path().join("a/state2")), &[dir.path().join("a/state2")], &[&state]).is_ok());
        assert!(check_state(&spec("T0.H1.N2"), &[], &[&state]).is_ok());
    }
}
