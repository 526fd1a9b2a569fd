//! Streams to what listens inside the machine.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    Shutdown, SocketAddrUnix, SocketFlags, SocketType,
};

use super::connection::Call;
use super::environment;
use super::poll::{Interest, Ready, Token};
use super::stream::{self, Flow, Found, Inlet, Outlet, Tap};
use super::sys::{self, Fork};
use super::timers::Timer;
use super::{Child, Engine};
use crate::protocol::{Dial, Failure, FromSupervisor, STDOUT, WINDOW};
use crate::runtime::identity::Identity;

/// How long connecting may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Reads in a row from one stream.
const BURST: usize = 8;

/// How far a stream is.
#[derive(Debug)]
enum Progress {
    /// A helper connects it; its answer comes here.
    Helped(OwnedFd),
    /// The kernel connects it.
    Connecting(OwnedFd),
    /// It is open.
    Open(Box<Stream>),
}

/// An open stream.
#[derive(Debug)]
struct Stream {
    socket: OwnedFd,
    outlet: Outlet,
    tap: Tap,
    inlet: Inlet,
    /// What it is watched for; nothing if it is not watched at all.
    watched: Option<Interest>,
}

/// A stream and its call.
#[derive(Debug)]
struct Line {
    connection: u32,
    call: u32,
    progress: Progress,
    patience: Option<Instant>,
}

/// All streams.
#[derive(Debug, Default)]
pub struct Lines {
    all: HashMap<u32, Line>,
    made: u32,
}

impl Engine {
    /// Opens a stream.
    pub(super) fn begin_dial(&mut self, connection: u32, call: u32, target: &Dial) {
        self.lines.made = self.lines.made.wrapping_add(1);
        let id = self.lines.made;
        let begun = match target {
            Dial::Tcp { port } => self.dial_tcp(id, *port),
            Dial::Unix { path } => self.dial_unix(id, &path.0),
        };
        match begun {
            Ok(progress) => {
                let patience = Some(self.timers.after(PATIENCE, Timer::Dial(id)));
                self.lines.all.insert(id, Line { connection, call, progress, patience });
                self.connections.open_call(connection, call, Call::Dial(id));
            }
            Err(error) => {
                let (failure, errno, detail) = explain(&error);
                self.fail_call(connection, call, failure, errno, detail);
            }
        }
    }

