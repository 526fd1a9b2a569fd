//! The isolation tier `Tx.Hx.Nx`: tooling, host isolation, network. A higher digit is stricter on its axis.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

macro_rules! axis {
    ($(#[$meta:meta])* $name:ident, $letter:literal, { $($(#[$vmeta:meta])* $variant:ident = $digit:literal => $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$vmeta])* $variant),+ }

        impl $name {
            /// Every level, weakest first.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The digit of this level.
            pub fn digit(self) -> u8 {
                match self { $(Self::$variant => $digit),+ }
            }

            /// What the level means, in a few words.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            fn parse_part(part: &str) -> Option<Self> {
                match part { $(concat!($letter, $digit) => Some(Self::$variant),)+ _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}{}", $letter, self.digit())
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::parse_part(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not a level of this axis")))
            }
        }
    };
}

axis! {
    /// What the agent may execute.
    Tooling, "T", {
        /// Any program, and a browser.
        T0 = 0 => "unrestricted execution",
        /// Named programs without side effects; no arbitrary code.
        T1 = 1 => "named programs only",
        /// Nothing.
        T2 = 2 => "no execution",
    }
}

axis! {
    /// The boundary between the agent's programs and the host. Decided by what is true, not by a backend's name.
    HostIsolation, "H", {
        /// None: a process on the host.
        H0 = 0 => "no isolation",
        /// A local container: own mount, pid, net, ipc and uts namespaces, own root, seccomp, no_new_privs.
        H1 = 1 => "local container",
        /// A container on another machine.
        H2 = 2 => "remote container",
        /// A virtual machine.
        H3 = 3 => "virtual machine",
    }
}

axis! {
    /// What the agent can reach outside its environment.
    Network, "N", {
        /// The whole external network.
        N0 = 0 => "full external network",
        /// Named domains only.
        N1 = 1 => "named domains only",
        /// No external network.
        N2 = 2 => "no external network",
    }
}

/// A tier, written `T0.H1.N2`.
///
/// ```
/// use tierbox_core::{Network, Tier};
///
/// let tier: Tier = "T0.H1.N2".parse()?;
/// assert_eq!(tier.network(), Network::N2);
/// assert_eq!(tier.to_string(), "T0.H1.N2");
/// assert!("T0.H0.N2".parse::<Tier>().is_err()); // a process on the host has the host's network
/// # Ok::<(), tierbox_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tier {
    tooling: Tooling,
    host: HostIsolation,
    network: Network,
}

impl Tier {
    /// A tier from its three axes.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidProfile`] for H0 with N1 or N2: a process on the host has the host's network, so the claim
    /// could not be true.
    pub fn new(tooling: Tooling, host: HostIsolation, network: Network) -> Result<Self> {
        if host == HostIsolation::H0 && network != Network::N0 {
            return Err(Error::new(
                ErrorKind::InvalidProfile,
                "read tier",
                format!("{host} with {network} is impossible: a process on the host has the host's network"),
            )
            .with_help(format!("write {tooling}.H0.N0, or choose H1 or above to restrict the network")));
        }
        Ok(Self { tooling, host, network })
    }

    /// The tooling axis.
    pub fn tooling(self) -> Tooling {
        self.tooling
    }
    /// The host isolation axis.
    pub fn host(self) -> HostIsolation {
        self.host
    }
    /// The network axis.
    pub fn network(self) -> Network {
        self.network
    }

    /// Whether this tier is as strict as `other`, or stricter, on every axis.
    ///
    /// Tiers are only partly ordered: of `T0.H1.N2` and `T2.H1.N0` neither is at least the other.
    pub fn is_at_least(self, other: Self) -> bool {
        self.tooling >= other.tooling && self.host >= other.host && self.network >= other.network
    }

    /// Remarks on a legal but unusual combination, for people to read. Usually empty.
    pub fn notes(self) -> Vec<&'static str> {
        let mut notes = Vec::new();
        if self.tooling == Tooling::T2 && self.host != HostIsolation::H0 {
            notes.push("T2 executes nothing for the agent, so its host isolation only binds the harness's own commands");
        }
        if self.host == HostIsolation::H0 && self.tooling == Tooling::T0 {
            notes.push("T0 with H0 runs any program on this host with your own rights: for trusted code only");
        }
        if self.host == HostIsolation::H1 && self.network == Network::N0 {
            notes.push("N0 at H1 lets code in the sandbox reach the whole network: nothing it sends is filtered");
        }
        notes
    }
}

impl PartialOrd for Tier {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        use std::cmp::Ordering;
        match (self.is_at_least(*other), other.is_at_least(*self)) {
            (true, true) => Some(Ordering::Equal),
            (true, false) => Some(Ordering::Greater),
            (false, true) => Some(Ordering::Less),
            (false, false) => None,
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.tooling, self.host, self.network)
    }
}

impl FromStr for Tier {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.split('.');
        let parsed = (|| {
            let tooling = Tooling::parse_part(parts.next()?)?;
            let host = HostIsolation::parse_part(parts.next()?)?;
            let network = Network::parse_part(parts.next()?)?;
            parts.next().is_none().then_some((tooling, host, network))
        })();
        let (tooling, host, network) = parsed.ok_or_else(|| malformed(text))?;
        Self::new(tooling, host, network)
    }
}

fn malformed(text: &str) -> Error {
    let shown: String = text.chars().take(40).collect();
    Error::new(ErrorKind::InvalidProfile, "read tier", format!("{shown:?} is not a tier"))
        .with_help("write T0-T2, H0-H3 and N0-N2 in that order, separated by dots, for example T0.H1.N2")
}

impl Serialize for Tier {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Tier {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod unit {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_the_written_form_is_a_tier() {
        for bad in
            ["", "T0", "T0.H1", "H1.T0.N2", "T3.H1.N2", "T0.H4.N2", "T0.H1.N3", "t0.h1.n2", "T0.H1.N2.", " T0.H1.N2", "T00.H1.N2"]
        {
            assert!(bad.parse::<Tier>().is_err(), "{bad:?} parsed");
        }
    }

    #[test]
    fn a_process_on_the_host_cannot_restrict_the_network() {
        for bad in ["T0.H0.N1", "T1.H0.N2"] {
            let error = bad.parse::<Tier>().unwrap_err();
            assert!(error.message().contains("host's network"), "{error}");
        }
    }

    #[test]
    fn order_is_per_axis() {
        let tier = |text: &str| text.parse::<Tier>().unwrap();
        assert!(tier("T0.H1.N2") > tier("T0.H1.N0"));
        assert_eq!(tier("T0.H1.N2").partial_cmp(&tier("T2.H1.N0")), None);
        assert!(!tier("T0.H1.N2").is_at_least(tier("T0.H3.N2")));
    }

    #[test]
    fn odd_combinations_are_noted() {
        assert!(!"T2.H1.N2".parse::<Tier>().unwrap().notes().is_empty());
        assert!("T0.H1.N2".parse::<Tier>().unwrap().notes().is_empty());
    }

    proptest! {
        #[test]
        fn display_and_parse_agree(t in 0u8..3, h in 0u8..4, n in 0u8..3) {
            let text = format!("T{t}.H{h}.N{n}");
            match text.parse::<Tier>() {
                Ok(tier) => prop_assert_eq!(tier.to_string(), text),
                Err(_) => prop_assert!(h == 0 && n > 0),
            }
        }

        #[test]
        fn any_text_gets_an_answer(text in ".{0,64}") {
            if let Ok(tier) = text.parse::<Tier>() {
                prop_assert_eq!(tier.to_string(), text);
            }
        }
    }
}
