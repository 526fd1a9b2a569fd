//! What the facade notes in a lease, to serve an environment that another process started.

use tierbox_core::EnvironmentSpec;

/// What [`programs`] reads.
pub(crate) fn note(spec: &EnvironmentSpec) -> serde_json::Value {
    serde_json::json!({ "programs": spec.programs })
}

/// The programs that T1 allows the agent. None if the note does not tell, which allows nothing.
pub(crate) fn programs(memo: &serde_json::Value) -> Vec<String> {
    let listed = memo["programs"].as_array().into_iter().flatten();
    listed.filter_map(|program| program.as_str().map(str::to_owned)).collect()
}
