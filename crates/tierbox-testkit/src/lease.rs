//! A lease for environments that a test starts without the journal.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::SystemTime;

use tierbox_core::{Hold, LeaseHandle, LeaseRecord, Owner, Resource, Result};

/// A lease in memory, with a temporary directory of its own.
pub(crate) struct MemoryLease {
    directory: tempfile::TempDir,
    record: Mutex<LeaseRecord>,
    id: String,
}

impl MemoryLease {
    /// A new lease of this process for a backend.
    pub(crate) fn new(backend: &str, profile: &str, tier: String) -> std::io::Result<Self> {
        let id = format!("test-{:x}", crate::subject::number());
        let record = LeaseRecord {
            id: id.clone(),
            name: None,
            backend: backend.to_owned(),
            profile: profile.to_owned(),
            tier,
            created: SystemTime::now(),
            expires: None,
            hold: Hold::Process,
            owner: Owner { pid: std::process::id(), start_ticks: 0, boot_id: String::new(), pid_namespace: 0, uid: 0 },
            resources: Vec::new(),
            data: serde_json::Value::Null,
        };
        Ok(Self { directory: tempfile::Builder::new().prefix("tierbox-test-").tempdir()?, record: Mutex::new(record), id })
    }

    /// The record as it stands.
    pub(crate) fn record(&self) -> LeaseRecord {
        self.record.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut LeaseRecord)) {
        change(&mut self.record.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}

impl LeaseHandle for MemoryLease {
    fn id(&self) -> &str {
        &self.id
    }

    fn directory(&self) -> Result<PathBuf> {
        Ok(self.directory.path().to_owned())
    }

    fn record(&self, resources: &[Resource]) -> Result<()> {
        self.change(|record| record.resources.extend_from_slice(resources));
        Ok(())
    }

    fn set_data(&self, data: serde_json::Value) -> Result<()> {
        self.change(|record| record.data = data);
        Ok(())
    }
}
