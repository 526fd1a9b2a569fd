//! Probes: what must not be seen or reached from inside, each with what shows that it would have been found.

#[cfg(target_os = "linux")]
mod canary;
#[cfg(target_os = "linux")]
mod catalogue;
#[cfg(target_os = "linux")]
mod confined;
#[cfg(target_os = "linux")]
mod elsewhere;
#[cfg(target_os = "linux")]
mod lookout;
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
pub use confined::{unconfined, verify_confined};
#[cfg(target_os = "linux")]
pub use named::{is_own_name, names_asked};
#[cfg(target_os = "linux")]
pub use run::{Twin, Twins, probe_names, verify};
pub use sabotage::{SABOTAGES, Sabotage, sabotage_table};

/// The probes of the tooling axis, most of which look at the agent's handle.
pub const TOOLING: [&str; 8] = ["t.exec", "t.shell", "t.interpreter", "t.variables", "t.write", "t.code", "t.look", "t.kernel"];

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

/// What may be said of a tier, in a word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// There were probes, and every one passed, in every machine.
    Verified,
    /// Some probe did not pass, or some machine was not probed.
    NotVerified,
    /// The tier promises nothing that could be probed, such as a process of this host's.
    NothingToProve,
    /// Nobody looked: verification is off, or what was found is not known here.
    #[default]
    NotProbed,
}

impl Verdict {
    /// Its name in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::NotVerified => "not-verified",
            Self::NothingToProve => "nothing-to-prove",
            Self::NotProbed => "not-probed",
        }
    }
}

/// A machine in which no probe could be carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Unprobed {
    /// Its name.
    pub machine: String,
    /// Why.
    pub why: String,
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
    /// In which machine; absent where there is only one, and for what is no machine's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Verification {
    /// What it comes to.
    #[serde(default)]
    pub verdict: Verdict,
    /// Whether the verdict is [`Verdict::Verified`]. A probe that is by configuration did not pass.
    pub verified: bool,
    /// When it was done, in UTC.
    pub time: String,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// The machines that were probed, primary first.
    #[serde(default)]
    pub machines: Vec<String>,
    /// The machines that were not.
    #[serde(default)]
    pub unprobed: Vec<Unprobed>,
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
        self.settle();
    }

    /// Draws the verdict from the probes anew, whatever it was said to be.
    pub fn settle(&mut self) {
        let passed = self.probes.iter().all(|probe| probe.status == ProbeStatus::Pass);
        self.verdict = match () {
            () if !passed || !self.unprobed.is_empty() => Verdict::NotVerified,
            () if self.probes.is_empty() => Verdict::NothingToProve,
            () => Verdict::Verified,
        };
        self.verified = self.verdict == Verdict::Verified;
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    fn probe(status: ProbeStatus) -> ProbeResult {
        ProbeResult { id: "h.x".into(), machine: None, rule: String::new(), status, detail: String::new(), control: None }
    }

    #[test]
    fn nothing_is_verified_by_no_probe_or_in_a_machine_that_was_not_probed() {
        let of = |probes: Vec<ProbeResult>, unprobed: Vec<Unprobed>| {
            // What it claims does not count.
            let mut found =
                Verification { verdict: Verdict::Verified, verified: true, unprobed, probes, ..Verification::default() };
            found.settle();
            assert_eq!(found.verified, found.verdict == Verdict::Verified);
            found.verdict
        };
        let unprobed = || vec![Unprobed { machine: "victim".into(), why: "it is full".into() }];
        assert_eq!(of(Vec::new(), Vec::new()), Verdict::NothingToProve);
        assert_eq!(of(Vec::new(), unprobed()), Verdict::NotVerified);
        assert_eq!(of(vec![probe(ProbeStatus::Pass)], unprobed()), Verdict::NotVerified);
        assert_eq!(of(vec![probe(ProbeStatus::Pass)], Vec::new()), Verdict::Verified);
        for other in [ProbeStatus::Fail, ProbeStatus::Inconclusive, ProbeStatus::ByConfiguration] {
            assert_eq!(of(vec![probe(ProbeStatus::Pass), probe(other)], Vec::new()), Verdict::NotVerified);
        }
    }

    #[test]
    fn the_words_of_verdicts_are_those_of_json() {
        for verdict in [Verdict::Verified, Verdict::NotVerified, Verdict::NothingToProve, Verdict::NotProbed] {
            assert_eq!(serde_json::to_value(verdict).unwrap(), verdict.as_str());
        }
    }
}
