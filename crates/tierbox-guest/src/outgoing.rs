//! The writing side of a channel.
//!
//! A caller writes its frame itself while nothing is queued: no task, no hop, and it works in `Drop` and outside of any
//! runtime (a stream's `poll_write` has to). Only what the other side does not take at once is queued, for the driver to write.
//!
//! The queue is bounded by what its users do: data waits for credit, requests wait for [`Outgoing::room`], and what cannot
//! wait (cancel, abort, credit) is a few bytes for each call that exists.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

use crate::driver;
use crate::errors::lock;

/// Requests wait while more than this is queued.
const HIGH_WATER: usize = 1 << 20;
/// Bytes that are handed to a stream at once.
const BATCH: usize = 256 << 10;
/// How long a closing channel may take for what is still queued.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(1);

/// Who writes the bytes.
enum Line {
    /// A local socket; descriptors can go with a frame.
    #[cfg(all(target_os = "linux", feature = "descriptors"))]
    Socket(Arc<OwnedFd>),
    /// A stream, until it ended. A task of the driver's writes what it does not take at once.
    Stream(Mutex<Option<Writer>>),
    /// A session, which takes frames from the queue.
    Session,
}

type Writer = Box<dyn AsyncWrite + Send + Unpin>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// Nothing more is taken; what is queued is still written.
    Finishing,
    Dead,
}

struct Item {
    bytes: Vec<u8>,
    sent: usize,
    descriptors: Vec<OwnedFd>,
}

struct Queue {
    items: VecDeque<Item>,
    bytes: usize,
    phase: Phase,
    /// A task writes, and what comes meanwhile waits for it.
    flushing: bool,
}

pub(crate) struct Outgoing {
    line: Line,
    queue: Mutex<Queue>,
    room: Notify,
    work: Notify,
    dead: Notify,
}

impl Outgoing {
    fn new(line: Line) -> Arc<Self> {
        let queue = Queue { items: VecDeque::new(), bytes: 0, phase: Phase::Open, flushing: false };
        Arc::new(Self { line, queue: Mutex::new(queue), room: Notify::new(), work: Notify::new(), dead: Notify::new() })
    }

    /// Writes to `writer`; what that does not take at once, a task of the driver's writes.
    pub(crate) fn stream(writer: Writer, driver: &tokio::runtime::Handle) -> Arc<Self> {
        let outgoing = Self::new(Line::Stream(Mutex::new(Some(writer))));
        driver.spawn(pump(outgoing.clone()));
        outgoing
    }

