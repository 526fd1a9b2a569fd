//! Deadlines.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// A command's time limit.
    Timeout(u32),
    /// A command's limit on silence.
    Idle(u32),
    /// Tell a command's terminal once more that the input is at its end.
    InputEnd(u32),
    /// Look again whether a killed tree is gone, or whether a launch succeeded.
    Look(u32),
    /// A command ended a while ago, and its pipes are still open.
    Drained(u32),
    /// A connection broke, and nobody came back for its commands.
    Grace(u32),
    /// Look again at what commands left behind.
    Leftovers,
    /// The machine's lifetime.
    Lifetime,
    /// The last words after it.
    LastWords,
    /// The machine's own channel broke, and nobody came.
    Abandoned,
    /// A good time to make spare children.
    Spare,
    /// Opening a stream takes too long.
    Dial(u32),
    /// Nobody came back for a session since its line changed so often.
    Session(u32, u32),
}

/// All deadlines, soonest first.
#[derive(Debug, Default)]
pub struct Timers {
    due: BTreeSet<(Instant, Timer)>,
}

impl Timers {
    /// Sets one more deadline.
    pub fn set(&mut self, at: Instant, timer: Timer) {
        self.due.insert((at, timer));
    }

    /// Sets one more deadline, from now.
    pub fn after(&mut self, wait: Duration, timer: Timer) -> Instant {
        // A wait beyond all calendars is none.
        let at = Instant::now().checked_add(wait).unwrap_or_else(|| Instant::now() + Duration::from_secs(1 << 32));
        self.set(at, timer);
        at
    }

    /// Takes a deadline back.
    pub fn cancel(&mut self, at: Instant, timer: Timer) {
        self.due.remove(&(at, timer));
    }

    /// How long until the next one.
    pub fn next_wait(&self) -> Option<Duration> {
        let (at, _) = self.due.first()?;
        Some(at.saturating_duration_since(Instant::now()))
    }

    /// The next one that is due.
    pub fn pop(&mut self, now: Instant) -> Option<Timer> {
        let (at, timer) = *self.due.first()?;
        if at > now {
            return None;
        }
        self.due.remove(&(at, timer));
        Some(timer)
    }
}
