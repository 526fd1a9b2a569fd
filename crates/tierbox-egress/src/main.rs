//! `tierbox-egress`: a gateway in a process of its own. Started by tierbox with the sockets of a sandbox, or by a person or an
//! init system with a configuration file, on a machine that is the gateway of others.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = tierbox_egress::run_if_asked() {
        return code;
    }
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let ended = match arguments.as_slice() {
        [path] => tierbox_egress::stand_alone(path.as_ref()),
        [word, address, directory, logs] if word == "--shared" => {
            let Some(address) = address.to_str().and_then(|address| address.parse().ok()) else {
                return fail("--shared takes an IPv4 address, the directory of environments and that of logs");
            };
            tierbox_egress::share(address, directory.as_ref(), logs.as_ref())
        }
        _ => return fail("usage: tierbox-egress CONFIGURATION.json | --shared ADDRESS DIRECTORY LOGS"),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string()),
    }
}

#[allow(clippy::print_stderr, reason = "a person reads it")]
fn fail(text: &str) -> ExitCode {
    eprintln!("{text}");
    ExitCode::FAILURE
}
