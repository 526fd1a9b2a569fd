//! Which probes an environment of a tier gets.

use std::collections::BTreeMap;
use std::sync::Arc;

use tierbox_core::{HostIsolation, Lifted, Locality, Network, Report, ShownPath, Tier};

use super::canary::Canaries;
use super::elsewhere::Elsewhere;
use super::named::named;

/// What the probe program answered, by request: found or not, and what.
pub(super) type Answers = BTreeMap<String, (bool, String)>;

/// What answers mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Finding {
    /// The rule holds.
    Holds(String),
    /// It does not.
    Broken(String),
    /// The answers do not tell.
    Unclear(String),
}

/// What shows that a probe works.
pub(super) enum Control {
    /// A twin without this rule, in which the probe must find it broken.
    Twin(Lifted),
    /// Several, each of which must find it broken by some of these requests.
    Twins(Vec<(Lifted, Vec<String>)>),
    /// None is needed: the probe looks for what must be there.
    Unneeded,
    /// None is possible.
    Impossible,
}

/// Where a probe is carried out.
pub(super) enum Place {
    /// In the machine that is verified.
    Machine,
    /// In a sibling of it, whose network knows names of verification's own.
    Twin(Lifted),
}

/// Where the canaries are that probes ask for, and which twins can tell of them.
#[derive(Clone, Copy)]
pub(super) struct Ground<'a> {
    /// Those of this host.
    pub canaries: &'a Canaries,
    /// Those of the engine's host, where that is another network.
    pub elsewhere: Option<&'a Elsewhere>,
    /// Whether the twin for the way outside is one whose network leads there, as the host's own does not.
    pub leads: bool,
}

impl<'a> Ground<'a> {
    /// Before anything is known.
    pub(super) fn new(canaries: &'a Canaries) -> Self {
        Self { canaries, elsewhere: None, leads: false }
    }

    /// The twin in which there is a way outside.
    fn way(&self) -> Control {
        Control::Twin(if self.leads { Lifted::Outside } else { Lifted::Network })
    }

    /// What asks this host, and what asks the engine's where that is another network, with the twins that hear each.
    fn asks(&self, here: Vec<String>, there: Vec<String>) -> (Vec<String>, Control) {
        if self.elsewhere.is_none() {
            return (here, Control::Twin(Lifted::Network));
        }
        let requests = [here.clone(), there.clone()].concat();
        let twins = [(Lifted::Isolation, here), (Lifted::Network, there)];
        (requests, Control::Twins(twins.into_iter().filter(|(_, asked)| !asked.is_empty()).collect()))
    }
}

type Judge = Arc<dyn Fn(&Answers) -> Finding + Send + Sync>;
type Counts = Arc<dyn Fn(&str, &str) -> bool + Send + Sync>;

pub(super) struct Probe {
    pub id: &'static str,
    pub rule: &'static str,
    pub requests: Vec<String>,
    pub place: Place,
    pub control: Control,
    /// The requests of which the control must find every one answered; where there are none, one of any is enough.
    pub needed: Vec<String>,
    /// The requests of which the control must find at least one answered, if there are any: addresses by which others, too, reach
    /// this host. Not each of them, because bridges come and go while somebody looks, and an engine's rules may rewrite where an
    /// answer comes from.
    pub beyond: Vec<String>,
    /// Which answers count in a control, by their request; every one that is a yes where nothing is said.
    pub counts: Option<Counts>,
    pub judge: Judge,
}

impl Probe {
    /// The same elsewhere.
    pub(super) fn at(self, place: Place) -> Self {
        Self { place, ..self }
    }

    /// The same, whose control must find every request answered.
    pub(super) fn every(self) -> Self {
        self.every_one_of(|_| true)
    }

    /// The same, whose control must find every one of these requests answered. Of several twins each hears some.
    pub(super) fn every_one_of(self, is_needed: impl Fn(&str) -> bool) -> Self {
        if matches!(self.control, Control::Twins(_)) {
            return self;
        }
        let needed = self.requests.iter().filter(|request| is_needed(request)).cloned().collect();
        Self { needed, ..self }
    }

