//! Handles that break a promise about a running command.

use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tierbox_core::{
    ByteReader, ByteWriter, Completed, Error, ErrorKind, ExecHandle, ExecId, KillReason, Leftovers, OnExceed, Outcome,
    OutputLimit, PtySize, Result, Signal, Usage,
};
use tokio::sync::OwnedSemaphorePermit;

use super::catalogue::Fault;
use super::sandbox::World;
use super::streams;

/// What the handle knows of the request.
#[derive(Clone, Default)]
pub(super) struct Facts {
    pub(super) timed: bool,
    pub(super) limit: Option<OutputLimit>,
    pub(super) kills_leftovers: bool,
    pub(super) big_input: bool,
    pub(super) number: u64,
    pub(super) attached: bool,
}

impl Facts {
    pub(super) fn of(request: &tierbox_core::ExecRequest, number: u64) -> Self {
        let big_input = matches!(&request.stdin, tierbox_core::Stdin::Bytes(bytes) if bytes.len() > 1 << 20);
        let kills_leftovers = request.leftovers == Leftovers::Kill;
        let timed = request.timeout.is_some();
        Self { timed, limit: request.output_limit, kills_leftovers, big_input, number, attached: false }
    }
}

pub(super) struct BrokenHandle {
    inner: ManuallyDrop<Box<dyn ExecHandle>>,
    world: Arc<World>,
    facts: Facts,
    ended: bool,
    killed: AtomicBool,
    /// Streams that are held and not read.
    unread: Vec<Option<ByteReader>>,
    second: u8,
    stdout_ended: Arc<tokio::sync::Semaphore>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl BrokenHandle {
    pub(super) fn new(
        mut inner: Box<dyn ExecHandle>,
        world: Arc<World>,
        facts: Facts,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let mut unread = Vec::new();
        if world.fault == Fault::LeavesOutputUnread {
            unread = vec![inner.take_stdout(), inner.take_stderr()];
        }
        let stdout_ended = Arc::new(tokio::sync::Semaphore::new(0));
        let inner = ManuallyDrop::new(inner);
        Self {
            inner,
            world,
            facts,
            ended: false,
            killed: AtomicBool::new(false),
            unread,
            second: 0,
            stdout_ended,
            _permit: permit,
        }
    }

    fn output(&mut self, reader: ByteReader) -> ByteReader {
        match self.world.fault {
            Fault::DecodesOutput => streams::decoded(reader),
            Fault::BuffersOutput => streams::late(reader),
            Fault::ReadsAhead => streams::read_ahead(reader),
            Fault::LosesSome if self.facts.number % 150 == 149 => streams::cut(reader, 0),
            Fault::LosesAChunk => streams::holed(reader),
            Fault::NeverEndsStreams => streams::endless(reader),
            Fault::AddsANewline => streams::lengthened(reader),
            Fault::LosesPartialOutput if self.facts.timed => streams::cut(reader, 0),
            Fault::KeepsNoOutput if self.facts.attached => streams::cut(reader, 0),
            _ => reader,
        }
    }

    /// Counts output against a limit that should only truncate.
    fn watched(&self, reader: ByteReader) -> ByteReader {
        let Some(limit) = self.facts.limit.filter(|limit| limit.on_exceed == OnExceed::Truncate) else { return reader };
        let (sandbox, id, mut seen) = (self.world.inner.clone(), self.inner.id(), 0);
        streams::changed(reader, move |chunk| {
            let chunk = chunk.unwrap_or_default();
            seen += chunk.len() as u64;
            if seen > limit.bytes {
                let sandbox = sandbox.clone();
                tokio::spawn(async move { sandbox.kill(id, KillReason::OutputLimit).await });
            }
            chunk
        })
    }

    fn retold(&self, mut done: Completed) -> Completed {
        use Outcome::{Exited, Killed, Signaled};
        done.outcome = match (self.world.fault, done.outcome) {
            (Fault::CutsCodes, Exited(code)) => Exited(code & 127),
            (Fault::SignalsAsCodes, Signaled(signal)) => Exited(128 + signal),
            (Fault::TimeoutsAsCodes, Killed(KillReason::Timeout)) => Exited(124),
            (Fault::ConfusesIdle, Killed(KillReason::Idle)) => Killed(KillReason::Timeout),
            (Fault::CancelsAsSignals, Killed(KillReason::Cancelled)) => Signaled(9),
            (Fault::KillsTheChildOnly, _) if self.killed.load(Ordering::Relaxed) => Killed(KillReason::Cancelled),
            (Fault::RewritesTheEnd, _) if self.killed.load(Ordering::Relaxed) => Killed(KillReason::Cancelled),
            (Fault::TimesOutTheChildOnly | Fault::AsksWithTerm, Signaled(_)) if self.facts.timed => Killed(KillReason::Timeout),
            (Fault::BlamesLeftovers, Exited(_)) if self.facts.kills_leftovers => Killed(KillReason::Cancelled),
            (Fault::LosesWhatDoesNotRead, _) if self.facts.big_input => Outcome::Lost,
            (Fault::DeniesLoss, Outcome::Lost) => Exited(255),
            (_, outcome) => outcome,
        };
        match self.world.fault {
            Fault::HidesErrno => done.cannot_execute = None,
            Fault::GuessesErrno if done.outcome == Exited(127) => done.cannot_execute = Some(2),
            Fault::HidesWallTime => done.usage.wall = Duration::ZERO,
            Fault::HidesUsage => done.usage = Usage { wall: done.usage.wall, ..Usage::default() },
            _ => (),
        }
        done
    }

    fn again(&mut self) -> Option<()> {
        self.second += 1;
        (self.world.fault == Fault::GivesStreamsTwice).then_some(())
    }
}

impl Drop for BrokenHandle {
    fn drop(&mut self) {
        let attached = self.facts.attached;
        match self.world.fault {
            Fault::ForgetsDropped if !self.ended => return,
            Fault::BlocksOnDrop => std::thread::sleep(Duration::from_millis(500)),
            Fault::DiesOfDrops if !self.ended => self.world.die(),
            Fault::KillsWhenUnfollowed if attached => self.inner.kill(KillReason::Cancelled),
            _ => (),
        }
        let nobody: Box<dyn ExecHandle> = Box::new(Nobody);
        drop(ManuallyDrop::into_inner(std::mem::replace(&mut self.inner, ManuallyDrop::new(nobody))));
    }
}

#[async_trait]
impl ExecHandle for BrokenHandle {
    fn id(&self) -> ExecId {
        if self.world.fault == Fault::RepeatsIds { ExecId([7; 16]) } else { self.inner.id() }
    }

