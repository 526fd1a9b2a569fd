//! A lease in the hands of whoever may change it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tierbox_core::{Error, ErrorKind, Hold, LeaseHandle, LeaseRecord, Resource, Result};

use crate::journal::{Journal, is_same_file};
use crate::lines::{Change, whole_length};
use crate::{lock, state, tree};

/// A lease that the caller may change.
///
/// While its hold is `process` the lock is held until the handle is dropped; dropping it without
/// [`remove`](Self::remove) leaves the lease to the reaper, as the death of the process would.
#[derive(Debug)]
pub struct Lease {
    journal: Journal,
    id: String,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    file: File,
    record: LeaseRecord,
}

impl Lease {
    pub(crate) fn held(journal: Journal, record: LeaseRecord, file: File) -> Self {
        Self { journal, id: record.id.clone(), held: Mutex::new(Held { file, record }) }
    }

    /// What it says now.
    pub fn snapshot(&self) -> LeaseRecord {
        self.lock().record.clone()
    }

    /// The journal it is in.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Changes who keeps it. The lock stays with this handle until it is dropped or [`release`](Self::release)d.
    ///
    /// # Errors
    /// What the file system says.
    pub fn set_hold(&self, hold: Hold) -> Result<()> {
        self.change(Change::Hold(hold))
    }

    /// Lets go of the lock while the handle is still in use, after the hold was changed to one that nobody has to live
    /// for. Others may then take the lease over.
    ///
    /// # Errors
    /// What the file system says.
    pub fn release(&self) -> Result<()> {
        lock::release(&self.lock().file)
    }

    /// Removes the lease and its directory: nothing that it names exists any more.
    ///
    /// # Errors
    /// What the file system says. The lease then still stands.
    pub fn remove(&self) -> Result<()> {
        let held = self.lock();
        let failed = |error| Error::io("remove lease", error).with_context("lease", &self.id);
        let directory = self.directory_path();
        tree::remove_tree(&directory).map_err(|error| failed(error).with_context("path", directory.display()))?;
        let path = self.journal.path_of(&self.id)?;
        if !is_same_file(&held.file, &path) {
            return Ok(());
        }
        std::fs::remove_file(path).map_err(failed)
    }

    fn directory_path(&self) -> PathBuf {
        self.journal.state().environments().join(&self.id)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: Change) -> Result<()> {
        let mut held = self.lock();
        let line = change.line().map_err(|error| Error::new(ErrorKind::Internal, "write lease", error.to_string()))?;
        append(&held.file, &line).map_err(|error| Error::io("write lease", error).with_context("lease", &self.id))?;
        change.apply(&mut held.record);
        Ok(())
    }
}

impl LeaseHandle for Lease {
    fn id(&self) -> &str {
        &self.id
    }

    fn directory(&self) -> Result<PathBuf> {
        let path = self.directory_path();
        state::make_directory(&path)?;
        Ok(path)
    }

    fn record(&self, resources: &[Resource]) -> Result<()> {
        self.change(Change::Resources(resources.to_vec()))
    }

    fn set_data(&self, data: serde_json::Value) -> Result<()> {
        self.change(Change::Data(data))
    }
}

/// Appends a line as one write. What an earlier, interrupted append left behind is cut off first.
fn append(file: &File, line: &[u8]) -> std::io::Result<()> {
    let end = whole_end(file)?;
    file.write_all_at(line, end).inspect_err(|_| {
        let _ = file.set_len(end);
    })
}

/// The length of the complete lines, to which the file is cut if it is longer.
fn whole_end(file: &File) -> std::io::Result<u64> {
    let length = file.metadata()?.len();
    let mut last = [0];
    if length == 0 || (file.read_exact_at(&mut last, length - 1).is_ok() && last == *b"\n") {
        return Ok(length);
    }
    let mut contents = vec![0; length as usize];
    file.read_exact_at(&mut contents, 0)?;
    let end = whole_length(&contents) as u64;
    file.set_len(end)?;
    Ok(end)
}
