//! What the facade's tests share.

use std::io::Write;

use tempfile::TempDir;
use tierbox::{ErrorKind, Result, Running, Tierbox};

/// A client with a state directory of its own.
pub struct Fixture {
    pub state: TempDir,
    pub client: Tierbox,
}

pub fn fixture() -> Fixture {
    let state = TempDir::new().unwrap();
    let client = client(&state);
    Fixture { state, client }
}

/// A client of a state directory, as another process would have one.
pub fn client(state: &TempDir) -> Tierbox {
    Tierbox::builder().user_config(false).state_dir(state.path().join("tierbox")).build().unwrap()
}

impl Fixture {
    /// Nothing is left in the state directory.
    pub async fn assert_empty(&self) {
        let listing = self.client.list().await.unwrap();
        assert!(listing.environments.is_empty() && listing.foreign.is_empty(), "{listing:?}");
        let left: Vec<_> = std::fs::read_dir(self.state.path().join("tierbox/env")).unwrap().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// What was started; `None`, and a line in the list of skipped tests, where this host cannot start a sandbox at all.
pub fn started(result: Result<Running>) -> Option<Running> {
    match result {
        Err(error) if error.kind() == ErrorKind::HostUnable => {
            let test = std::thread::current().name().unwrap_or("tierbox").to_owned();
            let line = format!("local\t{test}\t{}\t{}\n", error.message(), error.help().unwrap_or("tierbox doctor"));
            if let Some(path) = std::env::var_os("TIERBOX_SKIP_FILE") {
                let mut file = std::fs::File::options().append(true).create(true).open(path).unwrap();
                file.write_all(line.as_bytes()).unwrap();
            }
            None
        }
        other => Some(other.unwrap()),
    }
}
