//! Probes: what must not be seen or reached from inside, each with what shows that it would have been found.

#[cfg(target_os = "linux")]
mod canary;
#[cfg(target_os = "linux")]
mod catalogue;
#[cfg(target_os = "linux")]
mod named;
#[cfg(target_os = "linux")]
mod pages;
#[cfg(target_os = "linux")]
mod run;
mod sabotage;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[cfg(target_os = "linux")]
pub use canary::remove_orphans;
#[cfg(target_os = "linux")]
pub use run::{Twin, Twins, probe_names, verify};
pub use sabotage::{SABOTAGES, Sabotage, sabotage_table};

/// What came of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProbeStatus {
    /// The rule holds, and its control shows that the probe would have found it broken.
    Pass,
    /// The rule does not hold.
    Fail,
    /// The probe could not tell, or its control did not find what it must find.
    Inconclusive,
    /// The rule is configured, and no twin is possible here that would show the probe to work.
    ByConfiguration,
}

/// What shows that a probe works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ControlResult {
    /// The rule that did not hold in the twin.
    pub lifted: String,
    /// Whether the probe found that.
    pub found: bool,
    /// What was found.
    pub detail: String,
}

/// One probe and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProbeResult {
    /// Its name: the axis and what is looked at, such as `h.seccomp`.
    pub id: String,
    /// The rule, in a sentence.
    pub rule: String,
    /// What came of it.
    pub status: ProbeStatus,
    /// What was found inside.
    pub detail: String,
    /// What was found in the twin; absent for a probe that looks for something that must be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<ControlResult>,
}

/// A verification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Verification {
    /// Whether every probe passed. A probe that is by configuration did not.
    pub verified: bool,
    /// When it was done, in UTC.
    pub time: String,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// The probes.
    pub probes: Vec<ProbeResult>,
}

/// What a start says of its verification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Verified {
    /// What was found.
    pub verification: Verification,
    /// Whether it was found by an earlier start of the same configuration.
    pub reused: bool,
}

impl Verification {
    /// The probes that found a rule broken.
    pub fn failed(&self) -> impl Iterator<Item = &ProbeResult> {
        self.probes.iter().filter(|probe| probe.status == ProbeStatus::Fail)
    }

    /// Adds probes that were carried out elsewhere, such as those of the tooling axis.
    pub fn add(&mut self, probes: impl IntoIterator<Item = ProbeResult>) {
        self.probes.extend(probes);
        self.verified = self.probes.iter().all(|probe| probe.status == ProbeStatus::Pass);
    }
}
