//! One command, from its request to its exit status.

use std::time::Duration;

use serde_json::json;
use tierbox::{
    ByteReader, Captured, Completed, Error, ErrorKind, ExecHandle, ExecRequest, ExecResult, OutputLimit, Result, Stdin, base64,
};
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};

use crate::actor::Actor;
use crate::args::CommandArgs;
use crate::parse::{self, EnvArg};
use crate::streams::{self, InputEnd, Target};
use crate::terminal::{self, RawMode};
use crate::{exit, output};

/// Makes the request that the command line describes.
pub(crate) fn request(args: CommandArgs, env: Vec<EnvArg>) -> ExecRequest {
    let mut request = ExecRequest::new(parse::argv(args.argv));
    request.cwd = args.cwd.map(|cwd| std::path::PathBuf::from(cwd).into());
    request.user = args.user;
    request.timeout = args.timeout;
    request.env = env.into_iter().map(|variable| (variable.key.into_bytes(), variable.value.into_bytes())).collect();
    if args.tty {
        request.pty = Some(terminal::size());
        request.stdin = Stdin::Stream;
    } else if args.interactive || streams::has_input() {
        request.stdin = Stdin::Stream;
    }
    request
}

/// Runs a command with this process's streams.
pub(crate) async fn stream(actor: &Actor, request: ExecRequest) -> Result<Completed> {
    follow(actor, request, InputEnd::AsItIs).await
}

/// Runs a shell with this process's streams.
pub(crate) async fn shell(actor: &Actor, request: ExecRequest) -> Result<Completed> {
    follow(actor, request, InputEnd::OfALine).await
}

/// The input as a whole, where a machine takes none while a command runs. What a person types has no end to wait for: it is refused.
async fn with_whole_input(actor: &Actor, mut request: ExecRequest) -> Result<ExecRequest> {
    let streams = matches!(request.stdin, Stdin::Stream) && request.pty.is_none();
    if streams && !actor.streams_stdin() && streams::has_input() {
        request.stdin = Stdin::Bytes(streams::whole_input().await?.into());
    }
    Ok(request)
}

/// Connects this process's streams with a command, until it ends.
async fn follow(actor: &Actor, request: ExecRequest, input_end: InputEnd) -> Result<Completed> {
    let is_terminal = request.pty.is_some();
    let mut handle = actor.spawn(with_whole_input(actor, request).await?).await?;
    let handle = handle.as_mut();
    let raw_mode = if is_terminal { RawMode::enter() } else { None };
    if let Some(stdin) = handle.take_stdin() {
        streams::forward_input(stdin, input_end);
    }
    let stdout = streams::forward_output(handle.take_stdout(), Target::Stdout, is_terminal);
    let stderr = streams::forward_output(handle.take_stderr(), Target::Stderr, is_terminal);
    let output = async { tokio::join!(stdout, stderr) };
    if raw_mode.is_some() {
        tokio::select! {
            _ = output => {}
            error = follow_size(handle) => return Err(error),
        }
    } else {
        output.await;
    }
    handle.wait().await
}

/// Prints a command's output until it ends, or until nobody reads what it prints: then `None`. It has its life to itself.
pub(crate) async fn watch(handle: &mut dyn ExecHandle) -> Result<Option<Completed>> {
    let stdout = streams::forward_output(handle.take_stdout(), Target::Stdout, false);
    let stderr = streams::forward_output(handle.take_stderr(), Target::Stderr, false);
    tokio::pin!(stdout, stderr);
    let read_to_the_end = tokio::select! {
        read = &mut stdout => read && stderr.await,
        read = &mut stderr => read && stdout.await,
    };
    if read_to_the_end { handle.wait().await.map(Some) } else { Ok(None) }
}

/// Prints what is retained of a command's output, and nothing that it prints from now on.
pub(crate) async fn print_retained(handle: &mut dyn ExecHandle) {
    let [stdout, stderr] = handle.retained().unwrap_or_default();
    let stdout = streams::forward_retained(handle.take_stdout(), Target::Stdout, stdout);
    let stderr = streams::forward_retained(handle.take_stderr(), Target::Stderr, stderr);
    tokio::join!(stdout, stderr);
}