    /// The same, whose control must reach this host by more than loopback, where this host has more. Of several twins each hears
    /// some.
    pub(super) fn beyond_loopback(self) -> Self {
        if matches!(self.control, Control::Twins(_)) {
            return self;
        }
        let inside = |request: &str| request.contains(":127.0.0.1:") || request.contains(":[::1]:") || request.contains(":/");
        let beyond = self.requests.iter().filter(|request| !inside(request)).cloned().collect();
        Self { beyond, ..self }
    }
}

/// Sockets with which whoever reaches them commands this host.
const SOCKETS: [&str; 12] = [
    "/run/docker.sock",
    "/var/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
    "/run/crio/crio.sock",
    "/run/libvirt/libvirt-sock",
    "/run/dbus/system_bus_socket",
    "/run/systemd/private",
    "/run/systemd/journal/socket",
    "/run/snapd.socket",
    "/run/lxd/unix.socket",
    "/run/incus/unix.socket",
];

/// Docker's default capabilities. More than these is never in reach of a container's commands.
const DOCKERS: u64 = 0x0000_0000_a804_25fb;

/// Inodes of the first namespaces of every kernel.
const INITIAL: [(&str, u64); 5] =
    [("pid", 4_026_531_836), ("user", 4_026_531_837), ("uts", 4_026_531_838), ("ipc", 4_026_531_839), ("cgroup", 4_026_531_835)];

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The probes of an environment whose profile lists these names.
pub(super) fn probes(report: &Report, allow: &[String], ground: &Ground<'_>) -> Vec<Probe> {
    let (tier, canaries) = (report.tier, ground.canaries);
    let mut probes = Vec::new();
    match tier.host() {
        HostIsolation::H0 => return probes,
        HostIsolation::H1 | HostIsolation::H2 => container(&mut probes, report.locality, ground),
        HostIsolation::H3 => machine(&mut probes, report),
    }
    outside(&mut probes, report.locality, canaries);
    if tier.host() == HostIsolation::H3 {
        // A machine of its own runs services of its own, and their sockets lie where this host's would.
        probes.retain(|probe| probe.id != "h.sockets");
    }
    probes.push(shares(report, canaries));
    if tier.network() == Network::N0 {
        probes.push(metadata(ground));
    } else {
        probes.extend([routes(ground), metadata(ground)]);
    }
    if report.locality == Locality::Local {
        host_network(&mut probes, tier, ground);
    }
    match tier.network() {
        Network::N2 => probes.push(resolver(ground)),
        Network::N1 => probes.extend(named(allow, ground)),
        Network::N0 => (),
    }
    probes
}

pub(super) fn probe(
    id: &'static str,
    rule: &'static str,
    requests: Vec<String>,
    control: Control,
    judge: impl Fn(&Answers) -> Finding + Send + Sync + 'static,
) -> Probe {
    Probe {
        id,
        rule,
        requests,
        place: Place::Machine,
        control,
        needed: Vec::new(),
        beyond: Vec::new(),
        counts: None,
        judge: Arc::new(judge),
    }
}

/// A rule that is broken if any request is answered with yes.
pub(super) fn none_of(id: &'static str, rule: &'static str, requests: Vec<String>, control: Control) -> Probe {
    let asked = requests.clone();
    probe(id, rule, requests, control, move |answers| {
        let answered: Vec<_> = asked.iter().filter_map(|request| answers.get(request).map(|answer| (request, answer))).collect();
        if answered.len() < asked.len() {
            return Finding::Unclear("the probe did not answer".to_owned());
        }
        let found: Vec<String> = answered
            .iter()
            .filter(|(_, (yes, _))| *yes)
            .map(|(request, (_, what))| if what.is_empty() { (*request).clone() } else { format!("{request} ({what})") })
            .collect();
        if found.is_empty() { Finding::Holds(summary(&answered)) } else { Finding::Broken(found.join(", ")) }
    })
}

