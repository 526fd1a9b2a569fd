//! The example of a program with a backend of its own does what `tierbox` does. This test is that program, run once more.

use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Failed, Trial};

#[path = "../examples/own_backend.rs"]
mod example;
mod support;

/// Set where this is to be the example.
const AS_PROGRAM: &str = "TIERBOX_TEST_AS_OWN_BACKEND";

fn main() -> ExitCode {
    if std::env::var_os(AS_PROGRAM).is_some() {
        return example::main();
    }
    let trial = Trial::test("unit::a_program_with_a_backend_of_its_own_does_the_same", does_the_same);
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit_code()
}

fn does_the_same() -> Result<(), Failed> {
    let state = tempfile::tempdir()?;
    if !support::able(state.path()) {
        return Ok(());
    }
    let output = Command::new(std::env::current_exe()?)
        .args(["run", "--quiet", "--", "/bin/echo", "hello"])
        .env(AS_PROGRAM, "1")
        .env("TIERBOX_STATE_DIR", state.path())
        .env("HOME", support::home(state.path()))
        .output()?;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\n", "{output:?}");
    let left = support::tierbox(state.path()).args(["ls", "--json"]).output()?;
    let left = String::from_utf8_lossy(&left.stdout).into_owned();
    assert!(left.starts_with("{\"environments\":[],\"foreign\":[]"), "{left}");
    Ok(())
}
