//! Calls that are not commands: a question and its answer, with or without a stream of data.

use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use tierbox_core::{Error, ErrorKind, ExecId, KillReason, Result, Signal};
use tierbox_supervisor::protocol::{Entry, FromSupervisor, STDOUT, ToSupervisor};

use crate::calls::{Sink, Step};
use crate::channel::{Channel, Shared};
use crate::errors::{Closed, Failed, Fault, lock, wake};
use crate::exec::wire_reason;
use crate::flow::{Inflow, Outflow};

/// What is held of a directory's listing, names and facts together.
const LISTING: usize = 64 << 20;

/// The host's half of an operation.
pub(crate) struct Operation {
    /// Data from the machine, where the operation has any in frames.
    pub(crate) output: Option<Arc<Inflow>>,
    /// Data to the machine, likewise.
    pub(crate) input: Option<Arc<Outflow>>,
    /// The end of the data is told by `OutputEnd` (a dialled stream), not by the end of the operation (a file).
    half_closes: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    answered: bool,
    answer: Option<FromSupervisor>,
    entries: Vec<Entry>,
    held: usize,
    end: Option<Result<(), Fault>>,
    wakers: [Option<Waker>; 2],
}

/// Who waits for an operation.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Waiter {
    Answer,
    End,
}

impl Operation {
    /// Without data in frames.
    pub(crate) fn plain() -> Self {
        Self { output: None, input: None, half_closes: false, state: Mutex::default() }
    }

    /// With data from the machine.
    pub(crate) fn with_output(operation: &'static str) -> Self {
        Self { output: Some(Inflow::new(operation, 0, false)), ..Self::plain() }
    }

    /// With data to the machine.
    pub(crate) fn with_input() -> Self {
        Self { input: Some(Arc::default()), ..Self::plain() }
    }

    /// With both, and ends of their own.
    pub(crate) fn duplex(operation: &'static str) -> Self {
        Self { input: Some(Arc::default()), half_closes: true, ..Self::with_output(operation) }
    }

    /// Waits for the answer; `None` if the operation ended without one.
    pub(crate) fn poll_answer(&self, cx: &mut Context<'_>) -> Poll<Result<Option<FromSupervisor>, Fault>> {
        let mut state = lock(&self.state);
        if let Some(answer) = state.answer.take() {
            return Poll::Ready(Ok(Some(answer)));
        }
        match state.end.clone() {
            Some(end) => Poll::Ready(end.map(|()| None)),
            None => state.wait(Waiter::Answer, cx),
        }
    }

    /// Waits for the end.
    pub(crate) fn poll_end(&self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        let mut state = lock(&self.state);
        match state.end.clone() {
            Some(end) => Poll::Ready(end),
            None => state.wait(Waiter::End, cx),
        }
    }

    /// How it ended, if it did.
    pub(crate) fn outcome(&self) -> Option<Result<(), Fault>> {
        lock(&self.state).end.clone()
    }

    /// What was listed.
    pub(crate) fn take_entries(&self) -> Vec<Entry> {
        std::mem::take(&mut lock(&self.state).entries)
    }

    /// Records the answer; with `last`, and at the same moment, that nothing more comes.
    fn answer(&self, message: FromSupervisor, last: bool) -> Result<(), &'static str> {
        let mut state = lock(&self.state);
        if std::mem::replace(&mut state.answered, true) {
            return Err("it answers one question twice");
        }
        state.answer = Some(message);
        if last {
            state.end.get_or_insert(Ok(()));
        }
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wake(wakers);
        Ok(())
    }

    fn end(&self, end: Result<(), Fault>) {
        if let Some(output) = &self.output {
            output.end(end.clone());
        }
        if let Some(input) = &self.input {
            input.close();
        }
        let mut state = lock(&self.state);
        state.end.get_or_insert(end);
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wake(wakers);
    }

    fn list(&self, entries: Vec<Entry>) -> Step {
        let mut state = lock(&self.state);
        let size = |entry: &Entry| {
            size_of::<Entry>() + entry.name.0.len() + entry.meta.target.as_ref().map_or(0, |target| target.0.len())
        };
        state.held += entries.iter().map(size).sum::<usize>();
        if state.held > LISTING {
            state.entries = Vec::new();
            drop(state);
            self.end(Err(Fault::TooMuch("the directory has too many entries to list")));
            return Step::Last;
        }
        state.entries.extend(entries);
        Step::More
    }

    fn take(&self, call: u32, message: FromSupervisor, shared: &Shared) -> Result<Step, &'static str> {
        use FromSupervisor as From;
        match message {
            From::Meta { .. } | From::Contents { .. } | From::Execs { .. } | From::Done { .. } => {
                self.answer(message, true)?;
                return Ok(Step::Last);
            }
            From::Opened { .. } | From::Dialed => self.answer(message, false)?,
            From::Entries { entries } => return Ok(self.list(entries)),
            From::Output { stream: STDOUT, offset, data } => {
                let output = self.output.as_ref().ok_or("it sends data that was not asked for")?;
                if let Some(bytes) = output.push(offset, &data.0)? {
                    shared.send(call, &ToSupervisor::Credit { stream: STDOUT, bytes });
                }
            }
            From::OutputEnd { stream: STDOUT } => {
                if let Some(output) = self.output.as_ref().filter(|_| self.half_closes) {
                    output.end(Ok(()));
                }
            }
            From::InputCredit { bytes } => self.input.as_ref().ok_or("it grants input where there is none")?.grant(bytes)?,
            From::InputClosed => {
                if let Some(input) = &self.input {
                    input.close();
                }
            }
            From::Finished => {
                self.end(Ok(()));
                return Ok(Step::Last);
            }
            From::Failed { failure, errno, detail } => {
                self.end(Err(Fault::Failed(Failed { failure, errno, detail })));
                return Ok(Step::Last);
            }
            _ => return Err("it answers a question with what is no answer to it"),
        }
        Ok(Step::More)
    }
}

