//! Sets a machine up.

use std::process::ExitCode;

/// Reads the set-up, makes the machine, hands it to the engine.
pub fn main() -> ExitCode {
    ExitCode::FAILURE
}
