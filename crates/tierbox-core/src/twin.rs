//! Twins: environments in which one rule is lifted, so that verification sees what its probes would find without it.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A rule that does not hold in a twin. Nothing of a user's ever runs in one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Lifted {
    /// The whole boundary: commands run beside the host's own.
    Isolation,
    /// The network is the host's.
    Network,
    /// The network leads outside, by way of the host.
    Outside,
    /// The ipc namespace is the host's.
    Ipc,
    /// The uts namespace is the host's.
    Uts,
    /// The capabilities that commands could ever have are not reduced.
    Capabilities,
    /// Commands may gain privileges by executing something.
    NoNewPrivs,
    /// System calls are not filtered.
    Seccomp,
    /// Paths of the host's are visible inside.
    Mounts(Vec<ShownPath>),
    /// The N1 gateway lists these names beside the profile's own, and leads them to listeners of verification's.
    Names(Vec<CanaryName>),
}

/// A path of the host's that a twin shows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ShownPath {
    /// The path on the host.
    pub host: PathBuf,
    /// Where it is inside, absolute.
    pub guest: String,
}

/// A name of verification's own, which a twin's gateway lists. It leads to one listener on this host, and nothing else there.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CanaryName {
    /// As an entry of `network.allow`. It names a port, or a scheme that has a usual one.
    pub rule: String,
    /// What is dialled for this name and port.
    pub leads_to: SocketAddr,
}

impl Lifted {
    /// A name for reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Isolation => "isolation",
            Self::Network => "network namespace",
            Self::Outside => "closed network",
            Self::Ipc => "ipc namespace",
            Self::Uts => "uts namespace",
            Self::Capabilities => "capabilities",
            Self::NoNewPrivs => "no_new_privs",
            Self::Seccomp => "seccomp",
            Self::Mounts(_) => "mount",
            Self::Names(_) => "names",
        }
    }
}
