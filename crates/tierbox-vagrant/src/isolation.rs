//! N1 and N2 on libvirt: a network of the environment's own without a way out, and rules that keep its guests from this host.
//!
//! An isolated bridge alone is not enough: the host has an address on it, and everything that listens on the host listens
//! there too. The rules stand before the first machine boots, and are bound to the names of bridges, which begin alike.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use roxmltree::{Document, Node};
use serde::{Deserialize, Serialize};
use tierbox_core::{Error, ErrorKind, ExecRequest, Outcome, Result, Sandbox, SandboxExt};
use tierbox_egress::Plan;
use tokio::net::UdpSocket;

use crate::libvirt::{self, domains, networks, tool, virsh};
use crate::place::{Place, write_private};
use crate::{BACKEND, crash};

/// How many address ranges are tried before the start is given up.
const TRIES: usize = 24;

/// How long the probe may take inside.
const PROBE: Duration = Duration::from_secs(10);

/// An environment's own network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolated {
    /// Its name in libvirt.
    pub name: String,
    /// Its bridge.
    pub bridge: String,
    /// The second and third byte of its addresses, which begin with 10.
    pub range: [u8; 2],
}

impl Isolated {
    /// The network of a token; its addresses are chosen when it is made.
    pub fn planned(token: &str) -> Self {
        Self { name: format!("tbx-{token}"), bridge: format!("tbx{token}m"), range: [0, 0] }
    }

    /// Its addresses.
    pub fn subnet(&self) -> String {
        let [second, third] = self.range;
        format!("10.{second}.{third}.0/24")
    }

    /// This host's address on it.
    pub fn host_address(&self) -> String {
        let [second, third] = self.range;
        format!("10.{second}.{third}.1")
    }

    /// `has_gateway` tells the machines who answers queries for names, if anybody does.
    fn xml(&self, has_gateway: bool) -> String {
        let [second, third] = self.range;
        let resolver =
            format!("<dnsmasq:options><dnsmasq:option value='dhcp-option=6,{}'/></dnsmasq:options>", self.host_address());
        format!(
            "<network xmlns:dnsmasq='http://libvirt.org/schemas/network/dnsmasq/1.0'>\
             <name>{}</name><bridge name='{}' stp='off' delay='0'/><dns enable='no'/>\
             <ip address='10.{second}.{third}.1' netmask='255.255.255.0'><dhcp>\
             <range start='10.{second}.{third}.2' end='10.{second}.{third}.254'/></dhcp></ip>{}</network>",
            self.name,
            self.bridge,
            if has_gateway { resolver.as_str() } else { "" }
        )
    }
}

/// The name of an environment's table of rules.
pub fn table(token: &str) -> String {
    format!("tierbox_{token}")
}

/// The rules: what comes from the environment's bridges reaches this host only as an answer, or to ask for an address.
fn rules(place: &Place, network: &Isolated) -> String {
    let (table, bridges, own) = (table(&place.token), place.bridge(), &network.bridge);
    format!(
        "table inet {table} {{
  chain input {{
    type filter hook input priority -10; policy accept;
    iifname \"{bridges}*\" jump guest
  }}
  chain probe {{
  }}
  chain guest {{
    jump probe
    ct state established accept
    iifname \"{own}\" udp sport 68 udp dport 67 accept
    counter drop
  }}
  chain forward {{
    type filter hook forward priority -10; policy accept;
    iifname \"{bridges}*\" oifname \"{bridges}*\" accept
    iifname \"{bridges}*\" counter drop
    oifname \"{bridges}*\" counter drop
  }}
}}
"
    )
}

/// A chain that is empty but while a machine is probed: it sees a packet before any rule can accept it.
const PROBE_CHAIN: &str = "probe";

/// The rules in a listing of a table or a ruleset, in order, without what nft counts.
fn rules_in(listing: &str) -> Vec<String> {
    let is_rule = |line: &&str| {
        !line.is_empty() && *line != "}" && !["table ", "chain ", "type "].iter().any(|word| line.starts_with(word))
    };
    listing.lines().map(str::trim).filter(is_rule).map(uncounted).collect()
}

