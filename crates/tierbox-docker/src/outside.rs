//! N0: a bridge of the engine's, by which everything outside is reached but what is nobody's business inside.
//!
//! Metadata services and this host's own addresses are made unreachable by routes in the machine's network namespace, which
//! nobody in it has the right to change. That takes root, as entering the namespace does.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::Path;

use tierbox_core::{Error, ErrorKind, Result, Sandbox};

use crate::BACKEND;
use crate::engine::{Engine, failed};
use crate::first::First;
use crate::launch::Around;

/// The network's name among those of an environment; no compose file can name it so.
pub const OUTSIDE: &str = "_outside";

/// What the report says of it.
pub const NOTE: &str = "the network is a bridge of the engine's; metadata services and the addresses that this host had at the start are unreachable";

/// Prefixes that no sandbox reaches: link-local with every cloud's metadata service, and the odd ones outside it.
const METADATA: [(Ipv4Addr, u8); 4] = [
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(100, 100, 100, 200), 32),
    (Ipv4Addr::new(168, 63, 129, 16), 32),
    (Ipv4Addr::new(192, 0, 0, 192), 32),
];

/// Bars a machine, in which nothing runs yet but its supervisor, from what it must not reach.
///
/// # Errors
/// `HostUnable` where its network cannot be entered.
pub async fn bar(around: &Around<'_>, machine: &str, sandbox: &dyn Sandbox) -> Result<()> {
    let own = own_addresses(around.engine).await?;
    let barred = METADATA.into_iter().chain(own.into_iter().map(|address| (address, 32)));
    make_unreachable(around, machine, sandbox, barred.collect()).await
}

/// Everything, in two halves: each goes before a route to all.
const EVERYTHING: [(Ipv4Addr, u8); 2] = [(Ipv4Addr::UNSPECIFIED, 1), (Ipv4Addr::new(128, 0, 0, 0), 1)];

/// Bars a machine that is joined with others alone from everything else. Engines give it a route to the outside by an address that
/// nobody has, so that nothing is reached by it; with this there is none.
///
/// # Errors
/// As [`bar`].
pub async fn shut(around: &Around<'_>, machine: &str, sandbox: &dyn Sandbox) -> Result<()> {
    make_unreachable(around, machine, sandbox, EVERYTHING.to_vec()).await
}

async fn make_unreachable(
    around: &Around<'_>,
    machine: &str,
    sandbox: &dyn Sandbox,
    prefixes: Vec<(Ipv4Addr, u8)>,
) -> Result<()> {
    let First { pid, life: _life } = First::in_own_network(around, machine, sandbox).await?;
    let program = around.program.to_owned();
    let unable = |why: String| {
        Error::new(ErrorKind::HostUnable, "bar the network", format!("routes cannot be set in the network of {pid}: {why}"))
            .with_backend(BACKEND)
            .with_help("N0 takes root on the engine's own host; with N2 it takes nothing")
    };
    let barred = tokio::task::spawn_blocking(move || tierbox_guest::bar_inside(&program, pid, &prefixes)).await;
    barred.map_err(|error| unable(error.to_string()))?.map_err(|error| unable(error.to_string()))
}

/// The addresses of the host that the engine runs on, as its machines see it, and of this process's own network.
async fn own_addresses(engine: &Engine) -> Result<Vec<Ipv4Addr>> {
    let mut own = addresses(&std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default());
    // The engine's daemon may live in another network namespace than this process.
    if let Some(pid) = listener_of(&engine.socket) {
        own.extend(addresses(&std::fs::read_to_string(format!("/proc/{pid}/net/fib_trie")).unwrap_or_default()));
    }
    // Its own word for the bridges, wherever it is.
    let networks = engine.docker.list_networks(None).await.map_err(|error| failed("list the networks", &error))?;
    let gateways = networks.into_iter().filter_map(|network| network.ipam?.config).flatten().filter_map(|config| config.gateway);
    own.extend(gateways.filter_map(|gateway| gateway.split('/').next()?.parse::<Ipv4Addr>().ok()));
    own.sort_unstable();
    own.dedup();
    Ok(own)
}

/// The process that listens on a socket, as the kernel tells it.
fn listener_of(socket: &Path) -> Option<i32> {
    let stream = std::os::unix::net::UnixStream::connect(socket).ok()?;
    rustix::net::sockopt::socket_peercred(stream.as_fd()).ok().map(|peer| peer.pid.as_raw_nonzero().get())
}

/// The addresses that are a host's own, from a `fib_trie` of the kernel's.
fn addresses(trie: &str) -> Vec<Ipv4Addr> {
    let (mut found, mut last) = (Vec::new(), None);
    for line in trie.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        } else if line.starts_with("/32 host LOCAL") {
            found.extend(last.filter(|address| !address.is_loopback()));
        }
    }
    found
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn the_hosts_addresses_are_found() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 192.0.2.0\n        /24 link UNICAST\n     |-- 192.0.2.2\n        /32 host LOCAL\n\
             |-- 127.0.0.1\n        /32 host LOCAL\n";
        assert_eq!(addresses(trie), [Ipv4Addr::new(192, 0, 2, 2)]);
    }

    #[test]
    fn the_listener_is_told_by_the_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(listener_of(&path), i32::try_from(std::process::id()).ok());
    }
}
