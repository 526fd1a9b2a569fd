//! What a machine can reach, and the helper that gives a container its way out.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use tierbox_core::{EnvironmentSpec, Error, ErrorKind, Network, Result};
use tierbox_egress::Rules;
use tierbox_supervisor::setup::Net;

use crate::BACKEND;
use crate::plan::find_program;
use crate::settings::{Mode, NetworkHelper};

/// IPv4 prefixes that no sandbox reaches: link-local with every cloud's metadata service, and the odd ones outside it.
const METADATA4: [([u8; 4], u8); 4] =
    [([169, 254, 0, 0], 16), ([100, 100, 100, 200], 32), ([168, 63, 129, 16], 32), ([192, 0, 0, 192], 32)];

/// IPv6 prefixes that no sandbox reaches: the clouds' metadata services.
const METADATA6: [([u8; 16], u8); 2] = [
    ([0xfd, 0, 0x0e, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 32),
    ([0xfd, 0x20, 0, 0xce, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 32),
];

/// The gateway's address in a container with N1: from the network for benchmarks, which nothing else uses, so that programs
/// that take private or loopback addresses for something special do not.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

/// A program that connects a container's network namespace to the host's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelperProgram {
    /// Which of the two.
    pub kind: HelperKind,
    /// Its path.
    pub path: PathBuf,
    /// The first three bytes of the /24 network inside.
    pub prefix: [u8; 3],
}

/// The helpers that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HelperKind {
    /// pasta, from passt.
    Pasta,
    /// slirp4netns.
    Slirp4netns,
}

impl HelperProgram {
    /// The resolver's address inside.
    pub fn nameserver(&self) -> String {
        self.address(3)
    }

    /// An address of the network inside.
    pub fn address(&self, last: u8) -> String {
        let [a, b, c] = self.prefix;
        format!("{a}.{b}.{c}.{last}")
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        match self.kind {
            HelperKind::Pasta => "pasta",
            HelperKind::Slirp4netns => "slirp4netns",
        }
    }

    /// Its arguments for a container whose first process is `pid`.
    pub fn arguments(&self, pid: u32) -> Vec<String> {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let mut arguments = match self.kind {
            // Nothing is forwarded either way, and the host's loopback stays out of reach.
            HelperKind::Pasta => {
                let mut words = owned(&["--config-net", "--foreground", "--quiet", "--no-map-gw"]);
                words.extend(owned(&["-t", "none", "-u", "none", "-T", "none", "-U", "none"]));
                words.extend(owned(&["-a", &self.address(100), "-n", "24", "-g", &self.address(2)]));
                words.extend(owned(&["--dns-forward", &self.nameserver()]));
                // Root's own choice would be `nobody`, who may not enter what root made. pasta gives up root's capabilities,
                // and lives in the container's user namespace and an empty root of its own.
                if rustix::process::geteuid().is_root() {
                    words.extend(owned(&["--runas", "0:0"]));
                }
                words
            }
            HelperKind::Slirp4netns => {
                owned(&["--configure", "--mtu=65520", "--disable-host-loopback", &format!("--cidr={}/24", self.address(0))])
            }
        };
        arguments.push(pid.to_string());
        if self.kind == HelperKind::Slirp4netns {
            arguments.push("tap0".to_owned());
        }
        arguments
    }
}

/// What a machine can reach, and who helps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedNetwork {
    /// For the set-up.
    pub net: Net,
    /// The helper, with N0 in a container.
    pub helper: Option<HelperProgram>,
    /// The gateway, with N1 in a container.
    pub gateway: Option<GatewayPlan>,
}

/// What the gateway of a container with N1 allows, and where it listens inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayPlan {
    /// The names.
    pub rules: Rules,
    /// The sockets.
    pub sockets: tierbox_egress::Plan,
}

impl PlannedNetwork {
    fn without_help(net: Net) -> Self {
        Self { net, helper: None, gateway: None }
    }

    /// The resolver's address inside, where there is one.
    pub fn nameserver(&self) -> Option<String> {
        let gateway = self.gateway.as_ref().map(|gateway| gateway.sockets.address().to_string());
        gateway.or_else(|| self.helper.as_ref().map(HelperProgram::nameserver))
    }
}

/// Checks the names that N1 allows, without looking at the host.
///
/// # Errors
/// `InvalidProfile` naming the entry.
pub fn validate(spec: &EnvironmentSpec) -> Result<()> {
    if spec.tier.network() != Network::N1 {
        return Ok(());
    }
    Rules::new(&spec.network).map(drop).map_err(|error| error.with_backend(BACKEND))
}

