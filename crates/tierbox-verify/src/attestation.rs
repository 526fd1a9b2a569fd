//! The attestation: one document per environment that says what was declared, what was enforced, and what was shown.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tierbox_core::{EnvironmentSpec, ProgramRule, Report, Tooling};

use crate::log::Head;
use crate::probe::{ProbeResult, Unprobed, Verdict, Verified};

/// The version of the document's form.
pub const ATTESTATION_VERSION: u32 = 1;

/// A mechanism of isolation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AttestedMechanism {
    /// Its name.
    pub name: String,
    /// `enforced`, `weaker` or `absent`.
    pub applied: String,
    /// The particulars.
    pub detail: String,
}

/// A limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AttestedLimit {
    /// Its name, as in a profile.
    pub name: String,
    /// Its value.
    pub value: String,
    /// What enforces it.
    pub by: String,
    /// `enforced`, `weaker` or `absent`.
    pub applied: String,
}

/// What verification found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AttestedVerification {
    /// Whether every probe passed, in every machine, and there were some.
    pub verified: bool,
    /// Whether the probes are of an earlier start of the same configuration; the mechanisms are always of this start.
    pub reused: bool,
    /// When the probes were carried out, in UTC.
    pub time: String,
    /// How long they took.
    pub took_ms: u64,
    /// The machines that were probed, primary first.
    #[serde(default)]
    pub machines: Vec<String>,
    /// The machines that were not.
    #[serde(default)]
    pub unprobed: Vec<Unprobed>,
    /// The probes with their controls.
    pub probes: Vec<ProbeResult>,
}

/// What the sandbox and the agent in it were granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Affordances {
    /// What the tooling axis lets the agent execute: `anything`, `the named programs` or `nothing`.
    #[serde(default)]
    pub execution: String,
    /// The programs that T1 allows the agent, with any arguments.
    pub programs: Vec<String>,
    /// The programs that T1 allows by rules, each with what it may be told.
    #[serde(default)]
    pub rules: Vec<String>,
    /// The runtimes of code tasks.
    #[serde(default)]
    pub runtimes: Vec<String>,
    /// What becomes of sensitive actions of the agent.
    pub approvals: String,
    /// Names that can be reached.
    pub network: Vec<String>,
    /// Whether machines of the environment may reach each other.
    #[serde(default)]
    pub between_machines: bool,
    /// Host directories that are visible inside.
    pub mounts: Vec<String>,
    /// Host files that were copied in.
    pub files: Vec<String>,
    /// As whom commands run; absent for the backend's default.
    pub user: Option<String>,
    /// Names of the variables that every command has.
    pub variables: Vec<String>,
}

/// The link to the operation log: where its chain stood when this was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogLink {
    /// Lines so far.
    pub lines: u64,
    /// The hash of the last of them. The next line holds the hash of this document.
    pub hash: String,
}

/// What is known of one environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "tierbox attestation")]
pub struct Attestation {
    /// The version of this form.
    pub version: u32,
    /// The environment's id.
    pub environment: String,
    /// When this was made, in UTC.
    pub time: String,
    /// The declared tier.
    pub tier: String,
    /// The profile's name.
    pub profile: String,
    /// SHA-256 of the profile as resolved, without values of variables.
    pub profile_sha256: String,
    /// The backend.
    pub backend: String,
    /// `local` or `remote`.
    pub locality: String,
    /// Why H0 or N0 is acceptable.
    pub reason: Option<String>,
    /// What it was made of: digests of images or the state of its root, the engine and its version. Empty if that is not known.
    #[serde(default)]
    pub made_of: BTreeMap<String, String>,
    /// What was enforced at this start.
    pub mechanisms: Vec<AttestedMechanism>,
    /// The limits.
    pub limits: Vec<AttestedLimit>,
    /// What verification comes to, in a word.
    #[serde(default)]
    pub verdict: Verdict,
    /// What verification found; absent if there was none.
    pub verification: Option<AttestedVerification>,
    /// What was granted.
    pub affordances: Affordances,
    /// What weakens the profile, each with the layer that did it.
    pub weakened: Vec<String>,
    /// Remarks of the backend, images and their digests among them.
    pub notes: Vec<String>,
    /// tierbox's version.
    pub tierbox: String,
    /// Facts about this host.
    pub host: BTreeMap<String, String>,
    /// Where the operation log stood; absent without one.
    pub log: Option<LogLink>,
}

