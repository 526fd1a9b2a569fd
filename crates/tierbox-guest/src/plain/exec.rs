//! A command over a plain transport: one script that runs it and tells how it ended.

use std::collections::{HashSet, VecDeque};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use tierbox_core::{
    ByteReader, ByteWriter, Completed, Error, ErrorKind, ExecHandle, ExecId, KillReason, NotStartedCause, Outcome, PtySize,
    Result, Signal, Usage,
};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc;

use super::call::Caller;
use super::kept::{Errand, Shells};
use super::live::{self, Live, Sender, Tail};
use super::script::{CANCEL, IN_KEPT, KEPT, LIFE, PRELUDE, REPORT, WHOLE, WRAPPER};
use super::{PlainOutput, PlainRun, words};
use crate::driver;
use crate::errors::{lock, printable};

/// How long a command without a limit of its own may take.
const FOREVER: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// How much longer than its command a script may take.
const LATE: Duration = Duration::from_secs(30);
/// How often it is asked for what became of a command whose script was lost, and how long apart: at first, and at most.
const ASKS: u32 = 16;
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));
/// The longest header of an answer.
const HEADER: usize = 1024;
/// Files of commands that are over are removed when there are so many, except the newest, which a belated second delivery
/// of a script must still find.
const SPENT: usize = 64;
/// How many programs are remembered.
const KNOWN: usize = 256;
/// The longest input that a kept shell feeds to a command. Any pipe takes it whole, whether it is read or not.
const FED: usize = 4096;

/// What a wrapper is told of its command.
pub(super) struct Order {
    pub(super) id: ExecId,
    /// It was given what may be a secret.
    pub(super) private: bool,
    pub(super) launch: Launch,
    /// A path in the machine, or nothing for the script's own input.
    pub(super) stdin: Option<String>,
    pub(super) input: Bytes,
    pub(super) timeout: Option<Duration>,
    /// The most that it may print to a stream before it is killed, and whether it is watched for that.
    pub(super) most: u64,
    pub(super) watched: bool,
    pub(super) tidy: bool,
    /// Its output is brought while it runs.
    pub(super) live: bool,
}

/// What becomes the command.
pub(super) struct Launch {
    /// A program, with its arguments, that reads a script.
    pub(super) reader: String,
    /// The script, quoted. Its standard input is the command's when it has made descriptor 8 of it.
    pub(super) script: String,
    /// What starts a session, for where the wrapper has none of its own.
    pub(super) setsid: String,
    /// Which program it is.
    pub(super) program: Program,
}

/// A program as a user finds it: the user, its name, and where it is looked for.
pub(super) type Program = (String, Vec<u8>, Vec<u8>);

/// What a command without a limit of its own may print to one stream: the machine holds it on its disk.
pub(super) const HELD: u64 = 64 << 20;

/// Where the commands of a sandbox live in the machine.
pub(super) struct Yard {
    pub(super) caller: Caller,
    pub(super) base: String,
    /// The cgroup of all its commands.
    group: Option<String>,
    spent: Mutex<VecDeque<ExecId>>,
    /// What is known to be executables, and no texts that a shell would run.
    known: Mutex<HashSet<Program>>,
}

impl Yard {
    pub(super) fn new(caller: Caller, base: String, group: Option<String>) -> Arc<Self> {
        Arc::new(Self { caller, base, group, spent: Mutex::default(), known: Mutex::default() })
    }

    /// The cgroup of a command; nothing where commands have none.
    fn group(&self, id: ExecId) -> String {
        self.group.as_ref().map(|group| format!("{group}/{id}")).unwrap_or_default()
    }

    /// What the names of a command's files begin with; a dot and more follow.
    pub(super) fn dir(&self, id: ExecId) -> String {
        format!("{}/{id}", self.base)
    }

    /// Whether a program was seen to be an executable.
    pub(super) fn knows(&self, program: &Program) -> bool {
        lock(&self.known).contains(program)
    }

    fn learns(&self, program: &Program) {
        let mut known = lock(&self.known);
        if known.len() >= KNOWN {
            known.clear();
        }
        known.insert(program.clone());
    }

