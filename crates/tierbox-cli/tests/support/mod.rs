//! What the tests of the command line share.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The program, with a state directory of its own and nobody's configuration.
pub fn tierbox(state: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tierbox"));
    command.env("TIERBOX_STATE_DIR", state).env("HOME", home(state)).env_remove("TIERBOX_LOG").env_remove("TIERBOX_PROFILE");
    command
}

/// A home that goes with the state directory: engines' tools make theirs if it does not exist (`vagrant` does when it lists its
/// plugins for `doctor`), wherever it is.
pub fn home(state: &Path) -> PathBuf {
    state.join("home")
}

/// Whether this host can start sandboxes; if not, a line goes into the list of skipped tests.
#[allow(dead_code, reason = "every test program uses a part")]
pub fn able(state: &Path) -> bool {
    let tried = tierbox(state).args(["run", "--", "/bin/true"]).output().unwrap();
    if tried.status.code() != Some(69) {
        return true;
    }
    skip("local", &String::from_utf8_lossy(&tried.stderr), "tierbox doctor");
    false
}

/// Writes a line into the list of skipped tests.
pub fn skip(engine: &str, reason: &str, install: &str) {
    let reason = reason.replace(['\n', '\t'], " ");
    let test = std::thread::current().name().unwrap_or("tierbox-cli").to_owned();
    if let Some(path) = std::env::var_os("TIERBOX_SKIP_FILE") {
        let mut file = std::fs::File::options().append(true).create(true).open(path).unwrap();
        file.write_all(format!("{engine}\t{test}\t{reason}\t{install}\n").as_bytes()).unwrap();
    }
}
