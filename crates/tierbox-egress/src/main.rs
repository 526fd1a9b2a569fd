//! `tierbox-egress`: a gateway in a process of its own. Started by tierbox with the sockets of a sandbox, or by a person or an
//! init system with a configuration file, on a machine that is the gateway of others.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = tierbox_egress::run_if_asked() {
        return code;
    }
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [path] = arguments.as_slice() else {
        return fail("usage: tierbox-egress CONFIGURATION.json");
    };
    match tierbox_egress::stand_alone(path.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string()),
    }
}

#[allow(clippy::print_stderr, reason = "a person reads it")]
fn fail(text: &str) -> ExitCode {
    eprintln!("{text}");
    ExitCode::FAILURE
}
