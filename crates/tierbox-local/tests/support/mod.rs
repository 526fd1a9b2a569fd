//! What the tests of this crate share.

use std::io::Write;
use std::sync::Arc;

use tierbox_core::{Backend, Environment, EnvironmentSpec, Hold, Result, Silent};
use tierbox_lease::{Journal, Lease, NewLease};
use tierbox_local::LocalBackend;

/// A state directory of its own.
pub struct State {
    _dir: tempfile::TempDir,
    journal: Journal,
}

impl State {
    /// An empty one.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::at(&dir.path().join("state")).unwrap();
        Self { _dir: dir, journal }
    }

    /// A lease in it.
    pub fn lease(&self, hold: Hold) -> Arc<Lease> {
        let lease = self.journal.create(NewLease::new("local", "test", "T0.H1.N2")).unwrap();
        if hold != Hold::Process {
            lease.set_hold(hold).unwrap();
        }
        Arc::new(lease)
    }
}

/// A specification with nothing special in it.
pub fn spec(tier: &str) -> EnvironmentSpec {
    EnvironmentSpec {
        env: [("FROM_PROFILE".to_owned(), "yes".to_owned())].into(),
        ..EnvironmentSpec::new("local", tier.parse().unwrap())
    }
}

/// Starts an environment.
pub async fn start(spec: &EnvironmentSpec, lease: &Arc<Lease>) -> Result<Box<dyn Environment>> {
    LocalBackend::new().start(spec, lease.clone(), &Silent).await
}

/// Appends a skip to the file that `TIERBOX_SKIP_FILE` names.
pub fn skip(engine: &str, test: &str, reason: &str, install: &str) {
    let Some(path) = std::env::var_os("TIERBOX_SKIP_FILE") else { return };
    let plain = |text: &str| text.replace(['\t', '\n'], " ");
    let line = format!("{}\t{}\t{}\t{}\n", plain(engine), plain(test), plain(reason), plain(install));
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(line.as_bytes()).unwrap();
}