fn summary(answered: &[(&String, &(bool, String))]) -> String {
    let mut kinds: Vec<&str> = answered.iter().map(|(_, (_, why))| why.as_str()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    format!("{} tried: {}", answered.len(), kinds.join(", "))
}

fn value<'a>(answers: &'a Answers, request: &str) -> Result<&'a str, Finding> {
    match answers.get(request) {
        Some((true, value)) => Ok(value),
        Some((false, why)) => Err(Finding::Unclear(format!("{request}: {why}"))),
        None => Err(Finding::Unclear("the probe did not answer".to_owned())),
    }
}

fn settle(finding: Result<Finding, Finding>) -> Finding {
    finding.unwrap_or_else(|unclear| unclear)
}

fn container(probes: &mut Vec<Probe>, locality: Locality, ground: &Ground<'_>) {
    // Inodes of another host's namespaces may be the same as here: there is nothing to compare with.
    if locality == Locality::Local {
        for (id, rule, kind, lifted) in [
            ("h.namespace.mnt", "The mount namespace is not this host's", "mnt", Lifted::Isolation),
            ("h.namespace.pid", "The pid namespace is not this host's", "pid", Lifted::Isolation),
            ("h.namespace.net", "The network namespace is not this host's", "net", Lifted::Network),
            ("h.namespace.ipc", "The ipc namespace is not this host's", "ipc", Lifted::Ipc),
            ("h.namespace.uts", "The uts namespace is not this host's", "uts", Lifted::Uts),
        ] {
            let engines = ground.elsewhere.filter(|_| kind == "net").map(|there| there.namespace.clone());
            probes.push(namespace(id, rule, kind, lifted, engines));
        }
    }
    probes.push(capabilities());
    probes.push(status_field("h.no-new-privs", "Executing something gives no privileges", "NoNewPrivs", "1", Lifted::NoNewPrivs));
    probes.push(status_field("h.seccomp", "System calls are filtered", "Seccomp", "2", Lifted::Seccomp));
}

/// `engines` is that of the engine's host, where that is another.
fn namespace(id: &'static str, rule: &'static str, kind: &str, lifted: Lifted, engines: Option<String>) -> Probe {
    let request = format!("link:/proc/self/ns/{kind}");
    let host = std::fs::read_link(format!("/proc/self/ns/{kind}")).map(|path| path.to_string_lossy().into_owned());
    let asked = request.clone();
    probe(id, rule, vec![request], Control::Twin(lifted), move |answers| {
        settle(value(answers, &asked).map(|inside| match &host {
            Ok(host) if host == inside => Finding::Broken(format!("{inside}, which is this host's")),
            _ if engines.as_deref() == Some(inside) => Finding::Broken(format!("{inside}, which is that of the engine's host")),
            Ok(host) => Finding::Holds(format!("{inside}, here {host}")),
            Err(error) => Finding::Unclear(format!("this host's cannot be read: {error}")),
        }))
    })
}

fn status_field(id: &'static str, rule: &'static str, name: &str, wanted: &'static str, lifted: Lifted) -> Probe {
    let request = format!("field:{name}");
    let asked = request.clone();
    probe(id, rule, vec![request], Control::Twin(lifted), move |answers| {
        settle(value(answers, &asked).map(|found| {
            let shown = format!("{} is {found}", asked.trim_start_matches("field:"));
            if found == wanted { Finding::Holds(shown) } else { Finding::Broken(shown) }
        }))
    })
}

