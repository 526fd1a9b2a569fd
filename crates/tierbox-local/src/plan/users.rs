//! Which users exist inside a container, and which ids of the host stand behind them.

use std::path::{Path, PathBuf};

use tierbox_core::{Error, ErrorKind, Result};
use tierbox_supervisor::setup::UserMap;

use crate::BACKEND;
use crate::plan::{bytes, read_text};
use crate::settings::Users;

/// The first id of the host that root's containers use: above what systemd-nspawn and the usual subuid ranges take, and
/// below what is reserved at the top of the 31-bit ids.
pub const RANGE_BASE: u32 = 0x7000_0000;

/// Ids of one container.
pub const RANGE_SIZE: u32 = 0x1_0000;

/// Containers with ranges of their own; beyond that ranges are shared, which costs separation of per-user kernel quotas only.
pub const RANGE_SLOTS: u32 = 4094;

/// The fewest ids that make a range worth having.
const SMALLEST_RANGE: u32 = 2048;

/// One line of `/proc/self/uid_map` or of `/etc/subuid`: a first id and a count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The first id.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl Extent {
    fn contains(self, first: u32, count: u32) -> bool {
        let end = |first: u32, count: u32| u64::from(first) + u64::from(count);
        first >= self.first && end(first, count) <= end(self.first, self.count)
    }
}

/// What the host says about this process's ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    /// Whether `/proc` tells about this process at all.
    pub readable: bool,
    /// The effective user id.
    pub uid: u32,
    /// The effective group id.
    pub gid: u32,
    /// The user ids of this process's user namespace.
    pub uids: Vec<Extent>,
    /// The group ids.
    pub gids: Vec<Extent>,
    /// Whether this process may write any map (CAP_SETUID and CAP_SETGID).
    pub can_map: bool,
    /// Whether this process's own user is the root of the whole host, as far as it can tell.
    pub is_host_root: bool,
    /// Subordinate ids and the programs that grant them; the reason where there are none.
    pub helper: std::result::Result<Helper, String>,
}

/// A plain user's subordinate ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Helper {
    /// From `/etc/subuid`.
    pub uids: Extent,
    /// From `/etc/subgid`.
    pub gids: Extent,
    /// Path of newuidmap.
    pub newuidmap: PathBuf,
    /// Path of newgidmap.
    pub newgidmap: PathBuf,
}

impl Ids {
    /// Reads them.
    pub fn read() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        let read = |path: &str| read_text(path.as_ref()).unwrap_or_default();
        let map = read("/proc/self/uid_map");
        Self {
            readable: std::fs::exists("/proc/self/uid_map").unwrap_or(false),
            uid,
            gid,
            uids: own_extents(&map),
            gids: own_extents(&read("/proc/self/gid_map")),
            can_map: has_capabilities(&read("/proc/self/status"), &[CAP_SETGID, CAP_SETUID]),
            is_host_root: outer_id(&map, uid).is_none_or(|outer| outer == 0),
            helper: Helper::find(uid),
        }
    }
}

const CAP_SETGID: u32 = 6;
const CAP_SETUID: u32 = 7;

fn has_capabilities(status: &str, wanted: &[u32]) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let held = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    wanted.iter().all(|capability| held >> capability & 1 == 1)
}

fn map_lines(map: &str) -> impl Iterator<Item = (u32, u32, u32)> + '_ {
    map.lines().filter_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?))
    })
}

fn own_extents(map: &str) -> Vec<Extent> {
    map_lines(map).map(|(first, _, count)| Extent { first, count }).collect()
}

/// The id outside that an id of this namespace stands for.
fn outer_id(map: &str, id: u32) -> Option<u32> {
    map_lines(map)
        .find(|&(first, _, count)| Extent { first, count }.contains(id, 1))
        .map(|(first, outer, _)| outer + (id - first))
}

impl Helper {
    fn find(uid: u32) -> std::result::Result<Self, String> {
        let status = read_text("/proc/self/status".as_ref()).unwrap_or_default();
        if is_confined(&status) {
            return Err("no_new_privs is set, under which newuidmap has no rights".to_owned());
        }
        let name = crate::plan::user_name(uid);
        let extent = |path: &str| {
            let text = read_text(path.as_ref()).unwrap_or_default();
            subordinate(&text, name.as_deref(), uid).ok_or_else(|| format!("{path} has no line for this user"))
        };
        let program = |name: &str| crate::plan::find_program(name).ok_or_else(|| format!("{name} is not installed"));
        Ok(Self {
            uids: extent("/etc/subuid")?,
            gids: extent("/etc/subgid")?,
            newuidmap: program("newuidmap")?,
            newgidmap: program("newgidmap")?,
        })
    }
}

