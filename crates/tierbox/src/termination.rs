//! That a decision ended a run: known to every handle of the agent's, and to whoever finds the environment again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tierbox_core::{ExecId, ExecState, KillReason, Sandbox};
use tokio::sync::watch;

/// The directory of marks below the state directory.
const MARKS: &str = "terminated";
/// How often another process's mark is looked for while something of the agent's runs.
const LOOK: Duration = Duration::from_secs(1);
/// So many commands may be known before those that ended are forgotten.
const MANY: usize = 1000;

/// Whether the run in one environment was terminated, and what has to end with it.
#[derive(Clone)]
pub(crate) struct Termination(Arc<State>);

struct State {
    set: watch::Sender<bool>,
    mark: PathBuf,
    /// What the agent runs, with the machine in which it can be killed.
    under_way: Mutex<BTreeMap<ExecId, Arc<dyn Sandbox>>>,
    /// Whether somebody looks after them.
    followed: AtomicBool,
}

impl Termination {
    /// That of an environment: one that another process terminated is so here.
    pub fn of(state: &Path, id: &str) -> Self {
        Self(Arc::new(State {
            set: watch::Sender::new(false),
            mark: state.join(MARKS).join(id),
            under_way: Mutex::default(),
            followed: AtomicBool::new(false),
        }))
    }

    /// From now on nothing is done for the agent, and what it runs is killed.
    pub fn set(&self) {
        self.0.set.send_replace(true);
        let mark = &self.0.mark;
        let marked = mark.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(mark, ""));
        if let Err(error) = marked {
            // Here it holds all the same; only another process may not learn of it.
            tracing::warn!(target: "tierbox::op", %error, mark = %mark.display(), "a termination is not on disk");
        }
    }

    /// Whether it was, here or by another process.
    pub fn is_set(&self) -> bool {
        let is_set = *self.0.set.borrow();
        if !is_set && self.0.mark.symlink_metadata().is_ok() {
            self.0.set.send_replace(true);
            return true;
        }
        is_set
    }

    /// Waits until it is.
    pub async fn happened(&self) {
        self.follow();
        // This handle keeps the sender.
        let _ = self.0.set.subscribe().wait_for(|set| *set).await;
    }

    /// Has a command end with the run, until it is let go of.
    pub fn hold(&self, id: ExecId, machine: Arc<dyn Sandbox>) {
        self.0.under_way().insert(id, machine);
        self.follow();
    }

    /// The same for as long as the bond lives.
    pub fn bind(&self, id: ExecId, machine: Arc<dyn Sandbox>) -> Bond {
        self.hold(id, machine);
        Bond { termination: self.clone(), id }
    }

    /// A command that ended, or that nobody has any more.
    pub fn let_go(&self, id: ExecId) {
        self.0.under_way().remove(&id);
    }

    /// Forgets the detached commands of a machine that ended by themselves, where there are many.
    pub async fn forget_ended(&self, machine: &Arc<dyn Sandbox>) {
        if self.0.under_way().len() < MANY {
            return;
        }
        let Ok(execs) = machine.execs().await else { return };
        let ended = execs.iter().filter(|exec| !matches!(exec.state, ExecState::Running));
        ended.for_each(|exec| self.let_go(exec.id));
    }

    /// Looks for a termination until there is one, for as long as somebody has this.
    fn follow(&self) {
        let Ok(driver) = tierbox_guest::driver::handle() else { return };
        if !self.0.followed.swap(true, Ordering::AcqRel) {
            driver.spawn(follow(Arc::downgrade(&self.0)));
        }
    }

    /// Removes the mark of an environment that has ended.
    pub fn forget(state: &Path, id: &str) {
        let _ = std::fs::remove_file(state.join(MARKS).join(id));
    }

    /// Removes the marks of environments that have ended otherwise.
    pub fn forget_all_but(state: &Path, is_there: impl Fn(&str) -> bool) {
        for entry in std::fs::read_dir(state.join(MARKS)).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_none_or(|id| !is_there(id)) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// That a command ends with its run.
pub(crate) struct Bond {
    termination: Termination,
    id: ExecId,
}

impl Drop for Bond {
    fn drop(&mut self) {
        self.termination.let_go(self.id);
    }
}

impl State {
    fn under_way(&self) -> MutexGuard<'_, BTreeMap<ExecId, Arc<dyn Sandbox>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn follow(state: Weak<State>) {
    let Some(mut seen) = state.upgrade().map(|state| state.set.subscribe()) else { return };
    loop {
        let _ = tokio::time::timeout(LOOK, seen.wait_for(|set| *set)).await;
        let Some(termination) = state.upgrade().map(Termination) else { return };
        if termination.is_set() {
            let under_way = std::mem::take(&mut *termination.0.under_way());
            under_way.into_iter().for_each(|(id, machine)| end(id, machine));
            return;
        }
    }
}

/// A machine that does not answer holds up nobody else's end.
fn end(id: ExecId, machine: Arc<dyn Sandbox>) {
    tokio::spawn(async move {
        if let Err(error) = machine.kill(id, KillReason::Cancelled).await {
            tracing::debug!(target: "tierbox::op", %id, error = error.message(), "could not end a command with its run");
        }
    });
}
