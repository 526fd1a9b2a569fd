//! The worker's loop: one operation after the other, until the engine goes away.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::fs::OFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags};

use super::answer::{Fail, Result};
use super::{list, pack, place, read, remove, unpack, write};
use crate::protocol::{self, Decoder, Failure, FileOp, FromSupervisor, ToSupervisor};

/// Serves until the engine's end is closed.
pub fn serve(socket: OwnedFd, workdir: &[u8], assumed: io::Result<()>) {
    let mut engine = Engine { socket, decoder: Decoder::default(), data: None };
    let refused = assumed.err().map(|error| error.raw_os_error().unwrap_or(0));
    while let Ok(message) = engine.next() {
        // A commit that comes late belongs to an operation that has failed already.
        let ToSupervisor::File { op } = message else { continue };
        let data = engine.data.take();
        let outcome = match refused {
            Some(errno) => Err(Fail::Failed {
                failure: Failure::PermissionDenied,
                errno,
                detail: "the file worker could not become the sandbox's user".into(),
            }),
            None => operate(&mut engine, workdir, op, data),
        };
        let answer = match outcome {
            Ok(answer) => answer,
            Err(fail) => match fail.into_answer() {
                Some(answer) => answer,
                None => return,
            },
        };
        if engine.send(&answer).is_err() {
            return;
        }
    }
}

fn operate(engine: &mut Engine, workdir: &[u8], op: FileOp, data: Option<OwnedFd>) -> Result<FromSupervisor> {
    let path = path_of(&op);
    place::check(path)?;
    if !path.starts_with(b"/") {
        // Each time, because the sandbox may have replaced its working directory.
        rustix::process::chdir(workdir).or_else(|_| rustix::process::chdir("/"))?;
    }
    match op {
        FileOp::Read { path, offset, length, max, .. } => read::read(engine, &path.0, read::Range { offset, length, max }, data),
        FileOp::Write { path, mode, create_new, inline, .. } => {
            let contents = match inline {
                Some(contents) => write::Contents::Inline(contents.0),
                None => write::Contents::Stream(need(data)?),
            };
            write::write(engine, &path.0, write::Options { mode, create_new }, contents)
        }
        FileOp::Stat { path, follow } => list::stat(&path.0, follow).map(|meta| FromSupervisor::Meta { meta }),
        FileOp::List { path } => list::list(engine, &path.0),
        FileOp::Remove { path, recursive } => remove::remove(&path.0, recursive),
        FileOp::MakeDir { path } => place::make_dir(&path.0),
        FileOp::Unpack { path, .. } => unpack::unpack(engine, &path.0, need(data)?),
        FileOp::Pack { path, .. } => pack::pack(engine, &path.0, need(data)?),
    }
}

fn path_of(op: &FileOp) -> &[u8] {
    match op {
        FileOp::Read { path, .. }
        | FileOp::Write { path, .. }
        | FileOp::Stat { path, .. }
        | FileOp::List { path }
        | FileOp::Remove { path, .. }
        | FileOp::MakeDir { path }
        | FileOp::Unpack { path, .. }
        | FileOp::Pack { path, .. } => &path.0,
    }
}

/// How much a pipe should hold: fewer switches between its two ends. No more, since all pipes of a user share an allowance.
const PIPE: usize = 256 << 10;

/// The operation's pipe, or the failure that says it is missing.
pub fn need(data: Option<OwnedFd>) -> Result<OwnedFd> {
    let data = data.ok_or_else(|| Fail::new(Failure::Invalid, "the operation needs a pipe for its data"))?;
    // Only faster, and no pipe at all where the host passed a socket.
    let _ = rustix::pipe::fcntl_setpipe_size(&data, PIPE);
    Ok(data)
}

/// The engine, as the worker sees it.
pub struct Engine {
    socket: OwnedFd,
    decoder: Decoder,
    data: Option<OwnedFd>,
}

impl Engine {
    /// Sends an answer.
    pub fn send(&mut self, answer: &FromSupervisor) -> Result<()> {
        let frame = protocol::encode(0, answer);
        let mut rest = frame.as_slice();
        while !rest.is_empty() {
            let sent = rustix::io::retry_on_intr(|| rustix::net::send(&self.socket, rest, SendFlags::NOSIGNAL));
            rest = &rest[sent.map_err(|_| Fail::Gone)?..];
        }
        Ok(())
    }

    /// Waits until the engine says that the data was complete.
    pub fn committed(&mut self) -> Result<()> {
        match self.next()? {
            ToSupervisor::Commit => Ok(()),
            _ => Err(Fail::Gone),
        }
    }

    fn next(&mut self) -> Result<ToSupervisor> {
        loop {
            if let Some(frame) = self.decoder.next_frame().map_err(|_| Fail::Gone)? {
                return Ok(frame.message);
            }
            self.fill()?;
        }
    }

    fn fill(&mut self) -> Result<()> {
        let mut buffer = [0; 16 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(&self.socket, &mut [IoSliceMut::new(&mut buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)
        });
        let count = received.map_err(|_| Fail::Gone)?.bytes;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.data = descriptors.last();
            }
        }
        if let Some(data) = &self.data {
            // Whoever made the pipe may have used it without blocking; here there is nothing else to do meanwhile.
            let flags = rustix::fs::fcntl_getfl(data)?;
            rustix::fs::fcntl_setfl(data, flags - OFlags::NONBLOCK)?;
        }
        if count == 0 {
            return Err(Fail::Gone);
        }
        self.decoder.push(&buffer[..count]);
        Ok(())
    }
}
