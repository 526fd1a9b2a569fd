//! What is noted of a verification for those who find an environment again.

use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tierbox_core::Result;
use tierbox_lease::Journal;
use tierbox_verify::Verified;

/// Its name in the environment's directory.
const NAME: &str = "verification.json";

/// A verification, and when it or an earlier one was under way.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Noted {
    pub verified: Verified,
    pub probed: Vec<(SystemTime, SystemTime)>,
}

impl Noted {
    /// Keeps it in the directory of the environment's lease, as long as the environment.
    pub(crate) fn keep(&self, directory: &Path) -> Result<()> {
        let text = serde_json::to_vec(self).unwrap_or_default();
        crate::runs::write(directory, NAME, &text).map(drop)
    }

    /// What was noted of an environment; `None` if nothing was, or it cannot be read.
    pub(crate) fn of(journal: &Journal, id: &str) -> Option<Self> {
        let directory = journal.state().environments().join(id);
        let mut noted: Self = serde_json::from_slice(&read(&directory.join(NAME))?).ok()?;
        // What it says of itself does not count: its probes do.
        noted.verified.verification.settle();
        Some(noted)
    }
}

fn read(path: &Path) -> Option<Vec<u8>> {
    path.symlink_metadata().ok()?.is_file().then(|| std::fs::read(path).ok())?
}