impl Attestation {
    /// What is known of an environment that was started from `spec`.
    pub fn new(
        environment: &str,
        spec: &EnvironmentSpec,
        profile_sha256: String,
        report: &Report,
        made_of: BTreeMap<String, String>,
        verified: Option<&Verified>,
        log: Option<Head>,
    ) -> Self {
        let clean = |text: &str| spec.secrets.redact_text(text).into_owned();
        let all = |texts: &[String]| texts.iter().map(|text| clean(text)).collect::<Vec<_>>();
        Self {
            version: ATTESTATION_VERSION,
            environment: environment.to_owned(),
            time: crate::clock::text(std::time::SystemTime::now()),
            tier: report.tier.to_string(),
            profile: report.profile.clone(),
            profile_sha256,
            backend: report.backend.clone(),
            locality: word(&report.locality),
            reason: report.reason.as_deref().map(clean),
            made_of,
            mechanisms: report
                .mechanisms
                .iter()
                .map(|mechanism| AttestedMechanism {
                    name: mechanism.name.clone(),
                    applied: word(&mechanism.applied),
                    detail: clean(&mechanism.detail),
                })
                .collect(),
            limits: report
                .limits
                .iter()
                .map(|limit| AttestedLimit {
                    name: limit.name.clone(),
                    value: limit.value.clone(),
                    by: limit.by.clone(),
                    applied: word(&limit.applied),
                })
                .collect(),
            verdict: verified.map_or(Verdict::NotProbed, |verified| verified.verification.verdict),
            verification: verified.map(|Verified { verification, reused }| AttestedVerification {
                verified: verification.verified,
                reused: *reused,
                time: verification.time.clone(),
                took_ms: verification.took_ms,
                machines: verification.machines.clone(),
                unprobed: verification.unprobed.clone(),
                probes: verification.probes.clone(),
            }),
            affordances: Affordances {
                execution: execution(report.tier.tooling()).to_owned(),
                programs: all(&spec.programs),
                rules: spec.agent.rules.iter().map(rule).collect(),
                runtimes: spec.code.runtimes.iter().map(|runtime| runtime.name.clone()).collect(),
                approvals: word(&spec.agent.preset),
                network: all(&spec.network.allow),
                between_machines: !spec.network.apart,
                mounts: all(&report.mounts),
                files: all(&report.copied_in),
                user: spec.user.as_deref().map(clean),
                variables: spec.env.keys().map(|name| clean(name)).collect(),
            },
            weakened: all(&report.weakened),
            notes: all(&report.notes),
            tierbox: env!("CARGO_PKG_VERSION").to_owned(),
            host: host(),
            log: log.map(|head| LogLink { lines: head.lines, hash: head.hash }),
        }
    }

    /// The JSON Schema of this document.
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Self).to_value()
    }
}

fn execution(tooling: Tooling) -> &'static str {
    match tooling {
        Tooling::T0 => "anything",
        Tooling::T1 => "the named programs",
        Tooling::T2 => "nothing",
    }
}

/// A rule of T1 in a line.
fn rule(rule: &ProgramRule) -> String {
    let mut parts = vec![rule.program.clone()];
    parts.extend(rule.first.iter().cloned());
    parts.extend(rule.flags.iter().map(|flag| format!("[{flag}]")));
    parts.extend(rule.options.iter().map(|(option, value)| format!("[{option} {value}]")));
    parts.extend(rule.operands.iter().map(|operand| format!("<{operand}>")));
    parts.extend(rule.children.then(|| "(may start programs)".to_owned()));
    parts.join(" ")
}

/// A value that serializes as a word.
fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn host() -> BTreeMap<String, String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let uname = rustix::system::uname();
    [
        ("system", uname.sysname().to_string_lossy().into_owned()),
        ("kernel", uname.release().to_string_lossy().into_owned()),
        ("architecture", uname.machine().to_string_lossy().into_owned()),
        ("boot-id", read("/proc/sys/kernel/random/boot_id")),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}
