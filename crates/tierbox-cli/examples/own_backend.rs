//! A `tierbox` that carries a backend of its own: everything the command line does works with it.

use std::process::ExitCode;

fn main() -> ExitCode {
    let registry = tierbox::Registry::linked();
    // registry.register(std::sync::Arc::new(my_backend::MyBackend::new()));
    tierbox_cli::main_with(registry)
}
