//! Commands whose streams travel as frames: terminals, detached commands, silence limits, and machines that are far away.

use std::sync::Arc;

use bytes::Bytes;
use tierbox_core::{Error, ErrorKind, ExecId, Result, Stdin};
use tierbox_supervisor::protocol::{OutputMode, STDERR, STDOUT, StdinMode, ToSupervisor, WINDOW};
use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;

use super::call::ExecCall;
use super::handle::{Handle, Output, Owned};
use super::launch::{self, NewExec, Plan};
use crate::channel::Channel;
use crate::driver;
use crate::flow::{FramedReader, FramedWriter, Inflow};

/// Sends a command with framed streams.
pub(super) fn launch(channel: &Channel, mut new: NewExec) -> Result<Handle> {
    let mut call = ExecCall::new(launch::new_id()?, new.timeout);
    let pty = new.request.pty.is_some();
    let stdin = std::mem::take(&mut new.request.stdin);
    check_input(&stdin, &new)?;
    call.stdout = Some(Inflow::new("exec", 0, new.detached));
    call.stderr = Some(Inflow::new("exec", 0, new.detached));
    let mode = if matches!(stdin, Stdin::Null) { StdinMode::Null } else { StdinMode::Framed };
    // A terminal is always open for writing, whatever stdin is.
    call.stdin = (pty || mode == StdinMode::Framed).then(Arc::default);
    let plan = Plan { call, stdin: mode, output: OutputMode::Framed, descriptors: Vec::new() };
    let (call, number) = launch::send(channel, new, plan)?;
    let mut handle = launch::handle(channel, call.clone(), number, pty);
    let Some(number) = number else { return Ok(handle) };
    attach_streams(&mut handle, channel, &call, number);
    if let Some(flow) = &call.stdin {
        start_feeding(&mut handle, stdin, FramedWriter::new(channel.clone(), number, flow.clone()))?;
    }
    Ok(handle)
}

/// Nobody is there to go on feeding a detached command.
fn check_input(stdin: &Stdin, new: &NewExec) -> Result<()> {
    let refused = match stdin {
        _ if !new.detached => return Ok(()),
        Stdin::Null => return Ok(()),
        Stdin::Bytes(bytes) if bytes.len() <= WINDOW as usize => return Ok(()),
        Stdin::Bytes(_) => "more than 1 MiB of input",
        Stdin::Stream => "a stream as input",
    };
    Err(Error::new(ErrorKind::InvalidInput, "exec", format!("a detached command cannot have {refused}"))
        .with_help("write the input to a file in the sandbox first"))
}

fn attach_streams(handle: &mut Handle, channel: &Channel, call: &Arc<ExecCall>, number: u32) {
    let reader = |stream, flow: &Option<Arc<Inflow>>| {
        flow.as_ref().map(|flow| Output::Framed(FramedReader::new(channel.clone(), number, stream, flow.clone())))
    };
    handle.stdout = reader(STDOUT, &call.stdout);
    handle.stderr = reader(STDERR, &call.stderr);
}

fn start_feeding(handle: &mut Handle, stdin: Stdin, mut writer: FramedWriter) -> Result<()> {
    match stdin {
        // Only with a terminal, which has no end of file to begin with: it would hang up.
        Stdin::Null => writer.abandon(),
        Stdin::Stream => handle.stdin = Some(Box::new(writer)),
        Stdin::Bytes(bytes) => feed(write_now(&mut writer, bytes), writer)?,
    }
    Ok(())
}

/// Writes what the first window takes, and returns the rest.
fn write_now(writer: &mut FramedWriter, mut bytes: Bytes) -> Bytes {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    while !bytes.is_empty() {
        match tokio::io::AsyncWrite::poll_write(std::pin::Pin::new(&mut *writer), &mut cx, &bytes) {
            std::task::Poll::Ready(Ok(count)) => drop(bytes.split_to(count)),
            std::task::Poll::Ready(Err(_)) => return Bytes::new(),
            std::task::Poll::Pending => break,
        }
    }
    bytes
}

fn feed(rest: Bytes, mut writer: FramedWriter) -> Result<()> {
    if rest.is_empty() {
        return Ok(());
    }
    driver::handle()?.spawn(async move {
        // A command that does not read to the end is no error.
        let _ = writer.write_all(&rest).await;
    });
    Ok(())
}

/// Follows a command that runs already; the handle does not own it. The answer to the ping tells that the request was taken in,
/// and that its failure, if any, was heard before.
pub(crate) fn attach(
    channel: &Channel,
    id: ExecId,
    stdout_from: u64,
    stderr_from: u64,
) -> Result<(Handle, oneshot::Receiver<()>)> {
    let mut call = ExecCall::new(id, None);
    call.stdout = Some(Inflow::new("attach", stdout_from, true));
    call.stderr = Some(Inflow::new("attach", stderr_from, true));
    let call = Arc::new(call);
    let shared = channel.shared();
    let number = shared.open(call.clone()).map_err(|closed| closed.error("attach"))?;
    let frame = ToSupervisor::Attach { id: id.0, stdout_from, stderr_from };
    let frame = tierbox_supervisor::protocol::encode(number, &frame);
    let mut handle = Handle::new(channel.clone(), call.clone(), Some(number), true, Owned::No);
    let pong = shared.send_then_ping(Some(frame), "attach")?;
    attach_streams(&mut handle, channel, &call, number);
    Ok((handle, pong))
}
