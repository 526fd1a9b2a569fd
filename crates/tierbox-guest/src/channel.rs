//! A line to a supervisor: frames out, frames in, and what happens when it breaks.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use tierbox_core::{Error, ErrorKind, Result};
use tierbox_supervisor::protocol::{self, Frame, FromSupervisor, TOO_MANY, ToSupervisor, VERSION};
use tierbox_supervisor::setup::Setup;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, oneshot};

use crate::calls::{Sink, Step, Table, end_all};
use crate::errors::{Closed, lock, printable};
use crate::handshake::{Ready, SetupReply};
use crate::line::{Line, Reconnect};
use crate::outgoing::Outgoing;
use crate::session::Session;
use crate::{driver, incoming};

/// A line to the supervisor of one machine. Clones are the same line; it ends when the last clone, and the last handle made
/// from it, is dropped, or by [`close`](Self::close).
///
/// Everything that the other side says is taken as hostile: it can end the line and lie about what it does, and nothing
/// more. A frame that breaks the protocol closes the channel, and so does a descriptor.
#[derive(Clone)]
pub struct Channel(Arc<Owner>);

struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.close(Closed::lost("the last handle on the machine was dropped"));
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").field("closed", &self.0.0.closed.get()).finish_non_exhaustive()
    }
}

/// What the handles and the driver's tasks share. Holding it does not keep the channel open.
pub(crate) struct Shared {
    outgoing: Arc<Outgoing>,
    table: Mutex<Table>,
    control: Mutex<Control>,
    closed: OnceLock<Closed>,
    over: Notify,
    heard: AtomicU64,
    passes_descriptors: bool,
    session: Option<Arc<Session>>,
}

/// What is awaited on call 0.
#[derive(Default)]
struct Control {
    setup: Option<oneshot::Sender<SetupReply>>,
    /// Whether a greeting was answered.
    welcomed: bool,
    hellos: u32,
    /// In the order of the pings; `None` where only the sign of life matters.
    pings: VecDeque<Option<oneshot::Sender<()>>>,
}

impl Channel {
    /// A channel over a connected local socket, through which descriptors can be passed.
    ///
    /// # Errors
    /// `Io` if the socket cannot be made non-blocking or the driver cannot start.
    #[cfg(all(target_os = "linux", feature = "descriptors"))]
    pub fn socket(socket: std::os::unix::net::UnixStream) -> Result<Self> {
        Self::socket_with(socket, incoming::PATIENCE)
    }

    /// As [`socket`](Self::socket), with another patience.
    #[cfg(all(target_os = "linux", feature = "descriptors"))]
    pub(crate) fn socket_with(socket: std::os::unix::net::UnixStream, patience: Duration) -> Result<Self> {
        let driver = driver::handle()?;
        socket.set_nonblocking(true).map_err(|error| Error::io("open channel", error))?;
        let socket = Arc::new(OwnedFd::from(socket));
        let shared = Shared::new(Outgoing::socket(socket.clone()), true, None);
        let reader = {
            let _inside = driver.enter();
            incoming::Socket::new(socket).map_err(|error| Error::io("open channel", error))?
        };
        driver.spawn(incoming::run(shared.clone(), reader, patience));
        Ok(Self(Arc::new(Owner(shared))))
    }

    /// A channel over any byte stream. Make the stream inside [`driver::handle`]'s runtime if it needs a reactor.
    ///
    /// # Errors
    /// `Io` if the driver cannot start.
    pub fn stream(reader: Box<dyn AsyncRead + Send + Unpin>, writer: Box<dyn AsyncWrite + Send + Unpin>) -> Result<Self> {
        let driver = driver::handle()?;
        let shared = Shared::new(Outgoing::stream(writer, driver), false, None);
        driver.spawn(incoming::run(shared.clone(), incoming::Stream::new(reader), incoming::PATIENCE));
        Ok(Self(Arc::new(Owner(shared))))
    }

