//! Limits: what the engine is told, what the supervisor sets in each process, and what the report says.

use std::collections::{BTreeMap, HashMap};

use bollard::models::{HostConfig, SystemInfo, SystemInfoCgroupVersionEnum};
use tierbox_core::{Applied, Enforce, Error, ErrorKind, Limit, LimitReport, Limits, Result};
use tierbox_supervisor::setup::Rlimit;

use crate::BACKEND;
use crate::image::Image;
use crate::launch::Around;
use crate::plan::MachinePlan;

/// The kernel's numbers.
const RLIMIT_FSIZE: u32 = 1;
const RLIMIT_CORE: u32 = 4;
const RLIMIT_NOFILE: u32 = 7;

/// Shares of the disk limit, in relation to each other: the working area, `/tmp`, `/run`, shared memory.
pub const WORK_SHARE: u64 = 10;
/// See [`WORK_SHARE`].
pub const TMP_SHARE: u64 = 4;
/// See [`WORK_SHARE`].
pub const RUN_SHARE: u64 = 1;
/// See [`WORK_SHARE`].
pub const SHM_SHARE: u64 = 1;

/// A writable area in memory.
#[derive(Debug, Clone, Copy)]
pub struct Area {
    /// Its part of the disk and inode limits, in relation to the others'.
    pub share: u64,
    /// More options of its tmpfs.
    pub options: &'static str,
}

/// Shared memory.
const SHARED: &str = "/dev/shm";

/// Areas as the engine takes them, and the size of shared memory where that is none of them: together they hold no more than the limits,
/// however many they are. Files in shared memory are counted only where it is an area like the others.
///
/// # Errors
/// `InvalidProfile` for limits that are too small for so many.
pub fn areas(
    limits: &Limits,
    counts_inodes: bool,
    mut areas: BTreeMap<String, Area>,
) -> Result<(HashMap<String, String>, Option<u64>)> {
    if counts_inodes {
        areas.insert(SHARED.to_owned(), Area { share: SHM_SHARE, options: "mode=1777,noexec" });
    }
    let shared = (!counts_inodes).then_some(SHM_SHARE);
    let total = areas.values().map(|area| area.share).chain(shared).sum();
    let disk = Split { name: "disk", limit: limits.disk.map(|limit| limit.max), total, least: 4096 };
    let inodes = limits.inodes.filter(|_| counts_inodes).map(|limit| limit.max);
    let inodes = Split { name: "inodes", limit: inodes, total, least: 16 };
    let shares = || areas.values().map(|area| area.share);
    disk.check(shares().chain(shared))?;
    inodes.check(shares())?;
    let options = areas.iter().map(|(path, area)| {
        let size = disk.part(area.share).map(|bytes| format!(",size={bytes}")).unwrap_or_default();
        let count = inodes.part(area.share).map(|count| format!(",nr_inodes={count}")).unwrap_or_default();
        (path.clone(), format!("rw,nosuid,nodev,{}{size}{count}", area.options))
    });
    Ok((options.collect(), shared.and_then(|share| disk.part(share))))
}

/// A limit that areas share.
struct Split {
    name: &'static str,
    limit: Option<u64>,
    total: u64,
    /// The least that an area has: nothing would mean no limit.
    least: u64,
}

impl Split {
    fn part(&self, share: u64) -> Option<u64> {
        let part = |limit: u64| u128::from(limit) * u128::from(share) / u128::from(self.total.max(1));
        self.limit.map(|limit| u64::try_from(part(limit)).unwrap_or(u64::MAX).max(self.least))
    }

    fn check(&self, shares: impl Iterator<Item = u64>) -> Result<()> {
        let needed = shares.filter_map(|share| self.part(share)).fold(0_u64, u64::saturating_add);
        match self.limit {
            Some(limit) if needed > limit => Err(crate::settings::invalid(format!(
                "limits.{} = {limit} is too small for all areas that can be written to",
                self.name
            ))),
            _ => Ok(()),
        }
    }
}

