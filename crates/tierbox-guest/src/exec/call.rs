//! The host's half of a command: what the machine said of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use tierbox_core::{Completed, ExecId, KillReason, NotStartedCause, Outcome, Usage};
use tierbox_supervisor::protocol::{Done, End, FromSupervisor, Killed, NotStarted, STDERR, STDOUT, ToSupervisor, WINDOW};

use crate::calls::{Sink, Step};
use crate::channel::Shared;
use crate::errors::{Closed, Failed, Fault, lock, wake};
use crate::flow::{Inflow, Outflow};

/// How much later than its time limit the machine may report a command's end.
const LATE: Duration = Duration::from_secs(30);

/// How a command ended, or why nobody knows.
#[derive(Debug, Clone)]
pub(crate) enum Ending {
    Done(Completed),
    /// The supervisor refused the call as such.
    Refused(Failed),
    /// The line ended.
    Lost,
}

/// Who waits for something of a command.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Waiter {
    Stdin,
    Stdout,
    Stderr,
    Start,
    End,
}

/// The host's half of a command.
pub(crate) struct ExecCall {
    pub(crate) id: ExecId,
    pub(crate) stdout: Option<Arc<Inflow>>,
    pub(crate) stderr: Option<Arc<Inflow>>,
    pub(crate) stdin: Option<Arc<Outflow>>,
    launched: Instant,
    overdue: Option<Instant>,
    /// Whether its caller closed a pipe while it ran, of which it may die before a cancel reaches it.
    broken: AtomicBool,
    /// Bytes of stdout and stderr that were there when it was attached to.
    retained: OnceLock<[u64; 2]>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    started: bool,
    ending: Option<Ending>,
    /// Pipes that others hold open are given up from now on.
    drained: bool,
    draining: bool,
    wakers: [Option<Waker>; 5],
}

/// How a command stands for somebody who reads its pipes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Running,
    /// It ended; others may still write.
    Draining,
    /// Its pipes are given up.
    Drained,
}

impl ExecCall {
    pub(crate) fn new(id: ExecId, timeout: Option<Duration>) -> Self {
        let launched = Instant::now();
        Self {
            id,
            stdout: None,
            stderr: None,
            stdin: None,
            launched,
            overdue: timeout.and_then(|timeout| launched.checked_add(timeout)?.checked_add(LATE)),
            broken: AtomicBool::new(false),
            retained: OnceLock::new(),
            state: Mutex::default(),
        }
    }

    /// Notes that a pipe is closed while the command runs.
    pub(crate) fn note_broken(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    /// Whether a pipe was closed while the command ran.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// What was there of each stream when it was attached to.
    pub(crate) fn retained(&self) -> Option<[u64; 2]> {
        self.retained.get().copied()
    }

    /// The end, if it is known. Otherwise `waker` is woken when it is.
    pub(crate) fn poll_ending(&self, waker: &Waker) -> Poll<Ending> {
        let mut state = lock(&self.state);
        match &state.ending {
            Some(ending) => Poll::Ready(ending.clone()),
            None => {
                state.wait(Waiter::End, waker);
                Poll::Pending
            }
        }
    }

    /// Waits until the process exists, or it is known that it never will.
    pub(crate) fn poll_started(&self, waker: &Waker) -> Poll<Result<(), Ending>> {
        let mut state = lock(&self.state);
        match &state.ending {
            Some(Ending::Done(Completed { outcome, .. })) if state.started && !matches!(outcome, Outcome::NotStarted { .. }) => {
                Poll::Ready(Ok(()))
            }
            Some(ending) => Poll::Ready(Err(ending.clone())),
            None if state.started => Poll::Ready(Ok(())),
            None => {
                state.wait(Waiter::Start, waker);
                Poll::Pending
            }
        }
    }

    /// How it stands; `waker` is woken at the next stage.
    pub(crate) fn poll_stage(&self, waiter: Waiter, waker: &Waker) -> Stage {
        let mut state = lock(&self.state);
        let stage = state.stage();
        if stage != Stage::Drained {
            state.wait(waiter, waker);
        }
        stage
    }

    /// Whether it has ended, or nobody will know.
    pub(crate) fn is_over(&self) -> bool {
        lock(&self.state).ending.is_some()
    }

    /// Whether the caller should start the clock for [`drained`](Self::drained). True once.
    pub(crate) fn begin_draining(&self) -> bool {
        !std::mem::replace(&mut lock(&self.state).draining, true)
    }

    /// Its pipes are given up from now on.
    pub(crate) fn drained(&self) {
        self.change(|state| state.drained = true);
    }

    /// Records the end. The first stands.
    pub(crate) fn settle(&self, ending: Ending) {
        let flows_end = match &ending {
            Ending::Done(_) => Ok(()),
            Ending::Refused(failed) => Err(Fault::Failed(failed.clone())),
            Ending::Lost => return self.lost(Fault::Closed(Closed::lost("the machine went away"))),
        };
        self.end(ending, flows_end);
    }

    fn lost(&self, fault: Fault) {
        self.end(Ending::Lost, Err(fault));
    }

    fn end(&self, ending: Ending, flows_end: Result<(), Fault>) {
        for flow in [&self.stdout, &self.stderr].into_iter().flatten() {
            flow.end(flows_end.clone());
        }
        if let Some(stdin) = &self.stdin {
            stdin.close();
        }
        self.change(|state| _ = state.ending.get_or_insert(ending));
    }

    /// Changes its state and wakes all who wait.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = lock(&self.state);
        change(&mut state);
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wake(wakers);
    }