/// Plans the network.
///
/// # Errors
/// As [`validate`]; `HostUnable` naming the helper that is missing.
pub fn plan(spec: &EnvironmentSpec, mode: Mode, wanted: NetworkHelper) -> Result<PlannedNetwork> {
    match spec.tier.network() {
        _ if mode == Mode::Process => Ok(PlannedNetwork::without_help(Net::Host)),
        Network::N2 => Ok(PlannedNetwork::without_help(Net::Isolated)),
        Network::N1 => plan_gateway(spec),
        Network::N0 => plan_external(wanted),
    }
}

fn plan_gateway(spec: &EnvironmentSpec) -> Result<PlannedNetwork> {
    let rules = Rules::new(&spec.network).map_err(|error| error.with_backend(BACKEND))?;
    let sockets = tierbox_egress::Plan::new(GATEWAY, &rules);
    Ok(PlannedNetwork { net: Net::Gateway, helper: None, gateway: Some(GatewayPlan { rules, sockets }) })
}

fn plan_external(wanted: NetworkHelper) -> Result<PlannedNetwork> {
    let trie = std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let own4 = local_addresses4(&trie);
    let own6 = local_addresses6(&std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default());
    let helper = find_helper(wanted, prefix_for(&own4))?;
    if let Some(cause) = device_cause() {
        return Err(no_device(&helper, cause));
    }
    let blocked4 = METADATA4.into_iter().chain(own4.into_iter().map(|address| (address, 32))).collect();
    let blocked6 = METADATA6.into_iter().chain(own6.into_iter().map(|address| (address, 128))).collect();
    Ok(PlannedNetwork { net: Net::External { blocked4, blocked6 }, helper: Some(helper), gateway: None })
}

/// The helper that would be used.
///
/// # Errors
/// `HostUnable` if none is installed.
pub fn find_helper(wanted: NetworkHelper, prefix: [u8; 3]) -> Result<HelperProgram> {
    let find = |kind: HelperKind, name: &str| find_program(name).map(|path| HelperProgram { kind, path, prefix });
    let pasta = || find(HelperKind::Pasta, "pasta");
    let slirp = || find(HelperKind::Slirp4netns, "slirp4netns");
    let found = match wanted {
        NetworkHelper::Pasta => pasta(),
        NetworkHelper::Slirp4netns => slirp(),
        // pasta takes the host's routes for its own, and does nothing useful where there is no default route.
        NetworkHelper::Auto if has_default_route() => pasta().or_else(slirp),
        NetworkHelper::Auto => slirp(),
    };
    found.ok_or_else(|| {
        let name = match wanted {
            NetworkHelper::Pasta => "pasta is not installed",
            NetworkHelper::Slirp4netns => "slirp4netns is not installed",
            NetworkHelper::Auto => "neither pasta nor slirp4netns is installed",
        };
        Error::new(ErrorKind::HostUnable, "plan network", format!("N0 in a container needs a helper for its network, and {name}"))
            .with_backend(BACKEND)
            .with_help("install slirp4netns or pasta: apt-get install slirp4netns, or apt-get install passt")
    })
}

/// A network inside that the host is not itself part of (VirtualBox guests are in 10.0.2.0/24).
fn prefix_for(own: &[[u8; 4]]) -> [u8; 3] {
    let usual = [10, 0, 2];
    if own.iter().any(|address| address[..3] == usual) { [10, 97, 2] } else { usual }
}

fn has_default_route() -> bool {
    has_default(&std::fs::read_to_string("/proc/net/route").unwrap_or_default())
}

/// Whether a routing table as in `/proc/net/route` has a default route.
pub fn has_default(table: &str) -> bool {
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next() == Some("00000000") && fields.nth(5) == Some("00000000")
    })
}

/// The host's own IPv4 addresses, from `/proc/net/fib_trie`.
fn local_addresses4(trie: &str) -> Vec<[u8; 4]> {
    let mut found = Vec::new();
    let mut last = None;
    for line in trie.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<std::net::Ipv4Addr>().ok();
        } else if line.starts_with("/32 host LOCAL")
            && let Some(address) = last
            && !address.is_loopback()
            && !found.contains(&address.octets())
        {
            found.push(address.octets());
        }
    }
    found
}

/// The host's own IPv6 addresses, from `/proc/net/if_inet6`, without loopback and link-local ones.
fn local_addresses6(table: &str) -> Vec<[u8; 16]> {
    let parse = |line: &str| u128::from_str_radix(line.split_whitespace().next()?, 16).ok().map(u128::to_be_bytes);
    table
        .lines()
        .filter_map(parse)
        .filter(|address| {
            let address = std::net::Ipv6Addr::from(*address);
            !address.is_loopback() && !address.is_unicast_link_local()
        })
        .collect()
}