/// The least that engines take: below that they refuse, or take it for no limit at all.
const LEAST: [(&str, u64, &str); 3] = [("memory", 6 << 20, "6 MiB"), ("cpu", 10, "0.01"), ("pids", 1, "1")];

/// Checks that no limit of a machine is so small that the engine would take it for none.
///
/// # Errors
/// `InvalidProfile` naming the limit.
pub fn check(limits: &Limits, machine: &MachinePlan) -> Result<()> {
    let set =
        [lower(limits.memory, machine.memory), lower(limits.cpu_millis, machine.cpu_millis), lower(limits.pids, machine.pids)];
    for ((name, least, shown), limit) in LEAST.into_iter().zip(set) {
        if limit.is_some_and(|limit| limit.max < least) {
            let message =
                format!("limits.{name} of the machine {:?} is below {shown}, the least that an engine takes", machine.name);
            return Err(crate::settings::invalid(message));
        }
    }
    Ok(())
}

/// What each process is limited to.
pub fn rlimits(limits: &Limits) -> Vec<Rlimit> {
    let one = |resource, limit: Option<Limit<u64>>| limit.map(|limit| Rlimit { resource, value: limit.max });
    let core = Rlimit { resource: RLIMIT_CORE, value: limits.core_size };
    [one(RLIMIT_FSIZE, limits.file_size), one(RLIMIT_NOFILE, limits.open_files)].into_iter().flatten().chain([core]).collect()
}

/// The lower of the environment's limit and the machine's own.
fn lower(limit: Option<Limit<u64>>, own: Option<u64>) -> Option<Limit<u64>> {
    match (limit, own) {
        (Some(limit), Some(own)) => Some(Limit { max: limit.max.min(own), ..limit }),
        (None, Some(own)) => Some(Limit::required(own)),
        (limit, None) => limit,
    }
}

/// As the engine takes it.
pub fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// What the engine can enforce and by what.
struct Means {
    by: &'static str,
    memory: bool,
    /// Whether swap counts as memory.
    swap: bool,
    cpu: bool,
    pids: bool,
}

impl Means {
    fn of(info: &SystemInfo) -> Self {
        let by = match info.cgroup_version {
            Some(SystemInfoCgroupVersionEnum::_2) => "cgroup v2",
            _ => "cgroup v1",
        };
        Self {
            by,
            memory: info.memory_limit.unwrap_or(true),
            swap: info.swap_limit.unwrap_or(true),
            cpu: info.cpu_cfs_quota.unwrap_or(true),
            pids: info.pids_limit.unwrap_or(true),
        }
    }
}

/// Puts the limits of a machine into its configuration, and says what enforces each.
///
/// # Errors
/// `LimitRefused` for a required limit that this engine cannot enforce.
pub fn apply(config: &mut HostConfig, around: &Around<'_>, machine: &MachinePlan, image: &Image) -> Result<Vec<LimitReport>> {
    let (limits, info, engine) = (around.limits, around.info, around.engine);
    let means = Means::of(info);
    let mut reports = Reports::default();
    hold_memory(config, &mut reports, lower(limits.memory, machine.memory), &means)?;
    let cpu = lower(limits.cpu_millis, machine.cpu_millis);
    if reports.add("cpu", cpu, |millis| format!("{}", millis as f64 / 1000.0), means.cpu, means.by)?
        && let Some(limit) = cpu
    {
        // More than there are is refused; and no limit.
        let there = u64::try_from(info.ncpu.unwrap_or(0)).ok().filter(|cpus| *cpus > 0).unwrap_or(u64::MAX).saturating_mul(1000);
        config.nano_cpus = Some(signed(limit.max.min(there).saturating_mul(1_000_000)));
    }
    let pids = lower(limits.pids, machine.pids);
    if reports.add("pids", pids, |count| count.to_string(), means.pids, means.by)?
        && let Some(limit) = pids
    {
        config.pids_limit = Some(signed(limit.max));
    }
    // What the image declares as volumes is the engine's to make, without a bound; but an area lies over one.
    let areas = config.tmpfs.as_ref();
    let is_area = |path: &String| areas.is_some_and(|areas| areas.contains_key(path.trim_end_matches('/')));
    let closed = holds_disk(machine) && image.volumes.iter().all(is_area);
    reports.add("disk", limits.disk, size, closed, "tmpfs")?;
    reports.add("inodes", limits.inodes, |count| count.to_string(), closed && !engine.is_podman, "tmpfs")?;
    reports.add("file-size", limits.file_size, size, true, "rlimit")?;
    reports.add("open-files", limits.open_files, |count| count.to_string(), true, "rlimit")?;
    Ok(reports.0)
}