    /// A line that removes what is no longer needed, now and then.
    fn sweeping(&self) -> String {
        let mut spent = lock(&self.spent);
        if spent.len() < 2 * SPENT {
            return String::new();
        }
        let ids: Vec<String> = spent.drain(..SPENT).map(|id| id.to_string()).collect();
        let shells = self.caller.shells().map(Shells::take_spent).unwrap_or_default();
        let files: Vec<String> = ids.iter().chain(&shells).map(|name| format!("{name}.*")).collect();
        // No others': the cgroup of a command that is about to start is empty, too.
        let groups = self.group.as_ref().map(|group| format!("; cd {group} && rmdir {}", ids.join(" "))).unwrap_or_default();
        format!("( cd {} && rm -rf {}{groups} ) </dev/null >/dev/null 2>&1 5>&- 6>&- 7>&- 9>&- &\n", self.base, files.join(" "))
    }

    fn script(&self, order: &Order) -> String {
        let stdin = order.stdin.as_deref().map_or_else(|| "&5".to_owned(), words::quote);
        let Launch { reader, script, setsid, .. } = &order.launch;
        // What the caller chose comes last, in which nothing is replaced.
        let run = WRAPPER.replace("@STDIN@", &stdin).replace("@LAUNCH@", reader).replace("@SCRIPT@", script);
        format!(
            "{PRELUDE}{}D={}; G={}; SETSID={setsid}; INLINE={}; TIMEOUT={}; CAP={}; BLOCKS={}; MOST={}; WINDOW={}; TIDY={}\n\
             {LIFE}{REPORT}{WHOLE}{run}",
            self.sweeping(),
            self.dir(order.id),
            self.group(order.id),
            self.caller.piece(),
            order.timeout.map(hundredths).unwrap_or_default(),
            order.most.saturating_add(1),
            Some(order.most / 512 + 1).filter(|blocks| *blocks < 1 << 40).map(|blocks| blocks.to_string()).unwrap_or_default(),
            if order.watched { "1" } else { "" },
            if order.live { live::WINDOW.to_string() } else { String::new() },
            if order.tidy { "1" } else { "" },
        )
    }

    /// Launches a command; what becomes of it is told to the call.
    pub(super) fn launch(self: &Arc<Self>, order: Order) -> Result<Arc<PlainCall>> {
        let live = order.live.then(Live::default);
        let call = PlainCall { id: order.id, yard: self.clone(), stage: AtomicU8::new(WAITS), state: Mutex::default(), live };
        let call = Arc::new(call);
        call.follow()?;
        let (yard, told) = (self.clone(), call.clone());
        driver::handle()?.spawn(async move {
            // Who cancels it before it was sent spares the machine both.
            if told.moves(WAITS, SENT) {
                let end = yard.see_through(&order).await;
                if end.as_ref().is_ok_and(|told| told.executable) {
                    yard.learns(&order.launch.program);
                }
                told.settle(yard.clear_away(&order, end).await);
            }
        });
        Ok(call)
    }

    /// Leaves nothing of a command whose end says that nothing is left.
    async fn clear_away(&self, order: &Order, end: Result<Told>) -> Result<Told> {
        let by_itself = |told: &Told| !matches!(told.completed.outcome, Outcome::Killed(_) | Outcome::Lost);
        if !order.tidy && end.as_ref().is_ok_and(by_itself) {
            return end;
        }
        match self.caller.kill_all(order.id).await {
            Ok(()) => end,
            Err(error) => end.and(Err(error)),
        }
    }

    /// Runs it in a shell that is kept, where that can be; otherwise, and where that broke, by a script of its own, which asks what
    /// became of it if it was begun.
    async fn see_through(self: &Arc<Self>, order: &Order) -> Result<Told> {
        let Some(shells) = self.caller.shells().filter(|_| self.is_small(order)) else { return self.by_scripts(order).await };
        let held = match self.in_shell(shells, order).await {
            Ok(told) => return Ok(told),
            Err(held) => held,
        };
        let end = self.by_scripts(order).await;
        held.into_iter().for_each(|name| shells.is_spent(name));
        end
    }

    /// Whether a kept shell can run it.
    fn is_small(&self, order: &Order) -> bool {
        let can = !order.launch.setsid.is_empty() && self.group.is_none() && !order.live;
        can && order.most <= HELD
            && (order.stdin.is_some() || order.input.len() <= FED)
            && order.launch.script.len() < self.caller.limits().script / 2
    }