pub(super) fn capabilities() -> Probe {
    const SETS: [&str; 5] = ["CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd"];
    let requests = SETS.map(|set| format!("field:{set}")).to_vec();
    let rule = "Commands have no capabilities, and can never get one that docker's default does not have";
    let made = probe("h.capabilities", rule, requests, Control::Twin(Lifted::Capabilities), |answers| {
        let mut shown = Vec::new();
        let mut broken = false;
        for set in SETS {
            let found = match value(answers, &format!("field:{set}")) {
                Ok(found) => found,
                Err(unclear) => return unclear,
            };
            let Ok(bits) = u64::from_str_radix(found, 16) else { return Finding::Unclear(format!("{set} is {found}")) };
            broken |= has_more(set, bits);
            shown.push(format!("{set} {bits:x}"));
        }
        let shown = shown.join(", ");
        if broken { Finding::Broken(shown) } else { Finding::Holds(shown) }
    });
    let counts = |request: &str, said: &str| {
        let set = request.trim_start_matches("field:");
        u64::from_str_radix(said, 16).is_ok_and(|bits| has_more(set, bits))
    };
    Probe { counts: Some(Arc::new(counts)), ..made.every() }
}

/// Whether a set of capabilities holds one that it must not.
fn has_more(set: &str, bits: u64) -> bool {
    bits & !(if set == "CapBnd" { DOCKERS } else { 0 }) != 0
}

/// An own kernel. These look for what must be there, so they need no twin.
fn machine(probes: &mut Vec<Probe>, report: &Report) {
    let requests = INITIAL.map(|(kind, _)| format!("link:/proc/self/ns/{kind}")).to_vec();
    probes.push(probe(
        "h.kernel.namespaces",
        "Commands are in the first namespaces of their kernel",
        requests,
        Control::Unneeded,
        |answers| {
            for (kind, inode) in INITIAL {
                match value(answers, &format!("link:/proc/self/ns/{kind}")) {
                    Ok(found) if found == format!("{kind}:[{inode}]") => (),
                    Ok(found) => return Finding::Broken(format!("{found} is not the first one, {inode}")),
                    Err(unclear) => return unclear,
                }
            }
            Finding::Holds("pid, user, uts, ipc and cgroup are the first ones".to_owned())
        },
    ));
    let own = std::fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned();
    let requests = vec![format!("read:{BOOT_ID}"), format!("procfs:{BOOT_ID}")];
    probes.push(probe("h.kernel.boot", "The kernel was booted by itself", requests, Control::Unneeded, move |answers| {
        match answers.get(&format!("procfs:{BOOT_ID}")) {
            Some((true, _)) => (),
            Some((false, why)) => return Finding::Broken(format!("its boot id cannot be believed: {why}")),
            None => return Finding::Unclear("the probe did not answer".to_owned()),
        }
        settle(value(answers, &format!("read:{BOOT_ID}")).map(|found| match () {
            () if own.is_empty() => Finding::Unclear("this host has no boot id to compare with".to_owned()),
            () if found == own => Finding::Broken(format!("its boot id is this host's, {found}")),
            () => Finding::Holds(format!("its boot id is {found}")),
        }))
    }));
    let stated = report
        .mechanisms
        .iter()
        .find(|mechanism| mechanism.name == "virtual machine" && mechanism.applied == tierbox_core::Applied::Enforced);
    let stated = stated.map(|mechanism| mechanism.detail.clone());
    let rule = "The engine states that this is a virtual machine";
    probes.push(probe("h.kernel.engine", rule, Vec::new(), Control::Unneeded, move |_| match &stated {
        Some(detail) => Finding::Holds(detail.clone()),
        None => Finding::Broken("the engine does not say so".to_owned()),
    }));
}

/// What of this host could be seen from inside.
fn outside(probes: &mut Vec<Probe>, locality: Locality, canaries: &Canaries) {
    let directory = canaries.directory.to_string_lossy().into_owned();
    let local = locality == Locality::Local;
    let twin = |lifted: Lifted| if local { Control::Twin(lifted) } else { Control::Impossible };
    let marker = showing(canaries.directory.clone(), &directory);
    probes.push(none_of(
        "h.marker",
        "A file of this host cannot be seen",
        vec![format!("exists:{directory}/marker")],
        twin(marker),
    ));
    let ticks = std::fs::read_to_string("/proc/self/stat").ok().and_then(|stat| {
        let rest = stat.rsplit_once(')')?.1.to_owned();
        rest.split_whitespace().nth(19).map(str::to_owned)
    });
    let request = format!("process:{}:{}", std::process::id(), ticks.unwrap_or_default());
    probes.push(none_of("h.processes", "A process of this host cannot be seen", vec![request], twin(Lifted::Isolation)));
    probes.push(sockets(local, canaries));
}

