//! Ends what was dropped: environments that nobody stopped, and starts that were cancelled.
//!
//! Dropping must not block and may happen on any thread, with or without an async runtime. So the work goes to one thread
//! of tierbox's own, with a runtime of its own. If the process ends before that thread is done, the lease's lock becomes
//! free with it, and the next clean-up finishes the work.

use std::sync::{Arc, OnceLock};

use tierbox_core::{Backend, Environment};
use tierbox_lease::Lease;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

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

/// Ends it in the background.
pub(crate) fn bury(burial: Burial) {
    static QUEUE: OnceLock<Option<UnboundedSender<Burial>>> = OnceLock::new();
    let queue = QUEUE.get_or_init(start_thread);
    if let Some(queue) = queue {
        let _ = queue.send(burial);
    }
    // Without a thread the burial is dropped here: its channel closes and its lease is left to the next clean-up.
}

fn start_thread() -> Option<UnboundedSender<Burial>> {
    let (sender, receiver) = unbounded_channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let thread = std::thread::Builder::new().name("tierbox-undertaker".into());
    thread.spawn(move || runtime.block_on(serve(receiver))).ok()?;
    Some(sender)
}

async fn serve(mut queue: UnboundedReceiver<Burial>) {
    while let Some(burial) = queue.recv().await {
        tokio::spawn(burial.carry_out());
    }
}
