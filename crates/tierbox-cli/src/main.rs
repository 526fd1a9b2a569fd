//! The `tierbox` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    tierbox_cli::main()
}
