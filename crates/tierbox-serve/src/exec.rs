//! Commands: collected, streamed, detached.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tierbox::{
    AgentSandbox, ByteReader, Captured, Completed, ExecHandle, ExecId, ExecRequest, KillReason, Limits, OutputLimit, PtySize,
    Result, Sandbox, Stdin,
};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use crate::answer::{self, Answer, FRAMES, JSON, WITH_BYTES};
use crate::environments::{invalid, seconds};
use crate::frames::{Kind, frame};
use crate::handler::Asked;
use crate::held::Busy;
use crate::intake::{Intake, WHOLE};
use crate::presence::Presence;
use crate::principal::Principal;
use crate::room::Place;
use crate::server::Shared;
use crate::{watch, wire};

/// How much of a stream is read, and sent as one frame, at once.
const CHUNK: usize = 32 << 10;
/// Frames that wait for a slow client.
const AHEAD: usize = 4;
/// The most that a collected command may retain of each stream.
const MOST_OUTPUT: u64 = 256 << 20;

/// As whom commands run in a machine.
enum Actor {
    Harness(Arc<dyn Sandbox>),
    Agent(AgentSandbox),
}

impl Actor {
    async fn spawn(&self, request: ExecRequest) -> Result<Box<dyn ExecHandle>> {
        match self {
            Self::Harness(sandbox) => sandbox.spawn(request).await,
            Self::Agent(agent) => agent.spawn(request).await,
        }
    }

    async fn spawn_detached(&self, request: ExecRequest) -> Result<ExecId> {
        match self {
            Self::Harness(sandbox) => sandbox.spawn_detached(request).await,
            Self::Agent(agent) => agent.spawn_detached(request).await,
        }
    }
}

/// What was asked, checked as far as it can be without a machine.
struct Plan {
    actor: Actor,
    request: ExecRequest,
    limit: OutputLimit,
    /// The machine, where the command is to run without a connection.
    detach: Option<Arc<dyn Sandbox>>,
    intake: Intake,
    _place: Option<Place>,
}

async fn plan(asked: Asked, environment: &Busy) -> Result<(Plan, Presence)> {
    let Asked { principal, mut intake, presence, json, .. } = asked;
    let head: wire::Exec = if json { intake.document().await? } else { intake.head().await? };
    let sandbox = machine(&principal, environment, head.machine.as_deref())?;
    let limit = limit(&head, sandbox.as_ref())?;
    if matches!(principal, Principal::Agent(_)) {
        refuse_greed(limit.bytes, sandbox.limits())?;
    }
    let streams = sandbox.capabilities().streaming_stdin;
    let detach = head.detach.then(|| sandbox.clone());
    let actor = match principal {
        Principal::Harness => Actor::Harness(sandbox),
        Principal::Agent(_) => Actor::Agent(environment.agent(sandbox.name()).await?),
    };
    if json && head.stdin {
        return Err(invalid("stdin follows the document only in the media type application/vnd.tierbox.exec"));
    }
    let mut request = request(head)?;
    let mut place = None;
    if matches!(request.stdin, Stdin::Stream) && request.pty.is_none() {
        match intake.little().await? {
            Some(bytes) => request.stdin = Stdin::Bytes(bytes),
            None if !streams => {
                if let Actor::Agent(_) = actor {
                    place = Some(environment.room(WHOLE as u64).await);
                }
                request.stdin = Stdin::Bytes(intake.whole().await?);
            }
            None => {}
        }
    }
    Ok((Plan { actor, request, limit, detach, intake, _place: place }, presence))
}

/// An agent retains what the profile says, and no more.
pub(crate) fn refuse_greed(bytes: u64, limits: &Limits) -> Result<()> {
    if bytes > limits.output {
        return Err(invalid("output_limit is more than the profile's limits.output, which is the most for an agent"));
    }
    Ok(())
}

/// A machine by its name, or the primary one, as far as whoever asks may use it.
pub(crate) fn machine(principal: &Principal, environment: &Busy, name: Option<&str>) -> Result<Arc<dyn Sandbox>> {
    let running = environment.running();
    let primary = running.sandbox();
    if let Principal::Agent(grant) = principal {
        grant.check(name.unwrap_or(primary.name()), primary.name())?;
    }
    name.map_or(Ok(primary), |name| running.machine(name))
}

fn limit(head: &wire::Exec, sandbox: &dyn Sandbox) -> Result<OutputLimit> {
    let mut limit = retained(head.output_limit.unwrap_or(sandbox.limits().output))?;
    if head.on_exceed == Some(wire::OnExceed::Kill) {
        limit.on_exceed = tierbox::OnExceed::Kill;
    }
    Ok(limit)
}

