//! An entry as a line of the log.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tierbox_core::{AuditData, AuditEntry, AuditFile, Secrets, names_a_secret};

use crate::clock;

/// Bytes of a stream that stand in the line itself. More go into a file beside the log.
const INLINE: usize = 4096;
/// The longest text of an argument, and the most items of a list. What is longer is cut, and says so.
const LONGEST_TEXT: usize = 64 << 10;
const MOST_ITEMS: usize = 1024;
/// The most bytes of an entry's arguments and outcome together. In JSON a byte may take six, which is less than the longest line.
const LONGEST_ENTRY: usize = 1 << 20;
/// What a value takes at least, and a text that is cut: its length and hash.
const A_VALUE: usize = 16;
const A_CUT: usize = 128;
/// Stands for what was left out of a map.
const OMITTED: &str = "…omitted";

/// A hash in hex.
pub(crate) fn hash(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Bytes in hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Something that goes into a file of its own.
pub(super) struct Reference {
    /// Its name in the directory of outputs.
    pub name: String,
    pub bytes: Vec<u8>,
}

/// An entry without its place in the chain, and what it refers to.
pub(super) struct Prepared {
    pub fields: Map<String, Value>,
    pub references: Vec<Reference>,
}

/// Makes a line's fields of an entry. No secret gets through.
pub(super) fn prepare(entry: &AuditEntry, seq: u64, secrets: &Secrets) -> Prepared {
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| drop(fields.insert(name.to_owned(), value));
    put("time", clock::text(entry.time).into());
    put("environment", entry.environment.as_str().into());
    if let Some(machine) = &entry.machine {
        put("machine", machine.as_str().into());
    }
    put("principal", json!(entry.principal));
    put("operation", json!(entry.operation));
    if let Some(exec) = entry.exec {
        put("exec", exec.to_string().into());
    }
    let mut clean = Clean { secrets, room: LONGEST_ENTRY };
    // Before the arguments, which may leave no room.
    put("outcome", clean.value(&json!(entry.outcome)));
    if !entry.arguments.is_empty() {
        put("arguments", Value::Object(clean.arguments(entry)));
    }
    if let Some(duration) = entry.duration {
        put("duration_us", u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).into());
    }
    let mut references = Vec::new();
    if !entry.data.is_empty() {
        let data = entry.data.iter().map(|data| stream(data, seq, secrets, &mut references));
        put("data", Value::Array(data.collect()));
    }
    Prepared { fields, references }
}

/// Values without secrets, and no more of them than a line has room for.
struct Clean<'a> {
    secrets: &'a Secrets,
    /// Bytes that are left.
    room: usize,
}

impl Clean<'_> {
    fn arguments(&mut self, entry: &AuditEntry) -> Map<String, Value> {
        let mut arguments: Vec<(&str, &Value)> = entry.arguments.iter().map(|(name, value)| (name.as_ref(), value)).collect();
        // One that is too big must not take the others' room.
        arguments.sort_by_cached_key(|(_, value)| weight(value));
        let clean = self.map(arguments.into_iter(), |clean, name, value| match value.as_object() {
            Some(variables) if name == "env" => Value::Object(clean.variables(variables)),
            _ => clean.value(value),
        });
        BTreeMap::from_iter(clean).into_iter().collect()
    }

    /// The values of variables whose names say that they are secrets are never written, whoever set them.
    fn variables(&mut self, variables: &Map<String, Value>) -> Map<String, Value> {
        let variables = variables.iter().map(|(name, value)| (name.as_str(), value));
        self.map(variables, |clean, name, value| if names_a_secret(name) { "***".into() } else { clean.value(value) })
    }

    fn value(&mut self, value: &Value) -> Value {
        self.take(A_VALUE);
        match value {
            Value::String(text) => self.text(text).into(),
            Value::Array(items) => {
                let mut clean = Vec::new();
                for item in items.iter().take(MOST_ITEMS) {
                    if self.room == 0 {
                        break;
                    }
                    clean.push(self.value(item));
                }
                if clean.len() < items.len() {
                    clean.push(json!({ "omitted": items.len() - clean.len() }));
                }
                Value::Array(clean)
            }
            Value::Object(map) => Value::Object(
                self.map(map.iter().map(|(key, value)| (key.as_str(), value)), |clean, _, value| clean.value(value)),
            ),
            other => other.clone(),
        }
    }

    fn map<'v>(
        &mut self,
        entries: impl ExactSizeIterator<Item = (&'v str, &'v Value)>,
        mut make: impl FnMut(&mut Self, &str, &Value) -> Value,
    ) -> Map<String, Value> {
        let (all, mut clean) = (entries.len(), Map::new());
        let mut shown = 0;
        for (key, value) in entries.take(MOST_ITEMS) {
            if self.room == 0 {
                break;
            }
            let key_shown = self.text(key);
            let value = make(self, key, value);
            clean.insert(key_shown, value);
            shown += 1;
        }
        if shown < all {
            clean.insert(OMITTED.to_owned(), (all - shown).into());
        }
        clean
    }

    fn text(&mut self, text: &str) -> String {
        let clean = self.secrets.redact_text(text);
        let most = LONGEST_TEXT.min(self.room);
        if clean.len() <= most {
            self.take(clean.len());
            return clean.into_owned();
        }
        let end = (0..=most).rev().find(|at| clean.is_char_boundary(*at)).unwrap_or(0);
        self.take(end + A_CUT);
        format!("{}[… {} bytes, sha256 {}]", &clean[..end], clean.len(), hash(clean.as_bytes()))
    }

    fn take(&mut self, bytes: usize) {
        self.room = self.room.saturating_sub(bytes);
    }
}

