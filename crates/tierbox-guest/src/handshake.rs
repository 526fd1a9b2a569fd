//! What becomes of a set-up.

use tierbox_core::{Applied, KillDomain, Mechanism};
use tierbox_supervisor::protocol::{FromSupervisor, Mechanism as WireMechanism};

use crate::errors::printable;

/// A machine that is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// What was enforced.
    pub mechanisms: Vec<Mechanism>,
    /// How a command's tree is killed.
    pub kill_domain: KillDomain,
    /// Whether running out of memory is told apart from another SIGKILL.
    pub memory_outcome: bool,
    /// Whether commands can run as other users than the default one.
    pub users: bool,
}

/// The supervisor's answer to a set-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetupReply {
    /// It is set up. Go on with [`Channel::hello`](crate::Channel::hello).
    Ready(Ready),
    /// It could not be set up; nothing is left.
    Refused {
        /// What was tried: `user namespace`, `uid map`, `mount /proc`, …
        step: String,
        /// The errno, or 0.
        errno: i32,
        /// More particulars; may be empty.
        detail: String,
    },
    /// It has its namespaces and waits for a network helper. Go on with
    /// [`Channel::network_ready`](crate::Channel::network_ready).
    NetworkWanted {
        /// Its first process, in this host's pid namespace.
        pid: u32,
    },
}

impl SetupReply {
    pub(crate) fn from_message(message: FromSupervisor) -> Result<Self, &'static str> {
        match message {
            FromSupervisor::Ready { mechanisms, kill_domain, memory_outcome, users } => {
                if mechanisms.len() > 256 {
                    return Err("it names too many mechanisms");
                }
                let mechanisms = mechanisms.into_iter().map(mechanism).collect::<Result<_, _>>()?;
                let kill_domain = match kill_domain {
                    0 => KillDomain::Session,
                    1 => KillDomain::Subreaper,
                    2 => KillDomain::Cgroup,
                    _ => return Err("it names a kill domain that does not exist"),
                };
                Ok(Self::Ready(Ready { mechanisms, kill_domain, memory_outcome, users }))
            }
            FromSupervisor::Refused { step, errno, detail } => {
                Ok(Self::Refused { step: printable(&step, 200), errno, detail: printable(&detail, 2000) })
            }
            FromSupervisor::NetworkWanted { pid } => Ok(Self::NetworkWanted { pid }),
            _ => Err("it sends a message that belongs to a call on no call"),
        }
    }
}

fn mechanism(wire: WireMechanism) -> Result<Mechanism, &'static str> {
    let applied = match wire.applied {
        0 => Applied::Enforced,
        1 => Applied::Weaker,
        2 => Applied::Absent,
        _ => return Err("it applies a mechanism in a way that does not exist"),
    };
    Ok(Mechanism { name: printable(&wire.name, 100), applied, detail: printable(&wire.detail, 1000) })
}
