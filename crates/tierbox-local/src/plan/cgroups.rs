//! Where cgroups can be made on this host, and what they can limit there.
//!
//! Three kinds of host exist: cgroup v2 with controllers handed down, v1 with a hierarchy per controller (often beside a v2
//! hierarchy without controllers, which still can kill), and none that this process may write to.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{Access, access};

use crate::plan::read_text;

/// The controllers that tierbox uses for limits.
pub const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// A directory of the v2 hierarchy in which this process may make others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unified {
    /// The directory.
    pub dir: PathBuf,
    /// The controllers that new directories in it have.
    pub controllers: Vec<String>,
    /// Whether new directories in it have `memory.swap.max`.
    pub swap: bool,
}

/// A directory of a v1 hierarchy in which this process may make others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Legacy {
    /// The directory.
    pub dir: PathBuf,
    /// The controllers of the hierarchy.
    pub controllers: Vec<String>,
    /// Whether it counts swap (`memory.memsw.*`).
    pub swap: bool,
    /// Whether it has CPU quotas.
    pub quota: bool,
}

/// What this host offers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cgroups {
    /// Directories of the v2 hierarchy, this process's own first, then its ancestors.
    pub unified: Vec<Unified>,
    /// v1 hierarchies.
    pub legacy: Vec<Legacy>,
    /// Whether v2 directories have `cgroup.kill` (Linux 5.14).
    pub kill: bool,
    /// Why there are fewer than there could be; for messages.
    pub missing: Vec<String>,
}

/// What is chosen for one machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chosen<'a> {
    /// Where its v2 directory goes.
    pub unified: Option<&'a Unified>,
    /// The v1 hierarchies in which it gets directories.
    pub legacy: Vec<&'a Legacy>,
}

