//! What a provider really gives: the boundary that is there, whatever the profile hopes for.

use std::path::PathBuf;

use tierbox_core::{Error, ErrorKind, HostIsolation, Network, Result, Tier};

use crate::BACKEND;
use crate::settings::invalid;

/// Providers that make virtual machines on this host.
const HYPERVISORS: [&str; 9] =
    ["libvirt", "qemu", "virtualbox", "vmware_desktop", "vmware_fusion", "vmware_workstation", "hyperv", "parallels", "utm"];

/// Providers that make containers on this host.
const CONTAINERS: [&str; 2] = ["lxc", "docker"];

/// A provider whose boundary is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider(String);

impl Provider {
    /// A provider by its name.
    ///
    /// # Errors
    /// `InvalidProfile` for one that is not known: nobody could say what isolates its machines.
    pub fn new(name: &str) -> Result<Self> {
        let known = || HYPERVISORS.iter().chain(&CONTAINERS);
        if known().any(|known| *known == name) {
            return Ok(Self(name.to_owned()));
        }
        let names: Vec<&str> = known().copied().collect();
        let shown: String = name.chars().take(40).collect();
        Err(invalid(format!("the provider {shown:?} is not known, so nothing can be said of its isolation"))
            .with_help(format!("known are {}", names.join(", "))))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Whether it is libvirt, on which tierbox can do more.
    pub fn is_libvirt(&self) -> bool {
        self.0 == "libvirt"
    }

    /// Whether machines can be saved and put back while they run.
    pub fn can_snapshot(&self) -> bool {
        matches!(self.0.as_str(), "libvirt" | "virtualbox" | "vmware_desktop" | "parallels")
    }

    /// The boundary between its machines and this host.
    pub fn isolation(&self) -> HostIsolation {
        // Containers as LXC and Docker make them for Vagrant run sshd and sudo as this host's root or close to it.
        if CONTAINERS.contains(&self.0.as_str()) { HostIsolation::H0 } else { HostIsolation::H3 }
    }

    /// The networks that can be enforced on this host.
    pub fn networks(&self) -> Vec<Network> {
        match self.lacks_for_closing() {
            None => vec![Network::N0, Network::N1, Network::N2],
            Some(_) => vec![Network::N0],
        }
    }

    /// Why a network cannot be closed, which N1 and N2 ask for, if so.
    pub fn lacks_for_closing(&self) -> Option<String> {
        if !self.is_libvirt() {
            return Some(format!("tierbox cannot close the network of machines of {}", self.0));
        }
        if !cfg!(target_os = "linux") || !rustix::process::geteuid().is_root() {
            return Some("rules that keep the guests from this host need root".to_owned());
        }
        let missing = ["nft", "virsh"].into_iter().find(|program| find_program(program).is_none())?;
        Some(format!("{missing} is not installed"))
    }

    /// Refuses a tier that this provider can never enforce, with the reason. Looks at nothing of this host.
    ///
    /// # Errors
    /// `TierRefused`.
    pub fn check(&self, tier: Tier) -> Result<()> {
        let name = &self.0;
        let isolation = self.isolation();
        if tier.host() > isolation {
            let why = match isolation {
                HostIsolation::H0 => format!(
                    "the provider {name} makes containers without no_new_privs and with the capabilities of this host's root, \
                     which is less than H1 asks for"
                ),
                _ => format!("the provider {name} gives {isolation}"),
            };
            return Err(self.refused(tier, &why, "N0"));
        }
        if tier.network() == Network::N0 || self.is_libvirt() { Ok(()) } else { self.check_here(tier) }
    }

    /// Refuses a tier that cannot be enforced on this host, with the reason.
    ///
    /// # Errors
    /// `TierRefused`.
    pub fn check_here(&self, tier: Tier) -> Result<()> {
        match (tier.network(), self.lacks_for_closing()) {
            (Network::N0, _) | (_, None) => Ok(()),
            (network, Some(why)) => Err(self.refused(tier, &format!("{network}: {why}"), "N0")),
        }
    }

    fn refused(&self, tier: Tier, why: &str, nearest: &str) -> Error {
        let nearest = format!("{}.{}.{nearest}", tier.tooling(), self.isolation());
        Error::new(ErrorKind::TierRefused, "check tier", format!("{tier} is refused: {why}"))
            .with_backend(BACKEND)
            .with_help(format!("the nearest tier that the provider {} can enforce here is {nearest}", self.0))
    }
}

/// Where a program of this host is.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // Administrators' programs are often not on a user's PATH, and found by those that need them all the same.
    let usual = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|directory| directory.join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod unit {
    use super::*;

    fn refusal(provider: &str, tier: &str) -> String {
        Provider::new(provider).unwrap().check(tier.parse().unwrap()).unwrap_err().to_string()
    }

    #[test]
    fn the_boundary_follows_the_provider_and_not_the_backends_name() {
        Provider::new("virtualbox").unwrap().check("T0.H3.N0".parse().unwrap()).unwrap();
        Provider::new("lxc").unwrap().check("T0.H0.N0".parse().unwrap()).unwrap();
        for (provider, tier) in [("lxc", "T0.H3.N0"), ("docker", "T0.H1.N2")] {
            let said = refusal(provider, tier);
            assert!(said.contains(provider) && said.ends_with("T0.H0.N0"), "{said}");
        }
    }

    #[test]
    fn networks_that_cannot_be_enforced_are_refused_by_name() {
        for network in ["N1", "N2"] {
            let said = refusal("virtualbox", &format!("T0.H3.{network}"));
            assert!(said.contains(&format!("{network}: ")) && said.ends_with("T0.H3.N0"), "{said}");
        }
    }

    #[test]
    fn nothing_is_said_of_an_unknown_provider() {
        assert_eq!(Provider::new("aws").unwrap_err().kind(), ErrorKind::InvalidProfile);
    }
}
