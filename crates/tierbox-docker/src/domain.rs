//! Kill domains of single commands where no supervisor holds them: cgroups that this host makes below the container's own.
//!
//! A process that the engine starts in a container waits until it is in one; all that comes of it stays there, since nobody
//! inside can write to a cgroup. That takes root on the engine's own host.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tierbox_core::ExecId;

/// Where cgroups are mounted, as everywhere.
const CGROUPS: &str = "/sys/fs/cgroup";

/// How long it may take until nothing lives in a cgroup any more.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a freeze may take before what is there is killed anyway; the next round tries again.
const FREEZE: Duration = Duration::from_millis(5);

/// The kill domains of a container.
#[derive(Debug)]
pub struct Domains {
    /// The container's own cgroup, in the hierarchy that can stop what is in it.
    base: PathBuf,
    unified: bool,
    made: Mutex<HashMap<ExecId, PathBuf>>,
}

impl Domains {
    /// Those of the container whose first process this is.
    ///
    /// # Errors
    /// If its cgroup cannot be found here, or not be written to.
    pub fn of(pid: u32) -> io::Result<Self> {
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let found = places(&groups).into_iter().find(|(base, _)| holds(base, pid));
        let Some((base, unified)) = found else {
            return Err(io::Error::other("its cgroup is not where this host has them (/sys/fs/cgroup)"));
        };
        let domains = Self { base, unified, made: Mutex::default() };
        // Whether one can be made, and what is there to kill with.
        let trial = domains.base.join(format!("tierbox-{pid}"));
        std::fs::create_dir(&trial)?;
        let can = ["cgroup.kill", "cgroup.freeze", "freezer.state"].iter().any(|file| trial.join(file).exists());
        std::fs::remove_dir(&trial)?;
        if can { Ok(domains) } else { Err(io::Error::other("its cgroup can neither be killed nor frozen")) }
    }

    fn made(&self) -> MutexGuard<'_, HashMap<ExecId, PathBuf>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a process of the container into the domain of a command. It waits, and has no child.
    ///
    /// # Errors
    /// If it is not the container's, or the kernel refuses.
    pub fn enter(&self, id: ExecId, pid: u32) -> io::Result<()> {
        let mut made = self.made();
        made.retain(|known, path| *known == id || std::fs::remove_dir(path).is_err());
        let path = self.base.join(format!("tierbox-{id}"));
        match std::fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => drop(made.insert(id, path.clone())),
        }
        drop(made);
        if !holds(&self.base, pid) {
            return Err(io::Error::other(format!("process {pid} is not in the container's cgroup")));
        }
        std::fs::write(path.join("cgroup.procs"), pid.to_string())
    }

    /// Kills everything that came of a command, until nothing is left. Nothing to do for one that never ran.
    ///
    /// # Errors
    /// If something still lives after some time.
    pub fn kill(&self, id: ExecId) -> io::Result<()> {
        let Some(path) = self.made().get(&id).cloned() else { return Ok(()) };
        let begun = Instant::now();
        while !members(&path)?.is_empty() {
            if begun.elapsed() > PATIENCE {
                return Err(io::Error::other(format!("processes are left in {}", path.display())));
            }
            match self.kill_once(&path) {
                // The last one died, and another command's beginning removed the empty cgroup.
                Err(error) if is_gone(&error) => return Ok(()),
                other => other?,
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn kill_once(&self, path: &Path) -> io::Result<()> {
        if self.unified && std::fs::write(path.join("cgroup.kill"), "1").is_ok() {
            return Ok(());
        }
        let (file, on, off) = if self.unified { ("cgroup.freeze", "1", "0") } else { ("freezer.state", "FROZEN", "THAWED") };
        // Nobody makes a process while all are frozen; whoever is missed is found in the next round.
        let _ = std::fs::write(path.join(file), on);
        let frozen = || match self.unified {
            true => read(&path.join("cgroup.events")).lines().any(|line| line == "frozen 1"),
            false => read(&path.join(file)).trim() == "FROZEN",
        };
        let begun = Instant::now();
        while !frozen() && begun.elapsed() < FREEZE {
            std::thread::sleep(Duration::from_micros(100));
        }
        for pid in members(path)? {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        std::fs::write(path.join(file), off)
    }
}

impl Drop for Domains {
    fn drop(&mut self) {
        for path in self.made().values() {
            // What still lives ends with its container, and the engine then removes the rest.
            let _ = std::fs::remove_dir(path);
        }
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn members(path: &Path) -> io::Result<Vec<i32>> {
    match std::fs::read_to_string(path.join("cgroup.procs")) {
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 1).collect()),
        // The engine removed it with its container.
        Err(error) if is_gone(&error) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Whether a cgroup is not there, or no more (`ENODEV`, of a file that was open).
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(19)
}

fn holds(base: &Path, pid: u32) -> bool {
    read(&base.join("cgroup.procs")).lines().any(|line| line == pid.to_string())
}

/// The directories of these memberships that can stop processes, and whether each is the unified hierarchy's.
fn places(groups: &str) -> Vec<(PathBuf, bool)> {
    let place = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
        // The root of a hierarchy is nobody's own.
        let own = !path.is_empty() && !path.split('/').any(|part| part == "..");
        match controllers {
            _ if !own => None,
            "" => Some((Path::new(CGROUPS).join(path), true)),
            list if list.split(',').any(|name| name == "freezer") => Some((Path::new(CGROUPS).join(list).join(path), false)),
            _ => None,
        }
    };
    groups.lines().filter_map(place).collect()
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn only_a_cgroup_of_its_own_is_taken() {
        let found = |groups: &str| places(groups).into_iter().map(|(path, _)| path.display().to_string()).collect::<Vec<_>>();
        assert_eq!(found("6:freezer:/docker/x\n4:memory:/docker/x\n0::/\n"), ["/sys/fs/cgroup/freezer/docker/x"]);
        assert_eq!(found("0::/system.slice/docker-x.scope\n"), ["/sys/fs/cgroup/system.slice/docker-x.scope"]);
        assert!(found("0::/\n6:freezer:/\n0::/../x\n").is_empty());
    }
}
