//! Networks and volumes of one environment.
//!
//! Between machines there are internal networks only. Their bridges get no address of this host's, and no resolver beyond the
//! engine's own for the names of machines, so neither this host nor anything behind it is there to be reached. With N0 there is one
//! network more, which leads outside and joins no machine with another.

use std::collections::HashMap;

use bollard::models::{EndpointSettings, NetworkConnectRequest, NetworkCreateRequest, VolumeCreateRequest};
use tierbox_core::Result;

use crate::engine::{Engine, failed};
use crate::launch::{labels, name_of};
use crate::outside::OUTSIDE;
use crate::plan::{Link, MachinePlan, Plan};

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
