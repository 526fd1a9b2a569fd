//! The file of a log: appended under a lock, one chain whoever writes.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use serde_json::{Map, Value, json};

use super::kept::Kept;
use super::line::hash;

/// What the first line is chained to.
pub(super) const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// The longest line that a log holds.
pub(super) const LONGEST_LINE: u64 = 16 << 20;
/// The log's name in the directory of a run.
pub(super) const NAME: &str = "log.jsonl";
/// The directory of outputs there.
pub(super) const OUTPUTS: &str = "outputs";

/// Where a chain stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// How many lines there are.
    pub lines: u64,
    /// The hash of the last one.
    pub hash: String,
}

pub(super) struct Chain {
    file: File,
    length: u64,
    head: Head,
    /// Where its end is noted besides.
    kept: Option<Kept>,
}

impl Chain {
    /// Opens the log of a run, and goes on at its end. What a crash left of a last line is cut off, and that is recorded.
    ///
    /// # Errors
    /// What the file system says; `InvalidData` if the log is not what it was when its end was noted in `kept`.
    pub(super) fn open(directory: &Path, kept: Option<&Path>) -> std::io::Result<Self> {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(directory.join(OUTPUTS))?;
        let path = directory.join(NAME);
        let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
        let kept = kept.map(Kept::open).transpose()?;
        let mut chain = Self { file, length: 0, head: Head { lines: 0, hash: GENESIS.to_owned() }, kept };
        chain.locked(|chain| {
            chain.catch_up()?;
            chain.compare()
        })?;
        Ok(chain)
    }

    /// Whether the end of the log was noted elsewhere.
    pub(super) fn is_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// Goes on with no log whose end is not where it was noted: the note would then tell of the shorter one.
    fn compare(&self) -> std::io::Result<()> {
        let Some(noted) = self.kept.as_ref().map(Kept::read).transpose()?.flatten() else { return Ok(()) };
        if noted.lines > self.head.lines || (noted.lines == self.head.lines && noted.hash != self.head.hash) {
            return Err(cut_off());
        }
        Ok(())
    }

    pub(super) fn head(&self) -> &Head {
        &self.head
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn sync(&self) -> std::io::Result<()> {
        self.file.sync_data()
    }

    fn locked<T>(&mut self, work: impl FnOnce(&mut Self) -> std::io::Result<T>) -> std::io::Result<T> {
        flock(&self.file, FlockOperation::LockExclusive)?;
        let done = work(self);
        flock(&self.file, FlockOperation::Unlock)?;
        done
    }

    /// Appends lines, all or none, and takes them out of `entries` if they are there. `make` is told the number of each.
    pub(super) fn append<E>(
        &mut self,
        entries: &mut Vec<E>,
        mut make: impl FnMut(&E, u64) -> std::io::Result<Map<String, Value>>,
    ) -> std::io::Result<()> {
        self.locked(|chain| {
            chain.catch_up()?;
            let (mut lines, mut head) = (Vec::new(), chain.head.clone());
            for entry in entries.iter() {
                let fields = make(entry, head.lines)?;
                link(&mut lines, &mut head, fields);
            }
            let end = head.clone();
            let done = chain.write(&lines, head);
            if chain.head == end {
                // They are there, even where that could not be noted.
                entries.clear();
            }
            done
        })
    }

    /// Writes to another file from now on.
    #[cfg(test)]
    pub(super) fn divert(&mut self, file: File) -> File {
        std::mem::replace(&mut self.file, file)
    }

    fn write(&mut self, lines: &[u8], head: Head) -> std::io::Result<()> {
        if let Err(error) = self.file.write_all(lines) {
            // A part of a line would be taken for a crash.
            let _ = self.file.set_len(self.length);
            return Err(error);
        }
        self.length += lines.len() as u64;
        self.head = head;
        // After the lines: a note that tells of lines which are not there would be taken for tampering.
        self.kept.as_ref().map_or(Ok(()), |kept| kept.write(&self.head))
    }

    /// Finds the end of the chain again if somebody else wrote.
    fn catch_up(&mut self) -> std::io::Result<()> {
        let length = self.file.metadata()?.len();
        if length == self.length {
            return Ok(());
        }
        if length < self.length {
            return Err(cut_off());
        }
        let mut end = self.last_line(length)?;
        if end.torn > 0 {
            self.length = length - end.torn;
            self.file.set_len(self.length)?;
            let torn = json!({"operation": "lifecycle", "principal": "tierbox", "outcome": {"status": "done"},
                "arguments": {"step": "torn-line-cut", "bytes": end.torn, "sha256": end.torn_hash}});
            let mut lines = Vec::new();
            let Value::Object(fields) = torn else { return Ok(()) };
            link(&mut lines, &mut end.head, fields);
            return self.write(&lines, end.head);
        }
        (self.length, self.head) = (length, end.head);
        Ok(())
    }

    fn last_line(&mut self, length: u64) -> std::io::Result<End> {
        let from = length.saturating_sub(2 * LONGEST_LINE);
        self.file.seek(SeekFrom::Start(from))?;
        let mut tail = Vec::new();
        Read::by_ref(&mut self.file).take(length - from).read_to_end(&mut tail)?;
        let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let torn = &tail[whole..];
        let head = if whole == 0 {
            Head { lines: 0, hash: GENESIS.to_owned() }
        } else {
            let start = tail[..whole - 1].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            let line = &tail[start..whole - 1];
            let seq = serde_json::from_slice::<Value>(line).ok().and_then(|line| line["seq"].as_u64());
            let seq = seq.ok_or_else(|| std::io::Error::other("the last line is not of this log"))?;
            Head { lines: seq + 1, hash: hash(line) }
        };
        Ok(End { head, torn: torn.len() as u64, torn_hash: hash(torn) })
    }
}

fn cut_off() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, "lines at its end were cut off or changed by somebody else")
}

struct End {
    head: Head,
    torn: u64,
    torn_hash: String,
}

/// Adds a line to a chain. The place stands first, so that a reader sees it at once.
fn link(lines: &mut Vec<u8>, head: &mut Head, fields: Map<String, Value>) {
    let start = lines.len();
    let place = format!("{{\"seq\":{},\"prev\":\"{}\"", head.lines, head.hash);
    lines.extend_from_slice(place.as_bytes());
    let rest = Value::Object(fields).to_string();
    lines.push(if rest == "{}" { b'}' } else { b',' });
    lines.extend_from_slice(&rest.as_bytes()[if rest == "{}" { 2 } else { 1 }..]);
    *head = Head { lines: head.lines + 1, hash: hash(&lines[start..]) };
    lines.push(b'\n');
}
