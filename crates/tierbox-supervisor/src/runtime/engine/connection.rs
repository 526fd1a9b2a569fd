//! Clients: frames in, frames out, descriptors that come along.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags};

use super::poll::{Interest, Poller, Token};
use super::session::Session;
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
    /// `None` while a session has no line.
    channel: Option<Channel>,
    decoder: Decoder,
    descriptors: VecDeque<OwnedFd>,
    queue: VecDeque<Rc<Vec<u8>>>,
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
    /// What outlives its line, if anything does.
    pub session: Option<Session>,
}

impl Connection {
    /// Whether output for it should wait.
    pub fn is_busy(&self) -> bool {
        self.queued >= BUSY || self.session.as_ref().is_some_and(Session::is_full)
    }

    /// Whether it has a line.
    pub fn is_connected(&self) -> bool {
        self.channel.is_some()
    }

    /// Whether it is a local socket, over which descriptors come.
    pub fn is_socket(&self) -> bool {
        matches!(self.channel, Some(Channel::Socket(_)))
    }

    /// Takes its line away, with what is not written to it.
    fn take_line(&mut self, poller: &Poller) -> Option<Channel> {
        self.queue.clear();
        (self.queued, self.written) = (0, 0);
        self.descriptors.clear();
        let channel = self.channel.take()?;
        match &channel {
            Channel::Socket(socket) => poller.remove(socket),
            Channel::Pipes { read, write, .. } => {
                poller.remove(read);
                poller.remove(write);
            }
        }
        Some(channel)
    }

    /// Gives it a line.
    fn give_line(&mut self, poller: &Poller, id: u32, channel: Channel) -> io::Result<()> {
        match &channel {
            Channel::Socket(socket) => {
                super::stream::unblock(socket)?;
                poller.add(socket, Token::Connection(id), Interest::READ)?;
            }
            Channel::Pipes { read, write, .. } => {
                super::stream::unblock(read)?;
                super::stream::unblock(write)?;
                poller.add(read, Token::Connection(id), Interest::READ)?;
                poller.add(write, Token::ConnectionOut(id), Interest::GONE)?;
            }
        }
        self.channel = Some(channel);
        self.interest = Interest::READ;
        Ok(())
    }