impl State {
    fn wait<T>(&mut self, waiter: Waiter, cx: &mut Context<'_>) -> Poll<T> {
        self.wakers[waiter as usize] = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Sink for Operation {
    fn frame(&self, call: u32, message: FromSupervisor, shared: &Shared) -> Step {
        self.take(call, message, shared).unwrap_or_else(Step::Broken)
    }

    fn fault(&self, fault: Fault) {
        self.end(Err(fault));
    }
}

/// An operation under way. Dropping it before its end gives it up.
pub(crate) struct Running {
    pub(crate) channel: Channel,
    pub(crate) call: u32,
    pub(crate) operation: Arc<Operation>,
    /// What is tried, and on what, for errors.
    pub(crate) tried: &'static str,
    pub(crate) subject: String,
}

impl Running {
    /// Registers an operation; the caller sends its frame.
    pub(crate) fn open(channel: &Channel, operation: Operation, tried: &'static str, subject: String) -> Result<Self> {
        let operation = Arc::new(operation);
        let call = channel.shared().open(operation.clone()).map_err(|closed| closed.error(tried))?;
        Ok(Self { channel: channel.clone(), call, operation, tried, subject })
    }

    /// Registers an operation and sends its frame.
    pub(crate) async fn start(
        channel: &Channel,
        operation: Operation,
        message: &ToSupervisor,
        tried: &'static str,
        subject: String,
    ) -> Result<Self> {
        channel.shared().room().await;
        let running = Self::open(channel, operation, tried, subject)?;
        channel.shared().must_send(running.call, message, tried)?;
        Ok(running)
    }

    pub(crate) fn fault(&self, fault: &Fault) -> Error {
        fault.error(self.tried, &self.subject)
    }

    /// Waits for the answer.
    pub(crate) async fn answer(&self) -> Result<FromSupervisor> {
        match poll_fn(|cx| self.operation.poll_answer(cx)).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(self.unexpected()),
            Err(fault) => Err(self.fault(&fault)),
        }
    }

    /// Waits for the end.
    pub(crate) async fn end(&self) -> Result<()> {
        poll_fn(|cx| self.operation.poll_end(cx)).await.map_err(|fault| self.fault(&fault))
    }

    /// The machine answered with what is no answer to this; the line is closed.
    pub(crate) fn unexpected(&self) -> Error {
        let closed = Closed::protocol("it answers a question with what is no answer to it");
        let error = closed.error(self.tried);
        self.channel.shared().close(closed);
        error
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.operation.outcome().is_none() {
            self.channel.shared().send(self.call, &ToSupervisor::Abort);
        }
        self.channel.shared().release(self.call);
    }
}

/// Sends a request and waits until it was done.
async fn command(channel: &Channel, message: &ToSupervisor, tried: &'static str, subject: String) -> Result<()> {
    Running::start(channel, Operation::plain(), message, tried, subject).await?.end().await
}

fn exec_subject(id: ExecId) -> String {
    format!("exec {id}")
}

/// Sends a signal to a command.
pub(crate) async fn signal(channel: &Channel, id: ExecId, signal: Signal) -> Result<()> {
    command(channel, &ToSupervisor::Signal { id: id.0, signal: signal.number() }, "signal", exec_subject(id)).await
}

/// Kills a command's tree.
pub(crate) async fn kill(channel: &Channel, id: ExecId, reason: KillReason) -> Result<()> {
    command(channel, &ToSupervisor::KillById { id: id.0, reason: wire_reason(reason) }, "kill", exec_subject(id)).await
}

/// Waits for a command's end.
pub(crate) async fn wait(channel: &Channel, id: ExecId) -> Result<tierbox_core::Completed> {
    let message = ToSupervisor::Wait { id: id.0 };
    let running = Running::start(channel, Operation::plain(), &message, "wait", exec_subject(id)).await?;
    match running.answer().await {
        Ok(FromSupervisor::Done { done }) => crate::exec::completed(&done).map_err(|_| running.unexpected()),
        Ok(_) => Err(running.unexpected()),
        Err(error) if error.kind() == ErrorKind::Lost => Ok(lost()),
        Err(error) => Err(error),
    }
}

fn lost() -> tierbox_core::Completed {
    let usage = tierbox_core::Usage::default();
    tierbox_core::Completed { outcome: tierbox_core::Outcome::Lost, cannot_execute: None, usage }
}