/// So many bytes of each stream, both ends.
pub(crate) fn retained(bytes: u64) -> Result<OutputLimit> {
    if bytes > MOST_OUTPUT {
        return Err(invalid("output_limit is more than 256 MiB: stream the command instead"));
    }
    Ok(OutputLimit { bytes, on_exceed: tierbox::OnExceed::Truncate })
}

fn request(head: wire::Exec) -> Result<ExecRequest> {
    let mut request = ExecRequest::new(head.argv);
    request.stdin = if head.stdin { Stdin::Stream } else { Stdin::Null };
    request.cwd = head.cwd.map(Into::into);
    request.env = head.env.into_iter().map(|(key, value)| (key.into_bytes(), value.into_bytes())).collect();
    request.env_clear = head.env_clear;
    request.user = head.user;
    request.timeout = head.timeout.map(|time| seconds("timeout", time)).transpose()?;
    request.idle_timeout = head.idle_timeout.map(|time| seconds("idle_timeout", time)).transpose()?;
    request.pty = head.pty.map(|size| PtySize { rows: size.rows, cols: size.cols });
    if head.kill_leftovers {
        request.leftovers = tierbox::Leftovers::Kill;
    }
    request.validate()?;
    Ok(request)
}

/// Runs a command to its end. A client that goes away meanwhile ends it: this future is dropped.
pub(crate) async fn collected(asked: Asked, environment: Busy) -> Result<Answer> {
    let shared = asked.shared.clone();
    let (mut plan, presence) = plan(asked, &environment).await?;
    if let Some(sandbox) = plan.detach.take() {
        return detached(&shared, &environment, sandbox.name(), plan).await;
    }
    if plan.request.pty.is_some() {
        return Err(invalid("a command with a terminal has to be streamed"));
    }
    let mut handle = plan.actor.spawn(plan.request).await?;
    let id = handle.id();
    shared.events.exec(environment.running().id(), id, None);
    let stdin = handle.take_stdin();
    let running = tierbox::collect(handle.as_mut(), plan.limit);
    let result = match stdin {
        None => running.await?,
        Some(stdin) => tokio::select! {
            result = running => result?,
            error = fed(&mut plan.intake, stdin) => return Err(error),
            () = presence.gone() => return Err(left()),
        },
    };
    shared.metrics.ended(result.completed.outcome, result.completed.usage.wall);
    shared.events.exec(environment.running().id(), id, Some(result.completed.outcome));
    let head = ended(id, &result.completed, describe(&result.stdout), describe(&result.stderr));
    let mut bytes = BytesMut::from(answer::line(&head)?.as_slice());
    bytes.put_u8(b'\n');
    for part in [&result.stdout.head, &result.stdout.tail, &result.stderr.head, &result.stderr.tail] {
        bytes.extend_from_slice(part);
    }
    Ok(answer::bytes(WITH_BYTES, bytes.freeze()))
}

async fn detached(shared: &Arc<Shared>, environment: &Busy, machine: &str, plan: Plan) -> Result<Answer> {
    if matches!(plan.request.stdin, Stdin::Stream) {
        return Err(invalid("a detached command can be given at most 64 KiB of stdin, of a stated length"));
    }
    let exec = plan.actor.spawn_detached(plan.request).await?;
    watch::watch(shared, environment.held(), machine, exec);
    Ok(answer::bytes(JSON, answer::line(&wire::Detached { exec: exec.to_string() })?))
}

/// Feeds a command from a client, and returns only when that fails.
async fn fed(intake: &mut Intake, stdin: tierbox::ByteWriter) -> tierbox::Error {
    match intake.pump(stdin, None).await {
        Err(error) => error,
        Ok(()) => std::future::pending().await,
    }
}

fn left() -> tierbox::Error {
    tierbox::Error::new(tierbox::ErrorKind::Cancelled, "run command", "the client went away")
}

