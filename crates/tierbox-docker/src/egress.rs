//! N1: the gateway's sockets are the only way out of a machine's own network namespace.
//!
//! The machine is on no network but those between the machines, so there is nothing else to be reached. This process enters
//! the machine's network namespace with one thread, listens there, and serves what comes; that takes root.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::Path;

use tierbox_core::{EnvironmentSpec, Error, ErrorKind, Network, Result, Sandbox};
use tierbox_egress::{Config, Gateway, Rules};

use crate::BACKEND;
use crate::first::First;
use crate::launch::Around;
use crate::twin::names;

/// The gateway's address inside: every address of this network is the machine's own loopback, and nobody uses this one.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(127, 98, 18, 1);

/// What may be reached, and where the gateway listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressPlan {
    /// The names.
    pub rules: Rules,
    /// The sockets.
    pub sockets: tierbox_egress::Plan,
}

impl EgressPlan {
    /// What a specification allows; `None` without N1.
    ///
    /// # Errors
    /// `InvalidProfile` for what is no rule; `HostUnable` where this process cannot enter a container's network.
    pub fn of(spec: &EnvironmentSpec) -> Result<Option<Self>> {
        if spec.tier.network() != Network::N1 {
            return Ok(None);
        }
        let rules = Rules::new(&spec.network)?;
        let sockets = tierbox_egress::Plan::new(GATEWAY, &rules);
        Ok(Some(Self { rules, sockets }))
    }

    /// The resolver of machines.
    pub fn nameserver(&self) -> String {
        self.sockets.address().to_string()
    }
}

/// Listens in a machine's network and serves it: here, or in a process that ends with the machine if that may outlive this one.
/// The machine runs, and nothing in it but its supervisor.
///
/// # Errors
/// `HostUnable` where its network cannot be entered.
pub async fn serve(
    around: &Around<'_>,
    machine: &str,
    sandbox: &dyn Sandbox,
    plan: &EgressPlan,
    log: &Path,
) -> Result<Option<Gateway>> {
    let First { pid, life } = First::in_own_network(around, machine, sandbox).await?;
    let unable = |error: std::io::Error| {
        Error::new(
            ErrorKind::HostUnable,
            "start egress gateway",
            format!("the network of process {pid} cannot be entered: {error}"),
        )
        .with_backend(BACKEND)
        .with_help("N1 takes root on the engine's own host; with N2 it needs neither")
    };
    let namespace = std::fs::File::open(format!("/proc/{pid}/ns/net")).map_err(unable)?;
    let sockets = plan.sockets.bind_in(namespace.as_fd()).map_err(unable)?;
    let config = Config::new(around.id, plan.rules.clone(), plan.sockets.clone(), log).with_canaries(names(around.lifted))?;
    let named = |error: Error| error.with_backend(BACKEND);
    if !around.persists {
        return Gateway::start(config, sockets).map(Some).map_err(named);
    }
    let spawned = tokio::task::spawn_blocking(move || tierbox_egress::spawn(&config, &sockets, &life)).await;
    let mut child = spawned.map_err(|error| unable(std::io::Error::other(error)))?.map_err(named)?;
    // It ends by itself; somebody has to hear of it.
    std::thread::spawn(move || child.wait());
    Ok(None)
}