/// About how much memory a value takes.
pub(super) fn weight(value: &Value) -> usize {
    let held = match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(weight).sum(),
        Value::Object(map) => map.iter().map(|(key, value)| key.len() + weight(value)).sum(),
        _ => 0,
    };
    size_of::<Value>() + held
}

fn stream(data: &AuditData, seq: u64, secrets: &Secrets, references: &mut Vec<Reference>) -> Value {
    if let Some(file) = &data.file {
        return long(data, file);
    }
    let complete = data.kept.len() as u64 == data.total;
    // What was cut off may have begun a secret.
    let spare = if complete { 0 } else { secrets.begun(&data.kept) };
    let clean = secrets.redact(&data.kept[..data.kept.len() - spare]);
    let mut shown = json!({ "stream": data.stream, "bytes": data.total });
    if !complete {
        shown["kept"] = data.kept.len().into();
    }
    match std::str::from_utf8(&clean) {
        _ if clean.is_empty() => (),
        Ok(text) if clean.len() <= INLINE => shown["text"] = text.into(),
        _ => {
            let name = format!("{seq:08}-{}", data.stream);
            shown["file"] = format!("outputs/{name}").into();
            shown["sha256"] = hash(&clean).into();
            references.push(Reference { name, bytes: clean.into_owned() });
        }
    }
    shown
}

/// A stream that is in a file already.
fn long(data: &AuditData, file: &AuditFile) -> Value {
    let mut shown = json!({ "stream": data.stream, "bytes": data.total });
    if file.bytes < data.total {
        shown["kept"] = file.bytes.into();
    }
    shown["file"] = format!("outputs/{}", file.name).into();
    shown["sha256"] = file.sha256.as_str().into();
    shown
}

/// Writes what an entry refers to.
pub(super) fn write(reference: &Reference, directory: &Path) -> std::io::Result<u64> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let path = directory.join(&reference.name);
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(&reference.bytes)?;
    Ok(reference.bytes.len() as u64)
}

#[cfg(test)]
mod unit {
    use tierbox_core::{AuditOperation, Principal};

    use super::*;

    fn secrets() -> Secrets {
        let mut secrets = Secrets::new();
        secrets.add("hunter2");
        secrets
    }

    fn shown(entry: &AuditEntry) -> (String, Vec<Reference>) {
        let prepared = prepare(entry, 7, &secrets());
        (Value::Object(prepared.fields).to_string(), prepared.references)
    }

    fn entry() -> AuditEntry {
        AuditEntry::new("e", Principal::Harness, AuditOperation::Exec)
    }

    #[test]
    fn no_secret_gets_through() {
        let entry = entry()
            .argument("argv", vec!["login", "--with=hunter2"])
            .argument("env", json!({"API_TOKEN": "other", "PLAIN": "a hunter2", "hunter2": "x"}))
            .data(AuditData::new("stdout", 9, "a hunter2"))
            .data(AuditData::new("stderr", 100_000, [b"hunter2 ".repeat(2000), b"hunte".to_vec()].concat()));
        let (line, references) = shown(&entry);
        assert!(!line.contains("hunter2") && !line.contains("other"), "{line}");
        let text = String::from_utf8_lossy(&references[0].bytes);
        assert!(!text.contains("hunte") && text.starts_with("*** *** "), "{}", &text[text.len() - 30..]);
    }

    #[test]
    fn a_secret_at_the_cut_is_left_out() {
        for cut in 0..12 {
            let kept = &b"aaaahunter2bb"[..cut];
            let (line, _) = shown(&entry().data(AuditData::new("stdout", 100, kept.to_vec())));
            assert!(!line.contains("hu"), "{line}");
        }
    }

    #[test]
    fn big_output_is_a_reference() {
        let (line, references) = shown(&entry().data(AuditData::new("stdout", 9000, vec![b'x'; 5000])));
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&line["data"][0]["file"], &line["data"][0]["kept"]), (&"outputs/00000007-stdout".into(), &5000.into()));
        assert_eq!(line["data"][0]["sha256"], hash(&references[0].bytes));
        let binary = shown(&entry().data(AuditData::new("stdout", 2, vec![0xff, 0])));
        assert_eq!(binary.1.len(), 1);
    }

    #[test]
    fn long_arguments_are_cut() {
        let (line, _) = shown(&entry().argument("argv", vec!["é".repeat(100_000)]).argument("list", vec!["x"; 2000]));
        assert!(line.len() < 100_000 && line.contains("200000 bytes") && line.contains("omitted"), "{}", line.len());
    }

    #[test]
    fn no_entry_makes_a_line_that_nobody_reads() {
        let control = "\u{1}".repeat(LONGEST_TEXT);
        let many: serde_json::Map<String, Value> = (0..MOST_ITEMS).map(|at| (format!("{at}{control}"), json!(at))).collect();
        let nested = json!(vec![vec!["x"; MOST_ITEMS]; MOST_ITEMS]);
        let failed = tierbox_core::Error::new(tierbox_core::ErrorKind::Internal, "x", control.repeat(2));
        for value in [json!(vec![control.as_str(); MOST_ITEMS]), json!(many), nested] {
            for name in ["argv", "env"] {
                let entry = entry().argument("before", 1).argument(name, value.clone()).argument("z", "after");
                let (line, _) = shown(&entry.outcome(tierbox_core::AuditOutcome::failed(&failed)));
                assert!((line.len() as u64) < super::super::file::LONGEST_LINE / 2, "{name}: {}", line.len());
                let line: Value = serde_json::from_str(&line).unwrap();
                assert_eq!(line["arguments"]["before"], 1);
                assert_eq!(line["outcome"]["status"], "failed");
                assert!(line["arguments"].to_string().contains("omitted"), "{name}");
            }
        }
    }
}