    /// Fails with the name of the shell in which it may still run.
    async fn in_shell(self: &Arc<Self>, shells: &Shells, order: &Order) -> Result<Told, Option<String>> {
        let script = self.kept_script(order);
        let beyond = || self.kill(order.id, KillReason::OutputLimit);
        let errand = Errand {
            user: &order.launch.reader,
            opening: &|name| self.opening(name, &order.launch.reader),
            script: &script,
            room: self.caller.piece(),
            most: order.most,
            beyond: &beyond,
            limit: order.timeout.map_or(FOREVER, |timeout| timeout.saturating_add(LATE)),
        };
        let served = shells.serve(&errand).await.map_err(|(_, name)| name)?;
        let [out, err] = &served.streams;
        // As the report of a script of its own would say it, of whose fields the first counts.
        let words = if served.exceeded { format!("end=kill output; {}", served.words) } else { served.words };
        let head = format!("tierbox-plain 1 {words} out={}; err={};\n", out.len(), err.len());
        let stdout = [head.as_bytes(), out, err].concat();
        self.read(&PlainOutput { status: 0, stdout, stderr: Vec::new() }).map_err(|_| None)
    }

    fn opening(&self, name: &str, reader: &str) -> String {
        let blocks = HELD / 512 + 1;
        format!("{PRELUDE}K={}/{name}; G=; BLOCKS={blocks}\nlaunch() {{\n{reader}\n}}\n{LIFE}{KEPT}", self.base)
    }

    fn kept_script(&self, order: &Order) -> String {
        let Launch { script, setsid, .. } = &order.launch;
        let feed = format!("printf {} 2>/dev/null | ( exec 4<&0\n", words::escaped(&order.input));
        let (stdin, feed, fed) = match &order.stdin {
            Some(path) => (words::quote(path), String::new(), ""),
            None => ("&4".to_owned(), feed, ")\n"),
        };
        let run = IN_KEPT.replace("@FEED@", &feed).replace("@FED@", fed);
        // What the caller chose comes last, in which nothing is replaced.
        let run = run.replace("@STDIN@", &stdin).replace("@SCRIPT@", script);
        format!(
            "{}D={}; SETSID={setsid}; TIMEOUT={}; TIDY={}\n{run}",
            self.sweeping(),
            self.dir(order.id),
            order.timeout.map(hundredths).unwrap_or_default(),
            if order.tidy { "1" } else { "" },
        )
    }