/// Whether setuid programs give this process nothing, as in a container started with `no-new-privileges`.
fn is_confined(status: &str) -> bool {
    status.lines().filter_map(|line| line.strip_prefix("NoNewPrivs:")).any(|value| value.trim() == "1")
}

/// The largest range that a subuid file gives to a user, by name or number.
fn subordinate(text: &str, name: Option<&str>, uid: u32) -> Option<Extent> {
    let number = uid.to_string();
    let extents = text.lines().filter_map(|line| {
        let mut fields = line.trim().splitn(3, ':');
        let owner = fields.next()?;
        let extent = Extent { first: fields.next()?.parse().ok()?, count: fields.next()?.parse().ok()? };
        (Some(owner) == name || owner == number).then_some(extent)
    });
    extents.filter(|extent| extent.count >= SMALLEST_RANGE).max_by_key(|extent| extent.count)
}

/// The map for a new container.
///
/// # Errors
/// `HostUnable` if a range is required and there is none, or if the only possible agent would be the host's root.
pub fn choose(ids: &Ids, users: Users, id: &str) -> Result<UserMap> {
    if !ids.readable {
        return Err(crate::refusal::no_proc());
    }
    if !ids.uids.iter().any(|extent| extent.contains(ids.uid, 1)) {
        return Err(unmapped(ids.uid));
    }
    let range = if users == Users::Single { Err("local.users = \"single\"".to_owned()) } else { find_range(ids, id) };
    match (range, users) {
        (Ok(map), _) => Ok(map),
        (Err(why), Users::Range) => Err(no_range(&why)),
        (Err(why), _) if ids.is_host_root => Err(host_root(&why)),
        (Err(_), _) => Ok(UserMap::Single),
    }
}

fn find_range(ids: &Ids, id: &str) -> std::result::Result<UserMap, String> {
    if ids.can_map {
        return direct(ids, id);
    }
    let helper = ids.helper.as_ref().map_err(Clone::clone)?;
    Ok(UserMap::Helper {
        first_uid: helper.uids.first,
        uids: helper.uids.count.min(RANGE_SIZE),
        first_gid: helper.gids.first,
        gids: helper.gids.count.min(RANGE_SIZE),
        newuidmap: bytes(&helper.newuidmap),
        newgidmap: bytes(&helper.newgidmap),
    })
}

fn direct(ids: &Ids, id: &str) -> std::result::Result<UserMap, String> {
    let first = RANGE_BASE + slot(id) * RANGE_SIZE;
    let holds = |extents: &[Extent]| extents.iter().any(|extent| extent.contains(first, RANGE_SIZE));
    if holds(&ids.uids) && holds(&ids.gids) {
        return Ok(UserMap::Direct { first, count: RANGE_SIZE });
    }
    // Inside a container: the upper half of what is there, since the lower half belongs to that container's own users.
    let common = ids.uids.iter().filter(|uids| ids.gids.iter().any(|gids| gids.contains(uids.first, uids.count)));
    let largest = common.max_by_key(|extent| extent.count).filter(|extent| extent.count / 2 >= SMALLEST_RANGE);
    let Some(largest) = largest else { return Err("this process's user namespace holds too few ids".to_owned()) };
    let count = (largest.count / 2).min(RANGE_SIZE);
    Ok(UserMap::Direct { first: largest.first + (largest.count - count), count })
}

/// Containers get ranges by their id, so that two of them rarely share per-user quotas of the kernel (pipes, inotify).
fn slot(id: &str) -> u32 {
    let hash = id.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    hash % RANGE_SLOTS
}

fn no_range(why: &str) -> Error {
    Error::new(
        ErrorKind::HostUnable,
        "choose users",
        format!("local.users = \"range\" is required, and there is no range: {why}"),
    )
    .with_backend(BACKEND)
    .with_help(SUBID_HELP)
}

/// Whoever has no id in its own user namespace may not make another.
fn unmapped(uid: u32) -> Error {
    Error::new(
        ErrorKind::HostUnable,
        "choose users",
        format!("this process runs in a user namespace that gives its user ({uid}) no id, so the kernel denies it containers"),
    )
    .with_backend(BACKEND)
    .with_help(
        "have whoever made that namespace write its uid_map and gid_map (unshare: add --map-root-user), or run on the host",
    )
}

fn host_root(why: &str) -> Error {
    Error::new(
        ErrorKind::HostUnable,
        "choose users",
        format!("the agent would be this host's root, who owns /proc/sys and the devices: {why}"),
    )
    .with_backend(BACKEND)
    .with_help("run tierbox as a plain user, or give this process CAP_SETUID and CAP_SETGID and leave local.users at \"auto\"")
}

/// How a plain user gets subordinate ids.
pub const SUBID_HELP: &str =
    "apt-get install uidmap, then as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 <user>";