    fn take_stdin(&mut self) -> Option<ByteWriter> {
        let Some(writer) = self.inner.take_stdin() else {
            self.again()?;
            return Some(Box::new(tokio::io::sink()));
        };
        Some(match self.world.fault {
            Fault::BuffersInput => {
                let mut all = Vec::new();
                streams::written(writer, move |chunk| match chunk {
                    Some(chunk) => {
                        all.extend(chunk);
                        Vec::new()
                    }
                    None => std::mem::take(&mut all),
                })
            }
            Fault::FiltersControls => streams::written(writer, |chunk| {
                chunk.unwrap_or_default().into_iter().filter(|byte| *byte >= 32 || *byte == b'\n').collect()
            }),
            Fault::CutsInput => {
                let mut left = 64 << 10;
                streams::written(writer, move |chunk| {
                    let mut chunk = chunk.unwrap_or_default();
                    chunk.truncate(left);
                    left -= chunk.len();
                    chunk
                })
            }
            Fault::IgnoresShutdown => Box::new(streams::Odd::new(writer, streams::End::Ignored)),
            Fault::KeepsInputOpen => Box::new(streams::Odd::new(writer, streams::End::Kept)),
            _ => writer,
        })
    }

    fn take_stdout(&mut self) -> Option<ByteReader> {
        let Some(reader) = self.inner.take_stdout() else {
            self.again()?;
            return Some(Box::new(tokio::io::empty()));
        };
        match self.world.fault {
            Fault::MergesStreams => match self.inner.take_stderr() {
                Some(stderr) => Some(streams::merged(reader, stderr)),
                None => Some(reader),
            },
            Fault::KillsTheTalkative => Some(self.watched(reader)),
            Fault::ReadsInTurn => {
                let ended = self.stdout_ended.clone();
                Some(streams::changed(reader, move |chunk| {
                    if chunk.is_none() {
                        ended.add_permits(1);
                    }
                    chunk.unwrap_or_default()
                }))
            }
            _ => Some(self.output(reader)),
        }
    }

