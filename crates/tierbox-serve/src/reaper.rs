//! What the daemon does by itself: leases end, environments that went away are forgotten, the queue is shown.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use tierbox::{Hold, Leased, Running, Standing};
use tokio::sync::Semaphore;

use crate::options::{forget_dead_queues, queue_file};
use crate::server::Shared;
use crate::wire::EventKind;

/// How often the queue is written down if it changed.
const TICK: Duration = Duration::from_millis(250);
/// How often leases are looked at.
const ROUND: Duration = Duration::from_secs(2);
/// Environments that are cleaned up at once.
const AT_ONCE: usize = 16;
/// How long the removal of expired code tasks in one environment may take.
const SWEEP: Duration = Duration::from_secs(60);

/// Goes on until the daemon has been idle for as long as its options say.
pub(crate) async fn run(shared: Arc<Shared>) {
    let (mut shown, mut round, mut active, mut swept) = (0, Instant::now(), Instant::now(), Instant::now());
    let room = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        tokio::time::sleep(TICK).await;
        let changed = shared.admission.usage().changed;
        if changed != shown {
            show_queue(&shared);
            shown = changed;
        }
        if round.elapsed() >= ROUND {
            round = Instant::now();
            look_at_leases(&shared, &room);
        }
        if swept.elapsed() >= shared.options.task_sweep {
            swept = Instant::now();
            tokio::spawn(remove_expired_tasks(shared.clone()));
        }
        if is_active(&shared) {
            active = Instant::now();
        }
        if shared.options.idle.is_some_and(|idle| active.elapsed() >= idle) {
            return;
        }
    }
}

fn is_active(shared: &Shared) -> bool {
    shared.metrics.connections.load(Ordering::Relaxed) > 0 || !shared.environments().is_empty() || !shared.shares().is_empty()
}

/// One after the other, so that machines are not all busy with it at once.
async fn remove_expired_tasks(shared: Arc<Shared>) {
    let ids: Vec<String> = shared.environments().keys().cloned().collect();
    for id in ids {
        let Ok(found) = shared.find(&id).await else { continue };
        expire_tasks(found.unheld().running()).await;
    }
}

/// Removes the expired code tasks of an environment. A machine that does not answer holds up nobody else's.
pub(crate) async fn expire_tasks(running: &Running) {
    let Ok(runner) = running.code() else { return };
    if let Ok(Err(error)) = tokio::time::timeout(SWEEP, runner.cleanup_tasks(None)).await {
        let (id, error) = (running.id(), error.message());
        tracing::debug!(target: "tierbox::op", id, error, "could not remove expired code tasks");
    }
}

/// Waits for no engine: whatever one has to do is done in a task of its own.
fn look_at_leases(shared: &Arc<Shared>, room: &Arc<Semaphore>) {
    end_own(shared);
    let Ok(leases) = shared.client.leases() else { return };
    let now = SystemTime::now();
    let (kept, free): (Vec<Leased>, Vec<Leased>) = leases.into_iter().partition(|leased| is_kept(shared, leased));
    kept.iter().for_each(|leased| renew_busy(shared, leased, now));
    for leased in free {
        if matches!(leased.standing, Standing::Expired | Standing::Orphaned) {
            clean_up(shared, room, leased);
        }
    }
    forget_gone(shared);
}

/// Whether a request keeps it, which goes on until its lifetime is over and no longer.
fn is_kept(shared: &Shared, leased: &Leased) -> bool {
    shared.is_busy(&leased.record.id) && leased.record.expires.is_none_or(|end| end > SystemTime::now())
}

/// What is in use does not end, and lasts afterwards as long as its client wanted.
fn renew_busy(shared: &Shared, leased: &Leased, now: SystemTime) {
    let id = &leased.record.id;
    let Some(ttl) = shared.environments().get(id).map(|held| held.ttl()) else { return };
    // Before the next round but one, so that no clean-up of somebody else's comes first.
    let ends_soon = matches!(leased.record.hold, Hold::Until(end) if end < now + (ttl / 2).max(ROUND * 2));
    if ends_soon && shared.client.renew(id, Hold::Until(now + ttl)).is_err() {
        tracing::debug!(target: "tierbox::op", id, "could not renew the lease of an environment in use");
    }
}

/// Destroys one that nobody wants any more. Once for each, however long its engine takes, and whatever others do meanwhile.
fn clean_up(shared: &Arc<Shared>, room: &Arc<Semaphore>, leased: Leased) {
    let id = leased.record.id.clone();
    if !shared.cleaning().insert(id.clone()) {
        return;
    }
    let (shared, room) = (shared.clone(), room.clone());
    tokio::spawn(async move {
        let _place = room.acquire().await;
        // Whoever began to use it meanwhile keeps it.
        match shared.client.cleanup_one(&id, || is_kept(&shared, &leased)).await {
            Ok(report) => {
                report.failed.iter().for_each(|failed| tracing::warn!(target: "tierbox::op", failed, "could not clean up"));
            }
            Err(error) => tracing::debug!(target: "tierbox::op", id, error = error.message(), "could not clean up"),
        }
        shared.cleaning().remove(&id);
    });
}

fn forget_gone(shared: &Shared) {
    let mut known: BTreeSet<String> = shared.environments().keys().cloned().collect();
    known.extend(shared.shares().keys().cloned());
    for id in known.iter().filter(|id| shared.forget(id)) {
        shared.events.tell(EventKind::Gone, id, |_| ());
    }
}

/// Ends what only this process holds, and nobody renewed, or whose lifetime is over.
fn end_own(shared: &Arc<Shared>) {
    let now = SystemTime::now();
    let over: Vec<String> =
        shared.environments().iter().filter(|(_, held)| held.is_over(now)).map(|(id, _)| id.clone()).collect();
    for id in over.into_iter().filter(|id| shared.cleaning().insert(id.clone())) {
        let shared = shared.clone();
        // A slow end holds up nobody else's.
        tokio::spawn(async move {
            if let Err(error) = shared.destroy(&id).await {
                tracing::warn!(target: "tierbox::op", id, error = error.message(), "could not end what nobody may use any more");
            }
            shared.cleaning().remove(&id);
        });
    }
}

/// Writes down who waits, for `tierbox ls`.
fn show_queue(shared: &Shared) {
    let Ok(state) = shared.client.state_path() else { return };
    let path = queue_file(&state, std::process::id());
    let document = serde_json::json!({ "waiting": shared.admission.usage().waiting });
    let next = path.with_extension("next");
    let written = std::fs::write(&next, document.to_string()).and_then(|()| std::fs::rename(&next, &path));
    if let Err(error) = written {
        tracing::debug!(target: "tierbox::op", %error, "could not write down who waits");
    }
}

/// Nobody waits any more.
pub(crate) fn forget_queue(shared: &Shared) {
    if let Ok(state) = shared.client.state_path() {
        let _ = std::fs::remove_file(queue_file(&state, std::process::id()));
        forget_dead_queues(&state);
    }
}