    /// Runs the script, and asks for what became of the command when the answer is lost: the same script, whose claim then is taken.
    async fn by_scripts(&self, order: &Order) -> Result<Told> {
        let limit = order.timeout.map_or(FOREVER, |timeout| timeout.saturating_add(LATE));
        let mut script = self.script(order);
        if script.len() > self.caller.limits().script {
            script = self.put_aside(order.id, script).await?;
        }
        let (mut left, (mut pause, longest)) = (ASKS, PAUSES);
        loop {
            let run = PlainRun::new(script.clone(), order.input.clone(), limit).private(order.private).of(order.id);
            let run = self.caller.run_here(run, "exec").await;
            let end = run.and_then(|output| self.read(&output));
            match end {
                Err(error) if error.kind() == ErrorKind::Lost && left > 0 && !self.caller.is_over() => left -= 1,
                end => return end,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    /// Moves a long script to the machine first, in pieces.
    async fn put_aside(&self, id: ExecId, script: String) -> Result<String> {
        let path = format!("{}.s", self.dir(id));
        self.upload(&path, Bytes::from(script)).await?;
        Ok(format!(". {path}\n"))
    }

    /// Writes a file of our own in pieces: input or a script, which may be a secret.
    pub(super) async fn upload(&self, path: &str, mut contents: Bytes) -> Result<()> {
        let mut at = 0;
        while at == 0 || !contents.is_empty() {
            let piece = contents.split_to(contents.len().min(self.caller.limits().stdin));
            let count = piece.len();
            super::files::append(&self.caller, &words::quote(path), at, piece, true).await?;
            at += count as u64;
            if count == 0 {
                break;
            }
        }
        Ok(())
    }

    fn read(&self, output: &PlainOutput) -> Result<Told> {
        Told::read(output, self.caller.piece())
    }

    fn is_over(&self, id: ExecId) {
        lock(&self.spent).push_back(id);
    }

    /// Ends a command. Does not wait, and needs no runtime of the caller's.
    fn kill(&self, id: ExecId, reason: KillReason) {
        let word = if reason == KillReason::OutputLimit { "output" } else { "cancelled" };
        let script = format!("{PRELUDE}D={}; G={}; REASON={word}\n{LIFE}{CANCEL}", self.dir(id), self.group(id));
        let caller = self.caller.clone();
        if let Ok(driver) = driver::handle() {
            driver.spawn(async move {
                // What cannot be ended now ends with the machine.
                for _ in 0..3 {
                    let run = PlainRun::new(script.clone(), Bytes::new(), Duration::from_secs(60)).urgent();
                    let done = caller.run_here(run, "kill").await;
                    if done.is_ok() || caller.is_over() {
                        break;
                    }
                }
            });
        }
    }
}

/// How a command ended, and the beginning of what it printed.
#[derive(Debug, Clone)]
pub(super) struct Told {
    completed: Completed,
    streams: [Stream; 2],
    /// Its program is an executable.
    executable: bool,
}

#[derive(Debug, Clone, Default)]
struct Stream {
    total: u64,
    inline: Bytes,
}

impl Told {
    fn never(cause: NotStartedCause) -> Self {
        let outcome = Outcome::NotStarted { cause, retryable: false };
        let completed = Completed { outcome, cannot_execute: None, usage: Usage::default() };
        Self { completed, streams: Default::default(), executable: false }
    }

    /// Reads a wrapper's answer. The machine may say anything.
    fn read(output: &PlainOutput, piece: usize) -> Result<Self> {
        let start = &output.stdout[..output.stdout.len().min(HEADER)];
        let line = start.iter().position(|byte| *byte == b'\n').and_then(|end| std::str::from_utf8(&start[..end]).ok());
        let Some(header) = line.and_then(|line| line.strip_prefix("tierbox-plain 1 ")) else {
            let said = [&output.stdout[..output.stdout.len().min(300)], &output.stderr[..output.stderr.len().min(300)]].concat();
            let said = printable(String::from_utf8_lossy(&said).trim(), 300);
            // Whoever ended the script in its middle left no answer; one that answers something else is no wrapper.
            let kind = if output.stdout.is_empty() { ErrorKind::Lost } else { ErrorKind::Protocol };
            let message = format!("the machine's answer is none of a command's (status {}): {said:?}", output.status);
            return Err(Error::new(kind, "exec", message));
        };
        let field = |key: &str| header.split(';').find_map(|field| field.trim().strip_prefix(key)?.strip_prefix('='));
        let odd = || {
            Error::new(ErrorKind::Protocol, "exec", format!("the machine's answer makes no sense: {:?}", printable(header, 300)))
        };
        let total = |key: &str| field(key).and_then(|text| text.parse::<u64>().ok()).ok_or_else(odd);
        let (out, err) = (total("out")?, total("err")?);
        let body = Bytes::copy_from_slice(&output.stdout["tierbox-plain 1 ".len() + header.len() + 1..]);
        let first = usize::try_from(out).unwrap_or(usize::MAX).min(piece);
        let second = usize::try_from(err).unwrap_or(usize::MAX).min(piece - first);
        if body.len() != first + second {
            return Err(odd());
        }
        let note = field("note").unwrap_or_default();
        let outcome = outcome(field("end").ok_or_else(odd)?, note).ok_or_else(odd)?;
        let completed = Completed {
            outcome: outcome.0,
            cannot_execute: outcome.1,
            usage: Usage { wall: wall(field("times").unwrap_or_default()), ..Usage::default() },
        };
        let streams = [Stream { total: out, inline: body.slice(..first) }, Stream { total: err, inline: body.slice(first..) }];
        Ok(Self { completed, streams, executable: note.trim() == "elf" })
    }
}

/// A limit as scripts count it.
fn hundredths(limit: Duration) -> String {
    u64::try_from(limit.as_millis().div_ceil(10)).unwrap_or(u64::MAX).min(1 << 48).to_string()
}

fn wall(times: &str) -> Duration {
    let mut seconds = times.split(' ').filter_map(|text| text.parse::<f64>().ok());
    let (Some(began), Some(ended)) = (seconds.next(), seconds.next()) else { return Duration::ZERO };
    // The clock counts hundredths, rounded down.
    Duration::try_from_secs_f64(ended - began).unwrap_or_default()
}

fn outcome(end: &str, note: &str) -> Option<(Outcome, Option<i32>)> {
    let never = |cause, retryable| Some((Outcome::NotStarted { cause, retryable }, None));
    let (word, value) = end.split_once(' ').unwrap_or((end, ""));
    match (word, value) {
        ("kill", "timeout") => return Some((Outcome::Killed(KillReason::Timeout), None)),
        ("kill", "output") => return Some((Outcome::Killed(KillReason::OutputLimit), None)),
        ("kill", "cancelled") => return Some((Outcome::Killed(KillReason::Cancelled), None)),
        ("never", "") => return never(NotStartedCause::Cancelled, false),
        ("fail", "") => return never(NotStartedCause::NoResources, true),
        ("lost" | "gone", "") => return Some((Outcome::Lost, None)),
        _ => {}
    }
    let status: i32 = value.parse().ok().filter(|status| (0..=255).contains(status))?;
    let cannot =
        note.strip_prefix("cannot ").and_then(|errno| errno.trim().parse::<i32>().ok()).filter(|errno| (1..4096).contains(errno));
    match word {
        "exit" | "signal" if note.starts_with("never group") || note.starts_with("never file") => {
            never(NotStartedCause::NoResources, true)
        }
        "exit" | "signal" if note.starts_with("never cwd") => never(NotStartedCause::BadCwd, false),
        "exit" | "signal" if cannot.is_some() => Some((Outcome::Exited(status), cannot)),
        // Of these two a shell does not say whether they were signals, and hardly anybody exits so by himself.
        "exit" if matches!(status, 130 | 141) => Some((Outcome::Signaled(status - 128), None)),
        "signal" if (129..=192).contains(&status) => Some((Outcome::Signaled(status - 128), None)),
        "exit" | "signal" => Some((Outcome::Exited(status), None)),
        _ => None,
    }
}

/// How far a command came on this side.
const WAITS: u8 = 0;
const SENT: u8 = 1;
const KILLED: u8 = 2;

/// A command that was launched.
pub(super) struct PlainCall {
    id: ExecId,
    yard: Arc<Yard>,
    stage: AtomicU8,
    state: Mutex<State>,
    /// Where output comes while it runs.
    live: Option<Live>,
}

#[derive(Default)]
struct State {
    end: Option<Result<Told, Failure>>,
    wakers: Vec<Waker>,
}

/// An error that can be told more than once.
#[derive(Clone)]
struct Failure {
    kind: ErrorKind,
    message: String,
}

impl PlainCall {
    /// How long a short one takes, as far as the transport knows.
    pub(super) fn usual(&self) -> Duration {
        self.yard.caller.usual()
    }

    fn settle(&self, end: Result<Told>) {
        let mut state = lock(&self.state);
        state.end = Some(end.map_err(|error| Failure { kind: error.kind(), message: error.message().to_owned() }));
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn is_over(&self) -> bool {
        lock(&self.state).end.is_some()
    }

    pub(super) fn yard(&self) -> &Yard {
        &self.yard
    }

    /// What the names of its files in the machine begin with.
    pub(super) fn directory(&self) -> String {
        self.yard.dir(self.id)
    }

    /// Brings its output while it runs, where that is asked for, and the rest when it has ended.
    fn follow(self: &Arc<Self>) -> Result<()> {
        if self.live.is_some() {
            let call = self.clone();
            driver::handle()?.spawn(async move {
                let Some(live) = &call.live else { return };
                for tail in live::follow(&call, live).await {
                    let call = call.clone();
                    tokio::spawn(async move { call.send_rest(tail).await });
                }
            });
        }
        Ok(())
    }

    pub(super) async fn told(&self) -> Result<Told> {
        let end = poll_fn(|cx| {
            let mut state = lock(&self.state);
            match &state.end {
                Some(end) => Poll::Ready(end.clone()),
                None => {
                    if !state.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                        state.wakers.push(cx.waker().clone());
                    }
                    Poll::Pending
                }
            }
        });
        end.await.map_err(|failure| Error::new(failure.kind, "exec", failure.message))
    }

    /// Kills it unless it is known to be over.
    pub(super) fn kill(&self, reason: KillReason) {
        if self.is_over() {
            return;
        }
        if self.moves(WAITS, KILLED) {
            self.settle(Ok(Told::never(NotStartedCause::Cancelled)));
        } else if self.moves(SENT, KILLED) {
            self.yard.kill(self.id, reason);
        }
    }

    fn moves(&self, from: u8, to: u8) -> bool {
        self.stage.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// A reader of one of its streams.
    pub(super) fn reader(self: &Arc<Self>, index: usize) -> ByteReader {
        let (sender, pieces) = mpsc::channel(1);
        let sender = match &self.live {
            Some(live) => live.want(index, sender),
            None => Some(sender),
        };
        if let Some(sender) = sender {
            let call = self.clone();
            match driver::handle() {
                Ok(driver) => drop(driver.spawn(async move { call.send_rest(Tail { index, at: 0, sender }).await })),
                Err(error) => {
                    let _ = sender.try_send(Err(io::Error::other(error)));
                }
            }
        }
        Box::new(Pieces { pieces, current: Bytes::new() })
    }

    /// Sends what was not sent of a stream, once the command has ended.
    async fn send_rest(&self, tail: Tail) {
        if let Err(error) = self.send(tail.index, tail.at, &tail.sender).await {
            let _ = tail.sender.send(Err(io::Error::other(error))).await;
        }
    }

    /// Sends a stream in pieces, each when the one before was taken.
    async fn send(&self, index: usize, mut at: u64, to: &Sender) -> Result<()> {
        // That it is lost is the outcome's to tell.
        let Ok(told) = self.told().await else { return Ok(()) };
        let Stream { total, mut inline } = told.streams[index].clone();
        let inline = inline.split_off(usize::try_from(at).unwrap_or(usize::MAX).min(inline.len()));
        at += inline.len() as u64;
        if !inline.is_empty() && to.send(Ok(inline)).await.is_err() {
            return Ok(());
        }
        let file = words::quote(&format!("{}.{}", self.yard.dir(self.id), ["o", "e"][index]));
        while at < total {
            let mut piece = super::files::piece(&self.yard.caller, &file, at, "exec").await?;
            if piece.is_empty() {
                return Err(Error::new(ErrorKind::Protocol, "exec", "output that was counted is not there"));
            }
            piece.truncate(usize::try_from(total - at).unwrap_or(usize::MAX));
            at += piece.len() as u64;
            if to.send(Ok(piece)).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}

impl Drop for PlainCall {
    fn drop(&mut self) {
        self.yard.is_over(self.id);
    }
}

/// A stream that comes in pieces.
pub(super) struct Pieces {
    pub(super) pieces: mpsc::Receiver<io::Result<Bytes>>,
    pub(super) current: Bytes,
}

impl AsyncRead for Pieces {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.current.is_empty() {
            match std::task::ready!(self.pieces.poll_recv(cx)) {
                Some(piece) => self.current = piece?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.current.len().min(buf.remaining());
        buf.put_slice(&self.current[..count]);
        self.current.advance(count);
        Poll::Ready(Ok(()))
    }
}

/// The handle on a command. Its streams carry what it printed once it has ended, or while it runs where that is asked for.
pub(super) struct PlainHandle {
    call: Arc<PlainCall>,
    streams: [bool; 2],
    waited: bool,
    settled: Option<Completed>,
}

impl PlainHandle {
    pub(super) fn new(call: Arc<PlainCall>) -> Self {
        Self { call, streams: [true; 2], waited: false, settled: None }
    }

    /// A command that never ran.
    pub(super) fn never(yard: &Arc<Yard>, id: ExecId, cause: NotStartedCause) -> Self {
        let state = Mutex::new(State { end: Some(Ok(Told::never(cause))), wakers: Vec::new() });
        Self::new(Arc::new(PlainCall { id, yard: yard.clone(), stage: AtomicU8::new(KILLED), state, live: None }))
    }

    fn take(&mut self, index: usize) -> Option<ByteReader> {
        let there = std::mem::replace(&mut self.streams[index], false) && !self.waited;
        there.then(|| self.call.reader(index))
    }
}

#[async_trait]
impl ExecHandle for PlainHandle {
    fn id(&self) -> ExecId {
        self.call.id
    }

    fn take_stdin(&mut self) -> Option<ByteWriter> {
        None
    }

    fn take_stdout(&mut self) -> Option<ByteReader> {
        self.take(0)
    }

    fn take_stderr(&mut self) -> Option<ByteReader> {
        self.take(1)
    }

    async fn signal(&self, _signal: Signal) -> Result<()> {
        Err(Error::unsupported("signal", "sending signals"))
    }

    async fn resize(&self, _size: PtySize) -> Result<()> {
        Err(Error::new(ErrorKind::InvalidInput, "resize terminal", "the command has no terminal"))
    }

    fn kill(&self, reason: KillReason) {
        self.call.kill(reason);
    }

    async fn wait(&mut self) -> Result<Completed> {
        self.waited = true;
        if let Some(live) = &self.call.live {
            live.drain();
        }
        if let Some(completed) = self.settled {
            return Ok(completed);
        }
        let completed = match self.call.told().await {
            Ok(told) => told.completed,
            Err(error) if error.kind() == ErrorKind::Lost => {
                Completed { outcome: Outcome::Lost, cannot_execute: None, usage: Usage::default() }
            }
            Err(error) => return Err(error),
        };
        self.settled = Some(completed);
        Ok(completed)
    }
}

impl Drop for PlainHandle {
    fn drop(&mut self) {
        self.call.kill(KillReason::Cancelled);
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    fn answer(stdout: &[u8]) -> Result<Told> {
        Told::read(&PlainOutput { status: 0, stdout: stdout.to_vec(), stderr: Vec::new() }, 4096)
    }

    #[test]
    fn an_answer_is_taken_apart() {
        let told = answer(b"tierbox-plain 1 end=exit 3; note=; times=10.00 10.52; out=3; err=2;\nabcde").unwrap();
        assert_eq!(told.completed.outcome, Outcome::Exited(3));
        assert_eq!(told.completed.usage.wall.as_millis(), 520);
        assert_eq!((told.streams[0].inline.as_ref(), told.streams[1].inline.as_ref()), (b"abc".as_slice(), b"de".as_slice()));
    }

    #[test]
    fn ends_are_told_apart() {
        let told = |end: &str, note: &str| outcome(end, note).map(|(outcome, _)| outcome);
        assert_eq!(told("exit 137", ""), Some(Outcome::Exited(137)));
        assert_eq!(told("signal 137", ""), Some(Outcome::Signaled(9)));
        assert_eq!(told("exit 141", ""), Some(Outcome::Signaled(13)));
        assert_eq!(outcome("exit 127", "cannot 2"), Some((Outcome::Exited(127), Some(2))));
        assert_eq!(told("exit 1", "never cwd"), Some(Outcome::NotStarted { cause: NotStartedCause::BadCwd, retryable: false }));
        for nonsense in ["", "exit", "exit 256", "exit -1", "exit x", "kill", "kill me", "reboot 1"] {
            assert_eq!(told(nonsense, ""), None, "{nonsense}");
        }
    }

    #[test]
    fn nonsense_is_a_violation_and_silence_is_a_loss() {
        let nonsense: [&[u8]; 7] = [
            b"hello\n",
            b"tierbox-plain 1 end=exit 0; out=1; err=0;\n",
            b"tierbox-plain 1 end=exit 0; out=99999999999999999999; err=0;\n",
            b"tierbox-plain 1 end=exit 0; out=-1; err=0;\n",
            b"tierbox-plain 1 end=exit 0; out=18446744073709551615; err=0;\nabc",
            b"tierbox-plain 1 end=exit 0; out=0; err=0;\nmore",
            &[b'x'; 5000],
        ];
        for stdout in nonsense {
            assert_eq!(answer(stdout).unwrap_err().kind(), ErrorKind::Protocol, "{}", stdout.escape_ascii());
        }
        assert_eq!(answer(b"").unwrap_err().kind(), ErrorKind::Lost);
    }
}
