//! The stable names of tasks and sessions.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::CodeTask;

/// The session that a task without one counts as.
const DEFAULT_SESSION: &str = "default";

/// The stable name of a task: the first 16 hex digits of the SHA-256 of its code, runtime, session and the hour, and of its
/// input files and variables where it has some, as JSON with sorted keys.
///
/// The same task run again within the hour has the same name, and so finds the same directory.
pub fn task_hash(task: &CodeTask, now: SystemTime) -> String {
    let hour = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / 3600;
    let mut parts = json!({
        "code": task.code,
        "runtime": task.runtime,
        "session_id": task.session.as_deref().unwrap_or(DEFAULT_SESSION),
        "hour": hour,
    });
    if !task.files.is_empty() {
        let files: BTreeMap<&String, String> = task.files.iter().map(|(name, contents)| (name, sha256(contents))).collect();
        parts["files"] = json!(files);
    }
    if !task.env.is_empty() {
        parts["env"] = json!(task.env);
    }
    if let Some(stdin) = &task.stdin {
        parts["stdin"] = json!(sha256(stdin));
    }
    // An object's keys are sorted unless a feature of the library is turned on; a map of our own is sorted for sure.
    let sorted: BTreeMap<String, serde_json::Value> =
        parts.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    short(json!(sorted).to_string().as_bytes())
}

/// The first 16 hex digits of a SHA-256.
pub(crate) fn short(bytes: &[u8]) -> String {
    let mut hash = sha256(bytes);
    hash.truncate(16);
    hash
}

/// A SHA-256 in hex.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Whether a text is a task's name.
pub(crate) fn is_hash(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod unit {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_name_is_stable_within_the_hour() {
        let task = CodeTask::new("python", "print(1)");
        let at = |seconds| task_hash(&task, UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(7200), at(10799));
        assert_ne!(at(7199), at(7200));
        // Worked out by another program: sha256 of {"code": …, "hour": 2, "runtime": …, "session_id": "default"}, compact.
        assert_eq!(at(7200), short(br#"{"code":"print(1)","hour":2,"runtime":"python","session_id":"default"}"#));
        assert!(is_hash(&at(0)));
    }

    #[test]
    fn everything_that_makes_another_task_makes_another_name() {
        let task = CodeTask::new("sh", "cat x");
        let variants = [
            task.clone(),
            CodeTask::new("bash", "cat x"),
            CodeTask::new("sh", "cat y"),
            task.clone().session("s"),
            task.clone().file("x", "1"),
            task.clone().file("x", "2"),
            task.clone().env("A", "1"),
            task.clone().stdin("1"),
        ];
        let names: std::collections::BTreeSet<String> = variants.iter().map(|task| task_hash(task, UNIX_EPOCH)).collect();
        assert_eq!(names.len(), variants.len());
    }
}
