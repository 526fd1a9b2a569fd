//! The end of a lifetime, where no supervisor in the machine counts it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tierbox_core::Environment;

/// How much longer than its own clock says a machine may take to end by itself, and to tell how its commands ended.
const LATE: Duration = Duration::from_secs(3);
/// Between two tries to end it.
const AGAIN: Duration = Duration::from_secs(30);

/// Ends an environment when its time is over, unless this is dropped before.
pub(crate) struct Timed(tokio::task::AbortHandle);

impl Timed {
    /// Every machine that counts its own time has begun to, so that none is ended by this before it ends by itself. `None` without
    /// a thread.
    pub fn after(lifetime: Duration, environment: &Arc<dyn Environment>) -> Option<Self> {
        let end = end(lifetime.saturating_add(LATE), Arc::downgrade(environment));
        Some(Self(tierbox_guest::driver::handle().ok()?.spawn(end).abort_handle()))
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Its lease stays with its owner: what is in it is gone.
async fn end(lifetime: Duration, environment: Weak<dyn Environment>) {
    tokio::time::sleep(lifetime).await;
    while let Some(environment) = environment.upgrade() {
        let Err(error) = environment.stop().await else {
            tracing::info!(target: "tierbox::op", id = environment.id(), "its lifetime is over");
            return;
        };
        let (id, error) = (environment.id(), error.message());
        tracing::warn!(target: "tierbox::op", id, error, "could not end an environment whose lifetime is over");
        tokio::time::sleep(AGAIN).await;
    }
}
