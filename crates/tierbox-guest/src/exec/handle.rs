//! The handle on a command.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use async_trait::async_trait;
use tierbox_core::{
    ByteReader, ByteWriter, Completed, Error, ErrorKind, ExecHandle, ExecId, KillReason, NotStartedCause, Outcome, PtySize,
    Result, Signal,
};
use tierbox_supervisor::protocol::{Kill, ToSupervisor, WinSize};
use tokio::io::{AsyncRead, ReadBuf};

use super::call::{Ending, ExecCall};
#[cfg(all(target_os = "linux", feature = "descriptors"))]
use super::passed::PassedReader;
use crate::channel::Channel;
use crate::driver;
use crate::errors::Fault;
use crate::flow::FramedReader;
use crate::operation;

/// Whether the command is the handle's own, to be killed when it is dropped, or one that it merely follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owned {
    Yes,
    No,
}

/// An output stream of a command.
pub(crate) enum Output {
    Framed(FramedReader),
    #[cfg(all(target_os = "linux", feature = "descriptors"))]
    Passed(PassedReader),
}

pub(crate) struct Handle {
    channel: Channel,
    pub(crate) call: Arc<ExecCall>,
    /// `None` for a command that was never sent.
    number: Option<u32>,
    pty: bool,
    owned: Owned,
    killed: AtomicBool,
    pub(crate) stdin: Option<ByteWriter>,
    pub(crate) stdout: Option<Output>,
    pub(crate) stderr: Option<Output>,
    /// `wait` was called: what was not taken is thrown away.
    discarding: bool,
}

impl Handle {
    pub(crate) fn new(channel: Channel, call: Arc<ExecCall>, number: Option<u32>, pty: bool, owned: Owned) -> Self {
        Self {
            channel,
            call,
            number,
            pty,
            owned,
            killed: AtomicBool::new(false),
            stdin: None,
            stdout: None,
            stderr: None,
            discarding: false,
        }
    }

    /// Waits until the command's process exists; an error if it never will.
    pub(crate) async fn started(&self) -> Result<()> {
        match poll_fn(|cx| self.call.poll_started(cx.waker())).await {
            Ok(()) => Ok(()),
            Err(Ending::Done(completed)) => Err(never_ran(completed.outcome)),
            Err(Ending::Refused(failed)) => Err(Fault::Failed(failed).error("exec", "command")),
            Err(Ending::Lost) => Err(Error::new(ErrorKind::Lost, "exec", "the machine went away; the command may have run")),
        }
    }

    /// Lets the command live on without this handle.
    pub(crate) fn leave(mut self) {
        self.owned = Owned::No;
    }

    fn send_kill(&self, reason: KillReason) {
        let Some(number) = self.number else { return };
        if self.call.is_over() || self.killed.swap(true, Ordering::Relaxed) {
            return;
        }
        self.channel.shared().send(number, &ToSupervisor::Kill { reason: wire_reason(reason) });
    }

    /// A command whose pipe was closed may have died of that before it could be cancelled; what it left behind is cancelled as
    /// well, unless its end was waited for.
    fn kill_orphans(&self) {
        if !self.call.is_broken() || self.discarding {
            return;
        }
        if let Ok(driver) = driver::handle() {
            let (channel, id) = (self.channel.clone(), self.call.id);
            driver.spawn(async move {
                // Mostly there is nothing, which is an error elsewhere.
                let _ = operation::kill(&channel, id, KillReason::Cancelled).await;
            });
        }
    }

    fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<Result<Completed>> {
        for output in [&mut self.stdout, &mut self.stderr] {
            discard(output, cx);
        }
        let Poll::Ready(ending) = self.call.poll_ending(cx.waker()) else { return Poll::Pending };
        // What is left of the pipes is handed over now, not when the handle goes.
        self.stdout = None;
        self.stderr = None;
        Poll::Ready(match ending {
            Ending::Done(completed) => Ok(completed),
            Ending::Lost => Ok(self.call.lost_outcome()),
            Ending::Refused(failed) => Err(Fault::Failed(failed).error("exec", "command")),
        })
    }
}

const NOT_ADMITTED: &str = "the cgroup of its limits does not take it (a process with a real-time policy, as `chrt` gives, is not taken where cpu is limited)";