/// Whether a program at this path can be trusted to write maps: it must exist and be a file.
pub fn is_program(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod unit {
    use super::*;

    const WHOLE: Extent = Extent { first: 0, count: u32::MAX };

    fn root() -> Ids {
        Ids {
            readable: true,
            uid: 0,
            gid: 0,
            uids: vec![WHOLE],
            gids: vec![WHOLE],
            can_map: true,
            is_host_root: true,
            helper: Err("none".into()),
        }
    }

    fn plain() -> Ids {
        Ids { uid: 1000, gid: 1000, can_map: false, is_host_root: false, ..root() }
    }

    #[test]
    fn setuid_helpers_do_not_count_under_no_new_privs() {
        assert!(is_confined("Name:\tx\nNoNewPrivs:\t1\n"));
        assert!(!is_confined("Name:\tx\nNoNewPrivs:\t0\n"));
        assert!(!is_confined(""));
    }

    #[test]
    fn root_gets_a_range_of_its_own() {
        let UserMap::Direct { first, count } = choose(&root(), Users::Auto, "abc").unwrap() else { panic!("not direct") };
        assert!(first >= RANGE_BASE && count == RANGE_SIZE);
        assert!(u64::from(first) + u64::from(count) <= 0x7ffe_0000, "within the ids that nobody reserves");
        assert_ne!(choose(&root(), Users::Auto, "abc").unwrap(), choose(&root(), Users::Auto, "abd").unwrap());
    }

    #[test]
    fn the_highest_slot_stays_below_the_reserved_ids() {
        assert!(u64::from(RANGE_BASE) + u64::from(RANGE_SLOTS) * u64::from(RANGE_SIZE) <= 0x7ffe_0000);
    }

    #[test]
    fn root_of_a_container_uses_what_is_there() {
        let inner = Extent { first: 0, count: 65536 };
        let ids = Ids { uids: vec![inner], gids: vec![inner], is_host_root: false, ..root() };
        assert_eq!(choose(&ids, Users::Auto, "abc").unwrap(), UserMap::Direct { first: 32768, count: 32768 });
        let tiny = Extent { first: 0, count: 1 };
        let ids = Ids { uids: vec![tiny], gids: vec![tiny], ..ids };
        assert_eq!(choose(&ids, Users::Auto, "abc").unwrap(), UserMap::Single);
        assert_eq!(choose(&ids, Users::Range, "abc").unwrap_err().kind(), ErrorKind::HostUnable);
    }

    #[test]
    fn a_user_without_an_id_is_told_so() {
        let ids = Ids { uid: 65534, uids: Vec::new(), gids: Vec::new(), ..root() };
        assert!(choose(&ids, Users::Auto, "abc").unwrap_err().message().contains("no id"));
        let blind = Ids { readable: false, ..ids };
        assert!(choose(&blind, Users::Auto, "abc").unwrap_err().message().contains("/proc"));
    }

    #[test]
    fn the_agent_is_never_the_hosts_root() {
        let no_caps = Ids { can_map: false, ..root() };
        assert_eq!(choose(&no_caps, Users::Auto, "abc").unwrap_err().kind(), ErrorKind::HostUnable);
        assert_eq!(choose(&root(), Users::Single, "abc").unwrap_err().kind(), ErrorKind::HostUnable);
    }

    #[test]
    fn a_plain_user_uses_subordinate_ids_where_there_are_some() {
        assert_eq!(choose(&plain(), Users::Auto, "abc").unwrap(), UserMap::Single);
        let extent = Extent { first: 100_000, count: 65536 };
        let helper =
            Helper { uids: extent, gids: extent, newuidmap: "/usr/bin/newuidmap".into(), newgidmap: "/usr/bin/newgidmap".into() };
        let ids = Ids { helper: Ok(helper), ..plain() };
        assert!(matches!(choose(&ids, Users::Auto, "abc").unwrap(), UserMap::Helper { first_uid: 100_000, .. }));
        assert_eq!(choose(&ids, Users::Single, "abc").unwrap(), UserMap::Single);
    }

    #[test]
    fn subuid_lines_go_by_name_or_number() {
        let text = "ann:100000:65536\n1001:300000:65536\nbob:1:10\n# x\n";
        assert_eq!(subordinate(text, Some("ann"), 1000), Some(Extent { first: 100_000, count: 65536 }));
        assert_eq!(subordinate(text, None, 1001), Some(Extent { first: 300_000, count: 65536 }));
        assert_eq!(subordinate(text, Some("bob"), 1002), None, "too few to be of use");
    }

    #[test]
    fn ids_are_followed_outwards() {
        let map = "0 100000 65536\n";
        assert_eq!(outer_id(map, 0), Some(100_000));
        assert_eq!(outer_id("0 0 4294967295\n", 0), Some(0));
        assert_eq!(outer_id(map, 70_000), None);
    }
}