impl Cgroups {
    /// What this host offers, looked up once per process.
    pub fn of_this_host() -> &'static Self {
        static FOUND: OnceLock<Cgroups> = OnceLock::new();
        FOUND.get_or_init(|| {
            let release = rustix::system::uname().release().to_string_lossy().into_owned();
            Self::detect(Path::new("/"), at_least(&release, 5, 14))
        })
    }

    /// What the tree below `root` offers (`/` for the host itself).
    pub fn detect(root: &Path, kill: bool) -> Self {
        let below = |path: &str| root.join(path.trim_start_matches('/'));
        let own = read_text(&below("/proc/self/cgroup")).unwrap_or_default();
        let mounts = read_text(&below("/proc/self/mountinfo")).unwrap_or_default();
        let mut found = Self { kill, ..Self::default() };
        for mount in mounts.lines().filter_map(Mount::parse) {
            let Some(path) = mount.own_path(&own) else { continue };
            let places = places(&below(&mount.point), &path);
            match mount.controllers {
                None => found.add_unified(places),
                Some(controllers) => found.add_legacy(places, controllers),
            }
        }
        if found.unified.is_empty() && found.legacy.is_empty() && found.missing.is_empty() {
            found.missing.push("no cgroup hierarchy is mounted".to_owned());
        }
        found
    }

    fn add_unified(&mut self, places: Vec<PathBuf>) {
        let own = places.first().cloned().unwrap_or_default();
        // Moving a process needs leave to write the common ancestor's `cgroup.procs`: the directory itself here.
        let open = |dir: &PathBuf| writable(dir) && writable(&dir.join("cgroup.procs")) && !is_threaded(dir);
        let swap = places.iter().any(|dir| dir.join("memory.swap.max").exists() || child_has(dir, "memory.swap.max"));
        let made = places.into_iter().filter(open).map(|dir| {
            let text = fs::read_to_string(dir.join("cgroup.subtree_control")).unwrap_or_default();
            Unified { controllers: text.split_whitespace().map(str::to_owned).collect(), dir, swap }
        });
        self.unified.extend(made);
        if self.unified.is_empty() {
            self.missing.push(format!("no directory from {} upwards is writable", own.display()));
        }
    }

    fn add_legacy(&mut self, places: Vec<PathBuf>, controllers: Vec<String>) {
        if !controllers.iter().any(|name| name == "freezer" || CONTROLLERS.contains(&name.as_str())) {
            return;
        }
        match places.iter().find(|dir| writable(dir) && writable(&dir.join("cgroup.procs"))) {
            None => self.missing.push(format!("the {} hierarchy is not writable", controllers.join(","))),
            Some(dir) => self.legacy.push(Legacy {
                swap: dir.join("memory.memsw.limit_in_bytes").exists(),
                quota: dir.join("cpu.cfs_quota_us").exists(),
                controllers,
                dir: dir.clone(),
            }),
        }
    }

    /// The places for a machine that needs these controllers, and a kill domain in any case.
    ///
    /// v1's freezer goes before a v2 directory without controllers: entering a v1 directory thread by thread is immediate,
    /// while entering one of v2 waits for a grace period of the whole machine (some 10 ms).
    pub fn choose(&self, wanted: &[&str]) -> Chosen<'_> {
        let limits = |place: &Unified| wanted.iter().filter(|name| place.controllers.iter().any(|has| has == *name)).count();
        let has = |hierarchy: &Legacy, name: &str| hierarchy.controllers.iter().any(|has| has == name);
        let freezer = self.legacy.iter().any(|hierarchy| has(hierarchy, "freezer"));
        // The nearest of the best: `rev` because `max_by_key` takes the last of equals.
        let best = self.unified.iter().rev().max_by_key(|place| limits(place));
        let unified = best.filter(|place| !freezer || limits(place) > 0);
        let needs_freezer = unified.is_none() || !self.kill;
        let legacy = self
            .legacy
            .iter()
            .filter(|hierarchy| wanted.iter().any(|name| has(hierarchy, name)) || (needs_freezer && has(hierarchy, "freezer")))
            .collect();
        Chosen { unified, legacy }
    }

    /// One line for people.
    pub fn summary(&self) -> String {
        let v2 = self.unified.iter().map(|place| place.controllers.join(" ")).find(|controllers| !controllers.is_empty());
        let v1: Vec<&str> = self.legacy.iter().flat_map(|hierarchy| hierarchy.controllers.iter().map(String::as_str)).collect();
        match (v2, v1.is_empty(), self.unified.is_empty()) {
            (Some(controllers), ..) => format!("v2 with {controllers}"),
            (None, false, false) => format!("v1 ({}), and v2 without controllers", v1.join(", ")),
            (None, false, true) => format!("v1 ({})", v1.join(", ")),
            (None, true, false) => "v2 without controllers".to_owned(),
            (None, true, true) => format!("none: {}", self.missing.join("; ")),
        }
    }
}

impl Chosen<'_> {
    /// Which hierarchy does what, in one line for people.
    pub fn summary(&self, wanted: &[&str]) -> String {
        let by = |enforcer: &str| {
            let names: Vec<&str> = wanted.iter().copied().filter(|name| self.enforcer(name) == Some(enforcer)).collect();
            (!names.is_empty()).then(|| format!("{enforcer} limits {}", listed(&names)))
        };
        // The unified hierarchy goes first for killing: that is what the supervisor does too.
        let freezer = self.legacy.iter().any(|hierarchy| hierarchy.controllers.iter().any(|name| name == "freezer"));
        let killer = match (self.unified.is_some(), freezer) {
            (true, _) => "cgroup v2 kills commands",
            (false, true) => "the freezer of cgroup v1 kills commands",
            (false, false) => "no cgroup kills commands: they are found by descent",
        };
        let parts: Vec<String> = ["cgroup v2", "cgroup v1"].into_iter().filter_map(by).chain([killer.to_owned()]).collect();
        parts.join("; ")
    }

    /// `cgroup v2` or `cgroup v1` if a controller is there.
    pub fn enforcer(&self, controller: &str) -> Option<&'static str> {
        let has = |controllers: &[String]| controllers.iter().any(|name| name == controller);
        if self.unified.is_some_and(|place| has(&place.controllers)) {
            return Some("cgroup v2");
        }
        let legacy = self.legacy.iter().find(|hierarchy| has(&hierarchy.controllers))?;
        (controller != "cpu" || legacy.quota).then_some("cgroup v1")
    }
}