/// The control has a socket at each of the places, so that every one is shown to be seen.
pub(super) fn sockets(local: bool, canaries: &Canaries) -> Probe {
    let asked = |paths: &[&str]| paths.iter().map(|path| format!("exists:{path}")).collect();
    if !local {
        // In a machine of its own, its services are its own.
        return none_of("h.sockets", "No socket of an engine is there", asked(&SOCKETS[..4]), Control::Impossible);
    }
    let socket = canaries.directory.join("socket");
    let everywhere = SOCKETS.map(|path| ShownPath { host: socket.clone(), guest: path.to_owned() }).to_vec();
    let control = Control::Twin(Lifted::Mounts(everywhere));
    none_of("h.sockets", "No socket of an engine or of the host's services is there", asked(&SOCKETS), control).every()
}

/// A twin in which a path of the host's is shown.
fn showing(host: std::path::PathBuf, guest: &str) -> Lifted {
    Lifted::Mounts(vec![ShownPath { host, guest: guest.to_owned() }])
}

fn shares(report: &Report, canaries: &Canaries) -> Probe {
    let rule = "No folder of the host is shared that the profile does not name";
    let is_container = matches!(report.tier.host(), HostIsolation::H1 | HostIsolation::H2);
    let (request, control) = match report.locality {
        Locality::Local if is_container => {
            let directory = canaries.directory.to_string_lossy().into_owned();
            let twin = showing(canaries.directory.clone(), &directory);
            (format!("mounts:{}", host_devices().join(",")), Control::Twin(twin))
        }
        // Devices of another kernel say nothing here, and who shared a folder would have to share one more.
        _ => ("shares".to_owned(), Control::Impossible),
    };
    let (asked, known) = (request.clone(), Known::of(report));
    probe("h.shares", rule, vec![request], control, move |answers| match answers.get(&asked) {
        Some((false, why)) if why == "none" => Finding::Holds("none".to_owned()),
        Some((false, why)) => Finding::Unclear(why.clone()),
        Some((true, found)) => {
            let unnamed: Vec<&str> = found.split(", ").filter(|share| !known.has(share)).collect();
            match unnamed.is_empty() {
                true => Finding::Holds(found.clone()),
                false => Finding::Broken(unnamed.join(", ")),
            }
        }
        None => Finding::Unclear("the probe did not answer".to_owned()),
    })
}

/// Where something of the host's may be mounted.
struct Known {
    mounts: Vec<String>,
    parts: Vec<String>,
}

impl Known {
    fn of(report: &Report) -> Self {
        // `HOST -> INSIDE (ro)`, of which either may hold anything.
        // What the probe program finds is escaped in the same way.
        let inside =
            |mount: &String| Some(mount.rsplit_once(" -> ")?.1.rsplit_once(" (")?.0.as_bytes().escape_ascii().to_string());
        Self { mounts: report.mounts.iter().filter_map(inside).collect(), parts: report.parts.clone() }
    }

    /// Whether a mount (`POINT (KIND)`) is at one of these places or below.
    fn has(&self, share: &str) -> bool {
        let point = share.rsplit_once(" (").map_or(share, |(point, _)| point);
        let below = |place: &String| match place.strip_suffix('/') {
            Some(place) => point.strip_prefix(place).is_some_and(|rest| rest.starts_with('/')),
            None => point.strip_prefix(place.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        };
        self.mounts.iter().chain(&self.parts).any(below)
    }
}

/// What this host has mounted, by device.
fn host_devices() -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut devices: Vec<String> = table.lines().filter_map(|line| line.split(' ').nth(2).map(str::to_owned)).collect();
    devices.sort();
    devices.dedup();
    devices
}