    fn dial_tcp(&self, id: u32, port: u16) -> io::Result<Progress> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, port))) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(errno) => return Err(errno.into()),
        }
        // Also when it is connected already: then the event comes at once.
        self.poller.add(&socket, Token::Dial(id), Interest::WRITE)?;
        Ok(Progress::Connecting(socket))
    }

    /// Has the agent itself connect to a path: the supervisor may reach more than the agent.
    fn dial_unix(&mut self, id: u32, path: &[u8]) -> io::Result<Progress> {
        let path = environment::resolve(&self.setup.workdir.0, Some(path));
        let address = SocketAddrUnix::new(path)?;
        let (answer, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        self.poller.add(&answer, Token::Connector(id), Interest::READ)?;
        match sys::fork()? {
            Fork::Child => connect_for(&self.agent, &address, &theirs),
            Fork::Parent(pid) => drop(self.children.insert(pid, Child::Helper)),
        }
        Ok(Progress::Helped(answer))
    }

    /// A helper answered.
    pub(super) fn on_connector(&mut self, id: u32) {
        let Some(Line { progress: Progress::Helped(answer), .. }) = self.lines.all.get(&id) else { return };
        self.poller.remove(answer);
        match receive_socket(answer).and_then(|socket| stream::unblock(&socket).map(|()| socket)) {
            Ok(socket) => self.open_line(id, socket, false),
            Err(error) => self.fail_line(id, &error),
        }
    }

    /// Something happened on a stream.
    pub(super) fn on_dial(&mut self, id: u32, ready: Ready) {
        let Some(line) = self.lines.all.get_mut(&id) else { return };
        match &line.progress {
            Progress::Helped(_) => {}
            Progress::Connecting(socket) => {
                let connected = rustix::net::sockopt::socket_error(socket).map_err(io::Error::from);
                match connected.and_then(|result| Ok(result?)).and_then(|()| socket.try_clone()) {
                    Ok(socket) => self.open_line(id, socket, true),
                    Err(error) => self.fail_line(id, &error),
                }
            }
            Progress::Open(_) => {
                if ready.write {
                    self.push_line(id);
                }
                if ready.read {
                    self.pump_line(id);
                }
            }
        }
    }

    fn open_line(&mut self, id: u32, socket: OwnedFd, watched: bool) {
        let Some(line) = self.lines.all.get_mut(&id) else { return };
        if let (true, Progress::Connecting(old)) = (watched, &line.progress) {
            self.poller.remove(old);
        }
        let Ok(input) = socket.try_clone() else {
            return self.fail_line(id, &Errno::MFILE.into());
        };
        if let Some(at) = line.patience.take() {
            self.timers.cancel(at, Timer::Dial(id));
        }
        let (outlet, tap, inlet) = (Outlet::default(), Tap::from(0), Inlet::new(input));
        line.progress = Progress::Open(Box::new(Stream { socket, outlet, tap, inlet, watched: None }));
        self.connections.send(line.connection, line.call, &FromSupervisor::Dialed);
        self.watch_line(id);
    }

    fn fail_line(&mut self, id: u32, error: &io::Error) {
        if let Some(line) = self.drop_line(id) {
            let (failure, errno, detail) = explain(error);
            self.fail_call(line.connection, line.call, failure, errno, detail);
        }
    }

    fn drop_line(&mut self, id: u32) -> Option<Line> {
        let line = self.lines.all.remove(&id)?;
        match &line.progress {
            Progress::Helped(fd) | Progress::Connecting(fd) => self.poller.remove(fd),
            Progress::Open(stream) => self.poller.remove(&stream.socket),
        }
        if let Some(at) = line.patience {
            self.timers.cancel(at, Timer::Dial(id));
        }
        Some(line)
    }

    /// Connecting takes too long.
    pub(super) fn give_up_dial(&mut self, id: u32) {
        self.fail_line(id, &Errno::TIMEDOUT.into());
    }

    /// The client gives a stream up.
    pub(super) fn abort_dial(&mut self, id: u32) {
        if let Some(line) = self.drop_line(id) {
            self.connections.forget_call(line.connection, line.call);
        }
    }

    fn watch_line(&mut self, id: u32) {
        let Some(Line { progress: Progress::Open(stream), .. }) = self.lines.all.get_mut(&id) else { return };
        let read = !stream.outlet.closed && stream.outlet.room() > 0;
        let interest = Interest { read, write: stream.inlet.blocked };
        // A stream that nothing is wanted from must not be watched: its end would be told again and again.
        let wanted = (interest != Interest::GONE).then_some(interest);
        match (stream.watched, wanted) {
            (old, new) if old == new => {}
            (None, Some(interest)) => drop(self.poller.add(&stream.socket, Token::Dial(id), interest)),
            (Some(_), Some(interest)) => self.poller.change(&stream.socket, Token::Dial(id), interest),
            (_, None) => self.poller.remove(&stream.socket),
        }
        stream.watched = wanted;
    }

    fn pump_line(&mut self, id: u32) {
        for _ in 0..BURST {
            let Some(Line { progress: Progress::Open(stream), .. }) = self.lines.all.get_mut(&id) else { return };
            let length = stream.outlet.room().min(self.scratch.len());
            if length == 0 || stream.outlet.closed {
                break;
            }
            match stream::read_some(&stream.socket, &mut self.scratch[..length]) {
                Found::Bytes(count) => stream.outlet.push(&self.scratch[..count], false),
                Found::Nothing => break,
                Found::End => stream.outlet.closed = true,
            }
            self.feed_line(id);
        }
        self.feed_line(id);
    }

    /// Sends the client what it may have.
    pub(super) fn feed_line(&mut self, id: u32) {
        let Some(Line { progress: Progress::Open(stream), connection, call, .. }) = self.lines.all.get_mut(&id) else { return };
        while !self.connections.is_busy(*connection)
            && let Some(frame) = stream.outlet.next_frame(&mut stream.tap, STDOUT)
        {
            self.connections.send(*connection, *call, &frame);
        }
        stream.outlet.forget(stream.tap.acknowledged());
        if stream.outlet.exhausted_by(&stream.tap) && !std::mem::replace(&mut stream.tap.ended, true) {
            self.connections.send(*connection, *call, &FromSupervisor::OutputEnd { stream: STDOUT });
        }
        if stream.tap.ended && stream.inlet.fd.is_none() {
            let (connection, call) = (*connection, *call);
            self.drop_line(id);
            return self.connections.finish(connection, call, &FromSupervisor::Finished);
        }
        self.watch_line(id);
    }

    /// The client consumed data.
    pub(super) fn grant_line(&mut self, id: u32, bytes: u32) {
        if let Some(Line { progress: Progress::Open(stream), .. }) = self.lines.all.get_mut(&id) {
            stream.tap.grant(bytes);
            self.feed_line(id);
        }
    }

    /// Data from the client. False if that is more than it may send, or came before the stream was open.
    pub(super) fn take_line_data(&mut self, id: u32, data: &[u8]) -> bool {
        let Some(line) = self.lines.all.get_mut(&id) else { return true };
        let Progress::Open(stream) = &mut line.progress else { return false };
        let allowed = stream.inlet.push(data, WINDOW as usize);
        self.push_line(id);
        allowed
    }

    /// The client's data is complete.
    pub(super) fn end_line_data(&mut self, id: u32) {
        if let Some(Line { progress: Progress::Open(stream), .. }) = self.lines.all.get_mut(&id) {
            stream.inlet.end();
            self.push_line(id);
        }
    }

    fn push_line(&mut self, id: u32) {
        let Some(Line { progress: Progress::Open(stream), connection, call, .. }) = self.lines.all.get_mut(&id) else { return };
        let flow = stream.inlet.pump();
        stream.inlet.blocked = flow == Flow::Blocked;
        if let Some(bytes) = stream.inlet.credit() {
            self.connections.send(*connection, *call, &FromSupervisor::InputCredit { bytes });
        }
        if matches!(flow, Flow::Ended | Flow::Broken) && stream.inlet.close().is_some() {
            // The other side may have closed it already.
            let _ = rustix::net::shutdown(&stream.socket, Shutdown::Write);
            if flow == Flow::Broken {
                self.connections.send(*connection, *call, &FromSupervisor::InputClosed);
            }
        }
        self.feed_line(id);
    }
}