/// Names in a sentence: `a, b and c`.
fn listed(names: &[&str]) -> String {
    match names {
        [most @ .., last] if !most.is_empty() => format!("{} and {last}", most.join(", ")),
        _ => names.join(", "),
    }
}

/// A cgroup mount from `/proc/self/mountinfo`.
struct Mount {
    /// The part of the hierarchy that is mounted.
    root: String,
    point: String,
    /// None for v2.
    controllers: Option<Vec<String>>,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, point) = (unescape(fields.next()?), unescape(fields.next()?));
        let mut after = after.split(' ');
        match after.next()? {
            "cgroup2" => Some(Self { root, point, controllers: None }),
            "cgroup" => {
                let options = after.nth(1)?.split(',');
                let controllers = options.filter(|option| !matches!(*option, "rw" | "ro") && !option.contains('='));
                Some(Self { root, point, controllers: Some(controllers.map(str::to_owned).collect()) })
            }
            _ => None,
        }
    }

    /// This process's own path below the mount point.
    fn own_path(&self, own: &str) -> Option<String> {
        let path = own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, names, path) = (fields.next()?, fields.next()?, fields.next()?);
            let same = match &self.controllers {
                None => names.is_empty(),
                Some(controllers) => !names.is_empty() && names.split(',').all(|name| controllers.iter().any(|has| has == name)),
            };
            same.then(|| path.to_owned())
        })?;
        // A path outside what is mounted (another cgroup namespace) leaves the mount point itself.
        let inside = if self.root == "/" { Some(path.as_str()) } else { path.strip_prefix(self.root.as_str()) };
        let plain = |path: &&str| (path.is_empty() || path.starts_with('/')) && !path.contains("..");
        Some(inside.filter(plain).unwrap_or("/").to_owned())
    }
}

/// mountinfo writes blanks and backslashes in octal.
fn unescape(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
}

/// The process's own directory and its ancestors up to the mount point.
fn places(point: &Path, path: &str) -> Vec<PathBuf> {
    let own = point.join(path.trim_matches('/'));
    own.ancestors().take_while(|dir| dir.starts_with(point)).map(Path::to_path_buf).collect()
}

fn writable(path: &Path) -> bool {
    access(path, Access::WRITE_OK).is_ok()
}

fn is_threaded(dir: &Path) -> bool {
    fs::read_to_string(dir.join("cgroup.type")).is_ok_and(|kind| kind.trim() != "domain")
}

fn child_has(dir: &Path, name: &str) -> bool {
    let Ok(entries) = fs::read_dir(dir) else { return false };
    let mut dirs = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.any(|entry| entry.path().join(name).exists())
}

/// Whether a kernel release is at least this one.
pub fn at_least(release: &str, major: u32, minor: u32) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}

#[cfg(test)]
mod unit {
    use super::*;

    /// A host made of files: `own` and `mounts` as the kernel writes them, and files with contents.
    fn host(own: &str, mounts: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("/proc/self/cgroup", own);
        write("/proc/self/mountinfo", mounts);
        files.iter().for_each(|(path, text)| write(path, text));
        root
    }