    /// Reads once. True if there is more.
    ///
    /// # Errors
    /// At the end of the stream, or when it broke.
    pub fn read(&mut self, scratch: &mut [u8]) -> io::Result<bool> {
        let count = match &self.channel {
            Some(Channel::Pipes { read, .. }) => rustix::io::read(read, &mut *scratch),
            Some(Channel::Socket(socket)) => receive(socket.as_fd(), scratch, &mut self.descriptors),
            None => return Ok(false),
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

    /// The next frame that came, and its length.
    ///
    /// # Errors
    /// If what came is no frame.
    pub fn next_frame(&mut self) -> Result<Option<(Frame<ToSupervisor>, usize)>, crate::wire::DecodeError> {
        let before = self.decoder.pending();
        let frame = self.decoder.next_frame()?;
        Ok(frame.map(|frame| (frame, before - self.decoder.pending())))
    }

    /// The descriptors that a frame counts; `None` if they did not come.
    pub fn take_descriptors(&mut self, count: usize) -> Option<Vec<OwnedFd>> {
        (self.descriptors.len() >= count).then(|| self.descriptors.drain(..count).collect())
    }

    /// Writes what is queued, as far as it goes.
    fn flush(&mut self) -> io::Result<()> {
        let Some(channel) = &self.channel else { return Ok(()) };
        while !self.queue.is_empty() {
            let slices: Vec<IoSlice<'_>> = self.slices().collect();
            let count = match channel {
                Channel::Socket(socket) => {
                    let mut nothing = rustix::net::SendAncillaryBuffer::default();
                    rustix::net::sendmsg(socket, &slices, &mut nothing, SendFlags::NOSIGNAL)
                }
                Channel::Pipes { write, .. } => rustix::io::writev(write, &slices),
            };
            match count {
                Ok(count) => advance(&mut self.queue, &mut self.queued, &mut self.written, count),
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
}

/// So many bytes were written.
fn advance(queue: &mut VecDeque<Rc<Vec<u8>>>, queued: &mut usize, written: &mut usize, count: usize) {
    *queued -= count;
    *written += count;
    while let Some(first) = queue.front() {
        if *written < first.len() {
            break;
        }
        *written -= first.len();
        queue.pop_front();
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
        let mut connection = Connection {
            channel: None,
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
            session: None,
        };
        connection.give_line(poller, id, channel)?;
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
        let mut connection = self.all.remove(&id)?;
        connection.take_line(poller);
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
        let frame = Rc::new(frame);
        if let Some(session) = connection.session.as_mut().filter(|_| super::session::is_counted(message)) {
            session.sent(frame.clone());
        }
        if connection.channel.is_some() {
            connection.queued += frame.len();
            connection.queue.push_back(frame);
        }
    }

    /// A joiner's two descriptors are its line from now on.
    ///
    /// # Errors
    /// If they cannot be watched.
    pub fn join(&mut self, poller: &Poller, id: u32, read: OwnedFd, write: OwnedFd) -> io::Result<()> {
        let Some(connection) = self.all.get_mut(&id) else { return Ok(()) };
        let Some(Channel::Socket(joiner)) = connection.take_line(poller) else { return Ok(()) };
        connection.give_line(poller, id, Channel::Pipes { read, write, joiner: Some(joiner) })
    }

    /// Takes the line from a session. False if it is no session.
    pub fn suspend(&mut self, poller: &Poller, id: u32) -> bool {
        let Some(connection) = self.all.get_mut(&id).filter(|connection| connection.session.is_some()) else { return false };
        connection.take_line(poller);
        connection.decoder = Decoder::default();
        true
    }

    /// The connection that is this session.
    pub fn session(&self, name: &[u8; 16]) -> Option<u32> {
        let is_it = |connection: &Connection| connection.session.as_ref().is_some_and(|session| session.name == *name);
        self.all.iter().find(|(_, connection)| is_it(connection)).map(|(id, _)| *id)
    }

    /// Gives a session the line of another connection, which is gone then, and queues what the other side has not got. `None` if
    /// what it says that it got cannot be.
    pub fn resume(&mut self, poller: &Poller, session: u32, line: u32, received: u64) -> Option<()> {
        let mut from = self.all.remove(&line)?;
        let channel = from.take_line(poller)?;
        let connection = self.all.get_mut(&session)?;
        connection.take_line(poller);
        connection.decoder = from.decoder;
        connection.give_line(poller, session, channel).ok()?;
        let missing = connection.session.as_mut()?.resume(received)?;
        let answer = FromSupervisor::Resumed { received: connection.session.as_ref()?.received };
        self.send(session, CHANNEL, &answer);
        let connection = self.all.get_mut(&session)?;
        connection.queued += missing.iter().map(|frame| frame.len()).sum::<usize>();
        connection.queue.extend(missing);
        Some(())
    }

    /// A frame of a session was taken in. An acknowledgement is sent when one is due.
    pub fn took(&mut self, id: u32, bytes: usize) {
        let due =
            self.all.get_mut(&id).and_then(|connection| connection.session.as_mut()).and_then(|session| session.took(bytes));
        if let Some(received) = due {
            self.send(id, CHANNEL, &FromSupervisor::Ack { received });
        }
    }

    /// The other side has so many frames. False if that cannot be.
    pub fn acknowledged(&mut self, id: u32, received: u64) -> bool {
        let Some(connection) = self.all.get_mut(&id) else { return true };
        let was_busy = connection.is_busy();
        let Some(session) = &mut connection.session else { return false };
        if !session.acknowledged(received) {
            return false;
        }
        if was_busy && !connection.is_busy() {
            self.relieved.push(id);
        }
        true
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
            None => {}
            Some(Channel::Socket(socket)) => poller.change(socket, Token::Connection(id), wanted),
            Some(Channel::Pipes { read, write, .. }) => {
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
