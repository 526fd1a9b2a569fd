//! The operation log: one file of JSON lines per run, each chained to the one before by its hash.
//!
//! A directory per run (0700) holds `log.jsonl` (0600), `outputs/` for what is too big for a line, and the attestation.
//! Entries are written by a thread of the log's own, in batches. Several processes may write to one log: each batch is
//! appended under a lock, and goes on with the chain as it then is.

mod check;
mod file;
mod kept;
mod line;
mod spill;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use serde_json::json;
use tierbox_core::{Audit, AuditEntry, AuditOperation, AuditOutcome, AuditSpill, Error, ErrorKind, Principal, Result, Secrets};

pub use check::{Against, Problem, Record, Standing, check, check_against, first, read, read_readable};
pub use file::Head;
use file::{Chain, NAME, OUTPUTS};
pub(crate) use line::hash;
use spill::{Room, Spill};

/// Bytes that wait for the disk before whoever records waits too.
const WAITING: usize = 64 << 20;

/// How much a log may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    /// Bytes of the log and its outputs together, without long streams; 1 GiB by default. Beyond it nothing more is done in the
    /// environment.
    pub bytes: u64,
    /// Bytes of streams that are too long to be held in memory (over 1 MiB), together; 1 GiB by default. Beyond it the rest is counted,
    /// and the line says how much is kept: what a command prints must not be able to end its environment.
    pub long: u64,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { bytes: 1 << 30, long: 1 << 30 }
    }
}

/// The operation log of one run.
pub struct OperationLog {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    directory: PathBuf,
    secrets: Secrets,
    withholds: bool,
    room: Room,
}

struct Shared {
    queue: Mutex<Queue>,
    /// Something to write, or the end.
    filled: Condvar,
    /// Something was written.
    drained: Condvar,
}

struct Queue {
    entries: Vec<AuditEntry>,
    bytes: usize,
    writing: bool,
    over: bool,
    broken: Option<Error>,
    /// Entries for which there was no room in memory while nothing could be written.
    lost: u64,
    head: Head,
    sync: bool,
}

