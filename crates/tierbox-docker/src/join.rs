//! One more line to the supervisor of a machine that outlived its first: a process of the engine's that hands its streams over.

use std::time::Duration;

use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use tierbox_core::{Error, ErrorKind, Result};
use tierbox_guest::Channel;

use crate::engine::{Engine, failed, is_absent, is_settled};
use crate::launch::{SUPERVISOR, name_of};
use crate::{BACKEND, stream};

/// A file system of its own, root's alone, for the line of a machine that may be detached: nobody inside can move a mount away.
pub const ROOM: &str = "/.tierbox-line";

/// What the engine is told of it.
pub const ROOM_OPTIONS: &str = "rw,nosuid,nodev,noexec,mode=0700,size=64k";

/// Where the supervisor of such a machine listens.
pub const SOCKET: &str = "/.tierbox-line/own/socket";

/// The directory of [`SOCKET`].
const PLACE: &str = "/.tierbox-line/own";

/// How long the supervisor may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Joins the supervisor of a machine.
///
/// # Errors
/// `NotFound` if the machine is gone or does not answer.
pub async fn channel(engine: &Engine, id: &str, machine: &str) -> Result<Channel> {
    let gone = |why: &str| {
        Error::new(ErrorKind::NotFound, "attach", format!("the machine {machine} of {id} is gone: {why}"))
            .with_backend(BACKEND)
            .with_help("if the container still runs, somebody inside listens in its place, whom nothing is told: end it with `tierbox down`")
    };
    let container = name_of(id, machine);
    let options = CreateExecOptions {
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        tty: Some(false),
        privileged: Some(false),
        user: Some("0:0".to_owned()),
        working_dir: Some("/".to_owned()),
        cmd: Some([SUPERVISOR, "join", PLACE, "first"].map(str::to_owned).to_vec()),
        ..CreateExecOptions::default()
    };
    let made = match engine.docker.create_exec(&container, options).await {
        Ok(made) => made,
        // Absent, or there and not running.
        Err(error) if is_absent(&error) || is_settled(&error) => return Err(gone(failed("attach", &error).message())),
        Err(error) => return Err(failed("attach", &error)),
    };
    let started = engine.docker.start_exec(&made.id, Some(StartExecOptions::default())).await;
    let StartExecResults::Attached { output, input } = started.map_err(|error| failed("attach", &error))? else {
        return Err(gone("the engine gives no streams"));
    };
    let channel = Channel::stream(stream::reader(output), stream::writer(input))?;
    channel.hello(Duration::ZERO)?;
    channel.ping(PATIENCE).await.map_err(|error| gone(error.message()))?;
    Ok(channel)
}