fn uncounted(rule: &str) -> String {
    let mut words: Vec<&str> = rule.split_whitespace().collect();
    while let Some(at) = words.iter().position(|word| *word == "packets") {
        words.drain(at..(at + 4).min(words.len()));
    }
    words.join(" ")
}

/// The rules that have to stand. `gateway` is the one that machines may reach.
fn expected(place: &Place, network: &Isolated, gateway: Option<&Plan>) -> Vec<String> {
    let mut expected = rules_in(&rules(place, network));
    if let Some(gateway) = gateway {
        let openings = openings(place, network, gateway);
        let opened = openings.lines().filter_map(|line| line.split_once(" guest ").map(|(_, rule)| uncounted(rule)));
        // Each is inserted before those that were there.
        let at = expected.iter().position(|rule| rule == "jump probe").unwrap_or(0);
        opened.for_each(|rule| expected.insert(at, rule));
    }
    expected
}

/// The rules that let machines reach the gateway's sockets, in front of the ones that drop.
fn openings(place: &Place, network: &Isolated, gateway: &Plan) -> String {
    let (table, own, address) = (table(&place.token), &network.bridge, gateway.address());
    // In the order in which nft lists them.
    let ports: BTreeSet<u16> = gateway.tcp().iter().map(|socket| socket.port()).collect();
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    format!(
        "insert rule inet {table} guest iifname \"{own}\" ip daddr {address} udp dport 53 accept
insert rule inet {table} guest iifname \"{own}\" ip daddr {address} tcp dport {{ {} }} accept
",
        ports.join(", ")
    )
}

/// Lets machines reach a gateway that listens.
///
/// # Errors
/// What nft says.
pub async fn open(place: &Place, network: &Isolated, gateway: &Plan) -> Result<()> {
    tool("nft", &["-f", "-"], openings(place, network, gateway).as_bytes()).await.map(drop)
}

/// Sets the rules up and then the network. Both stand in the lease already. `has_gateway` says whether there will be one.
///
/// # Errors
/// What nft or libvirt says.
pub async fn make(place: &mut Place, has_gateway: bool) -> Result<()> {
    let Some(mut network) = place.isolated.clone() else { return Ok(()) };
    tool("nft", &["-f", "-"], rules(place, &network).as_bytes()).await?;
    crash::point("rules");
    let path = place.file("network.xml");
    let mut last = None;
    for _ in 0..TRIES {
        let number = getrandom::u32().map_err(|error| Error::new(ErrorKind::Internal, "choose addresses", error.to_string()))?;
        // A corner of 10/8 that few use; libvirt refuses what this host has a route to.
        network.range = [224 + (number >> 8) as u8 % 16, number as u8];
        write_private(&path, network.xml(has_gateway).as_bytes())?;
        match virsh(&["net-create", &path.display().to_string()]).await {
            Ok(_) => {
                place.isolated = Some(network.clone());
                return is_here(&network);
            }
            Err(error) if error.message().contains("in use") => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| Error::new(ErrorKind::HostUnable, "make network", "no range of addresses is free")))
}

/// The rules are of this network namespace; a bridge elsewhere would not be bound by them.
fn is_here(network: &Isolated) -> Result<()> {
    if Path::new("/sys/class/net").join(&network.bridge).exists() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::TierRefused,
        "make network",
        format!("libvirt made {} in another network namespace than this program's, where its rules do not hold", network.bridge),
    )
    .with_backend(BACKEND)
    .with_help("run tierbox in the network namespace of libvirtd"))
}

