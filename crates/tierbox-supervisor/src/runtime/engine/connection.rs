//! Clients: frames in, frames out, descriptors that come along.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags};

use super::poll::{Interest, Poller, Token};
use crate::protocol::{Decoder, Frame, FromSupervisor, ToSupervisor, try_encode};
use crate::runtime::machine::Channel;

/// Output of commands is not taken from their pipes while so much waits to be written to the client.
const BUSY: usize = 256 << 10;

/// Nothing is read from a client that leaves so much unread.
const STUFFED: usize = 1 << 20;

/// Descriptors that came and that no frame has claimed yet.
const MAX_DESCRIPTORS: usize = 1024;

/// What one read takes, and the descriptors that can come with it (the kernel's own bound).
const READ: usize = 64 << 10;
const DESCRIPTORS_PER_READ: usize = 253;

/// The channel itself: calls are above it.
pub const CHANNEL: u32 = 0;

/// What a call is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// A command that this client launched or follows.
    Exec(u32),
    /// The end of a command is wanted.
    Wait(u32),
    /// A file operation.
    File(u32),
    /// A stream to somewhere inside.
    Dial(u32),
}

/// One client.
#[derive(Debug)]
pub struct Connection {
    channel: Channel,
    decoder: Decoder,
    descriptors: VecDeque<OwnedFd>,
    queue: VecDeque<Vec<u8>>,
    queued: usize,
    /// How much of the first queued frame is written.
    written: usize,
    interest: Interest,
    dirty: bool,
    /// Whether its `Hello` came.
    pub greeted: bool,
    /// How long its commands survive it.
    pub grace_ms: u64,
    /// Its open calls.
    pub calls: HashMap<u32, Call>,
    /// Whether this is the machine's own channel.
    pub own: bool,
}