    fn inflow(&self, stream: u8) -> Result<&Inflow, &'static str> {
        let flow = match stream {
            STDOUT => self.stdout.as_deref(),
            STDERR => self.stderr.as_deref(),
            _ => return Err("it names an output stream that does not exist"),
        };
        flow.ok_or("it sends output that goes elsewhere")
    }

    fn take(&self, call: u32, message: FromSupervisor, shared: &Shared) -> Result<Step, &'static str> {
        match message {
            FromSupervisor::Started { .. } => {
                // Only a detached launch waits for this; waking readers for it would cost every command.
                let mut state = lock(&self.state);
                state.started = true;
                let waker = state.wakers[Waiter::Start as usize].take();
                drop(state);
                wake([waker]);
            }
            FromSupervisor::Output { stream, offset, data } => {
                if let Some(bytes) = self.inflow(stream)?.push(offset, &data.0)? {
                    shared.send(call, &ToSupervisor::Credit { stream, bytes });
                }
            }
            FromSupervisor::Attached { stdout, stderr } => {
                // A command's last words may come on top of a full window.
                if stdout.max(stderr) > 4 * u64::from(WINDOW) {
                    return Err("it claims to hold more output than it may");
                }
                // Only the first counts.
                let _ = self.retained.set([stdout, stderr]);
            }
            FromSupervisor::OutputEnd { stream } => self.inflow(stream)?.end(Ok(())),
            FromSupervisor::InputCredit { bytes } => {
                self.stdin.as_ref().ok_or("it grants input where there is none")?.grant(bytes)?
            }
            FromSupervisor::InputClosed => {
                if let Some(stdin) = &self.stdin {
                    stdin.close();
                }
            }
            FromSupervisor::Done { done } => {
                self.settle(Ending::Done(completed(&done)?));
                return Ok(Step::Last);
            }
            FromSupervisor::Failed { failure, errno, detail } => {
                self.settle(Ending::Refused(Failed { failure, errno, detail }));
                return Ok(Step::Last);
            }
            _ => return Err("it answers a command with what is none of a command's"),
        }
        Ok(Step::More)
    }

    /// What is known of a command whose end was not heard.
    pub(crate) fn lost_outcome(&self) -> Completed {
        let usage = Usage { wall: self.launched.elapsed(), ..Usage::default() };
        Completed { outcome: Outcome::Lost, cannot_execute: None, usage }
    }
}

impl State {
    fn stage(&self) -> Stage {
        match () {
            () if self.drained => Stage::Drained,
            () if self.ending.is_some() => Stage::Draining,
            () => Stage::Running,
        }
    }

    fn wait(&mut self, waiter: Waiter, waker: &Waker) {
        match &mut self.wakers[waiter as usize] {
            Some(known) if known.will_wake(waker) => {}
            slot => *slot = Some(waker.clone()),
        }
    }
}

impl Sink for ExecCall {
    fn frame(&self, call: u32, message: FromSupervisor, shared: &Shared) -> Step {
        self.take(call, message, shared).unwrap_or_else(Step::Broken)
    }

    fn fault(&self, fault: Fault) {
        self.lost(fault);
    }

    fn overdue(&self) -> Option<Instant> {
        self.overdue
    }
}

/// The end of a command, in core's words.
pub(crate) fn completed(done: &Done) -> Result<Completed, &'static str> {
    let outcome = match &done.end {
        End::NotStarted { cause } => not_started(cause),
        End::Exited { code } if (0..=255).contains(code) => Outcome::Exited(*code),
        End::Signaled { signal } if (1..=64).contains(signal) => Outcome::Signaled(*signal),
        End::Exited { .. } | End::Signaled { .. } => return Err("it reports an end that cannot be"),
        End::Killed { reason } => Outcome::Killed(match reason {
            Killed::Timeout => KillReason::Timeout,
            Killed::Idle => KillReason::Idle,
            Killed::OutputLimit => KillReason::OutputLimit,
            Killed::Memory => KillReason::Memory,
            Killed::Cancelled => KillReason::Cancelled,
            Killed::Lifetime => KillReason::Lifetime,
        }),
    };
    let usage = Usage {
        wall: Duration::from_micros(done.wall_us),
        cpu_user: done.user_us.map(Duration::from_micros),
        cpu_system: done.system_us.map(Duration::from_micros),
        peak_memory: done.peak_memory,
    };
    Ok(Completed { outcome, cannot_execute: done.cannot_execute, usage })
}

fn not_started(cause: &NotStarted) -> Outcome {
    let cause = match cause {
        NotStarted::BadCwd => NotStartedCause::BadCwd,
        NotStarted::UnknownUser => NotStartedCause::UnknownUser,
        NotStarted::UserNotMapped => NotStartedCause::UserNotMapped,
        NotStarted::TooBig => NotStartedCause::TooBig,
        NotStarted::NoResources => NotStartedCause::NoResources,
        NotStarted::AlreadyLaunched => NotStartedCause::AlreadyLaunched,
        NotStarted::Unconfined => NotStartedCause::Unconfined,
        NotStarted::NotAdmitted => NotStartedCause::NotAdmitted,
    };
    Outcome::NotStarted { cause, retryable: cause == NotStartedCause::NoResources }
}
