//! How each limit of a profile is enforced on this host, or that it cannot be.

use tierbox_core::{Applied, Enforce, Error, ErrorKind, Limit, LimitCapabilities, LimitReport, Limits, Result};
use tierbox_supervisor::setup::{Cgroup, Rlimit};

use crate::BACKEND;
use crate::plan::bytes;
use crate::plan::cgroups::{CONTROLLERS, Cgroups, Chosen};
use crate::settings::{Mode, invalid};

/// Room that memory must leave beside the writable areas, which count as memory.
pub const DISK_MARGIN: u64 = 64 << 20;

/// The period of CPU quotas, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;

/// The smallest CPU limit that the kernel takes, in thousandths: one millisecond of each period.
const LEAST_CPU_MILLIS: u64 = 10;

/// The smallest writable area, in bytes, into which the set-up's own files fit: measured, 64 KiB is too little and 100 KiB is enough.
const LEAST_DISK: u64 = 128 << 10;

/// The fewest descriptors of a process: measured, no dynamic program starts with 3, and a shell with 6 does.
const LEAST_OPEN_FILES: u64 = 8;

// The kernel's numbers are the same on every architecture that tierbox runs on (x86_64, aarch64).
const RLIMIT_FSIZE: u32 = 1;
const RLIMIT_DATA: u32 = 2;
const RLIMIT_CORE: u32 = 4;
const RLIMIT_NPROC: u32 = 6;
const RLIMIT_NOFILE: u32 = 7;

/// How the limits of one machine are enforced.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PlannedLimits {
    /// Cgroups to make.
    pub cgroups: Vec<Cgroup>,
    /// Limits of each process.
    pub rlimits: Vec<Rlimit>,
    /// Size of the writable areas.
    pub disk: Option<u64>,
    /// Files in the writable areas.
    pub inodes: Option<u64>,
    /// For the environment's report.
    pub reports: Vec<LimitReport>,
}

/// What this host can do about limits, as far as planning needs to know.
#[derive(Debug, Clone, Copy)]
pub struct Means<'a> {
    /// The cgroups there are.
    pub cgroups: &'a Cgroups,
    /// Container or process.
    pub mode: Mode,
    /// Whether the kernel counts processes per user namespace (Linux 5.14).
    pub nproc_per_namespace: bool,
}

/// The largest value this process may give for an rlimit: its own hard limit, which only a privileged process could raise.
fn own_hard(resource: u32) -> Option<u64> {
    use rustix::process::{Resource, getrlimit};
    let resource = match resource {
        RLIMIT_FSIZE => Resource::Fsize,
        RLIMIT_DATA => Resource::Data,
        RLIMIT_CORE => Resource::Core,
        RLIMIT_NPROC => Resource::Nproc,
        _ => Resource::Nofile,
    };
    getrlimit(resource).maximum
}

/// Checks what can be checked without looking at the host.
///
/// # Errors
/// `InvalidProfile`.
pub fn validate(limits: &Limits, mode: Mode) -> Result<()> {
    let max = |limit: Option<Limit<u64>>| limit.map(|limit| limit.max);
    if let (Some(disk), Some(memory)) = (max(limits.disk), max(limits.memory))
        && mode == Mode::Container
        && disk.saturating_add(DISK_MARGIN) > memory
    {
        return Err(invalid(format!(
            "limits.disk ({}) and 64 MiB beside it do not fit into limits.memory ({}): writable areas are kept in memory",
            size(disk),
            size(memory)
        ))
        .with_help("raise limits.memory or lower limits.disk"));
    }
    if max(limits.cpu_millis).is_some_and(|millis| millis < LEAST_CPU_MILLIS) {
        return Err(invalid("limits.cpu is below 0.01 CPUs, the least that the kernel can enforce"));
    }
    for (name, value) in [("memory", limits.memory), ("pids", limits.pids), ("disk", limits.disk), ("inodes", limits.inodes)] {
        if max(value) == Some(0) {
            return Err(invalid(format!("limits.{name} is zero, which leaves nothing to run in")));
        }
    }
    let least = [
        ("disk", limits.disk.filter(|_| mode == Mode::Container), LEAST_DISK, "the files that every sandbox needs fill it"),
        ("open-files", limits.open_files, LEAST_OPEN_FILES, "no program starts with fewer"),
    ];
    match least.into_iter().find(|(_, value, least, _)| max(*value).is_some_and(|value| value < *least)) {
        Some((name, _, least, why)) => Err(invalid(format!("limits.{name} is below {least}, the least that works: {why}"))),
        None => Ok(()),
    }
}