/// In a child: connects as the agent and sends the socket, or the errno.
fn connect_for(agent: &Identity, address: &SocketAddrUnix, answer: &OwnedFd) -> ! {
    use std::os::fd::AsRawFd;
    sys::close_all_but(3, &mut [answer.as_raw_fd()]);
    sys::alarm(PATIENCE.as_secs() as u32);
    let connect = || -> io::Result<OwnedFd> {
        agent.assume()?;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        rustix::net::connect(&socket, address)?;
        Ok(socket)
    };
    let sent = match connect() {
        Ok(socket) => {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let fds = [socket.as_fd()];
            ancillary.push(SendAncillaryMessage::ScmRights(&fds));
            rustix::net::sendmsg(answer, &[IoSlice::new(&[0; 4])], &mut ancillary, SendFlags::NOSIGNAL)
        }
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(libc::EIO).to_le_bytes();
            rustix::net::send(answer, &errno, SendFlags::NOSIGNAL)
        }
    };
    sys::exit(i32::from(sent.is_err()))
}

fn receive_socket(answer: &OwnedFd) -> io::Result<OwnedFd> {
    let mut errno = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = rustix::net::recvmsg(answer, &mut [IoSliceMut::new(&mut errno)], &mut ancillary, flags)?;
    let socket = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    match (message.bytes, i32::from_le_bytes(errno), socket) {
        (4, 0, Some(socket)) if is_socket(&socket) => Ok(socket),
        (4, errno @ 1.., _) => Err(io::Error::from_raw_os_error(errno)),
        // It was killed, from inside or by its own clock.
        _ => Err(Errno::TIMEDOUT.into()),
    }
}

fn is_socket(fd: &OwnedFd) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket)
}

fn explain(error: &io::Error) -> (Failure, i32, &'static str) {
    let errno = error.raw_os_error().unwrap_or(0);
    match errno {
        libc::ENOENT | libc::ENOTDIR => (Failure::NotFound, errno, "there is no such socket"),
        libc::EACCES | libc::EPERM => (Failure::PermissionDenied, errno, "the sandbox's user may not connect to it"),
        libc::ECONNREFUSED => (Failure::NotFound, errno, "nothing listens there"),
        libc::ENAMETOOLONG | libc::EINVAL => (Failure::Invalid, errno, "the path is no socket's"),
        libc::ETIMEDOUT => (Failure::Io, errno, "nothing answered in time"),
        _ => (Failure::Io, errno, "the stream cannot be opened"),
    }
}