fn no_device(helper: &HelperProgram, cause: DeviceCause) -> Error {
    let message = format!("N0 in a container needs {TUN}, from which {} makes its device, and {}", helper.name(), cause.what());
    Error::new(ErrorKind::HostUnable, "plan network", message).with_backend(BACKEND).with_help(cause.remedy())
}

/// The device of which every helper makes the container's network device.
const TUN: &str = "/dev/net/tun";

/// Why no helper can make its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceCause {
    /// The kernel's driver is not there.
    Missing,
    /// It is not for this user.
    Denied,
}

impl DeviceCause {
    /// What is wrong.
    pub fn what(self) -> &'static str {
        match self {
            Self::Missing => "it does not exist",
            Self::Denied => "this user may not open it",
        }
    }

    /// What to do.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Missing => "as root, modprobe tun, and chmod 0666 /dev/net/tun; or use a profile with N2",
            Self::Denied => "as root, chmod 0666 /dev/net/tun (udev does that on most systems); or use a profile with N2",
        }
    }
}

/// Why no helper could make its device, if that is so.
pub fn device_cause() -> Option<DeviceCause> {
    use rustix::fs::{Access, access};
    match access(TUN, Access::READ_OK | Access::WRITE_OK) {
        Ok(()) => None,
        Err(rustix::io::Errno::NOENT) => Some(DeviceCause::Missing),
        Err(_) => Some(DeviceCause::Denied),
    }
}

/// Whether a helper has connected the namespace of a process: it then has a default route.
pub fn is_connected(pid: u32) -> bool {
    let table = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("net/route"));
    table.is_ok_and(|table| has_default(&table))
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn n1_plans_a_gateway_and_refuses_what_is_no_name() {
        let mut spec = crate::plan::unit::spec("T0.H1.N1");
        spec.network.allow = vec!["index.test".into(), "*.files.test:8443".into()];
        let planned = plan(&spec, Mode::Container, NetworkHelper::Auto).unwrap();
        assert_eq!((&planned.net, planned.nameserver().as_deref()), (&Net::Gateway, Some("198.18.0.1")));
        assert_eq!(planned.gateway.unwrap().sockets.tcp().len(), 5);
        for bad in ["127.0.0.1", "*.com", "*.co.uk", "index.test/x"] {
            spec.network.allow = vec![bad.into()];
            let error = validate(&spec).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidProfile, "{bad}");
        }
    }

    #[test]
    fn the_hosts_addresses_are_found() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 192.0.2.0\n        /24 link UNICAST\n     |-- 192.0.2.2\n        /32 host LOCAL\n\
             |-- 127.0.0.1\n        /32 host LOCAL\nLocal:\n     |-- 192.0.2.2\n        /32 host LOCAL\n";
        assert_eq!(local_addresses4(trie), [[192, 0, 2, 2]]);
        let inet6 = "fd000000000000000000000000000002 04 40 00 80 eth0\n00000000000000000000000000000001 01 80 10 80 lo\n\
            fe8000000000000000fc00fffe000001 04 40 20 80 eth0\n";
        assert_eq!(local_addresses6(inet6).len(), 1);
    }

    #[test]
    fn default_routes_are_told_from_others() {
        let header = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        assert!(has_default(&format!("{header}eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n")));
        assert!(!has_default(&format!("{header}eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n")));
        assert!(!has_default(""));
    }

    #[test]
    fn a_device_that_cannot_be_opened_is_named_with_the_remedy() {
        let helper = HelperProgram { kind: HelperKind::Pasta, path: "/x".into(), prefix: [10, 0, 2] };
        let error = no_device(&helper, DeviceCause::Denied);
        assert_eq!(error.kind(), ErrorKind::HostUnable);
        assert!(error.message().contains("/dev/net/tun") && error.help().unwrap().contains("chmod 0666"), "{error}");
        assert!(no_device(&helper, DeviceCause::Missing).help().unwrap().contains("modprobe"));
    }

    #[test]
    fn helpers_forward_nothing_to_the_hosts_loopback() {
        let helper = |kind| HelperProgram { kind, path: "/x".into(), prefix: [10, 0, 2] };
        let slirp = helper(HelperKind::Slirp4netns).arguments(42);
        assert!(slirp.contains(&"--disable-host-loopback".to_owned()));
        assert_eq!(slirp[slirp.len() - 2..], ["42", "tap0"]);
        let pasta = helper(HelperKind::Pasta).arguments(42);
        assert!(pasta.contains(&"--no-map-gw".to_owned()) && pasta.windows(2).any(|pair| pair == ["-T", "none"]));
    }

    #[test]
    fn the_network_inside_avoids_the_hosts_own() {
        assert_eq!(prefix_for(&[[192, 0, 2, 2]]), [10, 0, 2]);
        assert_eq!(prefix_for(&[[10, 0, 2, 15]]), [10, 97, 2]);
    }
}