/// Plans the limits of a machine.
///
/// # Errors
/// `LimitRefused` naming a required limit that cannot be enforced here, and what would help.
pub fn plan(limits: &Limits, means: Means<'_>, id: &str) -> Result<PlannedLimits> {
    let wanted: Vec<&str> = wanted_controllers(limits);
    let chosen = means.cgroups.choose(&wanted);
    let mut plan = PlannedLimits { cgroups: cgroups(limits, &chosen, &wanted, id), ..PlannedLimits::default() };
    plan.machine_limit("memory", limits.memory, size, &chosen, means, Some(RLIMIT_DATA))?;
    plan.machine_limit("cpu", limits.cpu_millis, cpus, &chosen, means, None)?;
    let nproc = (means.mode == Mode::Container && means.nproc_per_namespace).then_some(RLIMIT_NPROC);
    plan.machine_limit("pids", limits.pids, |count| count.to_string(), &chosen, means, nproc)?;
    plan.writable_areas(limits, means.mode)?;
    plan.process_limit("file-size", limits.file_size, size, RLIMIT_FSIZE);
    plan.process_limit("open-files", limits.open_files, |count| count.to_string(), RLIMIT_NOFILE);
    plan.process_limit("core-size", Some(Limit::required(limits.core_size)), size, RLIMIT_CORE);
    Ok(plan)
}

/// Which limits can be enforced, for the capabilities.
pub fn capabilities(limits: &Limits, means: Means<'_>) -> LimitCapabilities {
    let chosen = means.cgroups.choose(&wanted_controllers(limits));
    let has = |controller: &str| {
        chosen.enforcer(controller).is_some() || means.cgroups.choose(&[controller]).enforcer(controller).is_some()
    };
    let container = means.mode == Mode::Container;
    LimitCapabilities {
        memory: has("memory"),
        cpu: has("cpu"),
        pids: has("pids"),
        disk: container,
        inodes: container,
        file_size: true,
        open_files: true,
    }
}

/// The controllers that a machine's limits need.
pub fn wanted_controllers(limits: &Limits) -> Vec<&'static str> {
    let set = [limits.memory.is_some(), limits.cpu_millis.is_some(), limits.pids.is_some()];
    CONTROLLERS.iter().zip(set).filter(|(_, set)| *set).map(|(name, _)| *name).collect()
}

impl PlannedLimits {
    /// A limit of the whole machine: by its cgroup, else weaker by an rlimit, else not at all.
    fn machine_limit(
        &mut self,
        name: &'static str,
        limit: Option<Limit<u64>>,
        show: impl Fn(u64) -> String,
        chosen: &Chosen<'_>,
        means: Means<'_>,
        fallback: Option<u32>,
    ) -> Result<()> {
        let Some(limit) = limit else { return Ok(()) };
        if let Some(by) = chosen.enforcer(name) {
            self.report(name, show(limit.max), by, Applied::Enforced);
            return Ok(());
        }
        if limit.enforce == Enforce::Required {
            return Err(refused(name, &show(limit.max), means));
        }
        match fallback {
            Some(resource) => {
                self.rlimit(resource, limit.max);
                // NPROC counts the agent's processes in its own user namespace; DATA binds each process by itself.
                self.report(name, show(limit.max), "rlimit", Applied::Weaker);
            }
            None => self.report(name, show(limit.max), "nothing", Applied::Absent),
        }
        Ok(())
    }

