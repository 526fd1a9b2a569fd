//! The decisions, one JSON value a line.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use tierbox_core::{Decision, Error, ErrorKind, Result, Verdict};

/// The most bytes of one sandbox's log. Beyond it nothing more is allowed, which its last line says.
const LARGEST: u64 = 64 << 20;

/// The longest line. A name has at most 255 bytes, each of at most 6 in JSON, and a rule not more.
const LONGEST_LINE: u64 = 8 << 10;

/// A log that is written.
#[derive(Debug)]
pub struct Log {
    file: Mutex<(File, u64)>,
    largest: u64,
    broken: AtomicBool,
}

impl Log {
    /// Opens a log, to go on at its end. Only its owner may read it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, LARGEST)
    }

    fn open_with(path: &Path, largest: u64) -> Result<Self> {
        let failed = |error| Error::io("open egress log", error).with_context("path", path.display());
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        Ok(Self { file: Mutex::new((file, length)), largest, broken: AtomicBool::new(false) })
    }

    /// How many bytes it has.
    pub(crate) fn length(&self) -> u64 {
        self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner).1
    }

    /// Writes a decision. False, now and from then on, if it cannot be written: nothing may then be allowed.
    pub fn write(&self, decision: &Decision) -> bool {
        if self.broken.load(Ordering::Acquire) {
            return false;
        }
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(line) = line(decision) else { return self.give_up("a decision has no JSON form") };
        // Room for the last line is kept.
        if file.1 + line.len() as u64 + LONGEST_LINE > self.largest {
            if !self.broken.load(Ordering::Acquire) {
                let _ = append(&mut file, &last(decision));
            }
            return self.give_up("it is full");
        }
        append(&mut file, &line).map_or_else(|error| self.give_up(&error.to_string()), |()| true)
    }

    fn give_up(&self, why: &str) -> bool {
        if !self.broken.swap(true, Ordering::AcqRel) {
            tracing::warn!("the egress log cannot be written ({why}): nothing more is allowed");
        }
        false
    }
}

fn line(decision: &Decision) -> Option<Vec<u8>> {
    let mut line = serde_json::to_vec(decision).ok()?;
    line.push(b'\n');
    Some(line)
}

/// What stands at the end of a log that is full: that it is.
fn last(decision: &Decision) -> Vec<u8> {
    let verdict = Verdict::Refused;
    let full = Decision { name: String::new(), address: None, verdict, rule: Decision::LOG_FULL.to_owned(), ..decision.clone() };
    line(&full).unwrap_or_default()
}

/// In one piece, so that a reader sees whole lines.
fn append(file: &mut (File, u64), line: &[u8]) -> std::io::Result<()> {
    file.0.write_all(line)?;
    file.1 += line.len() as u64;
    Ok(())
}

/// Reads a log, oldest first. A last line that is still being written is left out.
///
/// # Errors
/// `NotFound`; `Io`; `InvalidInput` naming the line that is no decision.
pub fn read(path: &Path) -> Result<Vec<Decision>> {
    let failed = |error| Error::io("read egress log", error).with_context("path", path.display());
    let mut lines = BufReader::new(File::open(path).map_err(failed)?);
    let mut decisions = Vec::new();
    loop {
        let mut line = Vec::new();
        lines.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line).map_err(failed)?;
        if line.last() != Some(&b'\n') && (line.len() as u64) < LONGEST_LINE {
            return Ok(decisions);
        }
        let decision = serde_json::from_slice(&line).map_err(|error| {
            let message = format!("line {} is no decision: {error}", decisions.len() + 1);
            Error::new(ErrorKind::InvalidInput, "read egress log", message).with_context("path", path.display())
        })?;
        decisions.push(decision);
    }
}

#[cfg(test)]
mod unit {
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, SystemTime};

    use tierbox_core::Protocol;

    use super::*;

    fn decision(id: u64) -> Decision {
        Decision {
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(id),
            sandbox: "local-000000".into(),
            machine: None,
            id,
            protocol: Protocol::Tls,
            name: "\u{1}".repeat(255),
            address: Some("203.0.113.1".parse().unwrap()),
            port: 443,
            verdict: Verdict::Allowed,
            rule: "*.example.org".into(),
            sent: 0,
            received: 0,
            verification: false,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = Log::open(&path).unwrap();
        assert!(log.write(&decision(1)));
        assert!(Log::open(&path).unwrap().write(&decision(2)));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"time\":").unwrap();
        assert_eq!(read(&path).unwrap(), [decision(1), decision(2)]);
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"\n").unwrap();
        assert!(read(&path).unwrap_err().message().contains("line 3"));
    }

    #[test]
    fn a_log_that_is_full_says_so_and_allows_nothing_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let largest = 3 * LONGEST_LINE;
        let log = Log::open_with(&path, largest).unwrap();
        let written = (1..).take_while(|id| log.write(&decision(*id))).count();
        assert!(!log.write(&decision(9_999)));
        let decisions = read(&path).unwrap();
        assert_eq!(decisions.len(), written + 1);
        assert!(written > 0 && decisions[..written].iter().all(|one| !one.is_log_full()));
        assert!(decisions[written].is_log_full() && decisions[written].name.is_empty());
        assert!(std::fs::metadata(&path).unwrap().len() <= largest);
        // Nor does who opens it again.
        assert!(!Log::open_with(&path, largest).unwrap().write(&decision(1)));
        assert!(std::fs::metadata(&path).unwrap().len() <= largest);
    }

    #[test]
    fn a_log_that_cannot_be_written_stays_broken() {
        let log = Log::open(Path::new("/dev/full")).unwrap();
        assert!(!log.write(&decision(1)) && !log.write(&decision(2)));
    }
}