    /// Sends a frame, or queues it. False if the channel takes no more.
    pub(crate) fn send(self: &Arc<Self>, frame: Vec<u8>, descriptors: Vec<OwnedFd>) -> bool {
        let mut item = Item { bytes: frame, sent: 0, descriptors };
        let mut queue = lock(&self.queue);
        if queue.phase != Phase::Open {
            return false;
        }
        if queue.items.is_empty() && !queue.flushing {
            match self.write_now(&mut item) {
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    drop(queue);
                    self.die();
                    return false;
                }
            }
        }
        queue.bytes += item.bytes.len() - item.sent;
        queue.items.push_back(item);
        self.get_written(&mut queue);
        true
    }

    /// Waits until requests may be queued, or the channel is dead.
    pub(crate) async fn room(&self) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            {
                let queue = lock(&self.queue);
                if queue.bytes <= HIGH_WATER || queue.phase == Phase::Dead {
                    return;
                }
            }
            room.await;
        }
    }

    /// Whether writing failed or was ended.
    pub(crate) fn is_dead(&self) -> bool {
        lock(&self.queue).phase == Phase::Dead
    }

    /// Takes no more, and ends the line when what is queued was written or after a second.
    pub(crate) fn finish(self: &Arc<Self>) {
        let mut queue = lock(&self.queue);
        if queue.phase != Phase::Open {
            return;
        }
        queue.phase = Phase::Finishing;
        let waiting = !queue.items.is_empty();
        drop(queue);
        self.work.notify_one();
        match driver::handle() {
            Ok(driver) if waiting || matches!(self.line, Line::Stream(_) | Line::Session) => {
                let outgoing = self.clone();
                driver.spawn(async move {
                    tokio::time::sleep(LAST_WORDS).await;
                    outgoing.die();
                });
            }
            _ => self.die(),
        }
    }

    /// Ends the line now.
    pub(crate) fn die(&self) {
        let mut queue = lock(&self.queue);
        queue.phase = Phase::Dead;
        queue.items.clear();
        queue.bytes = 0;
        drop(queue);
        #[cfg(all(target_os = "linux", feature = "descriptors"))]
        if let Line::Socket(socket) = &self.line {
            // Reading goes on, so that what the other side said before it went away is still heard.
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Write);
        }
        self.room.notify_waiters();
        self.dead.notify_one();
    }

    /// Tries to write without waiting. False (or `WouldBlock`) if it did not all go.
    fn write_now(&self, item: &mut Item) -> io::Result<bool> {
        match &self.line {
            #[cfg(all(target_os = "linux", feature = "descriptors"))]
            Line::Socket(socket) => socket::write(socket, item),
            Line::Stream(writer) => write_some(writer, item),
            Line::Session => Ok(false),
        }
    }

    fn get_written(self: &Arc<Self>, queue: &mut Queue) {
        let _ = &queue;
        match &self.line {
            #[cfg(all(target_os = "linux", feature = "descriptors"))]
            Line::Socket(socket) => {
                if !std::mem::replace(&mut queue.flushing, true)
                    && let Ok(driver) = driver::handle()
                {
                    driver.spawn(socket::flush(self.clone(), socket.clone()));
                }
            }
            Line::Stream(_) | Line::Session => self.work.notify_one(),
        }
    }

    /// A queue that a session takes frames from.
    pub(crate) fn session() -> Arc<Self> {
        Self::new(Line::Session)
    }

    /// The next frame; `None` when there is none now.
    pub(crate) fn next_frame(&self) -> Option<Vec<u8>> {
        let mut queue = lock(&self.queue);
        let item = queue.items.pop_front()?;
        queue.bytes -= item.bytes.len();
        drop(queue);
        self.room.notify_waiters();
        Some(item.bytes)
    }

    /// Whether everything was taken, and nothing more comes.
    pub(crate) fn is_finished(&self) -> bool {
        let queue = lock(&self.queue);
        queue.phase != Phase::Open && queue.items.is_empty()
    }

    /// Waits until there may be something to take.
    pub(crate) async fn work(&self) {
        self.work.notified().await;
    }

    /// The next bytes for a stream; `None` when there are none now, and whoever has some may write them.
    fn batch(&self) -> Option<Vec<u8>> {
        let mut queue = lock(&self.queue);
        queue.flushing = !queue.items.is_empty();
        let mut batch = Vec::new();
        while batch.len() < BATCH
            && let Some(item) = queue.items.pop_front()
        {
            queue.bytes -= item.bytes.len() - item.sent;
            if batch.is_empty() && item.sent == 0 {
                batch = item.bytes
            } else {
                batch.extend_from_slice(&item.bytes[item.sent..])
            }
        }
        self.room.notify_waiters();
        queue.flushing.then_some(batch)
    }
}

/// Writes what a stream takes now. False if it did not take all.
fn write_some(writer: &Mutex<Option<Writer>>, item: &mut Item) -> io::Result<bool> {
    // The task asks again for itself, to be woken.
    let mut nobody = Context::from_waker(Waker::noop());
    let mut writer = lock(writer);
    let Some(writer) = writer.as_mut() else { return Err(io::ErrorKind::BrokenPipe.into()) };
    while item.sent < item.bytes.len() {
        match Pin::new(&mut *writer).poll_write(&mut nobody, &item.bytes[item.sent..]) {
            Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(Ok(count)) => item.sent += count,
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => return Ok(false),
        }
    }
    match Pin::new(writer).poll_flush(&mut nobody) {
        Poll::Ready(flushed) => flushed.map(|()| true),
        Poll::Pending => Ok(false),
    }
}

/// A stream that others write to as well, each a whole frame at a time.
struct Common<'a>(&'a Mutex<Option<Writer>>);

impl Common<'_> {
    fn poll<T>(&self, poll: impl FnOnce(Pin<&mut Writer>) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match lock(self.0).as_mut() {
            Some(writer) => poll(Pin::new(writer)),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }
}

