//! What the kernel says from outside of a container that just came up, at every start.
//!
//! It costs a few reads of `/proc`. What this process may not read (a plain user sees less of a process that cannot be dumped)
//! is left out, and the report says what was looked at.

use std::path::Path;

use tierbox_core::{Applied, EnvironmentSpec, Error, ErrorKind, LeaseRecord, Mechanism, Network, Result};
use tierbox_supervisor::setup::{Setup, UserMap};

use crate::environment::Memory;
use crate::mounts::{self, Planned};
use crate::plan::{self, cgroups::Cgroups};
use crate::{BACKEND, settings::Mode};

/// Docker's default capabilities: more than these is never in reach of what runs inside.
const MOST_CAPABILITIES: u64 = 0x0000_0000_a804_25fb;

/// The namespaces of a container's own.
const NAMESPACES: [&str; 6] = ["mnt", "pid", "net", "ipc", "uts", "user"];

/// A look at a container from outside: the kernel's word on its first process, against what was planned.
#[derive(Debug, Clone)]
pub struct SelfCheck {
    keeper: u32,
    network: Network,
    planned: Planned,
    /// Its whole id map as the kernel shows it, where this host writes it.
    ids: Option<[u32; 3]>,
}

impl SelfCheck {
    /// For a container that was started from this specification under this lease, and runs.
    ///
    /// # Errors
    /// `NotFound` if nothing was started under the lease; `Unsupported` for a machine that is no container; as a start.
    pub fn of(spec: &EnvironmentSpec, lease: &LeaseRecord) -> Result<Self> {
        let gone = || Error::new(ErrorKind::NotFound, "check sandbox", format!("nothing was started under {}", lease.id));
        let keeper = Memory::of(lease).ok_or_else(gone)?.keeper.pid;
        let (_, mode) = plan::validate(spec)?;
        if mode != Mode::Container {
            return Err(Error::unsupported("check sandbox", "a look from outside at what is no container").with_backend(BACKEND));
        }
        let plan = plan::plan(spec, &lease.id, Cgroups::of_this_host(), || Ok(std::env::temp_dir()))?;
        // Which ids a container has is decided at its start.
        Ok(Self { ids: None, ..Self::new(spec, &plan.setup, keeper) })
    }

    /// For what a keeper was told to make.
    pub(crate) fn new(spec: &EnvironmentSpec, setup: &Setup, keeper: u32) -> Self {
        let ids = match setup.users {
            UserMap::Single => Some([setup.agent.uid, rustix::process::geteuid().as_raw(), 1]),
            UserMap::Direct { first, count } => Some([0, first, count]),
            UserMap::Helper { .. } => None,
        };
        Self { keeper, network: spec.tier.network(), planned: Planned::of(setup), ids }
    }

    /// Looks. What was seen; nothing if the first process cannot be found from here.
    ///
    /// # Errors
    /// `TierRefused` naming what is not as it was planned.
    pub fn run(&self) -> Result<Option<Mechanism>> {
        let Some(pid) = first_process(self.keeper) else { return Ok(None) };
        let pid = pid.as_str();
        let checks = [
            namespaces(Path::new("/proc").join(pid).as_path()),
            ids(&read(pid, "uid_map"), self.ids),
            rights(&read(pid, "status")),
            mounts::check(read(pid, "mountinfo").as_deref(), &self.planned),
            links(self.network, &read(pid, "net/dev")),
            routes(self.network, &read(pid, "net/route"), &read(pid, "net/ipv6_route")),
        ];
        summary(checks, "from outside")
    }
}

/// Looks at a container that was found again: what of it cannot be different from one start to the next.
///
/// # Errors
/// `TierRefused` naming what is not as it was at its start.
pub(crate) fn again(keeper: u32, network: Network) -> Result<Option<Mechanism>> {
    let Some(pid) = first_process(keeper) else { return Ok(None) };
    let checks = [
        namespaces(Path::new("/proc").join(&pid).as_path()),
        ids(&read(&pid, "uid_map"), None),
        rights(&read(&pid, "status")),
        links(network, &read(&pid, "net/dev")),
        routes(network, &read(&pid, "net/route"), &read(&pid, "net/ipv6_route")),
    ];
    summary(checks, "from outside, as it was found again")
}

