//! Entries of an environment's life.

use tierbox_core::{AuditEntry, AuditOperation, AuditOutcome, EnvironmentSpec, Error, Principal, Report};

use tierbox_verify::{ProbeStatus, Verified};

use crate::AuditLayer;

/// The step of a start.
pub(crate) const START: &str = "start";
/// The argument of a start that says what a person calls the environment.
pub(crate) const NAME: &str = "name";

fn entry(layer: &AuditLayer, step: &str) -> AuditEntry {
    layer.entry(Principal::Tierbox, AuditOperation::Lifecycle).argument("step", step)
}

/// A step without particulars.
pub(crate) fn step(layer: Option<&AuditLayer>, step: &str) {
    if let Some(layer) = layer {
        layer.record(entry(layer, step));
    }
}

/// The start begins.
pub(crate) fn start(layer: Option<&AuditLayer>, spec: &EnvironmentSpec, name: Option<&str>) {
    let Some(layer) = layer else { return };
    let named = name.into_iter().fold(entry(layer, START), |entry, name| entry.argument(NAME, name));
    let entry = named
        .argument("profile", spec.profile.as_str())
        .argument("tier", spec.tier.to_string())
        .argument("backend", spec.backend.as_str())
        .outcome(AuditOutcome::Started);
    layer.record(entry);
}

/// The environment is ready.
pub(crate) fn ready(layer: Option<&AuditLayer>, report: &Report) {
    let Some(layer) = layer else { return };
    layer.record(entry(layer, "ready").argument("enforced", report.summary()));
}

/// What verification found.
pub(crate) fn verified(layer: Option<&AuditLayer>, verified: Option<&Verified>) {
    let (Some(layer), Some(verified)) = (layer, verified) else { return };
    let entry = layer.entry(Principal::Tierbox, AuditOperation::Verification);
    let entry = entry.argument("verified", verified.verification.verified).argument("reused", verified.reused);
    let entry = entry.argument("verdict", verified.verification.verdict.as_str());
    let unprobed: Vec<&str> = verified.verification.unprobed.iter().map(|it| it.machine.as_str()).collect();
    let entry = if unprobed.is_empty() { entry } else { entry.argument("not-probed", unprobed) };
    let open = verified.verification.probes.iter().filter(|probe| probe.status != ProbeStatus::Pass);
    layer.record(entry.argument("not-passed", open.map(|probe| probe.id.clone()).collect::<Vec<_>>()));
}

/// A document of the run was written.
pub(crate) fn named(layer: Option<&AuditLayer>, step: &str, sha256: &str) {
    if let Some(layer) = layer {
        layer.record(entry(layer, step).argument("sha256", sha256));
    }
}

/// The start failed, and is undone.
pub(crate) fn failed(layer: Option<&AuditLayer>, error: &Error) {
    let Some(layer) = layer else { return };
    layer.record(entry(layer, START).outcome(AuditOutcome::failed(error)));
}