    /// A channel over lines that can drop, to a supervisor that outlives them.
    ///
    /// After [`hello`](Self::hello) a line that drops is replaced by one that `reconnect` opens, for as long as the grace of the
    /// greeting: no command runs twice, no byte is lost, and a caller notices nothing but the wait. Meanwhile commands run on;
    /// of what they print 1 MiB per stream is held in the machine, then they block. If the grace ends without a line, the channel
    /// is closed, the supervisor kills all that it runs, and every outcome that was not heard is
    /// [`Lost`](tierbox_core::Outcome::Lost).
    ///
    /// A line that is cut without a word is given up after 20 s of silence while something is awaited; a transport with
    /// keep-alives of its own notices sooner.
    ///
    /// # Errors
    /// `Io` if the driver cannot start or the system has no random numbers.
    pub fn resumable(line: Line, reconnect: Arc<dyn Reconnect>) -> Result<Self> {
        let driver = driver::handle()?;
        let (session, outgoing) = (Session::new(reconnect)?, Outgoing::session());
        let shared = Shared::new(outgoing.clone(), false, Some(session.clone()));
        driver.spawn(incoming::run_session(shared.clone(), outgoing, session, line));
        Ok(Self(Arc::new(Owner(shared))))
    }

    /// A new machine over a [`resumable`](Self::resumable) channel: sends the set-up on its first line, waits until the machine is
    /// ready, and begins the session.
    ///
    /// # Errors
    /// `HostUnable` if the supervisor refuses; as [`setup`](Self::setup).
    pub async fn begin(
        line: Line,
        reconnect: Arc<dyn Reconnect>,
        setup: &Setup,
        grace: Duration,
        limit: Duration,
    ) -> Result<(Self, Ready)> {
        let channel = Self::resumable(line, reconnect)?;
        match channel.setup(setup, limit).await? {
            SetupReply::Ready(ready) => {
                channel.hello(grace)?;
                channel.ping(limit).await?;
                Ok((channel, ready))
            }
            SetupReply::Refused { step, errno, detail } => {
                let message = format!("the supervisor could not set the machine up: {step}: errno {errno} {detail}");
                Err(Error::new(ErrorKind::HostUnable, "set up machine", message))
            }
            SetupReply::NetworkWanted { .. } => {
                Err(Error::new(ErrorKind::Protocol, "set up machine", "a machine without a network of its own wants one"))
            }
        }
    }

    /// Sends what the machine should be and waits for what became of it.
    ///
    /// # Errors
    /// `Timeout` after `limit`; `Lost` if the supervisor goes away; `Protocol`; `InvalidInput` for a set-up beyond the
    /// longest frame.
    pub async fn setup(&self, setup: &Setup, limit: Duration) -> Result<SetupReply> {
        let Some(frame) = protocol::try_encode(0, setup) else {
            return Err(Error::new(ErrorKind::InvalidInput, "set up machine", "binds, files and variables are too many")
                .with_help(format!("keep the whole set-up below {} MiB", protocol::MAX_FRAME >> 20)));
        };
        self.set_up(frame, limit).await
    }

    /// Says that the network helper is attached, and waits for what became of the machine.
    ///
    /// # Errors
    /// As [`setup`](Self::setup).
    pub async fn network_ready(&self, limit: Duration) -> Result<SetupReply> {
        self.set_up(protocol::encode(0, &ToSupervisor::NetworkReady), limit).await
    }

    async fn set_up(&self, frame: Vec<u8>, limit: Duration) -> Result<SetupReply> {
        const TRIED: &str = "set up machine";
        let shared = self.shared();
        let (sender, answer) = oneshot::channel();
        lock(&shared.control).setup = Some(sender);
        // If the supervisor takes no more, what it said before it went away is still to be heard.
        shared.outgoing.send(frame, Vec::new());
        within(limit, TRIED, shared.heard(answer, TRIED)).await
    }

    /// Opens the conversation; once on every channel, after [`setup`](Self::setup) or as the first thing when connecting to a
    /// machine again. Commands that were started on this channel live on for `grace` when it breaks.
    ///
    /// Does not wait: a supervisor that speaks another version closes the channel. Follow with [`ping`](Self::ping) to know.
    ///
    /// # Errors
    /// `Lost`, `Protocol`.
    pub fn hello(&self, grace: Duration) -> Result<()> {
        let shared = self.shared();
        lock(&shared.control).hellos += 1;
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let greeting = match &shared.session {
            Some(session) => session.begin(grace),
            None => ToSupervisor::Hello { version: VERSION, grace_ms },
        };
        shared.must_send(0, &greeting, "greet supervisor")
    }

    /// Greets a machine that is met again, and waits for its answer, whatever that is.
    ///
    /// # Errors
    /// `LimitReached` if it has as many clients as it takes; as [`hello`](Self::hello) and [`ping`](Self::ping).
    pub async fn meet(&self, grace: Duration, limit: Duration) -> Result<()> {
        let answered = match self.hello(grace) {
            Ok(()) => self.ping(limit).await,
            failed => failed,
        };
        match answered {
            // What it said before it went away says more.
            Err(error) if error.kind() == ErrorKind::Lost => {
                Err(tokio::time::timeout(limit, self.closed()).await.unwrap_or(error))
            }
            other => other,
        }
    }

