//! The contents of a lease's file: a record, then changes, one JSON value a line.

use serde::{Deserialize, Serialize};
use tierbox_core::{Hold, LeaseRecord, Resource};

/// The format's version, in the first line.
const VERSION: u32 = 1;

/// The most bytes a lease's file may have. A bigger one is not ours.
pub(crate) const MAX: u64 = 16 << 20;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct First<R, M> {
    tierbox_lease: u32,
    record: R,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    twin: bool,
    #[serde(default)]
    memo: M,
}

/// One later line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Change {
    /// These are about to be made.
    Resources(Vec<Resource>),
    /// What the backend needs to find the environment again.
    Data(serde_json::Value),
    /// Who keeps it.
    Hold(Hold),
}

impl Change {
    /// Applies the change to a record.
    pub(crate) fn apply(self, record: &mut LeaseRecord) {
        match self {
            Self::Resources(more) => record.resources.extend(more),
            Self::Data(data) => record.data = data,
            Self::Hold(hold) => record.hold = hold,
        }
    }

    /// The line, newline included.
    pub(crate) fn line(&self) -> serde_json::Result<Vec<u8>> {
        line(self)
    }
}

/// The first line, newline included.
pub(crate) fn first_line(record: &LeaseRecord, memo: &serde_json::Value, twin: bool) -> serde_json::Result<Vec<u8>> {
    line(&First { tierbox_lease: VERSION, record, twin, memo })
}

fn line(value: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

/// What a file says.
pub(crate) struct Whole {
    pub record: LeaseRecord,
    pub memo: serde_json::Value,
    pub twin: bool,
}

/// Reads a file's contents. A last line without a newline was cut off by a crash and is ignored; anything else that is not
/// as written by tierbox is an error, in words.
pub(crate) fn parse(contents: &[u8]) -> Result<Whole, String> {
    let whole = &contents[..whole_length(contents)];
    let mut lines = whole.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let first = lines.next().ok_or("it has no complete first line")?;
    let first: First<LeaseRecord, serde_json::Value> =
        serde_json::from_slice(first).map_err(|error| format!("line 1: {error}"))?;
    if first.tierbox_lease != VERSION {
        return Err(format!("it has format version {}, and this tierbox knows {VERSION}", first.tierbox_lease));
    }
    let mut record = first.record;
    for (index, line) in lines.enumerate() {
        let change: Change = serde_json::from_slice(line).map_err(|error| format!("line {}: {error}", index + 2))?;
        change.apply(&mut record);
    }
    Ok(Whole { record, memo: first.memo, twin: first.twin })
}

/// The length of all complete lines.
pub(crate) fn whole_length(contents: &[u8]) -> usize {
    contents.iter().rposition(|byte| *byte == b'\n').map_or(0, |position| position + 1)
}

#[cfg(test)]
mod unit {
    use std::time::SystemTime;

    use proptest::prelude::*;
    use tierbox_core::Owner;

    use super::*;

    fn record() -> LeaseRecord {
        LeaseRecord {
            id: "local-000000".into(),
            name: Some("box".into()),
            backend: "local".into(),
            profile: "local".into(),
            tier: "T0.H1.N2".into(),
            created: SystemTime::UNIX_EPOCH,
            expires: None,
            hold: Hold::Process,
            owner: Owner { pid: 1, start_ticks: 2, boot_id: "b".into(), pid_namespace: 3, uid: 0 },
            resources: Vec::new(),
            data: serde_json::Value::Null,
        }
    }

    fn resource(id: &str) -> Resource {
        Resource { kind: "directory".into(), id: id.into() }
    }

    #[test]
    fn changes_are_applied_in_order() {
        let mut file = first_line(&record(), &serde_json::Value::Null, false).unwrap();
        for change in [
            Change::Resources(vec![resource("/a")]),
            Change::Hold(Hold::Kept),
            Change::Resources(vec![resource("/b")]),
            Change::Data(serde_json::json!({"socket": "/s\n"})),
        ] {
            file.extend(change.line().unwrap());
        }
        let Whole { record: read, .. } = parse(&file).unwrap();
        assert_eq!(read.resources, [resource("/a"), resource("/b")]);
        assert_eq!((read.hold, &read.data["socket"]), (Hold::Kept, &serde_json::json!("/s\n")));
    }

    #[test]
    fn a_newer_format_is_named() {
        let text = String::from_utf8(first_line(&record(), &serde_json::Value::Null, false).unwrap())
            .unwrap()
            .replace("\"tierbox_lease\":1", "\"tierbox_lease\":2");
        assert!(parse(text.as_bytes()).err().unwrap().contains("version 2"));
    }

    proptest! {
        /// However much of the last append reached the file, everything before it stands.
        #[test]
        fn a_torn_append_costs_only_itself(count in 1usize..6, cut in 0usize..400) {
            let mut file = first_line(&record(), &serde_json::Value::Null, false).unwrap();
            let mut lengths = vec![file.len()];
            for number in 0..count {
                file.extend(Change::Resources(vec![resource(&format!("/r{number}"))]).line().unwrap());
                lengths.push(file.len());
            }
            let cut = file.len().saturating_sub(cut).max(lengths[0]);
            let Whole { record: read, .. } = parse(&file[..cut]).unwrap();
            let complete = lengths.iter().filter(|length| **length <= cut).count() - 1;
            prop_assert_eq!(read.resources.len(), complete);
        }

        #[test]
        fn hostile_bytes_get_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
            let mut file = first_line(&record(), &serde_json::Value::Null, false).unwrap();
            file.extend(&bytes);
            if let Ok(Whole { record: read, .. }) = parse(&file) {
                prop_assert_eq!(read.id, "local-000000");
            }
        }
    }
}
