//! Reads a log, and tells whether it is what was written.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};
use tierbox_core::{Error, ErrorKind, Result};

use super::file::{GENESIS, Head, LONGEST_LINE, NAME};
use super::kept;
use super::line::hash;

/// One line of a log.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Its number, from 0.
    pub seq: u64,
    /// What it says, as it was written.
    pub value: Value,
}

/// Something that should not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1, or 0 for the whole.
    pub line: u64,
    /// What is wrong.
    pub what: String,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Where the chain ends. Lines that were cut off at the end in whole leave no trace in the log itself: they are missed by
    /// what was noted elsewhere, [`Against`].
    pub head: Head,
    /// Bytes of a last line that was being written when its writer died. No sign of tampering.
    pub torn: u64,
    /// Whether the environment was ended in order.
    pub ended: bool,
    /// Commands that began and whose end is not recorded.
    pub unfinished: Vec<String>,
    /// Files that lines refer to.
    pub references: u64,
    /// What was changed after it was written. Empty for a log that is whole.
    pub problems: Vec<Problem>,
}

impl Standing {
    /// Whether nothing was changed.
    pub fn is_intact(&self) -> bool {
        self.problems.is_empty()
    }
}

/// How many bytes of a log are its beginning.
const BEGINNING: u64 = 64 << 10;

/// The most problems that are told.
const MOST_PROBLEMS: usize = 100;

/// Reads the log in the directory of a run.
///
/// # Errors
/// `NotFound`; `Io`; `InvalidInput` for what is no log.
pub fn read(directory: &Path) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    each(directory, |number, line| {
        let value: Value = serde_json::from_slice(line).map_err(|error| {
            Error::new(ErrorKind::InvalidInput, "read operation log", format!("line {number} is not JSON: {error}"))
        })?;
        records.push(Record { seq: value["seq"].as_u64().unwrap_or(number - 1), value });
        Ok(())
    })?;
    Ok(records)
}

/// The same, without the lines that nobody can read: for those who look at a log of which [`check`] tells what is wrong.
///
/// # Errors
/// `NotFound`; `Io`.
pub fn read_readable(directory: &Path) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    each(directory, |number, line| {
        let value = serde_json::from_slice(line).ok();
        records.extend(value.map(|value: Value| Record { seq: value["seq"].as_u64().unwrap_or(number - 1), value }));
        Ok(())
    })?;
    Ok(records)
}

/// The first line that is wanted, of those with which the log in the directory of a run begins. `None` also if there is no such log.
pub fn first(directory: &Path, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
    let file = File::open(directory.join(NAME)).ok()?;
    let lines = BufReader::new(file.take(BEGINNING)).split(b'\n').map_while(std::io::Result::ok);
    lines.filter_map(|line| serde_json::from_slice(&line).ok()).find(wanted)
}

/// What the end of a log is compared with.
#[derive(Debug, Clone, Copy, Default)]
pub struct Against<'a> {
    /// The file in which its writers note its end: that of [`OperationLog::open_kept`](super::OperationLog::open_kept).
    pub kept: Option<&'a Path>,
    /// The hash of some line that somebody wrote down: the log must still have that line.
    pub noted: Option<&'a str>,
}

/// Checks the log in the directory of a run: every line against the one before, every file against its line. Lines that are
/// missing at its end are not found: see [`check_against`].
///
/// # Errors
/// `NotFound`; `Io`. What is wrong with it is in the [`Standing`].
pub fn check(directory: &Path) -> Result<Standing> {
    check_against(directory, Against::default())
}

/// The same, with what is known of its end from elsewhere.
///
/// # Errors
/// As [`check`].
pub fn check_against(directory: &Path, against: Against<'_>) -> Result<Standing> {
    // Before the log, to which somebody may add at this moment.
    let kept = against.kept.map(kept::read).transpose();
    let mut standing = Standing {
        head: Head { lines: 0, hash: GENESIS.to_owned() },
        torn: 0,
        ended: false,
        unfinished: Vec::new(),
        references: 0,
        problems: Vec::new(),
    };
    let mut ends = Ends::new(against.noted);
    let torn = each(directory, |number, line| {
        let mut problems = Vec::new();
        match serde_json::from_slice::<Value>(line) {
            Ok(value) => {
                ends.promised |= number == 1 && value["arguments"]["end-is-noted"] == true;
                examine(&value, &mut standing, directory, &mut problems);
            }
            Err(error) => problems.push(format!("it is not JSON: {error}")),
        }
        standing.head = Head { lines: standing.head.lines + 1, hash: hash(line) };
        ends.pass(&standing.head, kept.as_ref().ok().and_then(|kept| kept.as_ref()?.as_ref()));
        let room = MOST_PROBLEMS.saturating_sub(standing.problems.len());
        standing.problems.extend(problems.into_iter().take(room).map(|what| Problem { line: number, what }));
        Ok(())
    })?;
    standing.torn = torn;
    let missing = match kept {
        Err(error) => Some(format!("the note of its end cannot be read: {error}")),
        Ok(kept) => ends.missing(&standing.head, against.kept, kept.flatten()),
    };
    let unnoted = ends.noted.map(|hash| format!("it has no line with the hash {hash}, which was noted elsewhere"));
    standing.problems.extend(missing.into_iter().chain(unnoted).map(|what| Problem { line: 0, what }));
    Ok(standing)
}

