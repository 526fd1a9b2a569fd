//! Ends what was dropped: environments that nobody stopped, and starts that were cancelled.
//!
//! Dropping must not block and may happen on any thread, with or without an async runtime. So the work goes to one thread
//! of tierbox's own, with a runtime of its own. If the process ends before that thread is done, the lease's lock becomes
//! free with it, and the next clean-up finishes the work.

use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;

use tierbox_core::{Backend, Environment};
use tierbox_lease::Lease;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};

use crate::decided::Decided;

/// Something to end.
pub(crate) struct Burial {
    pub backend: Arc<dyn Backend>,
    pub lease: Arc<Lease>,
    pub environment: Option<Arc<dyn Environment>>,
    /// What brings the last decisions of its gateway into its log.
    pub decided: Option<Arc<Decided>>,
}

impl Burial {
    /// Ends it and waits for that. Whoever gives the wait up, as an interrupt does, does not give the end up.
    pub async fn carry_out(self) {
        let (done, is_done) = oneshot::channel();
        bury_and_tell(self, Some(done));
        // Without a thread there is nothing to wait for.
        let _ = is_done.await;
    }

    /// Stops and destroys it, and removes its lease if nothing of it is left.
    async fn end(self) {
        if let Some(environment) = &self.environment {
            // What this leaves, `destroy` finds through the lease.
            let _ = environment.stop().await;
        }
        let record = self.lease.snapshot();
        let destroyed = self.backend.destroy(&record).await;
        if let Some(decided) = &self.decided {
            decided.finish(self.environment.as_deref()).await;
        }
        let left = match destroyed {
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

static QUEUE: OnceLock<Option<UnboundedSender<Order>>> = OnceLock::new();

/// How much of what `settle` waits for is not over.
static PENDING: LazyLock<watch::Sender<usize>> = LazyLock::new(|| watch::Sender::new(0));

/// Something whose end `settle` waits for: for as long as this lives.
pub(crate) struct Awaited(());

impl Awaited {
    pub fn new() -> Self {
        PENDING.send_modify(|pending| *pending += 1);
        Self(())
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        PENDING.send_modify(|pending| *pending -= 1);
    }
}

/// A burial on its way.
struct Order {
    burial: Burial,
    /// Who waits for it.
    done: Option<oneshot::Sender<()>>,
    awaited: Awaited,
}

/// Ends it in the background.
pub(crate) fn bury(burial: Burial) {
    bury_and_tell(burial, None);
}

fn bury_and_tell(burial: Burial, done: Option<oneshot::Sender<()>>) {
    if let Some(queue) = QUEUE.get_or_init(start_thread) {
        let _ = queue.send(Order { burial, done, awaited: Awaited::new() });
    }
    // Without a thread the burial is dropped here: its channel closes and its lease is left to the next clean-up.
}

/// Waits until every environment that was dropped has ended, every start that was cancelled is undone, and no twin of a verification
/// is left, for at most `limit`. Returns whether it is so. A program that is about to exit calls this to leave nothing to the next
/// clean-up.
pub async fn settle(limit: Duration) -> bool {
    let mut pending = PENDING.subscribe();
    tokio::time::timeout(limit, pending.wait_for(|pending| *pending == 0)).await.is_ok()
}

fn start_thread() -> Option<UnboundedSender<Order>> {
    let (sender, receiver) = unbounded_channel();
    let thread = std::thread::Builder::new().name("tierbox-undertaker".into());
    thread.spawn(move || undertake(receiver)).ok()?;
    Some(sender)
}

/// The runtime is made in its own thread: a caller who gets no thread may itself be inside a runtime, where none may be dropped.
fn undertake(mut queue: UnboundedReceiver<Order>) {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(serve(queue)),
        // The next clean-up does it.
        Err(_) => while queue.blocking_recv().is_some() {},
    }
}

async fn serve(mut queue: UnboundedReceiver<Order>) {
    while let Some(Order { burial, done, awaited }) = queue.recv().await {
        tokio::spawn(async move {
            burial.end().await;
            drop(awaited);
            if let Some(done) = done {
                // Whoever waited may be gone.
                let _ = done.send(());
            }
        });
    }
}
