//! Commands that run without a connection: their ends are told, and counted, like those of others.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tierbox::{Completed, ExecId, ExecState};

use crate::held::Held;
use crate::server::Shared;

/// How often a machine is asked.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long it may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Those of one environment that are watched, by machine.
#[derive(Default)]
pub(crate) struct Watched(Mutex<BTreeSet<(String, ExecId)>>);

impl Watched {
    /// Whether it is the first one.
    fn add(&self, machine: &str, exec: ExecId) -> bool {
        let mut watched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        watched.insert((machine.to_owned(), exec));
        watched.len() == 1
    }

    /// Whether it was watched.
    fn take(&self, machine: &str, exec: ExecId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&(machine.to_owned(), exec))
    }

    fn all(&self) -> Vec<(String, ExecId)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// Tells of a detached command's beginning, and of its end when it comes. It keeps no environment.
pub(crate) fn watch(shared: &Arc<Shared>, held: &Arc<Held>, machine: &str, exec: ExecId) {
    shared.events.exec(held.running.id(), exec, None);
    if held.watched.add(machine, exec) {
        tokio::spawn(follow(shared.clone(), Arc::downgrade(held)));
    }
}

/// Until there is none left, or the environment is gone.
async fn follow(shared: Arc<Shared>, held: Weak<Held>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let Some(held) = held.upgrade() else { return };
        let watched = held.watched.all();
        if watched.is_empty() {
            return;
        }
        let machines: BTreeSet<&String> = watched.iter().map(|(machine, _)| machine).collect();
        for machine in machines {
            for (exec, completed) in ended(&held, machine).await {
                if held.watched.take(machine, exec) {
                    shared.metrics.ended(completed.outcome, completed.usage.wall);
                    shared.events.exec(held.running.id(), exec, Some(completed.outcome));
                }
            }
        }
    }
}

/// What has ended in a machine; nothing of one that does not answer.
async fn ended(held: &Held, machine: &str) -> Vec<(ExecId, Completed)> {
    let asked = async { held.running.machine(machine)?.execs().await };
    let Ok(Ok(execs)) = tokio::time::timeout(ANSWER, asked).await else { return Vec::new() };
    let ended = |state| match state {
        ExecState::Running => None,
        ExecState::Ended(completed) => Some(completed),
    };
    execs.into_iter().filter_map(|info| Some((info.id, ended(info.state)?))).collect()
}
