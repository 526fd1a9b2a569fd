//! An entry as a line of the log.

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
    if !entry.arguments.is_empty() {
        let clean = |(name, value): (&std::borrow::Cow<'_, str>, &Value)| {
            (name.clone().into_owned(), if name == "env" { variables(value, secrets) } else { redact(value, secrets) })
        };
        put("arguments", Value::Object(entry.arguments.iter().map(clean).collect()));
    }
    put("outcome", redact(&json!(entry.outcome), secrets));
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

/// The values of variables whose names say that they are secrets are never written, whoever set them.
fn variables(value: &Value, secrets: &Secrets) -> Value {
    let Some(variables) = value.as_object() else { return redact(value, secrets) };
    let clean = |(name, value): (&String, &Value)| {
        let value = if names_a_secret(name) { "***".into() } else { redact(value, secrets) };
        (secrets.redact_text(name).into_owned(), value)
    };
    Value::Object(variables.iter().take(MOST_ITEMS).map(clean).collect())
}

fn redact(value: &Value, secrets: &Secrets) -> Value {
    match value {
        Value::String(text) => shorten(&secrets.redact_text(text)).into(),
        Value::Array(items) => {
            let mut clean: Vec<Value> = items.iter().take(MOST_ITEMS).map(|item| redact(item, secrets)).collect();
            if items.len() > MOST_ITEMS {
                clean.push(json!({ "omitted": items.len() - MOST_ITEMS }));
            }
            Value::Array(clean)
        }
        Value::Object(map) => {
            let clean = |(key, value): (&String, &Value)| (secrets.redact_text(key).into_owned(), redact(value, secrets));
            Value::Object(map.iter().take(MOST_ITEMS).map(clean).collect())
        }
        other => other.clone(),
    }
}

fn shorten(text: &str) -> String {
    if text.len() <= LONGEST_TEXT {
        return text.to_owned();
    }
    let end = (0..=LONGEST_TEXT).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}[… {} bytes, sha256 {}]", &text[..end], text.len(), hash(text.as_bytes()))
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
}