/// Runs a command, and sends what it prints while it runs.
pub(crate) async fn streamed(asked: Asked, environment: Busy) -> Result<Answer> {
    let shared = asked.shared.clone();
    let (mut plan, presence) = plan(asked, &environment).await?;
    if plan.detach.is_some() {
        return Err(invalid("a detached command is not streamed: follow its output"));
    }
    let mut handle = plan.actor.spawn(plan.request).await?;
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        // As long as this runs, the environment is in use.
        let environment = environment;
        let (exec, name) = (handle.id(), environment.running().id());
        shared.events.exec(name, exec, None);
        let stdin = handle.take_stdin();
        let fed = async {
            match stdin {
                Some(stdin) => fed(&mut plan.intake, stdin).await,
                None => std::future::pending().await,
            }
        };
        let sent = send(handle, &sender, Some((&shared, name)));
        tokio::select! {
            () = sent => {}
            // Each of these drops the handle, which kills the command.
            _ = fed => {}
            () = presence.gone() => {}
            () = sender.closed() => {}
        }
    });
    Ok(answer::streamed(FRAMES, receiver))
}

/// Follows a command that runs without a connection.
pub(crate) async fn output(asked: Asked, environment: Busy, exec: &str) -> Result<Answer> {
    let sandbox = machine(&asked.principal, &environment, asked.query.text("machine")?)?;
    let from = |name: &str| asked.query.number(name).map(Option::unwrap_or_default);
    let handle = sandbox.attach(exec.parse()?, from("stdout_from")?, from("stderr_from")?).await?;
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        let _environment = environment;
        tokio::select! {
            () = send(handle, &sender, None) => {}
            () = sender.closed() => {}
        }
    });
    Ok(answer::streamed(FRAMES, receiver))
}

/// Kills a command whose client is gone before its streams are closed. The other way round it might die of a closed pipe
/// by itself, which spares what it started in the background.
struct CancelOnDrop<'a> {
    handle: Option<&'a dyn ExecHandle>,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(handle) = self.handle {
            handle.kill(KillReason::Cancelled);
        }
    }
}

type Sender = mpsc::Sender<io::Result<Bytes>>;

/// Sends the frames of a command to its end.
async fn send(mut handle: Box<dyn ExecHandle>, to: &Sender, own: Option<(&Shared, &str)>) {
    let id = handle.id();
    let first = answer::line(&wire::Detached { exec: id.to_string() }).unwrap_or_default();
    if to.send(Ok(frame(Kind::Started, &first))).await.is_err() {
        return;
    }
    let (stdout, stderr) = (handle.take_stdout(), handle.take_stderr());
    let copied = async { tokio::join!(copy(stdout, Kind::Stdout, to), copy(stderr, Kind::Stderr, to)) };
    tokio::pin!(copied);
    let totals = {
        let mut cancel = CancelOnDrop { handle: own.is_some().then_some(&*handle) };
        let totals = (&mut copied).await;
        cancel.handle = None;
        totals
    };
    let last = match handle.wait().await {
        Ok(completed) => {
            if let Some((shared, environment)) = own {
                shared.metrics.ended(completed.outcome, completed.usage.wall);
                shared.events.exec(environment, id, Some(completed.outcome));
            }
            let total = |total| wire::Stream { total, ..wire::Stream::default() };
            let ended = ended(id, &completed, total(totals.0), total(totals.1));
            frame(Kind::Ended, &answer::line(&ended).unwrap_or_default())
        }
        Err(error) => frame(Kind::Problem, &answer::line(&wire::Problem::of(&error)).unwrap_or_default()),
    };
    let _ = to.send(Ok(last)).await;
}

/// Returns how many bytes there were.
async fn copy(from: Option<ByteReader>, kind: Kind, to: &Sender) -> u64 {
    let Some(mut from) = from else { return 0 };
    let mut chunk = vec![0; CHUNK];
    let mut total = 0;
    // What became of the machine when reading fails, the outcome tells.
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        total += count as u64;
        if to.send(Ok(frame(kind, &chunk[..count]))).await.is_err() {
            break;
        }
    }
    total
}

fn ended(id: ExecId, completed: &Completed, stdout: wire::Stream, stderr: wire::Stream) -> wire::Ended {
    let span = |duration: Duration| duration.as_secs_f64();
    wire::Ended {
        exec: id.to_string(),
        outcome: completed.outcome,
        status: completed.outcome.shell_status(),
        cannot_execute: completed.cannot_execute,
        usage: wire::Used {
            wall_seconds: span(completed.usage.wall),
            user_seconds: completed.usage.cpu_user.map(span),
            system_seconds: completed.usage.cpu_system.map(span),
            peak_memory_bytes: completed.usage.peak_memory,
        },
        stdout,
        stderr,
    }
}

fn describe(captured: &Captured) -> wire::Stream {
    wire::Stream { head: captured.head.len() as u64, tail: captured.tail.len() as u64, total: captured.total }
}
