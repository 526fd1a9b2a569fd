//! The program: becomes the keeper and pid 1 of a container, or serves the machine it was started in.

pub mod container;
pub mod engine;
pub mod files;
pub mod identity;
pub mod machine;
pub mod sys;

use std::process::ExitCode;

/// Runs the program: reads [`Setup`](crate::setup::Setup) from descriptor 0, sets the machine up, serves it.
pub fn main() -> ExitCode {
    container::main()
}
