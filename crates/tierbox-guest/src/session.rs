//! A conversation that outlives its lines: frames are counted, kept until they are acknowledged, and sent again on the next line.
//!
//! What is above (calls, commands, files) sees one channel without a gap: each frame arrives exactly once, in order. So a command
//! is launched once, its input and output continue at the byte where they were, and a file that was being written goes on being
//! written.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tierbox_core::{Error, ErrorKind, Result};
use tierbox_supervisor::protocol::{ACK_FRAMES, Decoder, Frame, FromSupervisor, ToSupervisor, UNACKNOWLEDGED, VERSION, encode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::channel::Shared;
use crate::errors::{Closed, lock};
use crate::line::{Line, Reconnect};
use crate::outgoing::Outgoing;

/// How much is read at once.
const PIECE: usize = 64 << 10;
/// Bytes that are handed to a line at once.
const BATCH: usize = 256 << 10;
/// The pauses between attempts to open a line: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// How long a new line may take for its first answer.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How often a line is looked at, and looks without a sign of life, while something is awaited, after which it is given up.
const LOOK: Duration = Duration::from_secs(5);
const SILENCES: u32 = 4;

/// The tag of a `Begin` frame, after its length and its call. A set-up, which is no message, has its version there.
const BEGIN: u8 = 23;
/// The tag of a `Shutdown` frame.
const SHUTDOWN: u8 = 18;

pub(crate) struct Session {
    name: [u8; 16],
    reconnect: Arc<dyn Reconnect>,
    state: Mutex<State>,
    /// There is something to write that is not in the queue.
    work: Notify,
}

#[derive(Default)]
struct State {
    /// `Begin` was written: frames count from now on.
    begun: bool,
    grace: Duration,
    received: u64,
    told: u64,
    untold: usize,
    acknowledged: u64,
    kept: VecDeque<Vec<u8>>,
    kept_bytes: usize,
    /// Kept frames that were written to this line.
    written: usize,
    ack_due: bool,
    /// `Shutdown` was written: the machine's end of the line will be closed, and nobody will be there to go on with.
    ending: bool,
}

/// Why a line is used no more.
enum End {
    /// It dropped; another may go on.
    Dropped(String),
    /// There is nothing to go on with.
    Over(Closed),
}

impl Session {
    pub(crate) fn new(reconnect: Arc<dyn Reconnect>) -> Result<Arc<Self>> {
        let mut name = [0; 16];
        getrandom::fill(&mut name)
            .map_err(|error| Error::new(ErrorKind::Io, "open channel", format!("no random numbers: {error}")))?;
        Ok(Arc::new(Self { name, reconnect, state: Mutex::default(), work: Notify::new() }))
    }

    /// The greeting that begins the session.
    pub(crate) fn begin(&self, grace: Duration) -> ToSupervisor {
        lock(&self.state).grace = grace;
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        ToSupervisor::Begin { version: VERSION, session: self.name, grace_ms }
    }

    /// Serves the conversation, over as many lines as it takes, until it ends.
    pub(crate) async fn serve(&self, shared: &Shared, outgoing: &Outgoing, mut line: Line) -> Closed {
        loop {
            let dropped = match self.on_line(shared, outgoing, &mut line).await {
                End::Over(closed) => return closed,
                End::Dropped(why) => why,
            };
            drop(line);
            if !lock(&self.state).begun {
                return Closed::lost(dropped);
            }
            line = match self.reopen(&dropped).await {
                Ok(line) => line,
                Err(closed) => return closed,
            };
        }
    }

    async fn on_line(&self, shared: &Shared, outgoing: &Outgoing, line: &mut Line) -> End {
        tokio::select! {
            end = self.read(shared, &mut line.reader) => end,
            end = self.write(outgoing, &mut line.writer) => end,
            end = watch(shared) => end,
        }
    }

    async fn read(&self, shared: &Shared, reader: &mut (dyn AsyncRead + Send + Unpin)) -> End {
        let mut decoder = Decoder::default();
        let mut buffer = vec![0; PIECE];
        loop {
            match reader.read(&mut buffer).await {
                Ok(0) => return End::Dropped("the machine's end of the line was closed".to_owned()),
                Ok(count) => decoder.push(&buffer[..count]),
                Err(error) => return End::Dropped(error.to_string()),
            }
            if let Err(closed) = self.take_frames(shared, &mut decoder) {
                return End::Over(closed);
            }
        }
    }

    fn take_frames(&self, shared: &Shared, decoder: &mut Decoder) -> Result<(), Closed> {
        loop {
            let before = decoder.pending();
            let frame = decoder.next_frame::<FromSupervisor>().map_err(|error| Closed::protocol(error.to_string()))?;
            let Some(frame) = frame else { return Ok(()) };
            match frame.message {
                FromSupervisor::Ack { received } => self.acknowledged(received)?,
                FromSupervisor::Resumed { .. } => return Err(Closed::protocol("it resumes what was not dropped")),
                _ => {
                    self.took(before - decoder.pending());
                    shared.dispatch(frame)?;
                }
            }
        }
    }

    /// Takes note of a frame that was taken in, and has it acknowledged when that is due.
    fn took(&self, bytes: usize) {
        let mut state = lock(&self.state);
        if !state.begun {
            return;
        }
        state.received += 1;
        state.untold += bytes;
        if state.untold >= UNACKNOWLEDGED / 4 || state.received - state.told >= ACK_FRAMES {
            (state.told, state.untold, state.ack_due) = (state.received, 0, true);
            drop(state);
            self.work.notify_one();
        }
    }

    fn acknowledged(&self, received: u64) -> Result<(), Closed> {
        let mut state = lock(&self.state);
        let count = received.checked_sub(state.acknowledged).filter(|count| *count <= state.written as u64);
        let Some(count) = count else { return Err(Closed::protocol("it acknowledges what was never sent")) };
        state.forget(count as usize);
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    async fn write(&self, outgoing: &Outgoing, writer: &mut (dyn AsyncWrite + Send + Unpin)) -> End {
        loop {
            let batch = self.batch(outgoing);
            let written = if batch.is_empty() {
                if outgoing.is_finished() {
                    return self.leave(writer).await;
                }
                tokio::select! {
                    () = outgoing.work() => {}
                    () = self.work.notified() => {}
                }
                continue;
            } else {
                send(writer, &batch).await
            };
            if let Err(error) = written {
                return End::Dropped(error.to_string());
            }
        }
    }

    /// Nobody wants the machine any more on this side.
    async fn leave(&self, writer: &mut (dyn AsyncWrite + Send + Unpin)) -> End {
        if lock(&self.state).begun {
            let _ = send(writer, &encode(0, &ToSupervisor::Leave)).await;
        }
        let _ = writer.shutdown().await;
        End::Over(Closed::lost("the sandbox was stopped"))
    }

    /// What is to be written next.
    fn batch(&self, outgoing: &Outgoing) -> Vec<u8> {
        let mut state = lock(&self.state);
        let mut batch = Vec::new();
        if std::mem::take(&mut state.ack_due) {
            batch = encode(0, &ToSupervisor::Ack { received: state.received });
        }
        while batch.len() < BATCH {
            if let Some(frame) = state.kept.get(state.written) {
                batch.extend_from_slice(frame);
                state.written += 1;
                continue;
            }
            if state.kept_bytes >= UNACKNOWLEDGED {
                break;
            }
            let Some(frame) = outgoing.next_frame() else { break };
            state.ending |= frame.get(8) == Some(&SHUTDOWN);
            if state.begun {
                state.kept_bytes += frame.len();
                state.kept.push_back(frame);
            } else {
                state.begun = frame.get(8) == Some(&BEGIN);
                batch.extend_from_slice(&frame);
            }
        }
        batch
    }

    /// Opens lines until one goes on with the session, or its grace is over.
    async fn reopen(&self, dropped: &str) -> Result<Line, Closed> {
        let grace = lock(&self.state).grace;
        let deadline = Instant::now() + grace;
        let (mut pause, longest) = PAUSES;
        let mut last = "no line was opened".to_owned();
        loop {
            match timeout_at(deadline, self.try_line()).await {
                Ok(Ok(line)) => return Ok(line),
                Ok(Err(End::Over(closed))) => return Err(closed),
                Ok(Err(End::Dropped(why))) => last = why,
                Err(_) => {}
            }
            if Instant::now() + pause >= deadline || lock(&self.state).ending {
                let why =
                    format!("the line to the machine dropped ({dropped}), and none could be opened within {grace:?}: {last}");
                return Err(Closed::lost(why));
            }
            sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    async fn try_line(&self) -> Result<Line, End> {
        let mut line = self.reconnect.open().await.map_err(|error| End::Dropped(error.to_string()))?;
        let received = lock(&self.state).received;
        let resume = encode(0, &ToSupervisor::Resume { session: self.name, received });
        let answer = async {
            send(&mut line.writer, &resume).await?;
            first_frame(&mut line.reader).await
        };
        let answer = timeout(HANDSHAKE, answer).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        match answer.map_err(|error| End::Dropped(error.to_string()))? {
            FromSupervisor::Resumed { received } => self.resumed(received).map_err(End::Over)?,
            FromSupervisor::Failed { .. } => {
                return Err(End::Over(Closed::lost("the machine's supervisor does not know this session any more")));
            }
            _ => return Err(End::Over(Closed::protocol("it answers a resumption with what is no answer to it"))),
        }
        Ok(line)
    }

    fn resumed(&self, received: u64) -> Result<(), Closed> {
        let mut state = lock(&self.state);
        let count = received.checked_sub(state.acknowledged).filter(|count| *count <= state.written as u64);
        let Some(count) = count else { return Err(Closed::protocol("it has what was never sent")) };
        state.forget(count as usize);
        // What this side has was said in `Resume`.
        (state.written, state.told, state.untold, state.ack_due) = (0, state.received, 0, false);
        Ok(())
    }
}

impl State {
    fn forget(&mut self, count: usize) {
        for frame in self.kept.drain(..count) {
            self.kept_bytes -= frame.len();
        }
        self.written -= count;
        self.acknowledged += count as u64;
    }
}

async fn send(writer: &mut (dyn AsyncWrite + Send + Unpin), bytes: &[u8]) -> io::Result<()> {
    writer.write_all(bytes).await?;
    writer.flush().await
}

/// Reads exactly one frame: what follows belongs to the conversation.
async fn first_frame(reader: &mut (dyn AsyncRead + Send + Unpin)) -> io::Result<FromSupervisor> {
    /// More than the longest answer to `Resume`.
    const LONGEST: usize = 4096;
    let mut length = [0; 4];
    reader.read_exact(&mut length).await?;
    let bytes = u32::from_le_bytes(length) as usize;
    if bytes > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the first answer on the line is none of a supervisor's"));
    }
    let mut frame = vec![0; bytes];
    reader.read_exact(&mut frame).await?;
    let mut decoder = Decoder::default();
    decoder.push(&length);
    decoder.push(&frame);
    let frame: Option<Frame<FromSupervisor>> = decoder.next_frame().map_err(|error| io::Error::other(error.to_string()))?;
    frame.map(|frame| frame.message).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Gives a line up that says nothing while something is awaited: one that was cut without a word.
async fn watch(shared: &Shared) -> End {
    let (mut last, mut silences) = (0, 0);
    loop {
        sleep(LOOK).await;
        let (heard, awaiting) = shared.pulse();
        if heard != last || !awaiting {
            (last, silences) = (heard, 0);
            continue;
        }
        silences += 1;
        match silences {
            1 => shared.prod(),
            SILENCES => return End::Dropped(format!("it was silent for {:?}", LOOK * SILENCES)),
            _ => {}
        }
    }
}