/// Limits memory, and swap with it where that is counted.
fn hold_memory(config: &mut HostConfig, reports: &mut Reports, limit: Option<Limit<u64>>, means: &Means) -> Result<()> {
    if !reports.add("memory", limit, size, means.memory, means.by)? {
        return Ok(());
    }
    config.memory = limit.map(|limit| signed(limit.max));
    if means.swap {
        // The same bound with swap: none of it is to be used.
        config.memory_swap = config.memory;
    } else {
        reports.weaken("without a bound on swap, which this kernel does not count");
    }
    Ok(())
}

/// Whether all that can be written is in areas of bounded size.
pub fn holds_disk(machine: &MachinePlan) -> bool {
    machine.read_only && machine.volumes.is_empty()
}

#[derive(Default)]
struct Reports(Vec<LimitReport>);

impl Reports {
    /// Says why the limit that was noted last is held in part alone.
    fn weaken(&mut self, why: &str) {
        if let Some(last) = self.0.last_mut() {
            last.applied = Applied::Weaker;
            last.by = format!("{}, {why}", last.by);
        }
    }

    /// Notes a limit. Whether it is to be applied.
    fn add(&mut self, name: &str, limit: Option<Limit<u64>>, show: impl Fn(u64) -> String, can: bool, by: &str) -> Result<bool> {
        let Some(limit) = limit else { return Ok(false) };
        if !can && limit.enforce == Enforce::Required {
            return Err(Error::new(
                ErrorKind::LimitRefused,
                "plan limits",
                format!("limits.{name} cannot be enforced by this engine"),
            )
            .with_backend(BACKEND)
            .with_help("`docker info` shows what it lacks; a writable root, a volume, and one that the image declares have no bound of their own"));
        }
        let (by, applied) = if can { (by, Applied::Enforced) } else { ("nothing", Applied::Absent) };
        self.0.push(LimitReport { name: name.to_owned(), value: show(limit.max), by: by.to_owned(), applied });
        Ok(can)
    }
}

fn size(bytes: u64) -> String {
    const UNITS: [(&str, u32); 3] = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let fitting = UNITS.iter().find(|(_, shift)| bytes >= 1 << shift && bytes.is_multiple_of(1 << shift));
    fitting.map_or_else(|| format!("{bytes} bytes"), |(unit, shift)| format!("{} {unit}", bytes >> shift))
}

#[cfg(test)]
mod unit {
    use super::*;

    fn split(limits: &Limits, areas: &[(&str, u64)]) -> Result<(HashMap<String, String>, Option<u64>)> {
        split_where(true, limits, areas)
    }

    fn split_where(
        counts_inodes: bool,
        limits: &Limits,
        areas: &[(&str, u64)],
    ) -> Result<(HashMap<String, String>, Option<u64>)> {
        let area = |(path, share): &(&str, u64)| ((*path).to_owned(), Area { share: *share, options: "mode=1777" });
        super::areas(limits, counts_inodes, areas.iter().map(area).collect())
    }

    const USUAL: [(&str, u64); 3] = [("/workspace", WORK_SHARE), ("/tmp", TMP_SHARE), ("/run", RUN_SHARE)];

