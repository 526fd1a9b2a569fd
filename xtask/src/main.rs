//! Tasks for people who work on tierbox. `cargo xtask` lists them.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this program talks to a terminal")]

mod engines;
mod package;
mod readme;
mod skips;
mod test;
mod tree;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask TASK

  test [ARGS]   run the tests: with cargo-nextest where it is installed, else with cargo test. Closes with a list of
                the engines that were missing, the tests skipped for them, and the command that installs each.
                ARGS go to the runner. --slow runs the tests marked slow:: too. --engine NAME (may be repeated) installs,
                starts and afterwards stops an engine by tests/engines/NAME.sh; it asks before it installs, unless --yes
  package       check that what is published builds alone: packs every package, and builds the packed ones outside the
                workspace, with the supervisor made from its own package
  readme        run every command of README.md and of the book (docs/book) that stands in an `sh` block, in order
  tree          check that a build without the local backend needs no Linux system-call crate
";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let task = args.next();
    let rest: Vec<String> = args.collect();
    let outcome = match task.as_deref() {
        Some("test") => test::run(rest),
        Some("package") => package::run(),
        Some("readme") => readme::run(),
        Some("tree") => tree::run(),
        None | Some("help" | "-h" | "--help") => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Some(other) => Err(format!("{other:?} is not a task\n\n{HELP}")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Where cargo builds.
fn target() -> std::path::PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), std::path::PathBuf::from)
}

/// The workspace's root, whatever directory the task is run from. Asked when it runs: checkouts that share a target
/// directory share this program.
fn root() -> &'static std::path::Path {
    static ROOT: std::sync::OnceLock<std::path::PathBuf> = std::sync::OnceLock::new();
    ROOT.get_or_init(|| {
        let own = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        std::path::PathBuf::from(own).join("..")
    })
}

/// A cargo command in the workspace's root, with the cargo that runs this task.
fn cargo() -> std::process::Command {
    let mut command = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a command to its end, and names it if it fails.
fn check(command: &mut std::process::Command) -> Result<(), String> {
    let status = command.status().map_err(|error| format!("{command:?} could not be started: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?} failed: {status}")) }
}
