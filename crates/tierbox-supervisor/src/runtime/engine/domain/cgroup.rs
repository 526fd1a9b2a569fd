//! Cgroups of single commands: what kills a whole tree at once, and what counts its memory.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::runtime::engine::sys;
use crate::runtime::machine::CgroupDir;

/// How long a freeze may take before what is there is killed anyway; the next step tries again.
const FREEZE: Duration = Duration::from_millis(2);

/// What a hierarchy is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Uses {
    unified: bool,
    freezer: bool,
    memory: bool,
}

impl Uses {
    /// What a hierarchy of this kind may be good for.
    fn of(kind: &str) -> Self {
        let has = |name: &str| kind.split(',').any(|controller| controller == name);
        Self { unified: kind == "v2", freezer: kind == "v2" || has("freezer"), memory: kind == "v2" || has("memory") }
    }

    fn any(self) -> bool {
        self.unified || self.freezer || self.memory
    }

    /// What of it is there in a directory.
    fn found_in(self, dir: BorrowedFd<'_>) -> Self {
        if self.unified {
            // Kernels before 5.14 freeze, but do not kill.
            let freezer = has(dir, "cgroup.kill") || has(dir, "cgroup.freeze");
            return Self { unified: true, freezer, memory: has(dir, "memory.events") };
        }
        let counts = || keyed(&read(dir, "memory.oom_control"), "oom_kill").is_some();
        Self { unified: false, freezer: self.freezer && has(dir, "freezer.state"), memory: self.memory && counts() }
    }
}

/// A hierarchy in which every command gets a cgroup of its own.
#[derive(Debug)]
struct Hierarchy {
    dir: OwnedFd,
    uses: Uses,
}

/// The hierarchies of a machine.
#[derive(Debug, Default)]
pub struct Hierarchies {
    own: Vec<Hierarchy>,
    /// The doors of directories in which all commands are together.
    pub shared: Vec<OwnedFd>,
    made: u32,
}

fn open(dir: BorrowedFd<'_>, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(dir, name, flags | OFlags::CLOEXEC, Mode::empty())?)
}

fn write(dir: BorrowedFd<'_>, name: &str, text: &[u8]) -> io::Result<()> {
    rustix::io::write(open(dir, name, OFlags::WRONLY)?, text)?;
    Ok(())
}