impl Connection {
    fn reader(&self) -> BorrowedFd<'_> {
        match &self.channel {
            Channel::Socket(socket) => socket.as_fd(),
            Channel::Pipes { read, .. } => read.as_fd(),
        }
    }

    /// Whether output for it should wait.
    pub fn is_busy(&self) -> bool {
        self.queued >= BUSY
    }

    /// Reads once. True if there is more.
    ///
    /// # Errors
    /// At the end of the stream, or when it broke.
    pub fn read(&mut self, scratch: &mut [u8]) -> io::Result<bool> {
        let count = match &self.channel {
            Channel::Pipes { read, .. } => rustix::io::read(read, &mut *scratch),
            Channel::Socket(socket) => receive(socket.as_fd(), scratch, &mut self.descriptors),
        };
        match count {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                self.decoder.push(&scratch[..count]);
                Ok(count == scratch.len())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The next frame that came.
    ///
    /// # Errors
    /// If what came is no frame.
    pub fn next_frame(&mut self) -> Result<Option<Frame<ToSupervisor>>, crate::wire::DecodeError> {
        self.decoder.next_frame()
    }

    /// The descriptors that a frame counts; `None` if they did not come.
    pub fn take_descriptors(&mut self, count: usize) -> Option<Vec<OwnedFd>> {
        (self.descriptors.len() >= count).then(|| self.descriptors.drain(..count).collect())
    }

    /// Writes what is queued, as far as it goes.
    fn flush(&mut self) -> io::Result<()> {
        while !self.queue.is_empty() {
            let slices: Vec<IoSlice<'_>> = self.slices().collect();
            let count = match &self.channel {
                Channel::Socket(socket) => {
                    let mut nothing = rustix::net::SendAncillaryBuffer::default();
                    rustix::net::sendmsg(socket, &slices, &mut nothing, SendFlags::NOSIGNAL)
                }
                Channel::Pipes { write, .. } => rustix::io::writev(write, &slices),
            };
            match count {
                Ok(count) => self.advance(count),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn slices(&self) -> impl Iterator<Item = IoSlice<'_>> {
        let skip = |index: usize| if index == 0 { self.written } else { 0 };
        self.queue.iter().take(64).enumerate().map(move |(index, frame)| IoSlice::new(&frame[skip(index)..]))
    }

    fn advance(&mut self, count: usize) {
        self.queued -= count;
        self.written += count;
        while let Some(first) = self.queue.front() {
            if self.written < first.len() {
                break;
            }
            self.written -= first.len();
            self.queue.pop_front();
        }
    }
}

fn receive(socket: BorrowedFd<'_>, scratch: &mut [u8], into: &mut VecDeque<OwnedFd>) -> rustix::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_PER_READ))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(scratch)], &mut ancillary, flags)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            into.extend(descriptors);
        }
    }
    // Descriptors that got lost (none was free) would shift all that follow.
    if message.flags.contains(ReturnFlags::CTRUNC) || into.len() > MAX_DESCRIPTORS {
        return Err(Errno::NFILE);
    }
    Ok(message.bytes)
}

/// All clients.
#[derive(Debug, Default)]
pub struct Connections {
    all: HashMap<u32, Connection>,
    made: u32,
    dirty: Vec<u32>,
    /// Clients whose stream broke while it was written to.
    pub broken: Vec<u32>,
    /// Clients that had too much to read and have not any more.
    pub relieved: Vec<u32>,
}

impl Connections {
    /// Takes a client in.
    ///
    /// # Errors
    /// If its stream cannot be watched.
    pub fn add(&mut self, poller: &Poller, channel: Channel, own: bool) -> io::Result<u32> {
        self.made = self.made.wrapping_add(1);
        let id = self.made;
        match &channel {
            Channel::Socket(socket) => {
                super::stream::unblock(socket)?;
                poller.add(socket, Token::Connection(id), Interest::READ)?;
            }
            Channel::Pipes { read, write } => {
                super::stream::unblock(read)?;
                super::stream::unblock(write)?;
                poller.add(read, Token::Connection(id), Interest::READ)?;
                poller.add(write, Token::ConnectionOut(id), Interest::GONE)?;
            }
        }
        let connection = Connection {
            channel,
            decoder: Decoder::default(),
            descriptors: VecDeque::new(),
            queue: VecDeque::new(),
            queued: 0,
            written: 0,
            interest: Interest::READ,
            dirty: false,
            greeted: false,
            grace_ms: 0,
            calls: HashMap::new(),
            own,
        };
        self.all.insert(id, connection);
        Ok(id)
    }

    /// A client.
    pub fn get(&mut self, id: u32) -> Option<&mut Connection> {
        self.all.get_mut(&id)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// Whether output for a client should wait. A client that is gone takes everything.
    pub fn is_busy(&self, id: u32) -> bool {
        self.all.get(&id).is_some_and(Connection::is_busy)
    }

    /// Lets a client go.
    pub fn remove(&mut self, poller: &Poller, id: u32) -> Option<Connection> {
        let connection = self.all.remove(&id)?;
        poller.remove(connection.reader());
        if let Channel::Pipes { write, .. } = &connection.channel {
            poller.remove(write);
        }
        Some(connection)
    }

    /// Queues a frame; it is written before the engine waits again.
    pub fn send(&mut self, id: u32, call: u32, message: &FromSupervisor) {
        self.push(id, call, message);
        if let Some(connection) = self.all.get_mut(&id)
            && !std::mem::replace(&mut connection.dirty, true)
        {
            self.dirty.push(id);
        }
    }

    fn push(&mut self, id: u32, call: u32, message: &FromSupervisor) {
        let Some(connection) = self.all.get_mut(&id) else { return };
        // Everything that the engine says is bounded far below the longest frame.
        let Some(frame) = try_encode(call, message) else { return };
        connection.queued += frame.len();
        connection.queue.push_back(frame);
    }

    /// Opens a call.
    pub fn open_call(&mut self, id: u32, call: u32, about: Call) {
        if let Some(connection) = self.all.get_mut(&id) {
            connection.calls.insert(call, about);
        }
    }

    /// Ends a call with its last message.
    pub fn finish(&mut self, id: u32, call: u32, message: &FromSupervisor) {
        self.send(id, call, message);
        self.forget_call(id, call);
    }

    /// Ends a call without a word.
    pub fn forget_call(&mut self, id: u32, call: u32) {
        if let Some(connection) = self.all.get_mut(&id) {
            connection.calls.remove(&call);
        }
    }

    /// Writes what is queued. Whether there was anything to do, or is now.
    pub fn flush(&mut self, poller: &Poller) -> bool {
        for id in std::mem::take(&mut self.dirty) {
            self.flush_one(poller, id);
        }
        !(self.broken.is_empty() && self.relieved.is_empty())
    }

    /// Writes on to a client that has room again.
    pub fn flush_one(&mut self, poller: &Poller, id: u32) {
        let Some(connection) = self.all.get_mut(&id) else { return };
        connection.dirty = false;
        let was_busy = connection.is_busy();
        if connection.flush().is_err() {
            self.broken.push(id);
            return;
        }
        if was_busy && !connection.is_busy() {
            self.relieved.push(id);
        }
        connection.watch(poller, id);
    }
}

impl Connection {
    fn watch(&mut self, poller: &Poller, id: u32) {
        let wanted = Interest { read: self.queued < STUFFED, write: !self.queue.is_empty() };
        if wanted == std::mem::replace(&mut self.interest, wanted) {
            return;
        }
        match &self.channel {
            Channel::Socket(socket) => poller.change(socket, Token::Connection(id), wanted),
            Channel::Pipes { read, write } => {
                poller.change(read, Token::Connection(id), Interest { write: false, ..wanted });
                poller.change(write, Token::ConnectionOut(id), Interest { read: false, ..wanted });
            }
        }
    }
}

/// Memory for one read.
pub fn scratch() -> Box<[u8]> {
    vec![0; READ].into_boxed_slice()
}