/// The container's first process, which is the keeper's only child.
fn first_process(keeper: u32) -> Option<String> {
    let children = std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).unwrap_or_default();
    children.split_whitespace().next().map(str::to_owned)
}

fn summary(checks: impl IntoIterator<Item = Seen>, how: &str) -> Result<Option<Mechanism>> {
    let mut seen = Vec::new();
    for check in checks {
        match check {
            Ok(what) => seen.extend(what),
            Err(what) => {
                let message = format!("seen from outside, {what}");
                return Err(Error::new(ErrorKind::TierRefused, "check sandbox", message).with_backend(BACKEND));
            }
        }
    }
    let detail = format!("{how}: {}", seen.join(", "));
    Ok(Some(Mechanism { name: NAME.to_owned(), applied: Applied::Enforced, detail }))
}

/// The mechanism's name.
pub(crate) const NAME: &str = "self-check";

fn read(pid: &str, name: &str) -> Option<String> {
    std::fs::read_to_string(format!("/proc/{pid}/{name}")).ok()
}

/// What was looked at, nothing if it could not be, or what is wrong.
pub(crate) type Seen = std::result::Result<Option<String>, String>;

fn namespaces(process: &Path) -> Seen {
    let mut count = 0;
    for name in NAMESPACES {
        let own = std::fs::read_link(Path::new("/proc/self/ns").join(name));
        if let (Ok(its), Ok(own)) = (std::fs::read_link(process.join("ns").join(name)), own) {
            if its == own {
                return Err(format!("its {name} namespace is this host's"));
            }
            count += 1;
        }
    }
    Ok((count > 0).then(|| format!("{count} namespaces")))
}

fn ids(map: &Option<String>, planned: Option<[u32; 3]>) -> Seen {
    let Some(map) = map else { return Ok(None) };
    let words: Vec<u32> = map.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    if words == [0, 0, u32::MAX] {
        return Err("its users are this host's".to_owned());
    }
    match planned {
        Some(planned) if words != planned => Err(format!("its id map is {words:?} in place of {planned:?}")),
        _ => Ok(Some("id map".to_owned())),
    }
}

fn rights(status: &Option<String>) -> Seen {
    let Some(status) = status else { return Ok(None) };
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    if field("Seccomp") != Some("2") {
        return Err("system calls are not filtered".to_owned());
    }
    if field("NoNewPrivs") != Some("1") {
        return Err("no_new_privs is not set".to_owned());
    }
    for set in ["CapInh", "CapAmb"] {
        if field(set).is_none_or(|bits| u64::from_str_radix(bits, 16) != Ok(0)) {
            return Err(format!("it passes capabilities on ({set})"));
        }
    }
    match field("CapBnd").and_then(|bits| u64::from_str_radix(bits, 16).ok()) {
        Some(bits) if bits & !MOST_CAPABILITIES == 0 => Ok(Some("capabilities, no_new_privs, seccomp".to_owned())),
        _ => Err("it could have capabilities beyond docker's default".to_owned()),
    }
}

fn links(network: Network, table: &Option<String>) -> Seen {
    let (Network::N1 | Network::N2, Some(table)) = (network, table) else { return Ok(None) };
    let names = table.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim());
    match names.into_iter().find(|name| *name != "lo" && is_a_way_out(name)) {
        Some(name) => Err(format!("it has the network interface {name}")),
        None => Ok(Some("links".to_owned())),
    }
}

