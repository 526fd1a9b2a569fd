//! The `tierbox` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The gateway of a sandbox that outlives its start.
    #[cfg(target_os = "linux")]
    if let Some(code) = tierbox::egress::run_if_asked() {
        return code;
    }
    tierbox_cli::main()
}