/// From the ranges for documentation, which lead nowhere. Nothing is sent.
fn routes(ground: &Ground<'_>) -> Probe {
    let requests = ["192.0.2.213:9", "198.51.100.1:9", "[2001:db8::1]:9"].map(|address| format!("route:{address}")).to_vec();
    let rule = "There is no route to the outside";
    by_host(ground, none_of("n.routes", rule, requests, ground.way()))
}

fn metadata(ground: &Ground<'_>) -> Probe {
    let addresses = ["169.254.169.254:80", "169.254.170.2:80", "100.100.100.200:80", "[fd00:ec2::254]:80"];
    let requests = addresses.map(|address| format!("route:{address}")).to_vec();
    let rule = "There is no route to a metadata service";
    by_host(ground, none_of("n.metadata", rule, requests, ground.way()))
}

/// The twin on this host's network must have the routes that this host has. What another network has is not known.
fn by_host(ground: &Ground<'_>, probe: Probe) -> Probe {
    if ground.elsewhere.is_some() || ground.leads { probe } else { probe.every_one_of(is_routed_here) }
}

/// Whether this host has a route to the address of a request, so that a twin with its network must have one. Sends nothing.
fn is_routed_here(request: &str) -> bool {
    let to = request.strip_prefix("route:").and_then(|address| address.parse::<std::net::SocketAddr>().ok());
    let any = |to: &std::net::SocketAddr| if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    to.is_some_and(|to| std::net::UdpSocket::bind(any(&to)).and_then(|socket| socket.connect(to)).is_ok())
}

fn host_network(probes: &mut Vec<Probe>, tier: Tier, ground: &Ground<'_>) {
    let canaries = ground.canaries;
    let there = |of: fn(&Elsewhere) -> Vec<String>| ground.elsewhere.map(of).unwrap_or_default();
    // At N0 a virtual machine's network is as its owner made it, and this host may well be in it.
    let is_its_owners = tier.network() == Network::N0 && tier.host() == HostIsolation::H3;
    let listeners = [
        (
            "n.tcp",
            "This host's TCP ports cannot be reached",
            each("tcp", &canaries.addresses4, Some(canaries.ports.tcp)),
            there(|there| each("tcp", &there.addresses4, Some(there.ports.tcp))),
        ),
        (
            "n.udp",
            "This host's UDP ports cannot be reached",
            each("udp", &canaries.addresses4, Some(canaries.ports.udp)),
            there(|there| each("udp", &there.addresses4, Some(there.ports.udp))),
        ),
        (
            "n.tcp6",
            "This host's TCP ports cannot be reached by IPv6",
            each("tcp", &canaries.addresses6, canaries.ports.tcp6),
            there(|there| each("tcp", &there.addresses6, there.ports.tcp6)),
        ),
        (
            "n.udp6",
            "This host's UDP ports cannot be reached by IPv6",
            each("udp", &canaries.addresses6, canaries.ports.udp6),
            there(|there| each("udp", &there.addresses6, there.ports.udp6)),
        ),
    ];
    for (id, rule, here, there) in listeners.into_iter().filter(|_| !is_its_owners) {
        let (requests, control) = ground.asks(here, there);
        // A host without IPv6 has nothing to hide there.
        if !requests.is_empty() {
            probes.push(heard(id, rule, requests, control, &canaries.nonce).beyond_loopback());
        }
    }
    let directory = canaries.directory.to_string_lossy();
    let unix = vec![format!("unix:{directory}/socket")];
    let everything = || Control::Twin(Lifted::Isolation);
    probes.push(heard("n.unix", "This host's Unix sockets cannot be reached", unix, everything(), &canaries.nonce));
    let nameless = vec![format!("abstract:{}", canaries.nameless)];
    probes.push(heard(
        "n.abstract",
        "This host's sockets without a path cannot be reached",
        nameless,
        everything(),
        &canaries.nonce,
    ));
}

