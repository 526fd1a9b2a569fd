//! What an agent's token is good for: one environment, and of it the machines that it names.

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use tierbox::{Error, ErrorKind, Result};

/// An environment, and machines of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    /// The environment's id.
    pub environment: String,
    /// Names of machines. The primary one alone where there are none.
    pub machines: Vec<String>,
}

impl Grant {
    /// As it stands in a token, before the proof.
    pub fn claim(&self) -> String {
        let names = self.machines.iter().map(|name| utf8_percent_encode(name, NON_ALPHANUMERIC).to_string());
        let names = names.collect::<Vec<_>>().join(",");
        if names.is_empty() { self.environment.clone() } else { format!("{}:{names}", self.environment) }
    }

    /// What a claim says. Whether it is true its proof tells.
    pub fn read(claim: &str) -> Option<Self> {
        let (environment, names) = claim.split_once(':').map_or((claim, None), |(environment, names)| (environment, Some(names)));
        let decoded = |name: &str| percent_decode_str(name).decode_utf8().ok().map(|name| name.into_owned());
        let machines = names.map_or_else(|| Some(Vec::new()), |names| names.split(',').map(decoded).collect())?;
        Some(Self { environment: environment.to_owned(), machines })
    }

    /// Whether the agent may use a machine.
    ///
    /// # Errors
    /// `PolicyDenied`, naming those that it may use.
    pub fn check(&self, machine: &str, primary: &str) -> Result<()> {
        let allowed = match self.machines.as_slice() {
            [] => machine == primary,
            named => named.iter().any(|name| name == machine),
        };
        if allowed {
            return Ok(());
        }
        let named = if self.machines.is_empty() { primary.to_owned() } else { self.machines.join(", ") };
        Err(Error::new(ErrorKind::PolicyDenied, "act as agent", format!("the agent's token is not for the machine {machine}"))
            .with_help(format!("it is for {named}; a harness asks for a token that names others")))
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    fn grant(machines: &[&str]) -> Grant {
        Grant { environment: "docker-1".into(), machines: machines.iter().map(|name| (*name).to_owned()).collect() }
    }

    #[test]
    fn a_claim_says_what_was_granted() {
        for machines in [[].as_slice(), &["default"], &["a,b", "c:d", "e.f", "é", "%2C"]] {
            let granted = grant(machines);
            assert_eq!(Grant::read(&granted.claim()), Some(granted.clone()), "{}", granted.claim());
        }
        assert_eq!(grant(&[]).claim(), "docker-1");
        assert_ne!(Grant::read("docker-1:"), Some(grant(&[])));
    }

    #[test]
    fn it_is_for_the_primary_machine_or_for_those_it_names() {
        let asked = |machines: &[&str], machine: &str| grant(machines).check(machine, "web").map_err(|error| error.kind());
        assert_eq!(asked(&[], "web"), Ok(()));
        assert_eq!(asked(&["db"], "db"), Ok(()));
        for (machines, machine) in [([].as_slice(), "db"), (&["db"], "web"), (&["db"], "d"), (&[""], "web")] {
            assert_eq!(asked(machines, machine), Err(ErrorKind::PolicyDenied), "{machines:?} {machine}");
        }
    }
}