impl AsyncWrite for Common<'_> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll(|writer| writer.poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|writer| writer.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|writer| writer.poll_shutdown(context))
    }
}

/// Writes what was queued, and ends the stream with the channel.
async fn pump(outgoing: Arc<Outgoing>) {
    let Line::Stream(line) = &outgoing.line else { return };
    let mut writer = Common(line);
    let write = async {
        loop {
            if let Some(batch) = outgoing.batch() {
                writer.write_all(&batch).await?;
                writer.flush().await?;
                continue;
            }
            if lock(&outgoing.queue).phase != Phase::Open {
                return writer.shutdown().await;
            }
            outgoing.work.notified().await;
        }
    };
    tokio::select! {
        _ = write => outgoing.die(),
        () = outgoing.dead.notified() => {}
    }
    drop(lock(line).take());
}

#[cfg(all(target_os = "linux", feature = "descriptors"))]
mod socket {
    use std::io::{self, IoSlice};
    use std::mem::MaybeUninit;
    use std::os::fd::{AsFd, OwnedFd};
    use std::sync::Arc;
    use std::time::Duration;

    use rustix::io::Errno;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use tokio::io::Interest;

    use super::{Item, Outgoing, Phase};
    use crate::errors::lock;
    use crate::pipe::register;

    /// The most descriptors that go with one frame.
    const DESCRIPTORS: usize = 4;

    impl Outgoing {
        /// Writes to a non-blocking socket.
        pub(crate) fn socket(socket: Arc<OwnedFd>) -> Arc<Self> {
            Self::new(super::Line::Socket(socket))
        }
    }

    /// Writes what the socket takes now; descriptors go with the first byte. `WouldBlock` when the socket is full, false when
    /// the kernel holds too many descriptors that nobody received yet.
    pub(super) fn write(socket: &OwnedFd, item: &mut Item) -> io::Result<bool> {
        while item.sent < item.bytes.len() {
            match send(socket, item) {
                Ok(count) => {
                    item.sent += count;
                    item.descriptors.clear();
                }
                Err(Errno::INTR) => {}
                Err(Errno::TOOMANYREFS | Errno::NOBUFS) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    fn send(socket: &OwnedFd, item: &Item) -> rustix::io::Result<usize> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let bytes = &item.bytes[item.sent..];
        if item.descriptors.is_empty() {
            return rustix::net::send(socket, bytes, flags);
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let borrowed: Vec<_> = item.descriptors.iter().map(AsFd::as_fd).collect();
        if !ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)) {
            return Err(Errno::INVAL);
        }
        sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)
    }

    /// Writes the queue until it is empty. Runs on the driver, only while something is queued: a lasting registration for
    /// writability would wake the driver for every frame that the other side takes.
    pub(super) async fn flush(outgoing: Arc<Outgoing>, socket: Arc<OwnedFd>) {
        if flush_all(&outgoing, &socket).await.is_err() {
            outgoing.die();
        }
    }

    async fn flush_all(outgoing: &Outgoing, socket: &OwnedFd) -> io::Result<()> {
        // The socket itself is registered for reading; a second registration needs a descriptor of its own.
        let copy = register(socket.try_clone()?, Interest::WRITABLE)?;
        loop {
            let mut ready = copy.writable().await?;
            match ready.try_io(|_| flush_some(outgoing, socket)) {
                Ok(Ok(true)) => return Ok(()),
                Ok(Ok(false)) => tokio::time::sleep(Duration::from_millis(1)).await,
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }

    /// True when the queue is empty, `WouldBlock` when the socket is full, false when it must be tried again later.
    fn flush_some(outgoing: &Outgoing, socket: &OwnedFd) -> io::Result<bool> {
        let mut queue = lock(&outgoing.queue);
        while let Some(mut item) = queue.items.pop_front() {
            let before = item.sent;
            let written = write(socket, &mut item);
            queue.bytes -= item.sent - before;
            if !matches!(written, Ok(true)) {
                queue.items.push_front(item);
                return written;
            }
        }
        queue.flushing = false;
        let finished = queue.phase == Phase::Finishing;
        drop(queue);
        outgoing.room.notify_waiters();
        if finished {
            outgoing.die();
        }
        Ok(true)
    }
}