/// What is known of the end of a log from elsewhere, while it is read.
struct Ends<'a> {
    /// Whether the log says that its end is noted.
    promised: bool,
    /// The hash at the line where its end was noted.
    there: Option<String>,
    /// A hash that was noted elsewhere, until it is met.
    noted: Option<&'a str>,
}

impl<'a> Ends<'a> {
    fn new(noted: Option<&'a str>) -> Self {
        Self { promised: false, there: None, noted }
    }

    fn pass(&mut self, head: &Head, kept: Option<&Head>) {
        self.noted = self.noted.filter(|hash| *hash != head.hash);
        if kept.is_some_and(|kept| kept.lines == head.lines) {
            self.there = Some(head.hash.clone());
        }
    }

    fn missing(&self, head: &Head, path: Option<&Path>, kept: Option<Head>) -> Option<String> {
        let path = path?;
        let Some(kept) = kept else {
            return self.promised.then(|| format!("its end was noted in {}, and that is gone", path.display()));
        };
        if kept.lines > head.lines {
            return Some(format!("it had {} lines, and {} are missing at its end", kept.lines, kept.lines - head.lines));
        }
        let same = kept.lines == 0 || self.there.as_ref() == Some(&kept.hash);
        (!same).then(|| format!("its line {} is not the one that was noted", kept.lines))
    }
}

fn examine(value: &Value, standing: &mut Standing, directory: &Path, problems: &mut Vec<String>) {
    if value["seq"].as_u64() != Some(standing.head.lines) {
        problems.push(format!("it is numbered {}, and {} comes here", value["seq"], standing.head.lines));
    }
    if value["prev"].as_str() != Some(&standing.head.hash) {
        problems.push("it does not follow the line before: one of them was changed, removed or put in".to_owned());
    }
    let step = value["arguments"]["step"].as_str().filter(|_| value["operation"] == "lifecycle");
    standing.ended = matches!(step, Some("stopped" | "dropped")) || (standing.ended && step.is_none());
    if let (Some(exec), "exec" | "attach") = (value["exec"].as_str(), value["operation"].as_str().unwrap_or_default()) {
        standing.unfinished.retain(|open| open != exec);
        if value["outcome"]["status"] == "started" {
            standing.unfinished.push(exec.to_owned());
        }
    }
    for data in value["data"].as_array().into_iter().flatten() {
        if let (Some(file), Some(expected)) = (data["file"].as_str(), data["sha256"].as_str()) {
            standing.references += 1;
            match file_hash(directory, file) {
                Ok(found) if found == expected => (),
                Ok(_) => problems.push(format!("{file} is not what was written")),
                Err(why) => problems.push(format!("{file}: {why}")),
            }
        }
    }
}

fn file_hash(directory: &Path, name: &str) -> Result<String, String> {
    let plain = |name: &str| !name.is_empty() && !name.contains(['/', '\0']) && name != "..";
    if !name.strip_prefix("outputs/").is_some_and(plain) {
        return Err("no file of this log has such a name".to_owned());
    }
    let path = directory.join(name);
    // Opening a pipe would wait for its other end.
    if !path.symlink_metadata().map_err(|error| error.to_string())?.is_file() {
        return Err("it is not a file".to_owned());
    }
    let mut file = File::open(path).map_err(|error| error.to_string())?;
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; 64 << 10];
    loop {
        match file.read(&mut chunk).map_err(|error| error.to_string())? {
            0 => break,
            count => hasher.update(&chunk[..count]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Calls `visit` with each whole line and its number from 1; returns the bytes of one that has no end.
fn each(directory: &Path, mut visit: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<u64> {
    let path = directory.join(NAME);
    let failed = |error| Error::io("read operation log", error).with_context("path", path.display());
    let mut lines = BufReader::new(File::open(&path).map_err(failed)?);
    let (mut line, mut number) = (Vec::new(), 0);
    loop {
        line.clear();
        lines.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line).map_err(failed)?;
        match line.last() {
            Some(b'\n') => drop(line.pop()),
            // Longer than any that is written. It is not the last one, and so was not being written when its writer died.
            _ if line.len() as u64 == LONGEST_LINE => (),
            _ => return Ok(line.len() as u64),
        }
        number += 1;
        visit(number, &line)?;
    }
}
