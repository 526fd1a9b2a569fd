//! A delegated scope of the user's systemd: how a plain user gets a cgroup with controllers on cgroup v2.
//!
//! The keeper is started by `systemd-run --user --scope`, which executes it in place, so that it stays this process's child.
//! No host with systemd was tried.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::plan::cgroups::{Cgroups, Unified};
use crate::plan::find_program;

/// How long systemd may take to move the keeper.
const PATIENCE: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_millis(5);

/// A scope that could be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    systemd_run: PathBuf,
    runtime_dir: PathBuf,
    unit: String,
}

impl Scope {
    /// The scope for a plain user who needs controllers that no writable cgroup has. Asks nobody yet.
    pub fn wanted(id: &str, wanted: &[&str], cgroups: &Cgroups) -> Option<Self> {
        let served = |name: &&str| cgroups.choose(wanted).enforcer(name).is_some();
        let unified = fs::metadata("/sys/fs/cgroup/cgroup.controllers").is_ok();
        if rustix::process::geteuid().is_root() || !unified || wanted.iter().all(served) {
            return None;
        }
        let runtime_dir = PathBuf::from(std::env::var_os("XDG_RUNTIME_DIR")?);
        let reachable = runtime_dir.is_absolute() && runtime_dir.join("systemd/private").exists();
        let systemd_run = find_program("systemd-run").filter(|_| reachable)?;
        Some(Self { systemd_run, runtime_dir, unit: format!("tierbox-{id}.scope") })
    }

    /// Its unit's name.
    pub fn unit(&self) -> &str {
        &self.unit
    }

    /// The command that starts a program in it.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(&self.systemd_run);
        command.args(["--user", "--scope", "--quiet", "--collect", "-p", "Delegate=yes"]);
        command.arg(format!("--unit={}", self.unit)).arg("--").arg(program);
        command.env_clear().env("XDG_RUNTIME_DIR", &self.runtime_dir);
        command
    }

    /// Waits until the keeper is in the scope, and tells what can be made there.
    pub async fn prepare(&self, keeper: u32) -> Option<Cgroups> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let dir = loop {
            let late = || tokio::time::Instant::now() >= deadline || !Path::new("/proc").join(keeper.to_string()).exists();
            match self.directory(keeper) {
                Some(dir) => break dir,
                None if late() => return None,
                None => tokio::time::sleep(STEP).await,
            }
        };
        // The keeper enables them for its children, once it has moved out of their way.
        let controllers = fs::read_to_string(dir.join("cgroup.controllers")).ok()?;
        let controllers = controllers.split_whitespace().map(str::to_owned).collect();
        let swap = dir.join("memory.swap.max").exists();
        Some(Cgroups {
            unified: vec![Unified { dir, controllers, swap }],
            kill: Cgroups::of_this_host().kill,
            ..Cgroups::default()
        })
    }

    fn directory(&self, keeper: u32) -> Option<PathBuf> {
        let own = fs::read_to_string(format!("/proc/{keeper}/cgroup")).ok()?;
        let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
        path.ends_with(&self.unit).then(|| Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/')))
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn the_keeper_is_started_in_a_delegated_scope() {
        let scope = Scope {
            systemd_run: "/usr/bin/systemd-run".into(),
            runtime_dir: "/run/user/1000".into(),
            unit: "tierbox-a.scope".into(),
        };
        let command = scope.command(Path::new("/proc/1/fd/3"));
        let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy().into_owned()).collect();
        assert_eq!(
            arguments,
            ["--user", "--scope", "--quiet", "--collect", "-p", "Delegate=yes", "--unit=tierbox-a.scope", "--", "/proc/1/fd/3"]
        );
    }

    #[test]
    fn root_needs_no_scope() {
        if rustix::process::geteuid().is_root() {
            assert_eq!(Scope::wanted("a", &["memory"], &Cgroups::default()), None);
        }
    }
}
