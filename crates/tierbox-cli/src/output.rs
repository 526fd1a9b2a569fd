//! What the program itself prints.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use tierbox::{Error, ErrorKind};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

use crate::args::Global;
use crate::exit;
use crate::interrupt::Failure;
use crate::neutral;

/// Whether output got lost that somebody may still be waiting for.
static LOST: AtomicBool = AtomicBool::new(false);

/// Prints a line to stdout. A reader that went away is no failure of ours.
pub(crate) fn line(text: impl AsRef<str>) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", text.as_ref()).and_then(|()| out.flush()).unwrap_or_else(|error| lost(&error));
}

/// Prints bytes to stdout as they are.
pub(crate) fn raw(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).unwrap_or_else(|error| lost(&error));
}

/// Notes that output could not be written: a full disk is a failure, a reader that went away is none.
pub(crate) fn lost(error: &std::io::Error) {
    if error.kind() != std::io::ErrorKind::BrokenPipe && !LOST.swap(true, Ordering::Relaxed) {
        to_stderr(&format!("{} write output: {error}\n", style("error:", "1;31")));
    }
}

/// The exit status of a command that ended so, if what it printed was not lost.
pub(crate) fn settled(status: u8) -> u8 {
    if status == 0 && LOST.load(Ordering::Relaxed) { exit::of_error(ErrorKind::Io) } else { status }
}

/// Prints a result as one JSON value.
pub(crate) fn json(value: &impl Serialize) {
    line(serde_json::to_string(value).unwrap_or_else(|error| format!("{{\"error\":{:?}}}", error.to_string())));
}

/// Writes to stderr, not by a macro, which would panic: that nobody reads it, or that its disk is full, must neither stop a sandbox nor
/// what ends it.
fn to_stderr(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Prints a remark of the program's to stderr.
pub(crate) fn remark(text: &str) {
    to_stderr(&format!("tierbox: {}\n", neutral::text(text)));
}

/// Asks a question on the terminal. Only a clear yes is a yes.
pub(crate) fn ask(question: &str) -> Result<bool, Error> {
    if !std::io::stdin().is_terminal() {
        return Err(Error::new(ErrorKind::InvalidInput, "ask", format!("{question} There is no terminal to answer on"))
            .with_help("pass --yes to go ahead"));
    }
    to_stderr(&format!("{question} [y/N] "));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(|error| Error::io("ask", error))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Prints a failure and returns the exit status.
pub(crate) fn failure(failure: &Failure, json: bool) -> u8 {
    match failure {
        Failure::Interrupted(signal) => {
            let status = 128 + signal;
            if json {
                let error = Error::new(ErrorKind::Cancelled, "run command", format!("interrupted by signal {signal}"));
                to_stderr(&format!("{}\n", serde_json::json!({ "error": describe(&error), "status": status })));
            }
            status
        }
        Failure::Error(error) => {
            let status = exit::of_error(error.kind());
            if json {
                to_stderr(&format!("{}\n", serde_json::json!({ "error": describe(error), "status": status })));
            } else {
                to_stderr(&format!("{} {}\n", style("error:", "1;31"), neutral::text(&error.to_string())));
            }
            status
        }
    }
}

/// Prints what clap says about the command line and returns the exit status.
pub(crate) fn usage(error: &clap::Error) -> u8 {
    if !error.use_stderr() {
        let _ = error.print();
        return 0;
    }
    if std::env::args_os().take_while(|arg| arg != "--").any(|arg| arg == "--json") {
        let text = error.to_string();
        let message = text.trim_start_matches("error: ").trim_end();
        let error = Error::new(ErrorKind::InvalidInput, "read command line", message);
        return failure(&Failure::Error(error), true);
    }
    let _ = error.print();
    64
}

/// An error as data.
pub(crate) fn describe(error: &Error) -> serde_json::Value {
    let context: serde_json::Map<String, serde_json::Value> =
        error.context().map(|(key, value)| (key.to_owned(), value.into())).collect();
    serde_json::json!({
        "kind": error.kind().as_str(),
        "operation": error.operation(),
        "backend": error.backend(),
        "message": error.message(),
        "help": error.help(),
        "retryable": error.is_retryable(),
        "context": context,
    })
}

/// A word in colour, where stderr is a terminal that wants colours.
fn style(word: &str, code: &str) -> String {
    if colours() { format!("\x1b[{code}m{word}\x1b[0m") } else { word.to_owned() }
}

fn colours() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && std::io::stderr().is_terminal()
}

/// Starts the log, if somebody wants one.
pub(crate) fn start_log(global: &Global) {
    let stated = std::env::var("TIERBOX_LOG").ok().filter(|text| !text.is_empty());
    let filter = match (stated, global.verbose) {
        (Some(filter), _) => filter,
        (None, 0) => return,
        (None, 1) => "tierbox=info".to_owned(),
        (None, _) => "tierbox=debug,tierbox_local=debug,tierbox_guest=debug,tierbox_lease=debug".to_owned(),
    };
    // Targets and levels, which is all that is needed: filters on spans and fields would bring a regex engine.
    let targets = filter.parse::<Targets>().unwrap_or_else(|error| {
        remark(&format!("TIERBOX_LOG is not understood, so that nothing is logged: {error}"));
        Targets::new()
    });
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours()).log_internal_errors(false);
    tracing_subscriber::registry().with(lines.with_filter(targets)).init();
}
