//! Twins for verification: a machine as planned, with one rule lifted.

use tierbox_core::{
    CanaryName, EnvironmentSpec, Error, Hold, Lifted, Limits, Network, NetworkSpec, Result, ShownPath, Tier, Tooling,
};
use tierbox_supervisor::setup::{Bind, Setup};

use crate::BACKEND;
use crate::plan::bytes;

/// What the twin of an environment is asked to be. It has none of the caller's variables, files and mounts.
pub(crate) fn spec(spec: &EnvironmentSpec, lifted: &Lifted) -> Result<EnvironmentSpec> {
    let unsupported = || Error::unsupported("start twin", format!("a twin without its {}", lifted.name())).with_backend(BACKEND);
    let tier = match lifted {
        Lifted::Isolation => Tier::new(Tooling::T0, tierbox_core::HostIsolation::H0, Network::N0)?,
        Lifted::Network
        | Lifted::Ipc
        | Lifted::Uts
        | Lifted::Capabilities
        | Lifted::NoNewPrivs
        | Lifted::Seccomp
        | Lifted::Mounts(_) => Tier::new(Tooling::T0, spec.tier.host(), Network::N2)?,
        Lifted::Names(_) if spec.tier.network() == Network::N1 => Tier::new(Tooling::T0, spec.tier.host(), Network::N1)?,
        _ => return Err(unsupported()),
    };
    let settings = if *lifted == Lifted::Isolation { serde_json::Value::Null } else { spec.settings.clone() };
    let limits = Limits { startup: spec.limits.startup, ..Limits::default() };
    let mut network = NetworkSpec::default();
    if let Lifted::Names(names) = lifted {
        network.allow.extend(spec.network.allow.iter().cloned().chain(names.iter().map(|name| name.rule.clone())));
    }
    Ok(EnvironmentSpec {
        profile: spec.profile.clone(),
        network,
        settings,
        limits,
        base_dir: spec.base_dir.clone(),
        hold: Hold::Process,
        ..EnvironmentSpec::new(BACKEND, tier)
    })
}

/// Lifts the rule.
pub(crate) fn lift(setup: &mut Setup, lifted: &Lifted) {
    match lifted {
        Lifted::Isolation | Lifted::Names(_) => (),
        Lifted::Mounts(shown) => setup.binds.extend(shown.iter().map(bind)),
        // Without it the kernel lets nobody confine himself.
        Lifted::NoNewPrivs => setup.lifted.extend(["no_new_privs", "seccomp", "landlock"].map(str::to_owned)),
        mechanism => setup.lifted.push(mechanism.name().to_owned()),
    }
}

fn bind(shown: &ShownPath) -> Bind {
    Bind { host: bytes(&shown.host), guest: bytes(shown.guest.as_ref()), writable: false, optional: false }
}

/// The names that the twin's gateway lists beside the profile's.
pub(crate) fn names(lifted: Option<&Lifted>) -> &[CanaryName] {
    match lifted {
        Some(Lifted::Names(names)) => names,
        _ => &[],
    }
}
