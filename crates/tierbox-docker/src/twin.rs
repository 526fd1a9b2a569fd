//! Twins for verification: a container as planned, with one rule lifted.

use bollard::models::{ContainerCreateBody, HostConfig};
use tierbox_core::{
    CanaryName, EnvironmentSpec, Error, Hold, HostIsolation, Lifted, Limits, Network, NetworkSpec, Result, Tier, Tooling,
};

use crate::BACKEND;
use crate::launch::bind;
use crate::plan::Plan;

/// What the twin of an environment is asked to be. It has none of the caller's variables, files and mounts.
///
/// # Errors
/// `Unsupported` for a rule that no container can do without.
pub fn spec(spec: &EnvironmentSpec, lifted: &Lifted) -> Result<EnvironmentSpec> {
    match lifted {
        Lifted::Network
        | Lifted::Outside
        | Lifted::Ipc
        | Lifted::Uts
        | Lifted::Capabilities
        | Lifted::NoNewPrivs
        | Lifted::Seccomp
        | Lifted::Mounts(_) => {}
        Lifted::Names(_) if spec.tier.network() == Network::N1 => {}
        _ => {
            let what = format!("a twin without its {}", lifted.name());
            return Err(Error::unsupported("start twin", what).with_backend(BACKEND));
        }
    }
    let names = names(Some(lifted));
    let mut allowed = NetworkSpec::default();
    if !names.is_empty() {
        allowed.allow.extend(spec.network.allow.iter().cloned().chain(names.iter().map(|name| name.rule.clone())));
    }
    let network = if names.is_empty() { Network::N2 } else { Network::N1 };
    Ok(EnvironmentSpec {
        profile: spec.profile.clone(),
        network: allowed,
        settings: spec.settings.clone(),
        limits: Limits { startup: spec.limits.startup, ..Limits::default() },
        base_dir: spec.base_dir.clone(),
        hold: Hold::Process,
        ..EnvironmentSpec::new(BACKEND, Tier::new(Tooling::T0, HostIsolation::H1, network)?)
    })
}

/// The primary machine alone, in which nothing of the caller's runs.
pub fn alone(mut plan: Plan) -> Plan {
    plan.machines.truncate(1);
    for machine in &mut plan.machines {
        machine.service = None;
        machine.env.clear();
        machine.mounts.clear();
        machine.volumes.clear();
        machine.links.clear();
    }
    plan.networks.clear();
    plan.volumes.clear();
    plan
}

/// Lifts the rule.
pub fn lift(body: &mut ContainerCreateBody, lifted: &Lifted) {
    let config = body.host_config.get_or_insert_with(HostConfig::default);
    let host = || Some("host".to_owned());
    match lifted {
        Lifted::Network => config.network_mode = host(),
        // The engine's own network, which every container is on that asks for no other.
        Lifted::Outside => config.network_mode = Some("bridge".to_owned()),
        Lifted::Ipc => config.ipc_mode = host(),
        Lifted::Uts => {
            config.uts_mode = host();
            body.hostname = None;
        }
        // One that is beyond the engine's default is enough, and the engine has this one itself: it makes networks.
        Lifted::Capabilities => (config.cap_drop, config.cap_add) = (None, Some(vec!["NET_ADMIN".to_owned()])),
        Lifted::NoNewPrivs => config.security_opt = None,
        Lifted::Seccomp => config.security_opt.get_or_insert_default().push("seccomp=unconfined".to_owned()),
        Lifted::Mounts(shown) => {
            config.mounts.get_or_insert_default().extend(shown.iter().map(|shown| bind(&shown.host, &shown.guest)));
        }
        _ => {}
    }
}

/// The names that the twin's gateway lists beside the profile's.
pub fn names(lifted: Option<&Lifted>) -> &[CanaryName] {
    match lifted {
        Some(Lifted::Names(names)) => names,
        _ => &[],
    }
}

/// Whether the supervisor filters system calls by itself. It could not without `no_new_privs`, and would set that.
pub fn filters(lifted: Option<&Lifted>) -> bool {
    !matches!(lifted, Some(Lifted::NoNewPrivs | Lifted::Seccomp))
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn one_rule_is_lifted_and_no_other() {
        let lifted = |rule: &Lifted| {
            let config = HostConfig { security_opt: Some(vec!["no-new-privileges".into()]), ..HostConfig::default() };
            let mut body = ContainerCreateBody { host_config: Some(config), ..ContainerCreateBody::default() };
            lift(&mut body, rule);
            body.host_config.unwrap()
        };
        assert_eq!(lifted(&Lifted::Network).network_mode.as_deref(), Some("host"));
        assert_eq!(lifted(&Lifted::Outside).network_mode.as_deref(), Some("bridge"));
        assert_eq!(lifted(&Lifted::Seccomp).security_opt.unwrap(), ["no-new-privileges", "seccomp=unconfined"]);
        assert_eq!(lifted(&Lifted::NoNewPrivs).security_opt, None);
        let shown = tierbox_core::ShownPath { host: "/a".into(), guest: "/b".into() };
        let mounted = lifted(&Lifted::Mounts(vec![shown])).mounts.unwrap();
        assert!(mounted.len() == 1 && mounted[0].read_only == Some(true));
    }

    #[test]
    fn a_twin_has_nothing_of_the_callers() {
        let mut own = EnvironmentSpec::new(BACKEND, "T0.H1.N1".parse().unwrap());
        own.env.insert("SECRET".into(), "x".into());
        let twin = spec(&own, &Lifted::Ipc).unwrap();
        assert!(twin.env.is_empty() && twin.tier.network() == Network::N2);
        assert!(spec(&own, &Lifted::Isolation).is_err());
        own.network.allow.push("a.test".into());
        let name = CanaryName { rule: "b.invalid".into(), leads_to: ([127, 0, 0, 1], 1).into() };
        let named = spec(&own, &Lifted::Names(vec![name.clone()])).unwrap();
        assert_eq!((named.tier.network(), named.network.allow), (Network::N1, vec!["a.test".into(), "b.invalid".into()]));
        let own = EnvironmentSpec::new(BACKEND, "T0.H1.N2".parse().unwrap());
        assert!(spec(&own, &Lifted::Names(vec![name])).is_err());
    }
}
