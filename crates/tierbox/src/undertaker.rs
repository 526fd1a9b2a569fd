//! Ends what was dropped: environments that nobody stopped, and starts that were cancelled.
//!
//! Dropping must not block and may happen on any thread, with or without an async runtime. So the work goes to one thread
//! of tierbox's own, with a runtime of its own. If the process ends before that thread is done, the lease's lock becomes
//! free with it, and the next clean-up finishes the work.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tierbox_core::{Backend, Environment};
use tierbox_lease::Lease;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;

/// Something to end.
pub(crate) struct Burial {
    pub backend: Arc<dyn Backend>,
    pub lease: Arc<Lease>,
    pub environment: Option<Box<dyn Environment>>,
}

impl Burial {
    /// Stops and destroys it, and removes its lease if nothing of it is left.
    pub async fn carry_out(self) {
        if let Some(environment) = self.environment {
            // What this leaves, `destroy` finds through the lease.
            let _ = environment.stop().await;
        }
        let record = self.lease.snapshot();
        let left = match self.backend.destroy(&record).await {
            Ok(report) if report.failed.is_empty() => match self.lease.remove() {
                Ok(()) => return,
                Err(error) => error.message().to_owned(),
            },
            Ok(report) => report.failed.join(", "),
            Err(error) => error.message().to_owned(),
        };
        tracing::warn!(target: "tierbox::op", id = record.id, left, "could not end environment; `tierbox cleanup` tries again");
    }
}

static QUEUE: OnceLock<Option<Queue>> = OnceLock::new();

struct Queue {
    sender: UnboundedSender<Burial>,
    /// How many are not carried out yet.
    pending: watch::Sender<usize>,
}

/// Ends it in the background.
pub(crate) fn bury(burial: Burial) {
    if let Some(queue) = QUEUE.get_or_init(start_thread) {
        queue.pending.send_modify(|pending| *pending += 1);
        let _ = queue.sender.send(burial);
    }
    // Without a thread the burial is dropped here: its channel closes and its lease is left to the next clean-up.
}

/// Waits until every environment that was dropped has ended, and every start that was cancelled is undone, for at most
/// `limit`. Returns whether they have. A program that is about to exit calls this to leave nothing to the next clean-up.
pub async fn settle(limit: Duration) -> bool {
    let Some(Some(queue)) = QUEUE.get() else { return true };
    let mut pending = queue.pending.subscribe();
    tokio::time::timeout(limit, pending.wait_for(|pending| *pending == 0)).await.is_ok()
}

fn start_thread() -> Option<Queue> {
    let (sender, receiver) = unbounded_channel();
    let thread = std::thread::Builder::new().name("tierbox-undertaker".into());
    let pending = watch::Sender::new(0);
    let done = pending.clone();
    thread.spawn(move || undertake(receiver, done)).ok()?;
    Some(Queue { sender, pending })
}

/// The runtime is made in its own thread: a caller who gets no thread may itself be inside a runtime, where none may be dropped.
fn undertake(mut queue: UnboundedReceiver<Burial>, pending: watch::Sender<usize>) {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(serve(queue, pending)),
        // The next clean-up does it.
        Err(_) => {
            while queue.blocking_recv().is_some() {
                pending.send_modify(|pending| *pending -= 1);
            }
        }
    }
}

async fn serve(mut queue: UnboundedReceiver<Burial>, pending: watch::Sender<usize>) {
    while let Some(burial) = queue.recv().await {
        let pending = pending.clone();
        tokio::spawn(async move {
            burial.carry_out().await;
            pending.send_modify(|pending| *pending -= 1);
        });
    }
}
