//! What happens, told live to whoever follows.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tierbox::code::CodeOutcome;
use tierbox::{ExecId, Outcome};
use tokio::sync::{broadcast, mpsc};

use crate::answer::{self, Answer, EVENTS};
use crate::wire::{Event, EventKind};

/// Events that a follower may be behind before it misses some.
const BEHIND: usize = 1024;
/// How often a follower hears something, so that either side notices when the other is gone.
const BEAT: Duration = Duration::from_secs(15);

/// Tells events to all who follow.
pub(crate) struct Events(broadcast::Sender<Event>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::Sender::new(BEHIND))
    }
}

impl Events {
    /// Tells something about an environment.
    pub fn tell(&self, kind: EventKind, environment: &str, fill: impl FnOnce(&mut Event)) {
        // Without a follower nothing is made.
        if self.0.receiver_count() > 0 {
            let mut event = empty(kind, environment);
            fill(&mut event);
            let _ = self.0.send(event);
        }
    }

    /// Tells of a command's beginning, or of its end.
    pub fn exec(&self, environment: &str, exec: ExecId, outcome: Option<Outcome>) {
        let kind = if outcome.is_some() { EventKind::ExecEnded } else { EventKind::ExecStarted };
        self.tell(kind, environment, |event| {
            event.exec = Some(exec.to_string());
            event.outcome = outcome;
        });
    }

    /// Tells of a code task's beginning, or of its end: with no outcome where it could not be run.
    pub fn task(&self, environment: &str, ended: Option<Option<&CodeOutcome>>) {
        let kind = if ended.is_some() { EventKind::TaskEnded } else { EventKind::TaskStarted };
        self.tell(kind, environment, |event| {
            event.task = ended.flatten().map(|outcome| outcome.task_hash.clone());
            event.outcome = ended.flatten().map(CodeOutcome::outcome);
        });
    }

    /// Everything from now on, one JSON document a line.
    pub fn follow(&self) -> Answer {
        let mut events = self.0.subscribe();
        let (sender, receiver) = mpsc::channel(8);
        tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    next = tokio::time::timeout(BEAT, events.recv()) => next,
                    () = sender.closed() => return,
                };
                let event = match next {
                    Err(_) => empty(EventKind::Beat, ""),
                    Ok(Ok(event)) => event,
                    Ok(Err(broadcast::error::RecvError::Lagged(missed))) => {
                        Event { missed: Some(missed), ..empty(EventKind::Missed, "") }
                    }
                    Ok(Err(broadcast::error::RecvError::Closed)) => return,
                };
                let mut line = answer::line(&event).unwrap_or_default();
                line.push(b'\n');
                if sender.send(Ok(Bytes::from(line))).await.is_err() {
                    return;
                }
            }
        });
        answer::streamed(EVENTS, receiver)
    }
}

fn empty(kind: EventKind, environment: &str) -> Event {
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let environment = (!environment.is_empty()).then(|| environment.to_owned());
    Event {
        time,
        event: kind,
        environment,
        backend: None,
        profile: None,
        client: None,
        exec: None,
        task: None,
        outcome: None,
        missed: None,
    }
}