    #[test]
    fn the_writable_areas_together_hold_no_more_than_the_limit() {
        let limits = Limits { disk: Some(Limit::required(16 << 20)), inodes: Some(Limit::required(1600)), ..Limits::default() };
        let (usual, shared) = split(&limits, &USUAL).unwrap();
        assert_eq!(usual["/workspace"], "rw,nosuid,nodev,mode=1777,size=10485760,nr_inodes=1000");
        assert_eq!(usual["/dev/shm"], "rw,nosuid,nodev,mode=1777,noexec,size=1048576,nr_inodes=100");
        assert_eq!(shared, None, "it is an area");
        let (usual, shared) = split_where(false, &limits, &USUAL).unwrap();
        assert_eq!((usual.get("/dev/shm"), shared), (None, Some(1 << 20)), "no files are counted");
        assert_eq!(usual["/workspace"], "rw,nosuid,nodev,mode=1777,size=10485760");
        let more: Vec<(String, u64)> = (0..9).map(|number| (format!("/area{number}"), TMP_SHARE)).collect();
        let more: Vec<(&str, u64)> = more.iter().map(|(path, share)| (path.as_str(), *share)).chain(USUAL).collect();
        let (areas, _) = split(&limits, &more).unwrap();
        let sum = |key: &str| {
            let of = |options: &String| options.split(',').find_map(|option| option.strip_prefix(key)?.parse::<u64>().ok());
            areas.values().filter_map(of).sum::<u64>()
        };
        assert!(sum("size=") <= 16 << 20 && sum("nr_inodes=") <= 1600);
        assert!(sum("size=") > 15 << 20, "and hardly less");
    }

    #[test]
    fn limits_that_are_too_small_to_share_are_refused() {
        let limits = Limits { disk: Some(Limit::required(4096)), ..Limits::default() };
        assert!(split(&limits, &USUAL).unwrap_err().message().contains("limits.disk"));
        let limits = Limits { inodes: Some(Limit::required(10)), ..Limits::default() };
        assert!(split(&limits, &USUAL).unwrap_err().message().contains("limits.inodes"));
    }

    #[test]
    fn absurd_limits_neither_overflow_nor_mean_none() {
        let limits = Limits { disk: Some(Limit::required(u64::MAX)), ..Limits::default() };
        split(&limits, &USUAL).unwrap();
        let machine = |pids| MachinePlan { pids: Some(pids), ..crate::plan::machine("m") };
        assert!(check(&Limits::default(), &machine(0)).unwrap_err().message().contains("limits.pids"));
        check(&Limits::default(), &machine(1)).unwrap();
        let limits = Limits { memory: Some(Limit::required(0)), ..Limits::default() };
        assert!(check(&limits, &machine(1)).unwrap_err().message().contains("limits.memory"));
    }

    #[test]
    fn memory_without_its_swap_is_held_in_part_and_reported_so() {
        let limited = |swap| {
            let info = SystemInfo { swap_limit: Some(swap), ..SystemInfo::default() };
            let (mut config, mut reports) = (HostConfig::default(), Reports::default());
            hold_memory(&mut config, &mut reports, Some(Limit::required(64 << 20)), &Means::of(&info)).unwrap();
            (config.memory, config.memory_swap, reports.0.remove(0))
        };
        let (memory, swap, report) = limited(true);
        assert_eq!((memory, swap, report.applied), (Some(64 << 20), Some(64 << 20), Applied::Enforced));
        let (memory, swap, report) = limited(false);
        assert_eq!((memory, swap, report.applied), (Some(64 << 20), None, Applied::Weaker));
        assert!(report.by.contains("cgroup") && report.by.contains("swap"), "{}", report.by);
    }

    #[test]
    fn the_lower_limit_counts() {
        assert_eq!(lower(Some(Limit::best(5)), Some(3)), Some(Limit::best(3)));
        assert_eq!(lower(None, Some(3)), Some(Limit::required(3)));
        assert_eq!(lower(Some(Limit::best(2)), Some(3)), Some(Limit::best(2)));
    }

    #[test]
    fn sizes_for_people() {
        assert_eq!((size(2 << 30), size(1 << 20), size(1000)), ("2 GiB".into(), "1 MiB".into(), "1000 bytes".into()));
    }
}