    fn writable_areas(&mut self, limits: &Limits, mode: Mode) -> Result<()> {
        if mode == Mode::Container {
            self.disk = limits.disk.map(|limit| limit.max).or_else(|| default_disk(limits));
            self.inodes = limits.inodes.map(|limit| limit.max);
            let areas = [("disk", self.disk.map(size)), ("inodes", self.inodes.map(|count| count.to_string()))];
            for (name, value) in areas {
                if let Some(value) = value {
                    self.report(name, value, "tmpfs", Applied::Enforced);
                }
            }
            return Ok(());
        }
        for (name, limit, value) in [
            ("disk", limits.disk, limits.disk.map(|limit| size(limit.max))),
            ("inodes", limits.inodes, limits.inodes.map(|limit| limit.max.to_string())),
        ] {
            let (Some(limit), Some(value)) = (limit, value) else { continue };
            if limit.enforce == Enforce::Required {
                return Err(limit_refused(name, &value, "processes on this host write to its own file system")
                    .with_help("use mode \"container\" (H1), or say `enforce = \"best\"`"));
            }
            self.report(name, value, "nothing", Applied::Absent);
        }
        Ok(())
    }

    fn process_limit(&mut self, name: &'static str, limit: Option<Limit<u64>>, show: impl Fn(u64) -> String, resource: u32) {
        let Some(limit) = limit else { return };
        // Core files of length 0 are still fed to a collector on the host; of length 1 the kernel makes none at all.
        let asked = if resource == RLIMIT_CORE { limit.max.max(1) } else { limit.max };
        let value = self.rlimit(resource, asked);
        self.report(name, show(value.min(limit.max)), "rlimit", Applied::Enforced);
    }

    /// Sets an rlimit, to no more than this process has itself: stricter than asked is within the promise.
    fn rlimit(&mut self, resource: u32, value: u64) -> u64 {
        let value = own_hard(resource).map_or(value, |hard| value.min(hard));
        self.rlimits.push(Rlimit { resource, value });
        value
    }

    fn report(&mut self, name: &str, value: String, by: &str, applied: Applied) {
        self.reports.push(LimitReport { name: name.to_owned(), value, by: by.to_owned(), applied });
    }
}

/// Without a disk limit a full writable area would end in an OOM kill, where a clean ENOSPC is better.
fn default_disk(limits: &Limits) -> Option<u64> {
    limits.memory.map(|memory| memory.max.saturating_sub(DISK_MARGIN)).filter(|disk| *disk >= DISK_MARGIN)
}

fn cgroups(limits: &Limits, chosen: &Chosen<'_>, wanted: &[&str], id: &str) -> Vec<Cgroup> {
    let name = format!("tierbox-{id}");
    let legacy = chosen.legacy.iter().map(|hierarchy| Cgroup {
        path: bytes(&hierarchy.dir.join(&name)),
        kind: hierarchy.controllers.join(","),
        settings: hierarchy
            .controllers
            .iter()
            .flat_map(|controller| legacy_settings(limits, controller, hierarchy.swap))
            .collect(),
    });
    let unified = chosen.unified.map(|place| {
        let has: Vec<&str> = wanted.iter().copied().filter(|name| place.controllers.iter().any(|has| has == name)).collect();
        let settings = has.iter().flat_map(|controller| unified_settings(limits, controller, place.swap)).collect();
        Cgroup { path: bytes(&place.dir.join(&name)), kind: "v2".to_owned(), settings }
    });
    legacy.chain(unified).collect()
}

fn setting(name: &str, value: impl ToString) -> (String, String) {
    (name.to_owned(), value.to_string())
}

fn unified_settings(limits: &Limits, controller: &str, swap: bool) -> Vec<(String, String)> {
    match controller {
        "memory" => limits.memory.map_or_else(Vec::new, |limit| {
            let mut settings = vec![setting("memory.max", limit.max)];
            settings.extend(swap.then(|| setting("memory.swap.max", 0)));
            settings
        }),
        "cpu" => limits
            .cpu_millis
            .map_or_else(Vec::new, |limit| vec![setting("cpu.max", format!("{} {CPU_PERIOD_US}", quota(limit.max)))]),
        "pids" => limits.pids.map_or_else(Vec::new, |limit| vec![setting("pids.max", limit.max)]),
        _ => Vec::new(),
    }
}

