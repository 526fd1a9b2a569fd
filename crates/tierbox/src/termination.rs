//! That a decision ended a run: known to every handle of the agent's, and to whoever finds the environment again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The directory of marks below the state directory.
const MARKS: &str = "terminated";

/// Whether the run in one environment was terminated.
#[derive(Debug, Clone)]
pub(crate) struct Termination {
    set: Arc<AtomicBool>,
    mark: Arc<PathBuf>,
}

impl Termination {
    /// That of an environment: one that another process terminated stays so.
    pub fn of(state: &Path, id: &str) -> Self {
        let mark = state.join(MARKS).join(id);
        Self { set: Arc::new(AtomicBool::new(mark.symlink_metadata().is_ok())), mark: Arc::new(mark) }
    }

    /// From now on nothing is done for the agent.
    pub fn set(&self) {
        self.set.store(true, Ordering::Release);
        let marked = self.mark.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&*self.mark, ""));
        if let Err(error) = marked {
            // Here it holds all the same; only another process may not learn of it.
            tracing::warn!(target: "tierbox::op", %error, mark = %self.mark.display(), "a termination is not on disk");
        }
    }

    /// Whether it was.
    pub fn is_set(&self) -> bool {
        self.set.load(Ordering::Acquire)
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
