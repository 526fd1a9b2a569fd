//! Serves a machine.

use std::process::ExitCode;

use super::machine::Machine;

/// Serves the machine until it ends.
pub fn run(machine: Machine) -> ExitCode {
    drop(machine);
    ExitCode::FAILURE
}
