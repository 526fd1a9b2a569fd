//! A terminal where a sandbox has none: the engine's own way for people.

use std::path::Path;

use tierbox::{Error, ErrorKind, Result, Running};

use crate::args::ShellArgs;

const TRIED: &str = "open shell";

/// Runs the command by which a person gets into the primary machine. It goes past tierbox, and so past tier and approvals.
///
/// # Errors
/// `PolicyDenied` for the agent, `Unsupported` for JSON and for another user, `MissingEngine` naming the program that is not here.
pub(crate) async fn open(running: &Running, args: &ShellArgs, json: bool) -> Result<u8> {
    if !args.as_harness {
        let message =
            "this sandbox has no terminals; a login by the engine's own command is bound by no tooling tier and no approval";
        return Err(Error::new(ErrorKind::PolicyDenied, TRIED, message).with_help("say --as-harness, or use `tierbox exec`"));
    }
    if json {
        return Err(Error::new(ErrorKind::Unsupported, TRIED, "what the engine's own command prints is no JSON"));
    }
    if args.user.is_some() {
        return Err(Error::new(ErrorKind::Unsupported, TRIED, "the engine's own command logs in as the sandbox's user alone"));
    }
    let connection = running.connection(running.sandbox().name())?;
    let Some((program, arguments)) = connection.argv.split_first() else {
        return Err(Error::new(ErrorKind::Internal, TRIED, "the backend gives no command"));
    };
    let searched = std::env::var_os("PATH").unwrap_or_default();
    let there = |name: &str| std::env::split_paths(&searched).any(|directory| is_program(&directory.join(name)));
    if let Some(missing) = [program].into_iter().chain(&connection.needs).find(|name| !there(name)) {
        let message = format!("{missing} is not installed here, which `{}` needs", connection.argv.join(" "));
        return Err(Error::new(ErrorKind::MissingEngine, TRIED, message).with_help("install it, or use `tierbox exec`"));
    }
    tracing::info!(target: "tierbox::op", id = running.id(), program = program.as_str(), "logging in as the harness");
    let status = tokio::process::Command::new(program).args(arguments).status().await;
    let status = status.map_err(|error| Error::io(TRIED, error))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}