    /// Waits until the supervisor has taken in everything that was sent before.
    ///
    /// # Errors
    /// `Timeout` after `limit`; `Lost`, `Protocol`.
    pub async fn ping(&self, limit: Duration) -> Result<()> {
        const TRIED: &str = "ping supervisor";
        let pong = self.shared().send_then_ping(None, TRIED)?;
        within(limit, TRIED, self.shared().heard(pong, TRIED)).await
    }

    /// Lets the machine outlive this channel, and waits until it is so.
    ///
    /// # Errors
    /// As [`ping`](Self::ping).
    pub async fn persist(&self, limit: Duration) -> Result<()> {
        self.shared().must_send(0, &ToSupervisor::Persist, "detach machine")?;
        self.ping(limit).await
    }

    /// Asks the machine to end: everything in it is killed. [`closed`](Self::closed) tells when the supervisor is gone.
    pub fn shutdown(&self) {
        self.shared().send(0, &ToSupervisor::Shutdown);
    }

    /// Ends the line at once. A machine that does not persist ends with it.
    pub fn close(&self) {
        self.shared().close(Closed::lost("the sandbox was stopped"));
    }

    /// Whether the line has ended.
    pub fn is_closed(&self) -> bool {
        self.shared().closed.get().is_some()
    }

    /// Waits for the end of the line, and tells why it ended: `Lost` or `Protocol`.
    pub async fn closed(&self) -> Error {
        self.shared().over().await.error("speak with supervisor")
    }

    /// Whether pipes can be handed to commands, so that their output needs no copy on the way.
    pub fn passes_descriptors(&self) -> bool {
        self.shared().passes_descriptors
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0.0
    }
}

async fn within<T>(limit: Duration, operation: &'static str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let late = || format!("the machine's supervisor gave no answer within {limit:?}");
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Timeout, operation, late())))
}

impl Shared {
    fn new(outgoing: Arc<Outgoing>, passes_descriptors: bool, session: Option<Arc<Session>>) -> Arc<Self> {
        Arc::new(Self {
            outgoing,
            table: Mutex::default(),
            control: Mutex::default(),
            closed: OnceLock::new(),
            over: Notify::new(),
            heard: AtomicU64::new(0),
            passes_descriptors,
            session,
        })
    }

    /// Opens a call.
    pub(crate) fn open(&self, sink: Arc<dyn Sink>) -> Result<u32, Closed> {
        let mut table = lock(&self.table);
        // `close` sets this before it takes the calls out, so that none can be forgotten.
        match self.closed.get() {
            Some(closed) => Err(closed.clone()),
            None => Ok(table.open(sink)),
        }
    }

    /// Gives a call up; frames that still come for it are ignored.
    pub(crate) fn release(&self, call: u32) {
        lock(&self.table).release(call);
    }

    /// Sends a frame. False if the line has ended.
    pub(crate) fn send(&self, call: u32, message: &ToSupervisor) -> bool {
        self.outgoing.send(protocol::encode(call, message), Vec::new())
    }

    /// Sends an encoded frame, with descriptors.
    pub(crate) fn send_frame(&self, frame: Vec<u8>, descriptors: Vec<OwnedFd>, operation: &'static str) -> Result<()> {
        if self.outgoing.send(frame, descriptors) { Ok(()) } else { Err(self.reason().error(operation)) }
    }

    /// Sends a frame, or says why it cannot be sent.
    pub(crate) fn must_send(&self, call: u32, message: &ToSupervisor, operation: &'static str) -> Result<()> {
        self.send_frame(protocol::encode(call, message), Vec::new(), operation)
    }

    /// Waits until the other side has taken most of what was sent.
    pub(crate) async fn room(&self) {
        self.outgoing.room().await;
    }

    /// Sends a frame and a ping behind it. The answer tells that the frame was taken in, and that its failure, if any, was
    /// heard before.
    pub(crate) fn send_then_ping(&self, frame: Option<Vec<u8>>, operation: &'static str) -> Result<oneshot::Receiver<()>> {
        let (sender, pong) = oneshot::channel();
        // Held while sending: pongs have no number, so pings must go out in the order in which they are awaited.
        let mut control = lock(&self.control);
        if let Some(frame) = frame {
            self.send_frame(frame, Vec::new(), operation)?;
        }
        self.must_send(0, &ToSupervisor::Ping, operation)?;
        control.pings.push_back(Some(sender));
        Ok(pong)
    }

