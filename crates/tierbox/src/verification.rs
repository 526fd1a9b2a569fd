//! Verifies environments: probes with twins of the same backend, and records that are reused.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tierbox_core::{
    Backend, Environment, EnvironmentSpec, Error, ErrorKind, HostIsolation, Lifted, Locality, Report, Result, Sandbox, Verify,
};
use tierbox_lease::{Journal, NewLease};
use tierbox_verify::{ProbeResult, Twin, Twins, Verification, Verified};

use crate::records::Record;
use crate::undertaker::{Awaited, Burial, bury};

/// When an environment is verified.
pub(crate) fn mode(spec: &EnvironmentSpec, report: &Report) -> Verify {
    spec.verify.unwrap_or(match report.locality {
        Locality::Local if report.tier.host() != HostIsolation::H3 => Verify::Once,
        _ => Verify::Always,
    })
}

/// Verifies an environment that was just started, or finds the record of an earlier one. Whether a probe failed, [`refusal`] tells.
///
/// # Errors
/// As [`verify`].
pub(crate) async fn at_start(
    backend: &Arc<dyn Backend>,
    journal: &Journal,
    spec: &EnvironmentSpec,
    environment: &dyn Environment,
    report: &Report,
) -> Result<Option<Verified>> {
    let mode = mode(spec, report);
    if mode == Verify::Off {
        return Ok(None);
    }
    let record = match mode {
        Verify::Once => Record::of(journal, spec, environment, report),
        _ => None,
    };
    if let Some(verification) = record.as_ref().and_then(Record::read) {
        return Ok(Some(Verified { verification, reused: true }));
    }
    let verification = verify(backend, journal, spec, environment, report).await?;
    if let Some(record) = record.filter(|_| refusal(&verification, spec).is_none()) {
        record.keep(&verification);
    }
    Ok(Some(Verified { verification, reused: false }))
}

/// Carries all probes out.
///
/// # Errors
/// If they could not be carried out.
pub(crate) async fn verify(
    backend: &Arc<dyn Backend>,
    journal: &Journal,
    spec: &EnvironmentSpec,
    environment: &dyn Environment,
    report: &Report,
) -> Result<Verification> {
    let program = tierbox_guest::supervisor::BYTES
        .ok_or_else(|| Error::unsupported("verify", "verification by a build without the supervisor for this host"))?;
    let twins = Arc::new(Siblings { backend: backend.clone(), journal: journal.clone(), spec: spec.clone() });
    let mut verification = match report.tier.host() {
        // Nothing of it could be probed, and no twin is needed to see that.
        HostIsolation::H0 => Verification::default(),
        _ => tierbox_verify::verify(&environment.machines(), report, &spec.network.allow, program, twins).await?,
    };
    verification.add(crate::tooling::probes(spec, environment).await?);
    Ok(verification)
}

/// Why an environment whose verification found this may not be used; `None` if nothing failed.
pub(crate) fn refusal(verification: &Verification, spec: &EnvironmentSpec) -> Option<Error> {
    let place = |probe: &ProbeResult| probe.machine.as_ref().map_or_else(String::new, |machine| format!("in {machine}: "));
    let failed = verification.failed().map(|probe| format!("{} ({}{})", probe.id, place(probe), probe.detail));
    let failed: Vec<String> = failed.collect();
    if failed.is_empty() {
        return None;
    }
    let message = format!("{} is not what is there: {}", spec.tier, failed.join("; "));
    Some(
        Error::new(ErrorKind::TierRefused, "verify environment", message)
            .with_backend(spec.backend.clone())
            .with_help("the environment was destroyed; `tierbox verify` shows every probe with its control"),
    )
}

/// Twins by the same backend.
struct Siblings {
    backend: Arc<dyn Backend>,
    journal: Journal,
    spec: EnvironmentSpec,
}

#[async_trait]
impl Twins for Siblings {
    async fn start(&self, lifted: &Lifted) -> Result<Box<dyn Twin>> {
        let spec = &self.spec;
        let profile = format!("{} (twin without {})", spec.profile, lifted.name());
        let lease = Arc::new(
            self.journal.create(NewLease { twin: true, ..NewLease::new(&spec.backend, profile, spec.tier.to_string()) })?,
        );
        let burial = Burial { backend: self.backend.clone(), lease: lease.clone(), environment: None, decided: None };
        let mut sibling = Sibling { burial: Mutex::new(Some(burial)), sandbox: None, _awaited: Awaited::new() };
        match self.backend.twin(spec, lifted, lease).await {
            Ok(environment) => {
                sibling.sandbox = Some(environment.primary());
                if let Some(burial) = sibling.burial().as_mut() {
                    burial.environment = Some(environment.into());
                }
                Ok(Box::new(sibling))
            }
            Err(error) => {
                Box::new(sibling).end().await;
                Err(error)
            }
        }
    }
}

/// A twin, and what ends it.
struct Sibling {
    burial: Mutex<Option<Burial>>,
    sandbox: Option<Arc<dyn Sandbox>>,
    /// From its beginning on: the tasks of a verification that is given up are dropped some time later.
    _awaited: Awaited,
}

impl Sibling {
    fn burial(&self) -> std::sync::MutexGuard<'_, Option<Burial>> {
        self.burial.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Twin for Sibling {
    fn sandbox(&self) -> Arc<dyn Sandbox> {
        self.sandbox.clone().expect("a twin that was started has a machine")
    }

    async fn end(self: Box<Self>) {
        let burial = self.burial().take();
        if let Some(burial) = burial {
            burial.carry_out().await;
        }
    }
}

impl Drop for Sibling {
    fn drop(&mut self) {
        if let Some(burial) = self.burial().take() {
            bury(burial);
        }
    }
}

#[cfg(test)]
mod unit {
    use tierbox_core::KillDomain;

    use super::*;

    fn spec() -> EnvironmentSpec {
        EnvironmentSpec::new("b", "T0.H1.N2".parse().unwrap())
    }

    fn report(locality: Locality, tier: &str) -> Report {
        Report::bare("b", tier.parse().unwrap(), locality, KillDomain::Cgroup)
    }

    #[test]
    fn what_is_not_on_this_host_or_not_a_container_is_always_verified() {
        let of = |locality, tier, verify| mode(&EnvironmentSpec { verify, ..spec() }, &report(locality, tier));
        assert_eq!(of(Locality::Local, "T0.H1.N2", None), Verify::Once);
        for (locality, tier) in [(Locality::Remote, "T0.H2.N2"), (Locality::Remote, "T0.H3.N2"), (Locality::Local, "T0.H3.N2")] {
            assert_eq!(of(locality, tier, None), Verify::Always, "{locality:?} {tier}");
        }
        assert_eq!(of(Locality::Remote, "T0.H3.N2", Some(Verify::Once)), Verify::Once);
    }
}
