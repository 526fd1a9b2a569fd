//! What a model passes to a tool.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use tierbox::{Error, ErrorKind, Result, base64};

/// Contents of a file: text, or base64 where it is none.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Contents {
    Text(String),
    Base64 { base64: String },
}

impl Contents {
    pub fn into_bytes(self) -> Result<Vec<u8>> {
        match self {
            Self::Text(text) => Ok(text.into_bytes()),
            Self::Base64 { base64 } => base64::decode(&base64)
                .ok_or_else(|| Error::new(ErrorKind::InvalidInput, "read arguments", "the base64 text is malformed")),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunCode {
    pub code: String,
    #[serde(default = "python")]
    pub runtime: String,
    #[serde(default, alias = "session_id")]
    pub session: Option<String>,
    #[serde(default)]
    pub files: Option<BTreeMap<String, Contents>>,
    #[serde(default, alias = "env_vars")]
    pub env: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub stdin: Option<String>,
    #[serde(default)]
    pub timeout_seconds: Option<f64>,
    #[serde(default)]
    pub cpu_seconds: Option<f64>,
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    #[serde(default, alias = "create_filesystem")]
    pub private_dir: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Exec {
    pub argv: Vec<String>,
    #[serde(default)]
    pub cwd: Option<String>,
    #[serde(default)]
    pub env: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub stdin: Option<String>,
    #[serde(default)]
    pub timeout_seconds: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GetFiles {
    pub task_hash: String,
    #[serde(default, alias = "filename")]
    pub name: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cleanup {
    #[serde(default, alias = "hours")]
    pub older_than_hours: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReadFile {
    pub path: String,
    #[serde(default)]
    pub max_bytes: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WriteFile {
    pub path: String,
    pub contents: Contents,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListDirectory {
    #[serde(default = "here")]
    pub path: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nothing {}

fn python() -> String {
    "python".to_owned()
}

fn here() -> String {
    ".".to_owned()
}

/// Reads a tool's arguments.
///
/// # Errors
/// `InvalidInput` naming what is wrong.
pub(crate) fn read<T: for<'a> Deserialize<'a>>(tool: &str, arguments: Value) -> Result<T> {
    serde_json::from_value(arguments).map_err(|error| {
        Error::new(ErrorKind::InvalidInput, "read arguments", format!("the arguments of {tool} are wrong: {error}"))
            .with_help("compare them with the tool's input schema")
    })
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn the_names_of_the_seed_are_understood() {
        let arguments = serde_json::json!({
            "code": "1", "runtime": "node", "session_id": "s", "env_vars": {"A": "b"}, "create_filesystem": false,
            "files": {"a": "text", "b": {"base64": "Zg=="}}
        });
        let read: RunCode = read("run_code", arguments).unwrap();
        assert_eq!((read.session.as_deref(), read.private_dir), (Some("s"), Some(false)));
        let error = super::read::<RunCode>("run_code", serde_json::json!({"cod": "1"})).unwrap_err();
        assert!(error.message().contains("cod"), "{error}");
    }
}