    fn take_stderr(&mut self) -> Option<ByteReader> {
        if self.world.fault == Fault::MergesStreams {
            return Some(Box::new(tokio::io::empty()));
        }
        let Some(mut reader) = self.inner.take_stderr() else {
            self.again()?;
            return Some(Box::new(tokio::io::empty()));
        };
        if self.world.fault == Fault::ReadsInTurn {
            let (mut feed, out) = tokio::io::duplex(64 << 10);
            let ended = self.stdout_ended.clone();
            tokio::spawn(async move {
                let _turn = ended.acquire().await;
                tokio::io::copy(&mut reader, &mut feed).await
            });
            return Some(Box::new(out));
        }
        Some(self.output(reader))
    }

    async fn signal(&self, signal: Signal) -> Result<()> {
        let signal = if self.world.fault == Fault::OnlyKills { Signal::KILL } else { signal };
        match self.inner.signal(signal).await {
            Err(_) if self.world.fault == Fault::SignalsTheDead => Ok(()),
            other => other,
        }
    }

    async fn resize(&self, size: PtySize) -> Result<()> {
        if self.world.fault == Fault::IgnoresResize { Ok(()) } else { self.inner.resize(size).await }
    }

    fn kill(&self, reason: KillReason) {
        // A collected command that is given up is cancelled by this before its handle is dropped.
        if self.world.fault == Fault::ForgetsDropped && reason == KillReason::Cancelled {
            return;
        }
        self.killed.store(true, Ordering::Relaxed);
        match self.world.fault {
            Fault::SparesTheTalkative if reason == KillReason::OutputLimit => (),
            Fault::KillsTheChildOnly => {
                let (sandbox, id) = (self.world.inner.clone(), self.inner.id());
                tokio::spawn(async move { sandbox.signal(id, Signal::KILL).await });
            }
            _ => self.inner.kill(reason),
        }
    }

    async fn wait(&mut self) -> Result<Completed> {
        if !self.unread.is_empty() && self.ended {
            self.unread.clear();
        }
        let again = std::mem::replace(&mut self.ended, true);
        let done = self.inner.wait().await?;
        if self.world.fault == Fault::TellsTheEndOnce && again {
            return Ok(Completed { outcome: Outcome::Lost, ..done });
        }
        if self.world.fault == Fault::FailureIsAnError && !done.outcome.success() {
            return Err(Error::new(ErrorKind::Io, "exec", done.outcome.to_string()));
        }
        if self.world.fault == Fault::DiesOfTimeouts && done.outcome == Outcome::Killed(KillReason::Timeout) {
            self.world.die();
        }
        Ok(self.retold(done))
    }
}

/// What stands in a handle's place while it is dropped.
struct Nobody;

#[async_trait]
impl ExecHandle for Nobody {
    fn id(&self) -> ExecId {
        ExecId([0; 16])
    }
    fn take_stdin(&mut self) -> Option<ByteWriter> {
        None
    }
    fn take_stdout(&mut self) -> Option<ByteReader> {
        None
    }
    fn take_stderr(&mut self) -> Option<ByteReader> {
        None
    }
    async fn signal(&self, _: Signal) -> Result<()> {
        Ok(())
    }
    async fn resize(&self, _: PtySize) -> Result<()> {
        Ok(())
    }
    fn kill(&self, _: KillReason) {}
    async fn wait(&mut self) -> Result<Completed> {
        Ok(Completed { outcome: Outcome::Lost, cannot_execute: None, usage: Usage::default() })
    }
}
