//! Commands whose pipes are this side's own: what they print goes through nobody's hands.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tierbox_core::{ByteWriter, Error, Result, Stdin};
use tierbox_supervisor::protocol::{self, OutputMode, StdinMode, ToSupervisor};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::call::{ExecCall, Stage, Waiter};
use super::handle::{Handle, Output};
use super::launch::{self, NewExec, Plan};
use crate::channel::Channel;
use crate::driver;
use crate::pipe::{self, ReadEnd, WriteEnd};

/// How long a background child may go on writing to a pipe whose command has ended.
const DRAIN: Duration = Duration::from_millis(100);
/// How much is thrown away at once.
const SCRATCH: usize = 16 << 10;

/// Sends a command with pipes of this side's.
pub(super) fn launch(channel: &Channel, mut new: NewExec) -> Result<Handle> {
    let failed = |error: io::Error| {
        Error::io("exec", error).with_help("each running command takes up to 3 descriptors here: see `ulimit -n`").retryable()
    };
    let stdin = std::mem::take(&mut new.request.stdin);
    let streams = launch::streams(&stdin);
    let mut descriptors = Vec::with_capacity(3);
    let (mode, feed) = input(stdin, &mut descriptors).map_err(failed)?;
    let (out, out_end) = pipe::incoming().map_err(failed)?;
    let (err, err_end) = pipe::incoming().map_err(failed)?;
    descriptors.extend([out_end, err_end]);
    let call = ExecCall::new(launch::new_id()?, new.timeout);
    let plan = Plan { call, stdin: mode, output: OutputMode::Passed, descriptors };
    let (call, number) = launch::send(channel, new, plan)?;
    let mut handle = launch::handle(channel, call.clone(), number, false);
    handle.stdin = start_feeding(feed, streams, &call)?;
    let reader = |pipe, waiter| Output::Passed(PassedReader { pipe, call: call.clone(), waiter, channel: channel.clone() });
    handle.stdout = Some(reader(out, Waiter::Stdout));
    handle.stderr = Some(reader(err, Waiter::Stderr));
    Ok(handle)
}

/// What is still to be written to a command's stdin.
type Feed = Option<(WriteEnd, Bytes)>;

/// Makes stdin. As much as a pipe holds is written at once, so that small input needs no task.
fn input(stdin: Stdin, descriptors: &mut Vec<OwnedFd>) -> io::Result<(StdinMode, Feed)> {
    let mut bytes = match stdin {
        Stdin::Null => return Ok((StdinMode::Null, None)),
        Stdin::Bytes(bytes) => Some(bytes),
        Stdin::Stream => None,
    };
    let (end, writer) = pipe::outgoing()?;
    descriptors.push(end);
    if let Some(bytes) = &mut bytes {
        while !bytes.is_empty() {
            match writer.write(bytes) {
                Ok(count) => drop(bytes.split_to(count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
    }
    let feed = match bytes {
        Some(bytes) if bytes.is_empty() => None,
        Some(bytes) => Some((writer, bytes)),
        None => Some((writer, Bytes::new())),
    };
    Ok((StdinMode::Passed, feed))
}

/// The caller's writer, or a task of the driver's that writes the rest.
fn start_feeding(feed: Feed, streams: bool, call: &Arc<ExecCall>) -> Result<Option<ByteWriter>> {
    let Some((pipe, rest)) = feed else { return Ok(None) };
    let mut writer = PassedWriter { pipe, call: call.clone() };
    if streams {
        return Ok(Some(Box::new(writer)));
    }
    driver::handle()?.spawn(async move {
        // A command that does not read to the end is no error.
        let _ = writer.write_all(&rest).await;
    });
    Ok(None)
}

/// A command's output.
pub(crate) struct PassedReader {
    pipe: ReadEnd,
    call: Arc<ExecCall>,
    waiter: Waiter,
    channel: Channel,
}

impl PassedReader {
    /// Reads and throws away until the command has ended.
    pub(crate) fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [0; SCRATCH];
        loop {
            if self.call.poll_stage(self.waiter, cx.waker()) != Stage::Running {
                return Poll::Ready(());
            }
            match self.pipe.poll_read(cx, &mut scratch) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0) | Err(_)) => {
                    drop(self.pipe.take());
                    return Poll::Ready(());
                }
                Poll::Ready(Ok(_)) => {}
            }
        }
    }

    /// Lets the supervisor read what background children still write, so that they do not die of a closed pipe.
    fn hand_over(&mut self) {
        if let Some(pipe) = self.pipe.take() {
            let frame = protocol::encode(0, &ToSupervisor::Linger { count: 1 });
            // If the line has ended, so have they.
            let _ = self.channel.shared().send_frame(frame, vec![pipe], "exec");
        }
    }

    /// Gives background children a moment to end what they are saying.
    fn start_draining(&self) {
        if !self.call.begin_draining() {
            return;
        }
        let call = self.call.clone();
        match driver::handle() {
            Ok(driver) => drop(driver.spawn(async move {
                tokio::time::sleep(DRAIN).await;
                call.drained();
            })),
            Err(_) => call.drained(),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        // Asked before reading: once it has ended, all that the command itself wrote is in the pipe.
        let stage = self.call.poll_stage(self.waiter, cx.waker());
        match self.pipe.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return Poll::Ready(result),
        }
        match stage {
            Stage::Drained => {
                self.hand_over();
                return Poll::Ready(Ok(0));
            }
            Stage::Draining => self.start_draining(),
            Stage::Running => {}
        }
        self.pipe.poll_read(cx, buffer)
    }
}

impl AsyncRead for PassedReader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let count = std::task::ready!(self.poll(cx, buf.initialize_unfilled()))?;
        buf.advance(count);
        if count == 0 {
            drop(self.pipe.take());
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for PassedReader {
    fn drop(&mut self) {
        if self.pipe.is_closed() {
            return;
        }
        // Of a running command it is closed, as a shell's pipeline would.
        if !self.call.is_over() {
            return self.call.note_broken();
        }
        let mut byte = [0];
        if !matches!(self.pipe.read(&mut byte), Ok(0)) {
            self.hand_over();
        }
    }
}

/// A command's stdin.
struct PassedWriter {
    pipe: WriteEnd,
    call: Arc<ExecCall>,
}

impl AsyncWrite for PassedWriter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let stage = self.call.poll_stage(Waiter::Stdin, cx.waker());
        match Pin::new(&mut self.pipe).poll_write(cx, bytes) {
            // A background child that holds the pipe and does not read must not hold the writer.
            Poll::Pending if stage != Stage::Running => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            other => other,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pipe.close();
        Poll::Ready(Ok(()))
    }
}
