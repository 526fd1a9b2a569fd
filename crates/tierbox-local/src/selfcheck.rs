//! What the kernel says from outside of a container that just came up, at every start.
//!
//! It costs a few reads of `/proc`. What this process may not read (a plain user sees less of a process that cannot be dumped)
//! is left out, and the report says what was looked at.

use std::path::Path;

use tierbox_core::{Applied, EnvironmentSpec, Error, ErrorKind, Mechanism, Network, Result};

use crate::BACKEND;

/// Docker's default capabilities: more than these is never in reach of what runs inside.
const MOST_CAPABILITIES: u64 = 0x0000_0000_a804_25fb;

/// The namespaces of a container's own.
const NAMESPACES: [&str; 6] = ["mnt", "pid", "net", "ipc", "uts", "user"];

/// Looks at the first process of a machine, the keeper's only child.
///
/// # Errors
/// `TierRefused` naming what is not as it was reported.
pub(crate) fn outside(spec: &EnvironmentSpec, keeper: u32) -> Result<Option<Mechanism>> {
    let children = std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).unwrap_or_default();
    let Some(pid) = children.split_whitespace().next() else { return Ok(None) };
    let mut seen = Vec::new();
    let checks = [
        namespaces(Path::new("/proc").join(pid).as_path()),
        ids(&read(pid, "uid_map")),
        rights(&read(pid, "status")),
        links(spec.tier.network(), &read(pid, "net/dev")),
    ];
    for check in checks {
        match check {
            Ok(Some(what)) => seen.push(what),
            Ok(None) => (),
            Err(what) => {
                let message = format!("seen from outside, {what}");
                return Err(Error::new(ErrorKind::TierRefused, "check sandbox", message).with_backend(BACKEND));
            }
        }
    }
    let detail = format!("from outside: {}", seen.join(", "));
    Ok(Some(Mechanism { name: "self-check".to_owned(), applied: Applied::Enforced, detail }))
}

fn read(pid: &str, name: &str) -> Option<String> {
    std::fs::read_to_string(format!("/proc/{pid}/{name}")).ok()
}

/// What was looked at, nothing if it could not be, or what is wrong.
type Seen = std::result::Result<Option<String>, String>;

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

fn ids(map: &Option<String>) -> Seen {
    let Some(map) = map else { return Ok(None) };
    let whole = map.split_whitespace().collect::<Vec<_>>() == ["0", "0", "4294967295"];
    if whole { Err("its users are this host's".to_owned()) } else { Ok(Some("id map".to_owned())) }
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
    match field("CapBnd").and_then(|bits| u64::from_str_radix(bits, 16).ok()) {
        Some(bits) if bits & !MOST_CAPABILITIES == 0 => Ok(Some("capabilities, no_new_privs, seccomp".to_owned())),
        _ => Err("it could have capabilities beyond docker's default".to_owned()),
    }
}

fn links(network: Network, table: &Option<String>) -> Seen {
    let (Network::N2, Some(table)) = (network, table) else { return Ok(None) };
    let names = table.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim());
    match names.into_iter().find(|name| *name != "lo" && is_a_way_out(name)) {
        Some(name) => Err(format!("it has the network interface {name}")),
        None => Ok(Some("links".to_owned())),
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
        Some(format!("Name:\tx\nSeccomp:\t{seccomp}\nNoNewPrivs:\t{privs}\nCapBnd:\t{bounding}\n"))
    }

    #[test]
    fn every_right_too_many_is_seen() {
        assert!(rights(&status("2", "1", "00000000a00405fb")).unwrap().is_some());
        for wrong in [("0", "1", "0"), ("2", "0", "0"), ("2", "1", "000001ffffffffff"), ("2", "1", "x")] {
            assert!(rights(&status(wrong.0, wrong.1, wrong.2)).is_err(), "{wrong:?}");
        }
        assert_eq!(rights(&None), Ok(None));
    }

    #[test]
    fn the_hosts_own_users_and_links_are_seen() {
        assert!(ids(&Some("         0          0 4294967295\n".into())).is_err());
        assert!(ids(&Some("0 100000 65536\n".into())).unwrap().is_some());
        let table = |name: &str| Some(format!("Inter-| x\n face |bytes\n    lo: 0 0\n  {name}: 0 0\n"));
        assert!(links(Network::N2, &table("eth0")).is_err());
        assert!(links(Network::N2, &table("sit0")).unwrap().is_some());
        assert_eq!(links(Network::N0, &table("eth0")), Ok(None));
    }

    #[test]
    fn this_process_is_in_the_hosts_namespaces() {
        assert!(namespaces(Path::new("/proc/self")).is_err());
    }
}