/// What is retained of the output of a command that runs, as JSON, in the form of [`collect`]'s.
pub(crate) async fn retained(handle: &mut dyn ExecHandle, about: serde_json::Value) -> serde_json::Value {
    let [stdout, stderr] = handle.retained().unwrap_or_default();
    let (stdout, stderr) = (read_some(handle.take_stdout(), stdout), read_some(handle.take_stderr(), stderr));
    let (stdout, stderr) = tokio::join!(stdout, stderr);
    json!({ "sandbox": about, "outcome": null, "stdout": captured(&stdout), "stderr": captured(&stderr) })
}

/// So much of a stream, or less if it ends.
async fn read_some(from: Option<ByteReader>, count: u64) -> Captured {
    let mut head = Vec::new();
    if let Some(from) = from {
        // What came before an error stands.
        let _ = from.take(count).read_to_end(&mut head).await;
    }
    Captured { total: head.len() as u64, head, tail: Vec::new() }
}

/// Tells the command each new size of this terminal. Ends only by an error.
async fn follow_size(handle: &dyn ExecHandle) -> Error {
    let mut changes = match signal(SignalKind::window_change()) {
        Ok(changes) => changes,
        Err(error) => return Error::io("listen for signals", error),
    };
    while changes.recv().await.is_some() {
        // A command that ended meanwhile needs no size.
        let _ = handle.resize(terminal::size()).await;
    }
    Error::new(ErrorKind::Internal, "listen for signals", "no more signals come")
}

/// Runs a command, prints what came of it as JSON, and returns the exit status.
pub(crate) async fn collect(actor: &Actor, request: ExecRequest, about: serde_json::Value) -> Result<u8> {
    collect_until(actor, request, about, InputEnd::AsItIs).await
}

/// The same for a shell.
pub(crate) async fn collect_shell(actor: &Actor, request: ExecRequest, about: serde_json::Value) -> Result<u8> {
    collect_until(actor, request, about, InputEnd::OfALine).await
}

async fn collect_until(actor: &Actor, request: ExecRequest, about: serde_json::Value, input_end: InputEnd) -> Result<u8> {
    let mut handle = actor.spawn(with_whole_input(actor, request).await?).await?;
    if let Some(stdin) = handle.take_stdin() {
        streams::forward_input(stdin, input_end);
    }
    collected(handle.as_mut(), actor.output_limit(), about).await
}

/// Waits for the end of a command, prints what came of it as JSON, and returns the exit status.
pub(crate) async fn collected(handle: &mut dyn ExecHandle, limit: OutputLimit, about: serde_json::Value) -> Result<u8> {
    let result = tierbox::collect(handle, limit).await?;
    let status = exit::of_outcome(result.outcome());
    output::json(&describe(&result, status, about));
    Ok(status)
}

/// Says what tierbox had to do with the end of a command, and returns the exit status.
pub(crate) fn conclude(completed: &Completed) -> u8 {
    if let Some(remark) = exit::remark(completed.outcome) {
        output::remark(&remark);
    }
    exit::of_outcome(completed.outcome)
}

fn describe(result: &ExecResult, status: u8, about: serde_json::Value) -> serde_json::Value {
    let completed = &result.completed;
    let seconds = |duration: Duration| duration.as_secs_f64();
    json!({
        "sandbox": about,
        "outcome": completed.outcome,
        "status": status,
        "cannot_execute": completed.cannot_execute,
        "usage": {
            "wall_seconds": seconds(completed.usage.wall),
            "user_seconds": completed.usage.cpu_user.map(seconds),
            "system_seconds": completed.usage.cpu_system.map(seconds),
            "peak_memory_bytes": completed.usage.peak_memory,
        },
        "stdout": captured(&result.stdout),
        "stderr": captured(&result.stderr),
    })
}

/// A stream as data: as text, and if it is not valid UTF-8 as base64 too.
fn captured(stream: &Captured) -> serde_json::Value {
    let bytes = stream.bytes();
    json!({ "text": stream.text(), "base64": base64::unless_text(&bytes), "bytes": stream.total, "truncated": stream.truncated() })
}
