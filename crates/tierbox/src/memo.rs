//! What the facade notes in a lease, to serve an environment that another process started.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tierbox_core::{AgentSettings, CodeSettings, EnvironmentSpec, Hold, Secrets, Verify};

/// What outlives the process that started an environment. What is not noted allows nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Memo {
    /// The programs that T1 allows the agent.
    pub programs: Vec<String>,
    /// What else binds the agent.
    pub agent: AgentSettings,
    /// Code tasks.
    pub code: CodeSettings,
    /// Whether there is an operation log.
    pub log: bool,
    /// Whether the profile holds secrets, which this note does not.
    pub secrets: bool,
    /// When it is verified, as the profile says.
    pub verify: Option<Verify>,
    /// Notes of whoever started it.
    pub labels: BTreeMap<String, String>,
    /// What it was started from, without values of variables and what was copied in; `None` if secrets stand elsewhere in it, or
    /// nobody will find it again.
    pub spec: Option<Box<EnvironmentSpec>>,
}

impl Default for Memo {
    /// Code tasks have no runtime by default: a note that cannot be read must not widen anything.
    fn default() -> Self {
        let code = CodeSettings { runtimes: Vec::new(), ..CodeSettings::default() };
        let agent = AgentSettings { preset: tierbox_core::Preset::Prod, ..AgentSettings::default() };
        Self { programs: Vec::new(), agent, code, log: false, secrets: true, verify: None, labels: BTreeMap::new(), spec: None }
    }
}

impl Memo {
    pub fn of(spec: &EnvironmentSpec) -> Self {
        Self {
            programs: spec.programs.clone(),
            agent: spec.agent.clone(),
            code: spec.code.clone(),
            log: false,
            secrets: !spec.secrets.is_empty(),
            verify: spec.verify,
            labels: BTreeMap::new(),
            spec: noted(spec).map(Box::new),
        }
    }

    /// As a lease keeps it.
    pub fn to_value(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    /// What a lease says.
    pub fn from_value(value: &Value) -> Self {
        serde_json::from_value(value.clone()).unwrap_or_default()
    }
}

/// What verification and attestation need of it later.
fn noted(spec: &EnvironmentSpec) -> Option<EnvironmentSpec> {
    if spec.hold == Hold::Process {
        return None;
    }
    let mut spec = spec.clone();
    spec.env.values_mut().for_each(String::clear);
    spec.files.clear();
    let secrets = std::mem::take(&mut spec.secrets);
    (!holds(&secrets, &serde_json::to_value(&spec).ok()?)).then_some(spec)
}

/// Whether a secret stands in a document.
fn holds(secrets: &Secrets, document: &Value) -> bool {
    let text = |text: &str| secrets.redact_text(text) != text;
    match document {
        Value::String(string) => text(string),
        Value::Array(items) => items.iter().any(|item| holds(secrets, item)),
        Value::Object(members) => members.iter().any(|(name, value)| text(name) || holds(secrets, value)),
        Value::Number(number) => text(&number.to_string()),
        Value::Bool(_) | Value::Null => false,
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn what_is_noted_of_a_profile_holds_no_values_and_has_its_hash() {
        let mut spec = EnvironmentSpec::new("b", "T0.H1.N2".parse().unwrap());
        spec.env.insert("TOKEN".into(), "hunter2".into());
        assert!(Memo::of(&spec).spec.is_none(), "nobody will find it again");
        spec.hold = Hold::Kept;
        let value = Memo::of(&spec).to_value();
        assert!(!value.to_string().contains("hunter2"));
        let noted = Memo::from_value(&value).spec.unwrap();
        assert_eq!(crate::runs::profile_hash(&noted), crate::runs::profile_hash(&spec));
        // A secret is a variable's value most of the time, and then it is not noted anyway.
        spec.secrets.add("hunter2");
        let noted = Memo::of(&spec);
        assert!(noted.secrets && noted.spec.is_some() && !noted.to_value().to_string().contains("hunter2"));
        spec.settings = serde_json::json!({ "registry": { "login": ["robot:hunter2\n"] } });
        assert!(Memo::of(&spec).spec.is_none());
    }

    #[test]
    fn a_note_that_says_nothing_allows_nothing() {
        for value in [Value::Null, serde_json::json!({ "programs": 7 })] {
            let memo = Memo::from_value(&value);
            assert!(memo.programs.is_empty() && memo.code.runtimes.is_empty());
            assert_eq!(memo.agent.preset, tierbox_core::Preset::Prod);
        }
    }
}