/// The error that says why a command never ran.
fn never_ran(outcome: Outcome) -> Error {
    let cause = if let Outcome::NotStarted { cause, .. } = outcome { Some(cause) } else { None };
    let (kind, message) = match cause {
        Some(NotStartedCause::BadCwd) => (ErrorKind::InvalidInput, "its working directory cannot be entered"),
        Some(NotStartedCause::UnknownUser) => (ErrorKind::InvalidInput, "the machine has no such user"),
        Some(NotStartedCause::UserNotMapped) => (ErrorKind::Unsupported, "this sandbox cannot run commands as that user"),
        Some(NotStartedCause::TooBig) => (ErrorKind::TooLarge, "its arguments and variables are too long together"),
        Some(NotStartedCause::NoResources) => (ErrorKind::LimitReached, "the machine could not make one more process"),
        Some(NotStartedCause::AlreadyLaunched) => (ErrorKind::AlreadyExists, "a command of that id was launched before"),
        Some(NotStartedCause::Unconfined) => (ErrorKind::HostUnable, "the machine's kernel cannot keep it to named executables"),
        Some(NotStartedCause::NotAdmitted) => (ErrorKind::HostUnable, NOT_ADMITTED),
        _ => (ErrorKind::Cancelled, "it was cancelled before it was launched"),
    };
    let error = Error::new(kind, "exec", format!("the command never ran: {message}"));
    if kind == ErrorKind::LimitReached { error.retryable() } else { error }
}

/// Why a command is killed, as far as the machine distinguishes it: what it decides itself cannot be claimed from here.
pub(crate) fn wire_reason(reason: KillReason) -> Kill {
    match reason {
        KillReason::OutputLimit => Kill::OutputLimit,
        KillReason::Timeout | KillReason::Idle | KillReason::Memory | KillReason::Cancelled | KillReason::Lifetime => {
            Kill::Cancelled
        }
    }
}

/// Reads what is there and throws it away.
fn discard(output: &mut Option<Output>, cx: &mut Context<'_>) {
    let _ = &cx;
    let done = match output {
        None => false,
        Some(Output::Framed(reader)) => {
            reader.discard();
            true
        }
        #[cfg(all(target_os = "linux", feature = "descriptors"))]
        Some(Output::Passed(reader)) => reader.poll_discard(cx).is_ready(),
    };
    if done {
        *output = None;
    }
}

#[async_trait]
impl ExecHandle for Handle {
    fn id(&self) -> ExecId {
        self.call.id
    }

    fn retained(&self) -> Option<[u64; 2]> {
        self.call.retained()
    }

    fn take_stdin(&mut self) -> Option<ByteWriter> {
        self.stdin.take()
    }

    fn take_stdout(&mut self) -> Option<ByteReader> {
        if self.discarding { None } else { self.stdout.take().map(|output| Box::new(output) as ByteReader) }
    }

    fn take_stderr(&mut self) -> Option<ByteReader> {
        if self.discarding { None } else { self.stderr.take().map(|output| Box::new(output) as ByteReader) }
    }

    async fn signal(&self, signal: Signal) -> Result<()> {
        if self.call.is_over() {
            return Err(Error::new(ErrorKind::NotFound, "signal", "the command has ended"));
        }
        operation::signal(&self.channel, self.call.id, signal).await
    }

    async fn resize(&self, size: PtySize) -> Result<()> {
        let bad = |message: &str| Err(Error::new(ErrorKind::InvalidInput, "resize terminal", message));
        if !self.pty {
            return bad("the command has no terminal");
        }
        if size.rows == 0 || size.cols == 0 {
            return bad("a terminal needs at least one row and one column");
        }
        let Some(number) = self.number.filter(|_| !self.call.is_over()) else { return Ok(()) };
        self.channel.shared().room().await;
        let size = WinSize { rows: size.rows, cols: size.cols };
        self.channel.shared().must_send(number, &ToSupervisor::Resize { size }, "resize terminal")
    }

    fn kill(&self, reason: KillReason) {
        self.send_kill(reason);
    }

    async fn wait(&mut self) -> Result<Completed> {
        self.discarding = true;
        // Nobody can write any more, so the command must see the end of its input.
        self.stdin = None;
        poll_fn(|cx| self.poll_wait(cx)).await
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        match (self.owned, self.number) {
            (Owned::Yes, _) => {
                self.send_kill(KillReason::Cancelled);
                self.kill_orphans();
            }
            (Owned::No, Some(number)) if !self.call.is_over() => {
                self.channel.shared().send(number, &ToSupervisor::Detach);
                self.channel.shared().release(number);
            }
            (Owned::No, _) => {}
        }
    }
}

impl AsyncRead for Output {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Framed(reader) => Pin::new(reader).poll_read(cx, buf),
            #[cfg(all(target_os = "linux", feature = "descriptors"))]
            Self::Passed(reader) => Pin::new(reader).poll_read(cx, buf),
        }
    }
}