/// What a small file of the kernel's says now.
pub fn read_fd(fd: BorrowedFd<'_>) -> String {
    let mut buffer = [0; 4096];
    let length = rustix::io::pread(fd, &mut buffer, 0).unwrap_or(0);
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

fn read(dir: BorrowedFd<'_>, name: &str) -> String {
    open(dir, name, OFlags::RDONLY).map(|fd| read_fd(fd.as_fd())).unwrap_or_default()
}

fn has(dir: BorrowedFd<'_>, name: &str) -> bool {
    rustix::fs::accessat(dir, name, rustix::fs::Access::EXISTS, AtFlags::empty()).is_ok()
}

/// The file to which a process with a single thread writes `0` to enter a directory. The older hierarchies move a thread
/// through `tasks` at once, while `cgroup.procs` there, as everywhere, first waits for all processors to have been through the
/// scheduler: some 10 ms on a machine that has not done it just before.
fn door(dir: BorrowedFd<'_>, unified: bool) -> io::Result<OwnedFd> {
    open(dir, if unified { "cgroup.procs" } else { "tasks" }, OFlags::WRONLY)
}

/// The number behind a key in the kernel's `key number` lines.
pub fn keyed(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

impl Hierarchies {
    /// Finds out which of a machine's cgroup directories are good for what, by making a child in each: the first set.
    ///
    /// # Errors
    /// If a directory of which all commands should be members cannot be used: its limit would not hold.
    pub fn new(dirs: &[CgroupDir]) -> io::Result<(Self, Option<Set>)> {
        let mut all = Self::default();
        let mut first = Set { name: all.next_name(), members: Vec::new() };
        // The unified one first: where it can kill, the old freezer is not needed.
        for CgroupDir { kind, dir } in dirs.iter().filter(|dir| dir.kind == "v2") {
            all.adopt(dir, Uses::of(kind), &mut first)?;
        }
        for CgroupDir { kind, dir } in dirs.iter().filter(|dir| dir.kind != "v2") {
            let mut uses = Uses::of(kind);
            uses.freezer &= !all.can_kill();
            all.adopt(dir, uses, &mut first)?;
        }
        let any = !first.members.is_empty();
        Ok((all, any.then_some(first)))
    }

    fn adopt(&mut self, dir: &OwnedFd, wanted: Uses, first: &mut Set) -> io::Result<()> {
        if wanted.any() {
            let made = make(dir.as_fd(), &first.name)?;
            let uses = wanted.found_in(made.as_fd());
            if uses.any() {
                first.members.push(Member::new(made, self.own.len(), uses)?);
                self.own.push(Hierarchy { dir: dir.try_clone()?, uses });
                return Ok(());
            }
            rustix::fs::unlinkat(dir, &first.name, AtFlags::REMOVEDIR)?;
        }
        self.shared.push(door(dir.as_fd(), false)?);
        Ok(())
    }

    /// Descriptors that one set holds.
    pub fn descriptors(&self) -> usize {
        self.own.iter().map(|hierarchy| 2 + usize::from(hierarchy.uses.unified) + usize::from(hierarchy.uses.memory)).sum()
    }

    fn next_name(&mut self) -> String {
        self.made += 1;
        format!("x{}", self.made)
    }

    /// Whether whole trees can be killed.
    pub fn can_kill(&self) -> bool {
        self.own.iter().any(|hierarchy| hierarchy.uses.freezer)
    }

    /// Whether kills for want of memory are counted.
    pub fn counts_memory(&self) -> bool {
        self.own.iter().any(|hierarchy| hierarchy.uses.memory)
    }

    /// Makes a cgroup in each hierarchy for one command; `None` if there is none to make.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn make(&mut self) -> io::Result<Option<Set>> {
        let name = self.next_name();
        let mut set = Set { name, members: Vec::new() };
        for index in 0..self.own.len() {
            let hierarchy = &self.own[index];
            let made = make(hierarchy.dir.as_fd(), &set.name).and_then(|dir| Member::new(dir, index, hierarchy.uses));
            match made {
                Ok(member) => set.members.push(member),
                Err(error) => {
                    self.remove(&set);
                    return Err(error);
                }
            }
        }
        Ok((!set.members.is_empty()).then_some(set))
    }

    /// Removes a set that is empty. Whether that was possible.
    pub fn remove(&self, set: &Set) -> bool {
        let remove = |member: &Member| rustix::fs::unlinkat(&self.own[member.hierarchy].dir, &set.name, AtFlags::REMOVEDIR);
        set.members.iter().filter(|member| !matches!(remove(member), Ok(()) | Err(Errno::NOENT))).count() == 0
    }
}

fn make(dir: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    open(dir, name, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// A command's cgroup in one hierarchy.
#[derive(Debug)]
struct Member {
    hierarchy: usize,
    uses: Uses,
    dir: OwnedFd,
    procs: OwnedFd,
    /// What tells whether anything lives in it, in a unified hierarchy.
    population: Option<OwnedFd>,
    kills_before: u64,
    peak: Option<Peak>,
}

/// The most memory that was in use at once.
#[derive(Debug)]
struct Peak {
    counter: OwnedFd,
    /// What earlier commands left there: files in memory are their makers' for as long as they exist.
    before: u64,
}

impl Peak {
    fn open(dir: BorrowedFd<'_>, unified: bool) -> Option<Self> {
        let name = if unified { "memory.peak" } else { "memory.max_usage_in_bytes" };
        // A unified hierarchy's counter can be set back only since Linux 6.12, and only through this very descriptor.
        let counter = open(dir, name, OFlags::RDWR).or_else(|_| open(dir, name, OFlags::RDONLY)).ok()?;
        Some(Self { counter, before: 0 })
    }

    fn value(&self) -> Option<u64> {
        Some(read_fd(self.counter.as_fd()).trim().parse::<u64>().ok()?.saturating_sub(self.before))
    }

    /// Sets it back to what is in use now; `None` where the kernel cannot.
    fn rearmed(mut self) -> Option<Self> {
        rustix::io::pwrite(&self.counter, b"0", 0).ok()?;
        self.before = 0;
        self.before = self.value()?;
        Some(self)
    }
}

/// A command's cgroups in all hierarchies.
#[derive(Debug)]
pub struct Set {
    name: String,
    members: Vec<Member>,
}

impl Member {
    fn new(dir: OwnedFd, hierarchy: usize, uses: Uses) -> io::Result<Self> {
        let procs = door(dir.as_fd(), uses.unified)?;
        let population = if uses.unified { Some(open(dir.as_fd(), "cgroup.events", OFlags::RDONLY)?) } else { None };
        let peak = if uses.memory { Peak::open(dir.as_fd(), uses.unified) } else { None };
        Ok(Self { hierarchy, uses, dir, procs, population, kills_before: 0, peak })
    }

    fn is_empty(&self) -> bool {
        match &self.population {
            Some(population) => read_fd(population.as_fd()).lines().any(|line| line == "populated 0"),
            // Opened anew each time: the kernel keeps a list for a while behind each open file.
            None => !self.uses.freezer || read(self.dir.as_fd(), "cgroup.procs").trim().is_empty(),
        }
    }

    fn processes(&self) -> Vec<i32> {
        let Ok(fd) = open(self.dir.as_fd(), "cgroup.procs", OFlags::RDONLY) else { return Vec::new() };
        let mut text = String::new();
        let _ = io::Read::read_to_string(&mut std::fs::File::from(fd), &mut text);
        text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
    }

    fn kill(&self) {
        if self.uses.unified && write(self.dir.as_fd(), "cgroup.kill", b"1").is_ok() {
            return;
        }
        let (file, on, off): (_, &[u8], &[u8]) =
            if self.uses.unified { ("cgroup.freeze", b"1", b"0") } else { ("freezer.state", b"FROZEN", b"THAWED") };
        // Whatever fails here leaves somebody alive, whom the next step finds.
        let _ = write(self.dir.as_fd(), file, on);
        self.await_freeze();
        for pid in self.processes() {
            let _ = sys::kill(pid, libc::SIGKILL);
        }
        let _ = write(self.dir.as_fd(), file, off);
    }

    /// Nobody can make a process any more once all are frozen.
    fn await_freeze(&self) {
        let frozen = || match self.uses.unified {
            true => keyed(&read(self.dir.as_fd(), "cgroup.events"), "frozen") == Some(1),
            false => read(self.dir.as_fd(), "freezer.state").trim() == "FROZEN",
        };
        let start = Instant::now();
        while !frozen() && start.elapsed() < FREEZE {
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    fn kills(&self) -> u64 {
        let file = if self.uses.unified { "memory.events" } else { "memory.oom_control" };
        keyed(&read(self.dir.as_fd(), file), "oom_kill").unwrap_or(0)
    }
}

impl Set {
    /// The files to write a process's number to.
    pub fn doors(&self) -> Vec<RawFd> {
        self.members.iter().map(|member| member.procs.as_raw_fd()).collect()
    }

    /// Kills everything in it, if it is of the kind that can. To be repeated until [`is_empty`](Self::is_empty).
    pub fn kill(&self) {
        if let Some(member) = self.killer() {
            member.kill();
        }
    }

    fn killer(&self) -> Option<&Member> {
        let unified = self.members.iter().find(|member| member.uses.unified && member.uses.freezer);
        unified.or_else(|| self.members.iter().find(|member| member.uses.freezer))
    }

    /// Whether nothing lives in it, as far as it can tell.
    pub fn is_empty(&self) -> bool {
        self.members.iter().all(Member::is_empty)
    }

    /// Whether the kernel killed something in it for want of memory since it was made or [rearmed](Self::rearm).
    pub fn lacked_memory(&self) -> bool {
        self.members.iter().any(|member| member.uses.memory && member.kills() > member.kills_before)
    }

    /// The most memory that was in use in it at once, in bytes, since it was made or rearmed.
    pub fn peak_memory(&self) -> Option<u64> {
        self.members.iter().find_map(|member| member.peak.as_ref()?.value())
    }

    /// Makes it ready for the next command.
    pub fn rearm(&mut self) {
        for member in self.members.iter_mut().filter(|member| member.uses.memory) {
            member.kills_before = member.kills();
            member.peak = member.peak.take().and_then(Peak::rearmed);
        }
    }
}

#[cfg(test)]
mod unit {
    use super::keyed;

    #[test]
    fn keyed_numbers() {
        let text = "low 0\noom 3\noom_kill 2\noom_group_kill 0\n";
        assert_eq!(keyed(text, "oom_kill"), Some(2));
        assert_eq!(keyed(text, "oom"), Some(3));
        assert_eq!(keyed(text, "kill"), None);
    }
}
