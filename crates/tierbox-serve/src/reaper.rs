//! What the daemon does by itself: leases end, environments that went away are forgotten, the queue is shown.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use tierbox::{CleanupOptions, Hold, Running};

use crate::options::queue_file;
use crate::server::Shared;

/// How often the queue is written down if it changed.
const TICK: Duration = Duration::from_millis(250);
/// How often leases are looked at.
const ROUND: Duration = Duration::from_secs(2);

/// Goes on until the daemon has been idle for as long as its options say.
pub(crate) async fn run(shared: Arc<Shared>) {
    let (mut shown, mut round, mut active, mut swept) = (0, Instant::now(), Instant::now(), Instant::now());
    loop {
        tokio::time::sleep(TICK).await;
        let changed = shared.admission.usage().changed;
        if changed != shown {
            show_queue(&shared);
            shown = changed;
        }
        if round.elapsed() >= ROUND {
            round = Instant::now();
            look_at_leases(&shared).await;
        }
        if swept.elapsed() >= shared.options.task_sweep {
            swept = Instant::now();
            tokio::spawn(remove_expired_tasks(shared.clone()));
        }
        if shared.metrics.connections.load(Ordering::Relaxed) > 0 || !shared.environments().is_empty() {
            active = Instant::now();
        }
        if shared.options.idle.is_some_and(|idle| active.elapsed() >= idle) {
            return;
        }
    }
}

/// One after the other, so that a machine that does not answer holds up no lease.
async fn remove_expired_tasks(shared: Arc<Shared>) {
    let ids: Vec<String> = shared.environments().keys().cloned().collect();
    for id in ids {
        let Ok(found) = shared.find(&id).await else { continue };
        expire_tasks(found.running()).await;
    }
}

/// Removes the expired code tasks of an environment.
pub(crate) async fn expire_tasks(running: &Running) {
    let Ok(runner) = running.code() else { return };
    if let Err(error) = runner.cleanup_tasks(None).await {
        let (id, error) = (running.id(), error.message());
        tracing::debug!(target: "tierbox::op", id, error, "could not remove expired code tasks");
    }
}

async fn look_at_leases(shared: &Arc<Shared>) {
    end_own(shared);
    let Ok(Ok(listing)) = shared.client.journal().map(|journal| journal.list()) else { return };
    let now = SystemTime::now();
    let ttl = shared.options.ttl;
    for entry in &listing.entries {
        let id = &entry.record.id;
        let busy = shared.environments().get(id).is_some_and(|held| held.is_busy());
        let ends_soon = matches!(entry.record.hold, Hold::Until(end) if end < now + ttl / 2);
        if busy && ends_soon && shared.client.renew(id, Hold::Until(now + ttl)).is_err() {
            tracing::debug!(target: "tierbox::op", id, "could not renew the lease of an environment in use");
        }
    }
    if listing.entries.iter().any(|entry| is_over(entry.standing(now))) {
        match shared.client.cleanup(CleanupOptions::default()).await {
            Ok(report) => {
                report.failed.iter().for_each(|failed| tracing::warn!(target: "tierbox::op", failed, "could not clean up"))
            }
            Err(error) => tracing::warn!(target: "tierbox::op", error = error.message(), "could not clean up"),
        }
    }
    let Ok(Ok(left)) = shared.client.journal().map(|journal| journal.list()) else { return };
    let stands = |id: &String| left.entries.iter().any(|entry| entry.record.id == *id);
    // What is dropped here ends outside the lock.
    let gone: Vec<_> = {
        let mut environments = shared.environments();
        let ids: Vec<String> = environments.keys().filter(|id| !stands(id)).cloned().collect();
        // One that began after the list was made has a lease that the list does not show.
        let really = ids.into_iter().filter(|id| shared.client.journal().is_ok_and(|journal| journal.get(id).is_err()));
        really.collect::<Vec<_>>().iter().filter_map(|id| environments.remove(id)).collect()
    };
    gone.iter().for_each(|held| shared.events.tell(crate::wire::EventKind::Gone, held.running.id(), |_| ()));
    drop(gone);
}

/// Ends what only this process holds, and nobody renewed.
fn end_own(shared: &Arc<Shared>) {
    let (now, ttl) = (SystemTime::now(), shared.options.ttl);
    let over: Vec<String> =
        shared.environments().iter().filter(|(_, held)| held.is_over(now, ttl)).map(|(id, _)| id.clone()).collect();
    for id in over {
        let shared = shared.clone();
        // A slow end holds up nobody else's.
        tokio::spawn(async move {
            if let Err(error) = shared.destroy(&id).await {
                tracing::warn!(target: "tierbox::op", id, error = error.message(), "could not end what nobody renewed");
            }
        });
    }
}

fn is_over(standing: tierbox::Standing) -> bool {
    matches!(standing, tierbox::Standing::Expired | tierbox::Standing::Orphaned)
}

/// Writes down who waits, for `tierbox ls`.
fn show_queue(shared: &Shared) {
    let Ok(state) = shared.client.state_path() else { return };
    let path = queue_file(&state);
    let document = serde_json::json!({ "pid": std::process::id(), "waiting": shared.admission.usage().waiting });
    let next = path.with_extension("next");
    let written = std::fs::write(&next, document.to_string()).and_then(|()| std::fs::rename(&next, &path));
    if let Err(error) = written {
        tracing::debug!(target: "tierbox::op", %error, "could not write down who waits");
    }
}

/// Nobody waits any more.
pub(crate) fn forget_queue(shared: &Shared) {
    if let Ok(state) = shared.client.state_path() {
        let _ = std::fs::remove_file(queue_file(&state));
    }
}