/// With N1 and N2 there is nothing but loopback, which has an address or two and no network beyond.
fn routes(network: Network, four: &Option<String>, six: &Option<String>) -> Seen {
    let (Network::N1 | Network::N2, Some(four)) = (network, four) else { return Ok(None) };
    if let Some(route) = four.lines().skip(1).find(|line| !line.trim().is_empty()) {
        return Err(format!("it has a route: {}", route.split_whitespace().take(3).collect::<Vec<_>>().join(" ")));
    }
    // A kernel without IPv6 has no such table.
    let beyond = six.iter().flat_map(|table| table.lines()).find(|line| line.split_whitespace().last() != Some("lo"));
    match beyond {
        Some(route) => Err(format!("it has a route of IPv6: {}", route.split_whitespace().next_back().unwrap_or_default())),
        None => Ok(Some("routes".to_owned())),
    }
}

/// Some kernels put tunnels into every network namespace that lead nowhere until somebody sets them up.
fn is_a_way_out(name: &str) -> bool {
    !["tunl", "gre", "gretap", "erspan", "ip_vti", "ip6_vti", "sit", "ip6tnl", "ip6gre"].iter().any(|kind| name.starts_with(kind))
}

#[cfg(test)]
mod unit {
    use super::*;

    fn status(seccomp: &str, privs: &str, bounding: &str) -> Option<String> {
        let inherited = "CapInh:\t0000000000000000\nCapAmb:\t0000000000000000\n";
        Some(format!("Name:\tx\n{inherited}Seccomp:\t{seccomp}\nNoNewPrivs:\t{privs}\nCapBnd:\t{bounding}\n"))
    }

    #[test]
    fn every_right_too_many_is_seen() {
        assert!(rights(&status("2", "1", "00000000a00405fb")).unwrap().is_some());
        for wrong in [("0", "1", "0"), ("2", "0", "0"), ("2", "1", "000001ffffffffff"), ("2", "1", "x")] {
            assert!(rights(&status(wrong.0, wrong.1, wrong.2)).is_err(), "{wrong:?}");
        }
        let passed_on = status("2", "1", "0").map(|text| text.replace("CapAmb:\t0000000000000000", "CapAmb:\t0000000000000001"));
        assert!(rights(&passed_on).unwrap_err().contains("CapAmb"));
        assert_eq!(rights(&None), Ok(None));
    }

    #[test]
    fn the_hosts_own_users_and_links_are_seen() {
        assert!(ids(&Some("         0          0 4294967295\n".into()), None).is_err());
        assert!(ids(&Some("0 100000 65536\n".into()), Some([0, 100_000, 65_536])).unwrap().is_some());
        for other in ["0 0 65536\n", "0 100000 65537\n", "0 100000 65536\n 65536 0 1\n"] {
            assert!(ids(&Some(other.into()), Some([0, 100_000, 65_536])).is_err(), "{other}");
        }
        let table = |name: &str| Some(format!("Inter-| x\n face |bytes\n    lo: 0 0\n  {name}: 0 0\n"));
        assert!(links(Network::N2, &table("eth0")).is_err());
        assert!(links(Network::N2, &table("sit0")).unwrap().is_some());
        assert_eq!(links(Network::N0, &table("eth0")), Ok(None));
    }

    #[test]
    fn every_route_is_seen() {
        let four = |lines: &str| Some(format!("Iface\tDestination\tGateway\n{lines}"));
        let six = |device: &str| Some(format!("00 00 00 00 lo\n00 00 00 00 {device}\n"));
        assert!(routes(Network::N2, &four(""), &six("lo")).unwrap().is_some());
        assert!(routes(Network::N1, &four(""), &None).unwrap().is_some());
        assert!(routes(Network::N1, &four("eth0\t00000000\t010200C0\n"), &None).is_err());
        assert!(routes(Network::N2, &four(""), &six("eth0")).is_err());
        assert_eq!(routes(Network::N0, &four("eth0\t0\t0\n"), &six("eth0")), Ok(None));
    }

    #[test]
    fn this_process_is_in_the_hosts_namespaces() {
        assert!(namespaces(Path::new("/proc/self")).is_err());
    }
}
