//! The stable names of tasks and sessions.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::CodeTask;

/// The session that a task without one counts as.
const DEFAULT_SESSION: &str = "default";

/// The stable name of a task: the first 16 hex digits of the SHA-256 of its code, runtime, session and the hour, and of its
/// input files, variables and stdin where it has some, as JSON with sorted keys.
///
/// The same task run again within the hour has the same name, and so finds the same directory. The JSON is written as Python
/// does it, so that programs that made such names before make the same ones.
pub fn task_hash(task: &CodeTask, now: SystemTime) -> String {
    let hour = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / 3600;
    let mut parts: BTreeMap<&str, Value> = BTreeMap::from([
        ("code", json!(task.code)),
        ("runtime", json!(task.runtime)),
        ("session_id", json!(task.session.as_deref().unwrap_or(DEFAULT_SESSION))),
        ("timestamp", json!(hour)),
    ]);
    if !task.files.is_empty() {
        let files: BTreeMap<&String, String> = task.files.iter().map(|(name, contents)| (name, sha256(contents))).collect();
        parts.insert("files", json!(files));
    }
    if !task.env.is_empty() {
        parts.insert("env", json!(task.env));
    }
    if let Some(stdin) = &task.stdin {
        parts.insert("stdin", json!(sha256(stdin)));
    }
    let mut text = Vec::new();
    let mut writer = Serializer::with_formatter(&mut text, AsPython);
    // Writing texts and numbers to memory cannot fail.
    let _ = parts.serialize(&mut writer);
    short(&text)
}

/// JSON as Python writes it: a space behind commas and colons, and nothing but ASCII.
struct AsPython;

impl Formatter for AsPython {
    fn begin_object_key<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn write_string_fragment<W: io::Write + ?Sized>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        for letter in fragment.chars() {
            match letter {
                ' '..='~' => write!(writer, "{letter}")?,
                _ => letter.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(writer, "\\u{unit:04x}"))?,
            }
        }
        Ok(())
    }
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
        assert!(is_hash(&at(0)));
    }

    /// `sha256(json.dumps({"code": …, "runtime": …, "session_id": …, "timestamp": …}, sort_keys=True))`, worked out by Python.
    #[test]
    fn the_name_is_the_one_that_python_makes() {
        let at = UNIX_EPOCH + Duration::from_secs(7200);
        assert_eq!(task_hash(&CodeTask::new("python", "print(1)"), at), "043a11c90c1dd2bd");
        let odd = CodeTask::new("sh", "echo \"é\\ 😀\u{7f}\"\n\t\u{1}\u{8}\u{c}\r/").session("s é");
        assert_eq!(task_hash(&odd, at), "2e95096096de17b8");
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
