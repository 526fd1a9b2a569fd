//! Kills for want of memory, counted for a machine as a whole where its commands have no cgroups of their own.
//!
//! The first process of a container that an engine made is in the container's cgroup, whose files it may read and not change.
//! Its counter says that the kernel killed something, and not what: it speaks of a command only if nothing else ran beside it.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::Engine;
use super::domain::cgroup::{keyed, read_fd};
use crate::runtime::machine::Machine;
use crate::setup::Mode;

/// Where cgroups are mounted, as everywhere.
const CGROUPS: &str = "/sys/fs/cgroup";

/// The counter of the cgroup that all of a machine is in.
#[derive(Debug)]
pub struct Counter(File);

impl Counter {
    /// The counter of a machine whose first process this is; `None` where others may be in the same cgroup, or nothing counts.
    pub fn of(machine: &Machine) -> Option<Self> {
        if machine.setup.mode != Mode::Guest || std::process::id() != 1 {
            return None;
        }
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        places(&groups).into_iter().find_map(|(dir, file)| Self::open(&dir, file))
    }

    fn open(dir: &Path, file: &str) -> Option<Self> {
        // Without a namespace of its own the path is the host's, while what is mounted begins at the container's.
        let members = fs::read_to_string(dir.join("cgroup.procs")).ok()?;
        let own = std::process::id().to_string();
        members.lines().any(|member| member == own).then_some(())?;
        let counter = Self(File::open(dir.join(file)).ok()?);
        counter.read().map(|_| counter)
    }

    fn read(&self) -> Option<u64> {
        keyed(&read_fd(self.0.as_fd()), "oom_kill")
    }

    /// How many processes the kernel has killed in it.
    fn kills(&self) -> u64 {
        self.read().unwrap_or(0)
    }
}

/// The directories that may be the cgroup of these memberships, each with the file that counts.
fn places(groups: &str) -> Vec<(PathBuf, &'static str)> {
    let place = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
        let (mount, file) = match controllers {
            "" => (PathBuf::from(CGROUPS), "memory.events"),
            list if list.split(',').any(|name| name == "memory") => (Path::new(CGROUPS).join(list), "memory.oom_control"),
            _ => return None,
        };
        Some([(mount.join(path), file), (mount, file)])
    };
    groups.lines().filter_map(place).flatten().collect()
}

impl Engine {
    /// The counter before a command that begins while nothing else of the machine runs.
    pub(super) fn kills_before(&self) -> Option<u64> {
        let counter = self.whole.as_ref()?;
        let alone = !self.commands.any_live()
            && self.leftovers.is_empty()
            && self.spent.iter().all(|domain| self.domains.is_empty(domain));
        alone.then(|| counter.kills())
    }

    /// Whether a command that was killed was so for want of memory: it began alone, no other began since, and the kernel
    /// killed something.
    pub(super) fn lacked_memory(&self, key: u32, before: Option<u64>) -> bool {
        let (Some(counter), Some(before)) = (&self.whole, before) else { return false };
        self.commands.is_newest(key) && counter.kills() > before
    }
}

#[cfg(test)]
mod unit {
    use super::places;

    #[test]
    fn the_own_cgroup_is_looked_for_in_every_form() {
        let found = |groups: &str| {
            places(groups).into_iter().map(|(dir, file)| format!("{} {file}", dir.display())).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(found("0::/\n"), "/sys/fs/cgroup/ memory.events; /sys/fs/cgroup memory.events");
        assert_eq!(
            found("9:pids:/a\n4:memory:/b:c\n"),
            "/sys/fs/cgroup/memory/b:c memory.oom_control; /sys/fs/cgroup/memory memory.oom_control"
        );
        assert_eq!(found("garbage\n:\n"), "");
    }
}