/// Requests for a port at each of these addresses.
fn each(kind: &str, addresses: &[String], port: Option<u16>) -> Vec<String> {
    let Some(port) = port else { return Vec::new() };
    let shown = |address: &String| if address.contains(':') { format!("[{address}]") } else { address.clone() };
    addresses.iter().map(|address| format!("{kind}:{}:{port}", shown(address))).collect()
}

/// A rule that is broken if a canary answers. That somebody is there who does not say what canaries say tells nothing: it may be a
/// canary that was too slow.
pub(super) fn heard(id: &'static str, rule: &'static str, requests: Vec<String>, control: Control, nonce: &str) -> Probe {
    let asked = requests.clone();
    let (nonce, told) = (nonce.to_owned(), nonce.to_owned());
    let made = probe(id, rule, requests, control, move |answers| {
        let answered: Vec<_> = asked.iter().filter_map(|request| answers.get(request).map(|answer| (request, answer))).collect();
        if answered.len() < asked.len() {
            return Finding::Unclear("the probe did not answer".to_owned());
        }
        let (found, others): (Vec<_>, Vec<_>) =
            answered.iter().filter(|(_, (yes, _))| *yes).partition(|(_, (_, said))| said.contains(&nonce));
        let shown = |which: Vec<&(&String, &(bool, String))>| {
            which.iter().map(|(request, _)| request.as_str()).collect::<Vec<_>>().join(", ")
        };
        match (found.is_empty(), others.is_empty()) {
            (false, _) => Finding::Broken(shown(found)),
            (true, false) => Finding::Unclear(format!("somebody was reached who is no canary: {}", shown(others))),
            (true, true) => Finding::Holds(summary(&answered)),
        }
    });
    Probe { counts: Some(Arc::new(move |_, said| said.contains(&told))), ..made }
}

/// Whether an answer is that nothing came in time. On a busy host that tells nothing.
pub(super) fn is_silence(why: &str) -> bool {
    ["errno 11", "errno 110", "timed out", "no answer in time"].contains(&why)
}

fn resolver(ground: &Ground<'_>) -> Probe {
    let name = format!("{}.invalid", ground.canaries.nonce);
    let of = |addresses: &[String], port: u16| -> Vec<String> {
        addresses.iter().map(|address| format!("dns:{address}:{port}/{name}")).collect()
    };
    let there = ground.elsewhere.map(|there| of(&there.addresses4, there.ports.dns)).unwrap_or_default();
    let (mut requests, control) = ground.asks(of(&ground.canaries.addresses4, ground.canaries.ports.dns), there);
    // Asked only where there is a resolver to ask, which in a twin would be the host's.
    requests.push(format!("dns:/{name}"));
    none_of("n.dns", "No resolver answers", requests, control).beyond_loopback()
}

#[cfg(test)]
mod unit {
    use super::*;

    fn answers(all: &[(&str, bool, &str)]) -> Answers {
        all.iter().map(|(request, yes, said)| ((*request).to_owned(), (*yes, (*said).to_owned()))).collect()
    }

    #[test]
    fn who_is_reached_and_says_nothing_is_no_sign_that_a_rule_holds() {
        let requests = vec!["tcp:127.0.0.1:9".to_owned(), "unix:/s".to_owned()];
        let probe = heard("n.tcp", "", requests, Control::Impossible, "NONCE");
        let judged = |all: &[(&str, bool, &str)]| (probe.judge)(&answers(all));
        let refused = ("tcp:127.0.0.1:9", false, "errno 111");
        assert!(matches!(judged(&[refused, ("unix:/s", false, "errno 2")]), Finding::Holds(_)));
        for said in ["", "silent: errno 11", "something else"] {
            assert!(matches!(judged(&[refused, ("unix:/s", true, said)]), Finding::Unclear(_)), "{said:?}");
        }
        assert!(matches!(judged(&[refused, ("unix:/s", true, "NONCE")]), Finding::Broken(_)));
        assert!(matches!(judged(&[refused]), Finding::Unclear(_)));
    }
}