    const V2: &str = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn v2_takes_the_nearest_place_with_the_most_controllers() {
        let root = host(
            "0::/user.slice/session.scope\n",
            V2,
            &[
                ("/sys/fs/cgroup/cgroup.procs", ""),
                ("/sys/fs/cgroup/cgroup.subtree_control", "cpu memory pids\n"),
                ("/sys/fs/cgroup/user.slice/cgroup.procs", ""),
                ("/sys/fs/cgroup/user.slice/cgroup.subtree_control", "memory pids\n"),
                ("/sys/fs/cgroup/user.slice/session.scope/cgroup.procs", ""),
                ("/sys/fs/cgroup/user.slice/session.scope/memory.swap.max", "max"),
            ],
        );
        let cgroups = Cgroups::detect(root.path(), true);
        assert_eq!(cgroups.unified.len(), 3);
        let place = |wanted: &[&str]| cgroups.choose(wanted).unified.unwrap().dir.clone();
        assert!(place(&["memory", "pids"]).ends_with("cgroup/user.slice"));
        assert!(place(&["memory", "cpu"]).ends_with("sys/fs/cgroup"));
        assert!(place(&[]).ends_with("session.scope"), "only a kill domain: at home");
        assert_eq!(cgroups.choose(&["memory"]).enforcer("memory"), Some("cgroup v2"));
        assert_eq!(cgroups.choose(&["memory"]).enforcer("cpu"), None);
        assert!(cgroups.unified[0].swap);
        assert_eq!(
            cgroups.choose(&CONTROLLERS).summary(&CONTROLLERS),
            "cgroup v2 limits memory, cpu and pids; cgroup v2 kills commands"
        );
        assert!(Chosen::default().summary(&CONTROLLERS).starts_with("no cgroup kills"));
    }

    const HYBRID: &str = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        37 31 0:34 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n\
        39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
        40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    fn hybrid() -> tempfile::TempDir {
        let own = "8:pids:/\n6:freezer:/\n4:memory:/some/where\n2:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n";
        let files: Vec<(String, &str)> = ["cpu,cpuacct", "memory", "memory/some/where", "freezer", "pids", "unified"]
            .iter()
            .map(|dir| (format!("/sys/fs/cgroup/{dir}/cgroup.procs"), ""))
            .chain([("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us".to_owned(), "-1")])
            .collect();
        let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
        host(own, HYBRID, &files)
    }

    #[test]
    fn hybrid_hosts_limit_and_kill_by_v1() {
        let root = hybrid();
        let mut cgroups = Cgroups::detect(root.path(), true);
        let chosen = cgroups.choose(&["memory", "cpu", "pids"]);
        let dirs: Vec<String> = chosen.legacy.iter().map(|hierarchy| hierarchy.controllers.join(",")).collect();
        assert_eq!(dirs, ["cpu,cpuacct", "memory", "freezer", "pids"]);
        assert!(chosen.legacy[1].dir.ends_with("memory/some/where"));
        assert!(chosen.unified.is_none());
        assert_eq!(chosen.enforcer("cpu"), Some("cgroup v1"));
        let summary = chosen.summary(&CONTROLLERS);
        assert_eq!(summary, "cgroup v1 limits memory, cpu and pids; the freezer of cgroup v1 kills commands");
        cgroups.legacy.retain(|hierarchy| hierarchy.controllers != ["freezer"]);
        assert!(cgroups.choose(&[]).unified.is_some(), "v2 kills where v1 cannot freeze");
    }

    #[test]
    fn nothing_to_write_is_said() {
        let none = Cgroups::detect(host("0::/\n", "", &[]).path(), true);
        assert!(none.unified.is_empty() && none.legacy.is_empty());
        assert!(none.summary().contains("no cgroup hierarchy"), "{}", none.summary());
        let closed = Cgroups::detect(host("0::/x\n", V2, &[]).path(), true);
        assert!(closed.summary().contains("writable"), "{}", closed.summary());
    }

    #[test]
    fn another_cgroup_namespaces_path_means_the_mount_point() {
        let mount = Mount::parse("30 24 0:26 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup2 rw").unwrap();
        assert_eq!(mount.own_path("0::/docker/abc/x\n").unwrap(), "/x");
        assert_eq!(mount.own_path("0::/other\n").unwrap(), "/");
        assert_eq!(mount.own_path("0::/../..\n").unwrap(), "/");
    }

    #[test]
    fn kernel_releases_are_compared_as_numbers() {
        assert!(at_least("6.18.44-x", 5, 14) && at_least("5.14.0", 5, 14));
        assert!(!at_least("5.9.1", 5, 14) && !at_least("5.13.0-rc1", 5, 14));
    }
}
