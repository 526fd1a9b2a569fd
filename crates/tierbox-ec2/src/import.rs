//! Profiles from the configuration file of another sandbox on EC2 instances: one for each of its environments.

use serde_json::{Map, Value, json};
use tierbox_core::{Error, ErrorKind, Result};

use crate::call::shown;
use crate::settings::Settings;

/// Its keys, and ours.
const KEYS: &[(&str, &str)] = &[
    ("instance_id", "instance-id"),
    ("region", "region"),
    ("aws_profile", "profile"),
    ("base_sandbox_dir", "base-dir"),
    ("max_execution_time", "max-execution-seconds"),
    ("max_memory_mb", "max-memory-mib"),
    ("cleanup_after_hours", "cleanup-after-hours"),
];
/// Its secrets, and the variables that a profile refers to in their place.
const SECRETS: &[(&str, &str, &str)] = &[
    ("access_key_id", "access-key-id", "AWS_ACCESS_KEY_ID"),
    ("secret_access_key", "secret-access-key", "AWS_SECRET_ACCESS_KEY"),
    ("session_token", "session-token", "AWS_SESSION_TOKEN"),
];

/// A profile that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The environment's name, fit for a profile's.
    pub name: String,
    /// The profile, as TOML. No secret is in it: where the file had keys, it refers to AWS's usual variables.
    pub text: String,
    /// Whether it refers to such variables.
    pub needs_keys: bool,
}

fn bad(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, "import configuration", message)
}

/// Makes a profile of each environment of a `config.json`. Keys that begin with `_` are comments.
///
/// # Errors
/// `InvalidInput` naming the environment and the key that cannot be.
pub fn import(text: &str) -> Result<Vec<Imported>> {
    let file: Value = serde_json::from_str(text).map_err(|error| bad(format!("it is no JSON: {error}")))?;
    let environments = file.as_object().ok_or_else(|| bad("it is no table of environments"))?;
    let real = environments.iter().filter(|(name, _)| !name.starts_with('_'));
    let all: Result<Vec<Imported>> = real.map(|(name, value)| one(name, value)).collect();
    let all = all?;
    if all.is_empty() { Err(bad("it holds no environment")) } else { Ok(all) }
}

fn one(name: &str, value: &Value) -> Result<Imported> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let starts = name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    if !starts || name.len() > 60 || !name.bytes().all(legal) {
        return Err(bad(format!("{:?} cannot be the name of a profile", shown(name))));
    }
    let table = value.as_object().ok_or_else(|| bad(format!("{name} is no table")))?;
    let (mut settings, mut runtimes, mut needs_keys) = (Map::new(), None, false);
    settings.insert("mode".to_owned(), json!("attach"));
    let with_profile = table.get("aws_profile").is_some_and(|value| value.as_str().is_some_and(|text| !text.is_empty()));
    for (key, value) in table.iter().filter(|(key, value)| !key.starts_with('_') && !value.is_null() && **value != json!("")) {
        if let Some((_, ours)) = KEYS.iter().find(|(theirs, _)| theirs == key) {
            settings.insert((*ours).to_owned(), value.clone());
        } else if let Some((_, ours, variable)) = SECRETS.iter().find(|(theirs, ..)| theirs == key) {
            // Theirs prefers the profile.
            if !with_profile {
                settings.insert((*ours).to_owned(), json!(format!("env:{variable}")));
                needs_keys = true;
            }
        } else if key == "allowed_runtimes" {
            runtimes = Some(words(name, value)?);
        } else {
            return Err(
                bad(format!("{name}: {:?} is no key that is known", shown(key))).with_help("keys that begin with _ are comments")
            );
        }
    }
    Settings::from_value(&Value::Object(settings.clone())).map_err(|error| bad(format!("{name}: {}", error.message())))?;
    Ok(Imported { name: name.to_owned(), text: written(name, &settings, runtimes.as_deref()), needs_keys })
}

fn words(name: &str, value: &Value) -> Result<Vec<String>> {
    let all =
        value.as_array().map(|all| all.iter().map(|each| each.as_str().map(str::to_owned)).collect::<Option<Vec<String>>>());
    let plain =
        |word: &String| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte));
    match all.flatten() {
        Some(all) if !all.is_empty() && all.iter().all(plain) => Ok(all),
        _ => Err(bad(format!("{name}: allowed_runtimes is no list of names"))),
    }
}

/// As TOML: what was read are names, numbers and paths, which JSON and TOML write alike.
fn written(name: &str, settings: &Map<String, Value>, runtimes: Option<&[String]>) -> String {
    let mut text = format!(
        "# Imported by `tierbox config import`: the environment {name}.\n\nextends = \"ec2-default\"\n\
         description = \"The environment {name}, imported\"\n"
    );
    if let Some(runtimes) = runtimes {
        text.push_str(&format!("\n[code]\nruntimes = {}\n", json!(runtimes)));
    }
    text.push_str("\n[ec2]\n");
    for (key, value) in settings {
        text.push_str(&format!("{key} = {value}\n"));
    }
    text
}

#[cfg(test)]
mod unit {
    use super::*;

    const FILE: &str = r#"{
        "_comment": "ignored",
        "default": {"instance_id": "i-1", "region": "us-east-1", "aws_profile": "default", "access_key_id": "AKIAHIDDEN",
                    "base_sandbox_dir": "/opt/sandbox", "max_execution_time": 300, "max_memory_mb": 1024,
                    "cleanup_after_hours": 24, "allowed_runtimes": ["python3", "bash"], "_note": "x"},
        "data-science": {"instance_id": "i-2", "region": "us-east-1", "access_key_id": "AKIAHIDDEN",
                         "secret_access_key": "hunter2", "session_token": "hunter3", "max_execution_time": 1800}
    }"#;

    #[test]
    fn each_environment_becomes_a_profile_without_its_secrets() {
        let all = import(FILE).unwrap();
        let names: Vec<&str> = all.iter().map(|each| each.name.as_str()).collect();
        assert_eq!(names, ["data-science", "default"]);
        for each in &all {
            assert!(!each.text.contains("hunter") && !each.text.contains("AKIA"), "{}", each.text);
        }
        assert!(all[0].needs_keys && all[0].text.contains("session-token = \"env:AWS_SESSION_TOKEN\""), "{}", all[0].text);
        assert!(!all[1].needs_keys && all[1].text.contains("profile = \"default\""), "{}", all[1].text);
        assert!(all[1].text.contains("runtimes = [\"python3\",\"bash\"]"), "{}", all[1].text);
        assert!(all[1].text.contains("max-memory-mib = 1024\n"), "{}", all[1].text);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (file, named) in [
            ("[]", "environments"),
            ("{}", "no environment"),
            ("{\"_a\": {}}", "no environment"),
            ("{\"../x\": {}}", "name"),
            ("{\"a\": {\"max_memory_mb\": 64}}", "max-memory-mib"),
            ("{\"a\": {\"max_execution_time\": \"long\"}}", "a:"),
            ("{\"a\": {\"instanceid\": \"i-1\"}}", "instanceid"),
            ("{\"a\": {\"allowed_runtimes\": [\"$(id)\"]}}", "allowed_runtimes"),
            ("{\"a\": {\"base_sandbox_dir\": \"/\"}}", "base-dir"),
        ] {
            let error = import(file).unwrap_err();
            assert!(error.message().contains(named), "{file}: {error}");
        }
    }
}