impl Shared {
    /// An empty queue behind a log that ends so.
    fn new(head: Head) -> Arc<Self> {
        let queue =
            Queue { entries: Vec::new(), bytes: 0, writing: false, over: false, broken: None, lost: 0, head, sync: false };
        Arc::new(Self { queue: Mutex::new(queue), filled: Condvar::new(), drained: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OperationLog {
    /// Opens the log in the directory of a run, which is made if need be, and goes on at its end.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(directory: &Path, secrets: Secrets, limits: LogLimits) -> Result<Self> {
        Self::begin(directory, None, secrets, limits)
    }

    /// The same, and after every line the log's end is noted in a file elsewhere (`kept`), by which [`check_against`] finds lines
    /// that were cut off.
    ///
    /// # Errors
    /// As [`open`](Self::open); also if the log does not end where it was noted.
    pub fn open_kept(directory: &Path, kept: &Path, secrets: Secrets, limits: LogLimits) -> Result<Self> {
        Self::begin(directory, Some(kept), secrets, limits)
    }

    fn begin(directory: &Path, kept: Option<&Path>, secrets: Secrets, limits: LogLimits) -> Result<Self> {
        let failed = |error| Error::io("open operation log", error).with_context("path", directory.join(NAME).display());
        let mut chain = Chain::open(directory, kept).map_err(failed)?;
        let is_new = chain.head().lines == 0;
        if is_new {
            let header = json!({"operation": "lifecycle", "principal": "tierbox", "outcome": {"status": "done"},
                "time": crate::clock::text(std::time::SystemTime::now()),
                "arguments": {"step": "log", "format": "tierbox-operation-log", "version": 1,
                    "tierbox": env!("CARGO_PKG_VERSION"), "end-is-noted": chain.is_kept()}});
            let make = |_: &(), _| Ok(header.as_object().cloned().unwrap_or_default());
            chain.append(&mut vec![()], make).map_err(failed)?;
        }
        let shared = Shared::new(chain.head().clone());
        let known = secrets.clone();
        let writer = Writer {
            shared: shared.clone(),
            chain,
            secrets,
            limits,
            outputs: directory.join(OUTPUTS),
            written: 0,
            unwritten: Vec::new(),
        };
        let builder = std::thread::Builder::new().name("tierbox-log".into());
        let thread = builder.spawn(move || writer.run()).map_err(failed)?;
        let room = Room::of(limits.long, &directory.join(OUTPUTS));
        Ok(Self { shared, thread: Some(thread), directory: directory.to_owned(), secrets: known, withholds: false, room })
    }

    /// Writes no argument and no contents from now on: for a process that found an environment again, and does not know which
    /// values in it are secrets.
    #[must_use]
    pub fn withholding(mut self) -> Self {
        self.withholds = true;
        self
    }

    /// The directory of the run.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Waits until all that was recorded is written and, with `sync`, on the disk. Returns where the chain then stands.
    ///
    /// # Errors
    /// Why it cannot be written.
    pub fn flush(&self, sync: bool) -> Result<Head> {
        let mut queue = self.shared.lock();
        queue.sync |= sync;
        self.shared.filled.notify_one();
        while (!queue.entries.is_empty() || queue.writing || queue.sync) && queue.broken.is_none() {
            queue = self.shared.drained.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        match &queue.broken {
            Some(error) => Err(same(error)),
            None => Ok(queue.head.clone()),
        }
    }
}

impl Audit for OperationLog {
    fn record(&self, mut entry: AuditEntry) {
        if self.withholds {
            let own = entry.principal == Principal::Tierbox;
            let hides = |key: &str| match entry.operation {
                // Of what a gateway decided, a name alone may hold what somebody inside chose.
                AuditOperation::Egress => matches!(key, "name" | "rule"),
                // What a check of the log goes by.
                AuditOperation::Lifecycle if own => !matches!(key, "step" | "sha256"),
                _ => true,
            };
            let hidden = entry.arguments.iter_mut().filter(|(key, _)| hides(key));
            hidden.for_each(|(_, value)| *value = "withheld".into());
            entry.data.iter_mut().for_each(|data| data.kept = Default::default());
            if let AuditOutcome::Failed { message, .. } = &mut entry.outcome {
                *message = "withheld".to_owned();
            }
        }
        let mut queue = self.shared.lock();
        // Memory stays bounded where the disk is slower than the sandboxes.
        while queue.bytes > WAITING && queue.broken.is_none() {
            queue = self.shared.drained.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if queue.broken.is_some() && queue.bytes > WAITING {
            queue.lost += 1;
            return;
        }
        queue.bytes += size(&entry);
        queue.entries.push(entry);
        self.shared.filled.notify_one();
    }

    fn spill(&self, stream: &str) -> Option<Box<dyn AuditSpill>> {
        if self.withholds {
            return None;
        }
        let spill = Spill::begin(&self.directory.join(OUTPUTS), stream, &self.secrets, &self.room)?;
        Some(Box::new(spill))
    }

    fn check(&self) -> Result<()> {
        self.shared.lock().broken.as_ref().map_or(Ok(()), |error| Err(same(error)))
    }
}

impl Drop for OperationLog {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.filled.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for OperationLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OperationLog").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// An error that is told again.
fn same(error: &Error) -> Error {
    let again = Error::new(error.kind(), error.operation().to_owned(), error.message().to_owned());
    again.with_help("nothing is done in a sandbox whose operations cannot be recorded: make room, and start it anew")
}

/// About how much memory an entry takes.
fn size(entry: &AuditEntry) -> usize {
    let data = entry.data.iter().map(|data| data.kept.len()).sum::<usize>();
    let arguments = entry.arguments.iter().map(|(name, value)| name.len() + line::weight(value)).sum::<usize>();
    let message = if let AuditOutcome::Failed { message, .. } = &entry.outcome { message.len() } else { 0 };
    data + arguments + message + 512
}

struct Writer {
    shared: Arc<Shared>,
    chain: Chain,
    secrets: Secrets,
    limits: LogLimits,
    outputs: PathBuf,
    /// Bytes of outputs that this process wrote.
    written: u64,
    /// What could not be written, for the next try: later entries must not be chained where these belong.
    unwritten: Vec<AuditEntry>,
}

impl Writer {
    fn run(mut self) {
        loop {
            let mut queue = self.shared.lock();
            while queue.entries.is_empty() && !queue.over && !queue.sync {
                queue = self.shared.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            let is_last = queue.entries.is_empty() && queue.over;
            if is_last && self.unwritten.is_empty() {
                return;
            }
            let entries = std::mem::take(&mut queue.entries);
            let sync = std::mem::take(&mut queue.sync);
            let lost = std::mem::take(&mut queue.lost);
            queue.bytes = 0;
            queue.writing = true;
            drop(queue);
            let done = self.turn(entries, lost, sync);
            let mut queue = self.shared.lock();
            queue.writing = false;
            queue.head = self.chain.head().clone();
            queue.bytes += self.unwritten.iter().map(size).sum::<usize>();
            if let Err(error) = done {
                queue.broken.get_or_insert(error);
            }
            self.shared.drained.notify_all();
            if is_last {
                return;
            }
        }
    }

    /// Writes what could not be written before and what came since, and how many entries there was no room for.
    fn turn(&mut self, entries: Vec<AuditEntry>, lost: u64, sync: bool) -> Result<()> {
        let mut all = std::mem::take(&mut self.unwritten);
        all.extend(entries);
        if lost > 0 {
            let environment = all.last().map_or_else(String::new, |entry| entry.environment.clone());
            let entry = AuditEntry::new(environment, Principal::Tierbox, AuditOperation::Lifecycle);
            all.push(entry.argument("step", "entries-lost").argument("entries", lost));
        }
        let done = self.write(&mut all, sync);
        self.unwritten = all;
        done
    }

    fn write(&mut self, entries: &mut Vec<AuditEntry>, sync: bool) -> Result<()> {
        let failed = |error| Error::io("write operation log", error);
        if !entries.is_empty() {
            let Self { chain, secrets, outputs, written, .. } = self;
            let make = |entry: &AuditEntry, seq| {
                let prepared = line::prepare(entry, seq, secrets);
                for reference in &prepared.references {
                    *written += line::write(reference, outputs)?;
                }
                Ok(prepared.fields)
            };
            chain.append(entries, make).map_err(failed)?;
        }
        if sync {
            self.chain.sync().map_err(failed)?;
        }
        if self.chain.length() + self.written > self.limits.bytes {
            let message = format!("it holds more than its {} bytes", self.limits.bytes);
            return Err(Error::new(ErrorKind::LimitReached, "write operation log", message));
        }
        Ok(())
    }
}

#[cfg(test)]
mod unit;
