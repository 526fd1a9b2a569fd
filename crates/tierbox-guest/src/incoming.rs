//! The reading side of a channel: one task of the driver's for each.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tierbox_supervisor::protocol::Decoder;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::channel::Shared;
use crate::errors::Closed;
use crate::line::Line;
use crate::outgoing::{LAST_WORDS, Outgoing};
use crate::session::Session;

/// How often a silent machine is looked at.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Looks without a sign of life, while something is awaited, after which the machine is lost.
const SILENCES: u32 = 6;
/// How much is read at once.
const PIECE: usize = 64 << 10;

thread_local! {
    // All channels are read on one thread and a piece is decoded before the next is read, so they share one buffer.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; PIECE]);
}

/// Where frames come from.
pub(crate) trait Source: Send {
    /// Reads some bytes into the decoder; how many, 0 at the end.
    fn fill(&mut self, decoder: &mut Decoder) -> impl Future<Output = io::Result<usize>> + Send;
}

/// A stream whose reads belong to somebody else.
pub(crate) struct Stream {
    reader: Box<dyn AsyncRead + Send + Unpin>,
    buffer: Vec<u8>,
}

impl Stream {
    pub(crate) fn new(reader: Box<dyn AsyncRead + Send + Unpin>) -> Self {
        Self { reader, buffer: vec![0; PIECE] }
    }
}

impl Source for Stream {
    async fn fill(&mut self, decoder: &mut Decoder) -> io::Result<usize> {
        let count = self.reader.read(&mut self.buffer).await?;
        decoder.push(&self.buffer[..count]);
        Ok(count)
    }
}

#[cfg(all(target_os = "linux", feature = "descriptors"))]
pub(crate) use socket::Socket;

#[cfg(all(target_os = "linux", feature = "descriptors"))]
mod socket {
    use std::io::{self, IoSliceMut};
    use std::os::fd::OwnedFd;
    use std::sync::Arc;

    use rustix::net::{RecvAncillaryBuffer, RecvFlags, ReturnFlags, recvmsg};
    use tierbox_supervisor::protocol::Decoder;
    use tokio::io::Interest;
    use tokio::io::unix::AsyncFd;

    use super::{BUFFER, Source};
    use crate::pipe::register;

    /// A local socket.
    pub(crate) struct Socket(AsyncFd<Arc<OwnedFd>>);

    impl Socket {
        /// Registers with the reactor of the runtime that is entered.
        pub(crate) fn new(socket: Arc<OwnedFd>) -> io::Result<Self> {
            register(socket, Interest::READABLE).map(Self)
        }
    }

    impl Source for Socket {
        async fn fill(&mut self, decoder: &mut Decoder) -> io::Result<usize> {
            self.0.async_io(Interest::READABLE, |socket| receive(socket, decoder)).await
        }
    }

    fn receive(socket: &OwnedFd, decoder: &mut Decoder) -> io::Result<usize> {
        BUFFER.with_borrow_mut(|buffer| {
            let mut none = RecvAncillaryBuffer::default();
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let message = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut none, flags)?;
            // There is no room for ancillary data, so the kernel drops descriptors before they become ours, and says so.
            if message.flags.contains(ReturnFlags::CTRUNC) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it sent descriptors"));
            }
            decoder.push(&buffer[..message.bytes]);
            Ok(message.bytes)
        })
    }
}

/// Ends the line whatever becomes of its reader: a defect here must not leave anybody waiting.
struct Reading(Arc<Shared>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.close(Closed::lost("the line to the machine is no longer read"));
    }
}

/// Reads a channel until it ends.
pub(crate) async fn run(shared: Arc<Shared>, source: impl Source, patience: Duration) {
    let _reading = Reading(shared.clone());
    let reason = tokio::select! {
        reason = read(&shared, source) => reason,
        reason = watch(&shared, patience) => reason,
        _ = shared.over() => return,
    };
    shared.close(reason);
}

/// Serves a session until it ends.
pub(crate) async fn run_session(shared: Arc<Shared>, outgoing: Arc<Outgoing>, session: Arc<Session>, line: Line) {
    let _reading = Reading(shared.clone());
    let reason = {
        let serve = session.serve(&shared, &outgoing, line);
        tokio::pin!(serve);
        tokio::select! {
            reason = &mut serve => reason,
            reason = watch(&shared, PATIENCE) => reason,
            _ = shared.over() => {
                let _ = tokio::time::timeout(LAST_WORDS, serve).await;
                return outgoing.die();
            }
        }
    };
    shared.close(reason);
    outgoing.die();
}

async fn read(shared: &Shared, mut source: impl Source) -> Closed {
    let mut decoder = Decoder::default();
    loop {
        match source.fill(&mut decoder).await {
            Ok(0) => return Closed::lost("the machine's supervisor went away"),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Closed::protocol(error.to_string()),
            Err(error) => return Closed::lost(format!("the line to the machine broke: {error}")),
        }
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    if let Err(broken) = shared.dispatch(frame) {
                        return broken;
                    }
                }
                Ok(None) => break,
                Err(error) => return Closed::protocol(error.to_string()),
            }
        }
    }
}

/// Ends the wait for a machine that says nothing.
async fn watch(shared: &Shared, patience: Duration) -> Closed {
    let mut last = 0;
    let mut silences = 0;
    loop {
        tokio::time::sleep(patience).await;
        if shared.is_mute() {
            return Closed::lost("the machine's supervisor takes no more requests");
        }
        shared.end_overdue();
        let (heard, awaiting) = shared.pulse();
        if heard != last || !awaiting {
            (last, silences) = (heard, 0);
            continue;
        }
        silences += 1;
        match silences {
            1 => shared.prod(),
            SILENCES => return Closed::lost(format!("the machine gave no sign of life for {:?}", patience * SILENCES)),
            _ => {}
        }
    }
}