    /// Waits for an answer, or for the end of the line.
    pub(crate) async fn heard<T>(&self, answer: oneshot::Receiver<T>, operation: &'static str) -> Result<T> {
        tokio::select! {
            biased;
            Ok(answer) = answer => Ok(answer),
            closed = self.over() => Err(closed.error(operation)),
        }
    }

    /// Asks for a sign of life.
    pub(crate) fn prod(&self) {
        let mut control = lock(&self.control);
        if self.send(0, &ToSupervisor::Ping) {
            control.pings.push_back(None);
        }
    }

    /// Takes in a frame.
    pub(crate) fn dispatch(&self, frame: Frame<FromSupervisor>) -> Result<(), Closed> {
        self.heard.fetch_add(1, Ordering::Relaxed);
        let Frame { call, message } = frame;
        if call == 0 || matches!(message, FromSupervisor::Pong) {
            return self.control(message);
        }
        let sink = {
            let mut table = lock(&self.table);
            match table.find(call) {
                Some(sink) => sink,
                None if table.tolerates(call) => return Ok(()),
                None => return Err(Closed::protocol("it keeps speaking of calls that were never made")),
            }
        };
        match sink.frame(call, message, self) {
            Step::More => Ok(()),
            Step::Last => {
                self.release(call);
                Ok(())
            }
            Step::Broken(why) => Err(Closed::protocol(why)),
        }
    }

    fn control(&self, message: FromSupervisor) -> Result<(), Closed> {
        let mut control = lock(&self.control);
        match message {
            FromSupervisor::Pong => {
                let waiting = control.pings.pop_front().ok_or(Closed::protocol("it answers a ping that was never sent"))?;
                if let Some(waiting) = waiting {
                    let _ = waiting.send(());
                }
                Ok(())
            }
            FromSupervisor::Welcome { version } => {
                let awaited = control.hellos.checked_sub(1);
                control.hellos = awaited.ok_or(Closed::protocol("it answers a greeting that was never sent"))?;
                control.welcomed = true;
                if version == VERSION { Ok(()) } else { Err(Closed::protocol("it speaks another version of the protocol")) }
            }
            // Whoever was let in is not turned away any more.
            FromSupervisor::Refused { step, detail, .. } if step == TOO_MANY && control.setup.is_none() && !control.welcomed => {
                Err(Closed::busy(printable(&detail, 300)))
            }
            message => {
                let reply = SetupReply::from_message(message).map_err(Closed::protocol)?;
                let waiting = control.setup.take();
                let waiting = waiting.ok_or(Closed::protocol("it speaks of a set-up that was not asked for"))?;
                let _ = waiting.send(reply);
                Ok(())
            }
        }
    }

    /// Ends the line: whatever is pending becomes `Lost`. The first reason stands.
    pub(crate) fn close(&self, reason: Closed) {
        if self.closed.set(reason).is_err() {
            return;
        }
        let reason = self.reason();
        self.outgoing.finish();
        // Taken out first: nobody may be woken while a lock is held.
        let calls = lock(&self.table).drain();
        let awaited = std::mem::take(&mut *lock(&self.control));
        end_all(calls, &reason);
        drop(awaited);
        self.over.notify_waiters();
    }

    /// Waits for the end of the line.
    pub(crate) async fn over(&self) -> Closed {
        loop {
            let over = self.over.notified();
            tokio::pin!(over);
            over.as_mut().enable();
            if let Some(closed) = self.closed.get() {
                return closed.clone();
            }
            over.await;
        }
    }

    fn reason(&self) -> Closed {
        self.closed.get().cloned().unwrap_or_else(|| Closed::lost("the machine's supervisor takes no more requests"))
    }

    /// Frames heard so far, and whether anything is awaited.
    pub(crate) fn pulse(&self) -> (u64, bool) {
        (self.heard.load(Ordering::Relaxed), !lock(&self.table).is_empty())
    }

    /// Whether nothing can be sent any more.
    pub(crate) fn is_mute(&self) -> bool {
        self.outgoing.is_dead()
    }

    /// Ends the calls that were to be over by now, whatever the machine says.
    pub(crate) fn end_overdue(&self) {
        let late = lock(&self.table).take_overdue(Instant::now());
        end_all(late, &Closed::lost("the machine did not report the end of a command whose time was up"));
    }
}
