//! What the engine waits for.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

/// Who an event is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// Later clients connect.
    Listener,
    /// A child ended.
    Children,
    /// A shim's command ended and left something behind.
    Shims,
    /// A connection can be read, or (a socket) written.
    Connection(u32),
    /// A connection's separate writing end.
    ConnectionOut(u32),
    /// A command's output stream.
    Output(u32, u8),
    /// A command's input.
    Input(u32),
    /// A dialled stream.
    Dial(u32),
    /// The helper that connects to a Unix socket.
    Connector(u32),
    /// A file worker's answers.
    Worker(u32),
    /// A file operation's data.
    FileData(u32),
    /// A pipe that is read and discarded.
    Linger(u32),
}

impl Token {
    fn to_number(self) -> u64 {
        let (kind, index, sub) = match self {
            Self::Listener => (0, 0, 0),
            Self::Children => (1, 0, 0),
            Self::Shims => (2, 0, 0),
            Self::Connection(index) => (3, index, 0),
            Self::ConnectionOut(index) => (4, index, 0),
            Self::Output(index, stream) => (5, index, stream),
            Self::Input(index) => (6, index, 0),
            Self::Dial(index) => (7, index, 0),
            Self::Connector(index) => (8, index, 0),
            Self::Worker(index) => (9, index, 0),
            Self::FileData(index) => (10, index, 0),
            Self::Linger(index) => (11, index, 0),
        };
        kind << 40 | u64::from(index) << 8 | u64::from(sub)
    }

    fn from_number(number: u64) -> Self {
        let index = (number >> 8) as u32;
        match number >> 40 {
            0 => Self::Listener,
            1 => Self::Children,
            2 => Self::Shims,
            3 => Self::Connection(index),
            4 => Self::ConnectionOut(index),
            5 => Self::Output(index, number as u8),
            6 => Self::Input(index),
            7 => Self::Dial(index),
            8 => Self::Connector(index),
            9 => Self::Worker(index),
            10 => Self::FileData(index),
            _ => Self::Linger(index),
        }
    }
}

/// What can be done without waiting.
#[derive(Debug, Clone, Copy)]
pub struct Ready {
    /// Reading gives data, an end or an error.
    pub read: bool,
    /// Writing is possible or fails.
    pub write: bool,
    /// The other side is gone, or there is an error.
    pub gone: bool,
}

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Interest {
    /// Something to read.
    pub read: bool,
    /// Room to write.
    pub write: bool,
}

impl Interest {
    /// Something to read.
    pub const READ: Self = Self { read: true, write: false };
    /// Room to write.
    pub const WRITE: Self = Self { read: false, write: true };
    /// Only that the other side is gone.
    pub const GONE: Self = Self { read: false, write: false };

    fn flags(self) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, self.read);
        flags.set(EventFlags::OUT, self.write);
        flags
    }
}

/// An epoll instance and the events of the last wait.
pub struct Poller {
    epoll: OwnedFd,
    events: Vec<Event>,
}

impl Poller {
    /// A new instance.
    ///
    /// # Errors
    /// If the kernel offers none.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)?, events: Vec::with_capacity(128) })
    }

    /// Watches a descriptor.
    ///
    /// # Errors
    /// If the kernel refuses (a regular file, no memory).
    pub fn add(&self, fd: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(token.to_number()), interest.flags())?)
    }

    /// Watches it for something else.
    pub fn change(&self, fd: impl AsFd, token: Token, interest: Interest) {
        // Fails only for a descriptor that is not watched, which then stays so.
        let _ = epoll::modify(&self.epoll, fd, EventData::new_u64(token.to_number()), interest.flags());
    }

    /// Watches it no more. Needed before a descriptor is closed whose open file somebody else holds as well.
    pub fn remove(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits for events, at most so long.
    ///
    /// # Errors
    /// Never in a healthy process.
    pub fn wait(&mut self, limit: Option<Duration>) -> io::Result<Vec<(Token, Ready)>> {
        let timeout = limit.map(|limit| {
            // Rounded up, so that a timer has passed when its wait is over.
            let millis = limit.as_micros().div_ceil(1000).min(3_600_000) as i64;
            rustix::event::Timespec { tv_sec: millis / 1000, tv_nsec: millis % 1000 * 1_000_000 }
        });
        self.events.clear();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(self.events.iter().map(|event| (Token::from_number(event.data.u64()), ready(event.flags))).collect())
    }
}

fn ready(flags: EventFlags) -> Ready {
    let gone = flags.intersects(EventFlags::ERR | EventFlags::HUP);
    Ready { read: gone || flags.contains(EventFlags::IN), write: gone || flags.contains(EventFlags::OUT), gone }
}
