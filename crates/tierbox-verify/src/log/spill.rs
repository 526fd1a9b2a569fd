//! Long streams: a file of their own beside the log, written while they pass.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};
use tierbox_core::{AuditFile, AuditSpill, Masking, Secrets};

/// How many bytes long streams may still take in a run.
#[derive(Debug, Clone)]
pub(super) struct Room(Arc<AtomicU64>);

impl Room {
    /// What is left of a limit, beside what the directory of outputs holds already.
    pub(super) fn of(limit: u64, outputs: &Path) -> Self {
        let files = std::fs::read_dir(outputs).into_iter().flatten().flatten();
        let long = files.filter(|file| file.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()));
        let held: u64 = long.filter_map(|file| Some(file.metadata().ok()?.len())).sum();
        Self(Arc::new(AtomicU64::new(limit.saturating_sub(held))))
    }

    /// Takes as much of this as there is.
    fn take(&self, wanted: u64) -> u64 {
        let update = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left - left.min(wanted)));
        update.map_or(0, |left| left.min(wanted))
    }

    fn give_back(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// What the names of these files begin with.
const PREFIX: &str = "long-";

/// Where a stream is written.
pub(super) trait Sink: Write + Send + Sync {
    /// Takes away what is behind so many bytes.
    fn cut(&mut self, length: u64) -> std::io::Result<()>;
}

impl Sink for File {
    fn cut(&mut self, length: u64) -> std::io::Result<()> {
        self.set_len(length)
    }
}

/// A stream that is being kept.
pub(super) struct Spill {
    room: Room,
    path: PathBuf,
    name: String,
    /// `None` if it holds what was not counted, and cannot be cut.
    file: Option<Box<dyn Sink>>,
    /// `None` once a write has failed.
    masking: Option<Masking>,
    hasher: Sha256,
    /// Bytes in the file.
    length: u64,
    /// Bytes of the stream that are in the file or on their way there.
    taken: u64,
    /// Whether everything so far was taken.
    whole: bool,
    finished: bool,
}

impl Spill {
    /// Begins a file of a name of its own.
    pub(super) fn begin(outputs: &Path, stream: &str, secrets: &Secrets, room: &Room) -> Option<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        if room.0.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let moment = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{moment:x}-{}-{number}-{stream}", std::process::id());
        let path = outputs.join(&name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).ok()?;
        Some(Self {
            room: room.clone(),
            path,
            name,
            file: Some(Box::new(file)),
            masking: Some(secrets.masking()),
            hasher: Sha256::new(),
            length: 0,
            taken: 0,
            whole: true,
            finished: false,
        })
    }

    /// Writes to another sink from now on.
    #[cfg(test)]
    pub(super) fn divert(&mut self, other: impl FnOnce(Box<dyn Sink>) -> Box<dyn Sink>) {
        self.file = self.file.take().map(other);
    }

    /// Writes what is masked already. A disk that is full ends it, and the line then says how far it came.
    fn put(&mut self, clean: &[u8]) -> bool {
        let Some(file) = &mut self.file else { return false };
        if file.write_all(clean).is_err() {
            // A part of it may be there, which the hash does not know.
            if file.cut(self.length).is_err() {
                self.file = None;
            }
            return false;
        }
        self.hasher.update(clean);
        self.length += clean.len() as u64;
        true
    }

    /// Counts bytes as lost that were taken.
    fn lose(&mut self, bytes: u64) {
        self.taken -= bytes;
        self.whole = false;
        self.room.give_back(bytes);
    }
}

impl AuditSpill for Spill {
    fn write(&mut self, bytes: &[u8]) {
        if !self.whole {
            return;
        }
        let Some(mut masking) = self.masking.take() else { return };
        let taken = self.room.take(bytes.len() as u64);
        let part = &bytes[..usize::try_from(taken).unwrap_or(bytes.len())];
        let held = masking.held() as u64;
        self.taken += taken;
        if !self.put(&masking.push(part)) {
            return self.lose(held + taken);
        }
        self.masking = Some(masking);
        self.whole = taken == bytes.len() as u64;
    }

    fn finish(mut self: Box<Self>, complete: bool) -> Option<AuditFile> {
        if let Some(masking) = self.masking.take() {
            let held = masking.held() as u64;
            if !self.put(&masking.finish(complete && self.whole)) {
                self.lose(held);
            }
        }
        // What is in a file that could not be cut is not what was counted: nothing is better than that.
        self.file.as_ref()?;
        self.finished = true;
        let sha256 = super::line::hex(&std::mem::take(&mut self.hasher).finalize());
        Some(AuditFile { name: self.name.clone(), bytes: self.taken, sha256 })
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        if !self.finished {
            let _ = std::fs::remove_file(&self.path);
            self.room.give_back(self.taken);
        }
    }
}
