//! `tierbox-supervisor`: the program inside a sandbox. See the library for what it does.
#![deny(missing_docs)]

fn main() -> std::process::ExitCode {
    tierbox_supervisor::runtime::main()
}