fn legacy_settings(limits: &Limits, controller: &str, swap: bool) -> Vec<(String, String)> {
    match controller {
        "memory" => limits.memory.map_or_else(Vec::new, |limit| {
            // The order matters: memory and swap together may not be below memory.
            let mut settings = vec![setting("memory.limit_in_bytes", limit.max)];
            settings.extend(swap.then(|| setting("memory.memsw.limit_in_bytes", limit.max)));
            settings
        }),
        "cpu" => limits.cpu_millis.map_or_else(Vec::new, |limit| {
            vec![setting("cpu.cfs_period_us", CPU_PERIOD_US), setting("cpu.cfs_quota_us", quota(limit.max))]
        }),
        "pids" => limits.pids.map_or_else(Vec::new, |limit| vec![setting("pids.max", limit.max)]),
        _ => Vec::new(),
    }
}

fn quota(millis: u64) -> u64 {
    millis.saturating_mul(CPU_PERIOD_US / 1000)
}

fn refused(name: &str, value: &str, means: Means<'_>) -> Error {
    limit_refused(name, value, &format!("cgroups here: {}", means.cgroups.summary())).with_help(format!(
        "say `limits.{name} = {{ max = …, enforce = \"best\" }}` to start without it; or give this process a writable cgroup with the \
         {name} controller: run it as root, or under `systemd-run --user --scope -p Delegate=yes`; as root on cgroup v2 \
         without systemd: echo +{name} > /sys/fs/cgroup/cgroup.subtree_control"
    ))
}

fn limit_refused(name: &str, value: &str, why: &str) -> Error {
    Error::new(
        ErrorKind::LimitRefused,
        "start sandbox",
        format!("limits.{name} = {value} is required and cannot be enforced: {why}"),
    )
    .with_backend(BACKEND)
    .with_context("limit", name)
}

/// A size as people write it.
pub fn size(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", bytes / unit),
        None => format!("{bytes}B"),
    }
}

fn cpus(millis: u64) -> String {
    match millis % 1000 {
        0 => format!("{}", millis / 1000),
        rest => format!("{}.{}", millis / 1000, format!("{rest:03}").trim_end_matches('0')),
    }
}

#[cfg(test)]
mod unit {
    use super::*;
    use crate::plan::cgroups::{Legacy, Unified};

    fn limits() -> Limits {
        Limits {
            memory: Some(Limit::best(1 << 30)),
            cpu_millis: Some(Limit::best(1500)),
            pids: Some(Limit::best(100)),
            ..Limits::default()
        }
    }

