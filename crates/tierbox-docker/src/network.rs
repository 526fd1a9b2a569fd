//! Networks and volumes of one environment.
//!
//! Between machines there are internal networks only. Their bridges get no address of this host's, and no resolver beyond the
//! engine's own for the names of machines, so neither this host nor anything behind it is there to be reached. With N0 there is one
//! network more, which leads outside and joins no machine with another.

use std::collections::HashMap;

use bollard::models::{EndpointSettings, NetworkConnectRequest, NetworkCreateRequest, VolumeCreateRequest};
use tierbox_core::{Error, ErrorKind, Result};

use crate::BACKEND;
use crate::engine::{Engine, failed};
use crate::launch::{labels, name_of};
use crate::outside::OUTSIDE;
use crate::plan::{Link, MachinePlan, Plan};

/// Refuses what an engine cannot do: podman resolves no names of services where no other resolver may be asked.
///
/// # Errors
/// `Unsupported`.
pub fn check(is_podman: bool, plan: &Plan) -> Result<()> {
    let is_joined = |machine: &MachinePlan| machine.links.iter().any(|link| link.network != OUTSIDE);
    if !is_podman || !plan.machines.iter().any(is_joined) {
        return Ok(());
    }
    let message =
        "podman's service resolves no names of services, so a compose file whose services are joined does not work there";
    Err(Error::new(ErrorKind::Unsupported, "start environment", message)
        .with_backend(BACKEND)
        .with_help("use a Docker Engine for it, or give each service `network_mode: none`"))
}

/// Makes the networks and volumes of a plan. They are in the lease already.
///
/// # Errors
/// What the engine says.
pub async fn create(engine: &Engine, id: &str, plan: &Plan) -> Result<()> {
    for network in &plan.networks {
        let outside = network == OUTSIDE;
        // podman refuses options that it does not know.
        let (option, value) = match outside {
            true => ("com.docker.network.bridge.enable_icc", "false"),
            false => ("com.docker.network.bridge.inhibit_ipv4", "true"),
        };
        let options = HashMap::from([(option.to_owned(), value.to_owned())]);
        let request = NetworkCreateRequest {
            name: name_of(id, network),
            driver: Some("bridge".to_owned()),
            internal: Some(!outside),
            enable_ipv6: Some(false),
            options: (!outside || !engine.is_podman).then_some(options),
            labels: Some(labels(id)),
            ..NetworkCreateRequest::default()
        };
        engine.docker.create_network(request).await.map_err(|error| failed("create the network", &error))?;
    }
    for volume in &plan.volumes {
        let request =
            VolumeCreateRequest { name: Some(name_of(id, volume)), labels: Some(labels(id)), ..VolumeCreateRequest::default() };
        engine.docker.create_volume(request).await.map_err(|error| failed("create the volume", &error))?;
    }
    Ok(())
}

/// What keeps IPv6 out of a machine that is on a network. podman's bridges and links have link-local addresses even where IPv6 is
/// off, by which this host is reached past every rule that is about addresses of IPv4.
pub fn without_ipv6(machine: &MachinePlan) -> Option<HashMap<String, String>> {
    let off = |which: &str| (format!("net.ipv6.conf.{which}.disable_ipv6"), "1".to_owned());
    // A kernel without IPv6 has no such setting. Where the engine is elsewhere, it is taken to have what this one has.
    let is_there = std::path::Path::new("/proc/sys/net/ipv6/conf").exists();
    (!machine.links.is_empty() && is_there).then(|| ["all", "default"].map(off).into())
}

/// The interfaces but loopback that have an address of IPv6, from the kernel's `/proc/net/if_inet6`.
pub fn with_ipv6(table: &str) -> Vec<&str> {
    let mut names: Vec<&str> =
        table.lines().filter_map(|line| line.split_whitespace().nth(5)).filter(|name| *name != "lo").collect();
    names.dedup();
    names
}

/// The network that a machine's container is made on, and how it is known there.
pub fn first(id: &str, machine: &MachinePlan) -> (String, HashMap<String, EndpointSettings>) {
    match machine.links.first() {
        None => ("none".to_owned(), HashMap::new()),
        Some(link) => {
            let name = name_of(id, &link.network);
            (name.clone(), HashMap::from([(name, endpoint(machine, link))]))
        }
    }
}

/// Puts a machine that was made, and does not run yet, on its other networks.
///
/// # Errors
/// What the engine says.
pub async fn connect(engine: &Engine, id: &str, machine: &MachinePlan) -> Result<()> {
    for link in machine.links.iter().skip(1) {
        let request =
            NetworkConnectRequest { container: name_of(id, &machine.name), endpoint_config: Some(endpoint(machine, link)) };
        let connected = engine.docker.connect_network(&name_of(id, &link.network), request).await;
        connected.map_err(|error| failed("connect the network", &error))?;
    }
    Ok(())
}

fn endpoint(machine: &MachinePlan, link: &Link) -> EndpointSettings {
    let names = std::iter::once(machine.name.clone()).chain(link.aliases.iter().cloned());
    EndpointSettings { aliases: Some(names.collect()), ..EndpointSettings::default() }
}

#[cfg(test)]
mod unit {
    use super::with_ipv6;

    #[test]
    fn links_with_an_address_of_ipv6_are_found() {
        let table =
            "00000000000000000000000000000001 01 80 10 80       lo\nfe800000000000000042acfffe110002 02 40 20 80     eth0\n";
        assert_eq!(with_ipv6(table), ["eth0"]);
        assert!(with_ipv6("").is_empty());
    }
}