/// Checks that each machine is where it is looked for, that what booted is attached to nothing else, and that the rules stand and
/// no other does in their table. `gateway` is the one that machines may reach.
///
/// # Errors
/// `TierRefused` with what opens the machine.
pub async fn check(place: &Place, network: &Isolated, machines: &[String], gateway: Option<&Plan>) -> Result<()> {
    let listed = rules_in(&tool("nft", &["list", "table", "inet", &table(&place.token)], b"").await?);
    let expected = expected(place, network, gateway);
    if listed != expected {
        let odd = listed.iter().find(|rule| !expected.contains(rule)).map_or("one is missing", String::as_str);
        return Err(opened(&format!("this host's rules are not as they were made: {odd}")));
    }
    let domains = domains(&place.prefix()).await?;
    if let Some(missing) = libvirt::missing(place, machines, &domains) {
        return Err(opened(&format!("libvirt does not know {missing}, so nothing can be said of its network")));
    }
    for domain in domains {
        let xml = virsh(&["dumpxml", &domain]).await?;
        if let Some(why) = way_out_of_domain(&xml, &place.prefix(), &network.name) {
            return Err(opened(&format!("{domain} {why}")));
        }
    }
    for name in networks(&place.prefix()).await? {
        let xml = virsh(&["net-dumpxml", &name]).await?;
        if let Some(why) = way_out_of_network(&xml, &place.bridge(), name == network.name) {
            return Err(opened(&format!("the network {name} {why}")));
        }
    }
    Ok(())
}

fn opened(why: &str) -> Error {
    Error::new(ErrorKind::TierRefused, "check network", format!("the network is not closed: {why}"))
        .with_backend(BACKEND)
        .with_help("take out of the Vagrantfile what attaches the machine elsewhere, or state N0")
}

/// What attaches a domain to something else than its environment's networks.
fn way_out_of_domain(xml: &str, prefix: &str, network: &str) -> Option<String> {
    let document = match Document::parse(xml) {
        Ok(document) => document,
        Err(error) => return Some(format!("has a description that cannot be read: {error}")),
    };
    let root = document.root_element();
    // Arguments to QEMU can make network cards that libvirt knows nothing of.
    if root.children().any(|node| node.tag_name().name() == "commandline" && node.has_children()) {
        return Some("passes arguments to QEMU, which may attach anything".to_owned());
    }
    let devices = root.children().find(|node| node.has_tag_name("devices"))?;
    for device in devices.children().filter(Node::is_element) {
        match device.tag_name().name() {
            "interface" => {
                let source = device.children().find(|node| node.has_tag_name("source"));
                let to = source.and_then(|source| source.attribute("network"));
                let own =
                    device.attribute("type") == Some("network") && to.is_some_and(|to| to == network || to.starts_with(prefix));
                if !own {
                    return Some(format!("has a card on {}", to.or(device.attribute("type")).unwrap_or("something unknown")));
                }
            }
            "vsock" => return Some("has a vsock, which reaches this host".to_owned()),
            "hostdev" | "redirdev" => return Some("has a device of this host".to_owned()),
            _ => {}
        }
    }
    None
}

/// What leads out of a network of the environment.
fn way_out_of_network(xml: &str, bridges: &str, is_management: bool) -> Option<String> {
    let document = match Document::parse(xml) {
        Ok(document) => document,
        Err(error) => return Some(format!("has a description that cannot be read: {error}")),
    };
    let root = document.root_element();
    let child = |name: &str| root.children().find(|node| node.has_tag_name(name));
    if child("forward").is_some() {
        return Some("forwards to elsewhere".to_owned());
    }
    let bridge = child("bridge").and_then(|bridge| bridge.attribute("name").map(str::to_owned)).unwrap_or_default();
    if !bridge.starts_with(bridges) {
        return Some(format!("is on the bridge {bridge:?}, for which no rule was made"));
    }
    (child("ip").is_some() && !is_management).then(|| "has an address on this host".to_owned())
}

