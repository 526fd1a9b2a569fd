//! From a request to a frame, its pipes and its handle.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tierbox_core::{Completed, Error, ErrorKind, ExecId, ExecRequest, Leftovers, NotStartedCause, Outcome, Result, Stdin, Usage};
use tierbox_supervisor::protocol::{self, Exec, OutputMode, StdinMode, ToSupervisor, WinSize};
use tierbox_supervisor::wire::Blob;

use super::call::{Ending, ExecCall};
use super::handle::{Handle, Owned};
use crate::channel::Channel;

/// A request, made ready.
pub(crate) struct NewExec {
    pub(crate) request: ExecRequest,
    /// The request's time limit or the profile's.
    pub(crate) timeout: Option<Duration>,
    pub(crate) detached: bool,
}

/// What goes into the frame, what goes with it, and what this side keeps.
pub(crate) struct Plan {
    pub(crate) call: ExecCall,
    pub(crate) stdin: StdinMode,
    pub(crate) output: OutputMode,
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// A fresh identity.
pub(crate) fn new_id() -> Result<ExecId> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| Error::new(ErrorKind::Io, "exec", format!("no random numbers: {error}")))?;
    Ok(ExecId(id))
}

/// Sends a command on its way.
pub(crate) async fn launch(channel: &Channel, new: NewExec) -> Result<Handle> {
    // A supervisor that takes nothing must not make this side hold more and more requests.
    channel.shared().room().await;
    let framed = !channel.passes_descriptors() || new.detached || new.request.pty.is_some() || new.request.idle_timeout.is_some();
    #[cfg(all(target_os = "linux", feature = "descriptors"))]
    if !framed {
        return super::passed::launch(channel, new);
    }
    let _ = framed;
    super::framed::launch(channel, new)
}

/// Registers the call and sends the frame. `None` if the frame is too long for any machine.
pub(crate) fn send(channel: &Channel, new: NewExec, plan: Plan) -> Result<(Arc<ExecCall>, Option<u32>)> {
    let shared = channel.shared();
    let frame = ToSupervisor::Exec { exec: wire(new, &plan) };
    let call = Arc::new(plan.call);
    // Encoded before the call exists, with the number put in afterwards: a frame that is too long leaves no trace.
    let Some(mut frame) = protocol::try_encode(0, &frame) else {
        call.settle(Ending::Done(too_big()));
        return Ok((call, None));
    };
    let number = shared.open(call.clone()).map_err(|closed| closed.error("exec"))?;
    frame[4..8].copy_from_slice(&number.to_le_bytes());
    if let Err(error) = shared.send_frame(frame, plan.descriptors, "exec") {
        shared.release(number);
        return Err(error);
    }
    Ok((call, Some(number)))
}

fn too_big() -> Completed {
    Completed {
        outcome: Outcome::NotStarted { cause: NotStartedCause::TooBig, retryable: false },
        cannot_execute: None,
        usage: Usage::default(),
    }
}

fn wire(new: NewExec, plan: &Plan) -> Exec {
    let NewExec { request, timeout, detached } = new;
    Exec {
        id: plan.call.id.0,
        argv: request.argv.into_iter().map(Blob).collect(),
        env: request.env.into_iter().map(|(key, value)| (Blob(key), Blob(value))).collect(),
        env_clear: request.env_clear,
        cwd: request.cwd.map(|cwd| Blob::from(cwd.as_bytes())),
        user: request.user,
        timeout_ms: timeout.map(milliseconds),
        idle_ms: request.idle_timeout.map(milliseconds),
        stdin: plan.stdin.clone(),
        output: plan.output.clone(),
        pty: request.pty.map(|size| WinSize { rows: size.rows, cols: size.cols }),
        kill_leftovers: request.leftovers == Leftovers::Kill,
        detached,
        confine: request.confine.map(|kept| protocol::Confinement {
            executables: kept.executables.iter().map(|path| Blob::from(path.as_bytes())).collect(),
            children: kept.children,
        }),
    }
}

/// Rounded up: a limit of less than a millisecond is not no time at all.
fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// Whether a caller will write to stdin.
pub(crate) fn streams(stdin: &Stdin) -> bool {
    matches!(stdin, Stdin::Stream)
}

/// A handle that kills its command when it is dropped too early.
pub(crate) fn handle(channel: &Channel, call: Arc<ExecCall>, number: Option<u32>, pty: bool) -> Handle {
    Handle::new(channel.clone(), call, number, pty, Owned::Yes)
}