    fn means(cgroups: &Cgroups, mode: Mode) -> Means<'_> {
        Means { cgroups, mode, nproc_per_namespace: true }
    }

    fn by<'a>(plan: &'a PlannedLimits, name: &str) -> (&'a str, Applied) {
        let report = plan.reports.iter().find(|report| report.name == name).unwrap();
        (report.by.as_str(), report.applied)
    }

    #[test]
    fn v2_writes_its_own_files() {
        let controllers = ["cpu", "memory", "pids"].map(str::to_owned).to_vec();
        let cgroups =
            Cgroups { unified: vec![Unified { dir: "/cg".into(), controllers, swap: true }], kill: true, ..Cgroups::default() };
        let plan = plan(&limits(), means(&cgroups, Mode::Container), "abc").unwrap();
        assert_eq!(plan.cgroups.len(), 1);
        assert_eq!(plan.cgroups[0].path.0, b"/cg/tierbox-abc");
        let settings: Vec<String> = plan.cgroups[0].settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(settings, ["memory.max=1073741824", "memory.swap.max=0", "cpu.max=150000 100000", "pids.max=100"]);
        assert_eq!(by(&plan, "cpu"), ("cgroup v2", Applied::Enforced));
    }

    #[test]
    fn v1_limits_memory_before_memory_and_swap() {
        let memory = Legacy { dir: "/m".into(), controllers: vec!["memory".into()], swap: true, quota: false };
        let cgroups = Cgroups { legacy: vec![memory], ..Cgroups::default() };
        let plan = plan(&limits(), means(&cgroups, Mode::Container), "abc").unwrap();
        let names: Vec<&str> = plan.cgroups[0].settings.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]);
        assert_eq!(by(&plan, "memory").0, "cgroup v1");
        assert_eq!(by(&plan, "cpu"), ("nothing", Applied::Absent));
        assert_eq!(by(&plan, "pids"), ("rlimit", Applied::Weaker));
    }

    #[test]
    fn a_required_limit_that_nothing_enforces_is_refused_and_named() {
        let none = Cgroups::default();
        for (name, required) in [
            ("memory", Limits { memory: Some(Limit::required(1 << 30)), ..Limits::default() }),
            ("cpu", Limits { cpu_millis: Some(Limit::required(500)), ..Limits::default() }),
            ("pids", Limits { pids: Some(Limit::required(10)), ..Limits::default() }),
        ] {
            let error = plan(&required, means(&none, Mode::Container), "abc").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::LimitRefused);
            assert!(error.message().contains(&format!("limits.{name}")) && error.help().is_some(), "{error}");
        }
        let disk = Limits { disk: Some(Limit::required(1 << 30)), ..Limits::default() };
        assert!(plan(&disk, means(&none, Mode::Container), "abc").is_ok());
        assert_eq!(plan(&disk, means(&none, Mode::Process), "abc").unwrap_err().kind(), ErrorKind::LimitRefused);
    }

    #[test]
    fn best_effort_falls_back_and_says_so() {
        let none = Cgroups::default();
        let plan = plan(&limits(), means(&none, Mode::Process), "abc").unwrap();
        assert_eq!(by(&plan, "memory"), ("rlimit", Applied::Weaker));
        assert_eq!(by(&plan, "pids"), ("nothing", Applied::Absent), "a plain rlimit would count the caller's other processes");
        assert!(plan.rlimits.contains(&Rlimit { resource: RLIMIT_DATA, value: 1 << 30 }));
        assert!(plan.rlimits.contains(&Rlimit { resource: RLIMIT_CORE, value: 1 }));
    }

    #[test]
    fn disk_that_does_not_fit_into_memory_is_a_mistake_of_the_profile() {
        let limits = Limits { disk: Some(Limit::best(1 << 30)), memory: Some(Limit::best(1 << 30)), ..Limits::default() };
        assert_eq!(validate(&limits, Mode::Container).unwrap_err().kind(), ErrorKind::InvalidProfile);
        let fits = Limits { disk: Some(Limit::best((1 << 30) - DISK_MARGIN)), ..limits };
        for small in [
            Limits { disk: Some(Limit::best(LEAST_DISK - 1)), ..Limits::default() },
            Limits { open_files: Some(Limit::best(LEAST_OPEN_FILES - 1)), ..Limits::default() },
        ] {
            assert_eq!(validate(&small, Mode::Container).unwrap_err().kind(), ErrorKind::InvalidProfile);
        }
        assert!(validate(&fits, Mode::Container).is_ok());
    }

    #[test]
    fn memory_alone_still_gives_a_clean_full_disk() {
        let plan = plan(&limits(), means(&Cgroups::default(), Mode::Container), "abc").unwrap();
        assert_eq!(plan.disk, Some((1 << 30) - DISK_MARGIN));
    }

    #[test]
    fn values_are_shown_as_people_write_them() {
        assert_eq!([size(1 << 30), size(1536 << 20), size(1000)], ["1GiB", "1536MiB", "1000B"]);
        assert_eq!([cpus(1500), cpus(2000), cpus(10)], ["1.5", "2", "0.01"]);
    }
}
