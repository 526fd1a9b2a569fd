//! Kill domains: what holds all processes of one command together, however they detach themselves.

pub mod cgroup;
pub mod shim;

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use super::sys;
use crate::runtime::machine::CgroupDir;
use cgroup::{Hierarchies, Set};
use shim::Tree;

/// Empty cgroups kept for commands to come.
const POOL: usize = 8;

/// The kill domain of one command.
#[derive(Debug)]
pub struct Domain {
    set: Option<Set>,
    /// The shim, where cgroups cannot kill.
    pub shim: Option<i32>,
    /// Whether the shim said that nothing is left below it.
    pub shim_idle: bool,
    shimmed: bool,
    /// The command that had it, once that is done.
    pub owner: Option<[u8; 16]>,
    /// Whether what lives in it is to be killed.
    pub condemned: bool,
}

/// The kill domains of a machine.
#[derive(Debug)]
pub struct Domains {
    hierarchies: Hierarchies,
    pool: Vec<Set>,
    /// Where file workers are, so that what they write counts as the machine's memory.
    workers: Option<Set>,
    tree: Option<Tree>,
}

impl Domains {
    /// Finds out what this machine offers.
    ///
    /// # Errors
    /// If a cgroup that the machine was given cannot be used.
    pub fn new(dirs: &[CgroupDir]) -> io::Result<Self> {
        let (hierarchies, first) = Hierarchies::new(dirs)?;
        let tree = if hierarchies.can_kill() { None } else { Some(Tree::open()?) };
        Ok(Self { hierarchies, pool: first.into_iter().collect(), workers: None, tree })
    }

    /// Whether cgroups do it; otherwise shims.
    pub fn by_cgroup(&self) -> bool {
        self.hierarchies.can_kill()
    }

    /// Whether kills for want of memory are counted.
    pub fn counts_memory(&self) -> bool {
        self.hierarchies.counts_memory()
    }

    /// Descriptors that one domain holds.
    pub fn descriptors(&self) -> usize {
        self.hierarchies.descriptors()
    }

    /// `cgroup.procs` files of directories in which all commands are together.
    pub fn shared_doors(&self) -> Vec<RawFd> {
        self.hierarchies.shared.iter().map(AsRawFd::as_raw_fd).collect()
    }

    /// The files to which a file worker writes its number: the machine's limits are to hold for it too.
    ///
    /// # Errors
    /// If the kernel refuses a cgroup for them.
    pub fn worker_doors(&mut self) -> io::Result<Vec<RawFd>> {
        if self.workers.is_none() {
            self.workers = self.hierarchies.make()?;
        }
        let own = self.workers.iter().flat_map(Set::doors);
        Ok(own.chain(self.shared_doors()).collect())
    }

    /// A domain for one command.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn take(&mut self) -> io::Result<Domain> {
        let set = match self.pool.pop() {
            Some(set) => Some(set),
            None => self.hierarchies.make()?,
        };
        Ok(Domain { set, shim: None, shim_idle: false, shimmed: !self.by_cgroup(), owner: None, condemned: false })
    }

    /// Takes a domain back. It comes back out if something still lives in it.
    pub fn give_back(&mut self, mut domain: Domain) -> Option<Domain> {
        if !self.is_empty(&domain) {
            return Some(domain);
        }
        let mut set = domain.set.take()?;
        if self.pool.len() < POOL {
            set.rearm();
            self.pool.push(set);
            return None;
        }
        // A cgroup without the means to tell that it is empty says so here.
        if self.hierarchies.remove(&set) {
            return None;
        }
        Some(Domain { set: Some(set), shim: None, shim_idle: false, ..domain })
    }

    /// Whether nothing lives in a domain.
    pub fn is_empty(&self, domain: &Domain) -> bool {
        if domain.shimmed { domain.shim.is_none() || domain.shim_idle } else { domain.set.as_ref().is_none_or(Set::is_empty) }
    }

    /// Kills what lives in a domain. To be repeated until it is empty.
    pub fn kill(&self, domain: &Domain) {
        match (&self.tree, domain.shim) {
            (Some(tree), Some(shim)) => {
                // It must run to reap what is killed, and somebody may have stopped it.
                let _ = sys::kill(shim, libc::SIGCONT);
                tree.kill_below(&[shim], &|_| false);
            }
            (Some(_), None) => {}
            (None, _) => domain.set.iter().for_each(Set::kill),
        }
    }

    /// Kills children of the supervisor that it does not know: the orphans of a shim that was killed. Whether there were none.
    pub fn kill_strangers(&self, known: &dyn Fn(i32) -> bool) -> bool {
        self.tree.as_ref().is_none_or(|tree| tree.kill_below(&[std::process::id() as i32], known))
    }
}

impl Domain {
    /// The `cgroup.procs` files that its first process writes to.
    pub fn doors(&self) -> Vec<RawFd> {
        self.set.as_ref().map(Set::doors).unwrap_or_default()
    }

    /// Whether a shim belongs between supervisor and command.
    pub fn wants_shim(&self) -> bool {
        self.shimmed
    }

    /// The most memory that all of it used at once, in bytes, where it is counted.
    pub fn peak_memory(&self) -> Option<u64> {
        self.set.as_ref().and_then(Set::peak_memory)
    }

    /// Whether the kernel killed something in it for want of memory.
    pub fn lacked_memory(&self) -> bool {
        self.set.as_ref().is_some_and(Set::lacked_memory)
    }
}