/// How many packets a listing of the chain that probes are seen in counts.
fn counted(listing: &str) -> u64 {
    let mut words = listing.split_whitespace().skip_while(|word| *word != "packets");
    words.nth(1).and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// Sends something from inside to this host's address, and tells how it was seen to be dropped: a rule that counts what goes to this
/// port alone is the control that it was sent at all. It drops as the rules behind it would.
///
/// # Errors
/// `TierRefused` if it arrived.
pub async fn probe(place: &Place, network: &Isolated, machine: &dyn Sandbox) -> Result<String> {
    let failed = |error| Error::io("listen for the probe", error).with_backend(BACKEND);
    let address = network.host_address();
    let canary = UdpSocket::bind((address.as_str(), 0)).await.map_err(failed)?;
    let port = canary.local_addr().map_err(failed)?.port().to_string();
    let table = table(&place.token);
    let chain = ["chain", "inet", table.as_str(), PROBE_CHAIN];
    let seen = format!(
        "add rule inet {table} {PROBE_CHAIN} iifname \"{}\" ip daddr {address} udp dport {port} counter\n",
        network.bridge
    );
    tool("nft", &["-f", "-"], seen.as_bytes()).await?;
    let script = "command -v bash >/dev/null || exit 77; exec bash -c 'echo probe > /dev/udp/$0/$1' \"$1\" \"$2\"";
    let request = ExecRequest::new(["/bin/sh", "-c", script, "sh", &address, &port]).timeout(PROBE);
    let sent = machine.run(request).await;
    let mut byte = [0; 16];
    let arrived = tokio::time::timeout(Duration::from_millis(20), canary.recv_from(&mut byte)).await.is_ok();
    let listed = tool("nft", &[&["list"], chain.as_slice()].concat(), b"").await;
    tool("nft", &[&["flush"], chain.as_slice()].concat(), b"").await?;
    let name = machine.name();
    if arrived {
        return Err(opened(&format!("a packet from inside {name} reached this host")));
    }
    let (sent, listed) = (sent?, listed?);
    if counted(&listed) > 0 {
        return Ok("a packet that was sent from inside was dropped".to_owned());
    }
    match sent.outcome() {
        Outcome::Exited(77) => Ok("by configuration: the machine has no bash to try it".to_owned()),
        _ => Err(opened(&format!("a packet that was sent from inside {name} was not seen by the rules"))),
    }
}

/// Removes the rules, once nothing is left that they bind.
///
/// # Errors
/// What nft says.
pub async fn remove_rules(token: &str) -> Result<bool> {
    let name = table(token);
    let tables = tool("nft", &["list", "tables", "inet"], b"").await?;
    if !tables.lines().any(|line| line.split_whitespace().eq(["table", "inet", name.as_str()])) {
        return Ok(false);
    }
    tool("nft", &["delete", "table", "inet", &name], b"").await?;
    Ok(true)
}

#[cfg(test)]
mod unit {
    use super::*;

    fn domain(devices: &str) -> String {
        format!(
            "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>x</name><devices>{devices}</devices></domain>"
        )
    }

    const OWN: &str = "<interface type='network'><source network='tbx-0a1b2c3d' bridge='tbx0a1b2c3dm'/></interface>\
                       <interface type='network'><source network='tbx-0a1b2c3d-lan'/></interface>";

    fn way_out(xml: &str) -> Option<String> {
        way_out_of_domain(xml, "tbx-0a1b2c3d-", "tbx-0a1b2c3d")
    }

    #[test]
    fn its_own_networks_are_no_way_out() {
        assert_eq!(way_out(&domain(OWN)), None);
    }

    #[test]
    fn every_other_attachment_is_found() {
        for (more, what) in [
            ("<interface type='network'><source network='default'/></interface>", "default"),
            ("<interface type='bridge'><source bridge='br0'/></interface>", "bridge"),
            ("<interface type='user'/>", "user"),
            ("<interface type='network'><source network='tbx-ffffffff-lan'/></interface>", "tbx-ffffffff-lan"),
            ("<vsock model='virtio'/>", "vsock"),
            ("<hostdev mode='subsystem'/>", "device of this host"),
        ] {
            let found = way_out(&domain(&format!("{OWN}{more}"))).unwrap();
            assert!(found.contains(what), "{more}: {found}");
        }
        let arguments =
            domain(OWN).replace("</domain>", "<qemu:commandline><qemu:arg value='-nic'/></qemu:commandline></domain>");
        assert!(way_out(&arguments).unwrap().contains("QEMU"));
        assert!(way_out("<domain>").unwrap().contains("cannot be read"));
    }

    #[test]
    fn a_network_with_a_way_out_is_found() {
        let xml = |inner: &str| format!("<network><bridge name='tbx0a1b2c3d0'/>{inner}</network>");
        let found = |inner: &str, management| way_out_of_network(&xml(inner), "tbx0a1b2c3d", management);
        assert_eq!(found("", false), None);
        assert_eq!(found("<ip address='10.224.0.1'/>", true), None);
        assert!(found("<ip address='10.224.0.1'/>", false).is_some());
        assert!(found("<forward mode='nat'/>", true).is_some());
        assert!(way_out_of_network("<network><bridge name='virbr0'/></network>", "tbx0a1b2c3d", true).is_some());
    }

    /// An environment, and the network that it has.
    fn isolated() -> (Place, Isolated) {
        let network = Isolated { range: [231, 7], ..Isolated::planned("0a1b2c3d") };
        let place = Place {
            token: "0a1b2c3d".into(),
            directory: "/x".into(),
            vagrantfile: "/y".into(),
            provider: "libvirt".into(),
            isolated: Some(network.clone()),
        };
        (place, network)
    }

    #[test]
    fn a_rule_that_somebody_added_is_seen_and_counters_are_not() {
        let (place, network) = isolated();
        // As nft lists them.
        let listing = "table inet tierbox_0a1b2c3d {
\tchain input {
\t\ttype filter hook input priority filter - 10; policy accept;
\t\tiifname \"tbx0a1b2c3d*\" jump guest
\t}

\tchain probe {
\t}

\tchain guest {
\t\tiifname \"tbx0a1b2c3dm\" ip daddr 10.231.7.1 tcp dport { 53, 80, 443, 3128 } accept
\t\tiifname \"tbx0a1b2c3dm\" ip daddr 10.231.7.1 udp dport 53 accept
\t\tjump probe
\t\tct state established accept
\t\tiifname \"tbx0a1b2c3dm\" udp sport 68 udp dport 67 accept
\t\tcounter packets 12 bytes 960 drop
\t}

\tchain forward {
\t\ttype filter hook forward priority filter - 10; policy accept;
\t\tiifname \"tbx0a1b2c3d*\" oifname \"tbx0a1b2c3d*\" accept
\t\tiifname \"tbx0a1b2c3d*\" counter packets 0 bytes 0 drop
\t\toifname \"tbx0a1b2c3d*\" counter packets 3 bytes 180 drop
\t}
}
";
        let allowed = tierbox_egress::Rules::parse(&["index.test"]).unwrap();
        let gateway = crate::egress::plan(&network, &allowed).unwrap();
        assert_eq!(rules_in(listing), expected(&place, &network, Some(&gateway)));
        assert_ne!(rules_in(listing), expected(&place, &network, None));
        let more = listing.replace("ct state established accept", "ct state established accept\n\t\tudp dport 5353 accept");
        assert_ne!(rules_in(&more), expected(&place, &network, Some(&gateway)));
        assert_eq!((counted(listing), counted("chain probe {\n}\n")), (12, 0));
    }

    #[test]
    fn the_rules_bind_every_bridge_of_the_environment_and_no_other() {
        let (place, network) = isolated();
        let rules = rules(&place, &network);
        assert_eq!(rules.matches("iifname \"tbx0a1b2c3d*\"").count(), 3);
        assert!(rules.contains("iifname \"tbx0a1b2c3dm\" udp sport 68 udp dport 67 accept"));
        assert_eq!((network.subnet(), network.host_address()), ("10.231.7.0/24".into(), "10.231.7.1".into()));
        let allowed = tierbox_egress::Rules::parse(&["index.test", "*.files.test:8080"]).unwrap();
        let gateway = crate::egress::plan(&network, &allowed).unwrap();
        let openings = openings(&place, &network, &gateway);
        // The gateway's address alone, whatever else this host has.
        assert_eq!(openings.lines().filter(|line| line.contains("iifname \"tbx0a1b2c3dm\" ip daddr 10.231.7.1 ")).count(), 2);
        assert!(openings.contains("tcp dport { 53, 80, 443, 3128, 8080 } accept"), "{openings}");
        assert!(network.xml(true).contains("dhcp-option=6,10.231.7.1") && !network.xml(false).contains("dhcp-option"));
    }
}
