//! Environments that an earlier daemon served: their shares are taken at once, they themselves are found while others are served.

use std::sync::Arc;
use std::time::Duration;

use tierbox::{ErrorKind, Leased, Result, Standing};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::admission::Demand;
use crate::labels;
use crate::server::Shared;

/// Machines that are looked for at once.
const AT_ONCE: usize = 8;
/// How long a machine may take to be found.
const LONGEST: Duration = Duration::from_secs(60);
/// The pause before a machine that did not answer is looked for again, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

impl Shared {
    /// Takes the share of an environment that a daemon started, unless it is taken.
    pub fn take_share(&self, leased: &Leased) {
        if leased.labels.contains_key(labels::CLIENT) {
            let share = || self.admission.take(Demand::from_labels(&leased.record.backend, &leased.labels));
            self.shares().entry(leased.record.id.clone()).or_insert_with(share);
        }
    }

    /// Takes the shares of all that an earlier daemon served, whether their machines answer or not. Returns their ids.
    pub fn take_shares(&self) -> Result<Vec<String>> {
        let ours = |leased: &Leased| leased.labels.contains_key(labels::CLIENT) && leased.standing != Standing::Held;
        let ours: Vec<Leased> = self.client.leases()?.into_iter().filter(ours).collect();
        ours.iter().for_each(|leased| self.take_share(leased));
        Ok(ours.into_iter().map(|leased| leased.record.id).collect())
    }
}

/// Finds these environments again, those that do not answer again and again. Never ready.
pub(crate) async fn run(shared: Arc<Shared>, mut left: Vec<String>) {
    let mut pause = PAUSES.0;
    while !left.is_empty() {
        left = find_all(&shared, left).await;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
    std::future::pending().await
}

/// Returns those that are to be looked for again.
async fn find_all(shared: &Arc<Shared>, ids: Vec<String>) -> Vec<String> {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    for id in ids {
        let (shared, room) = (shared.clone(), room.clone());
        tasks.spawn(async move {
            let _place = room.acquire().await;
            find(&shared, &id).await.then_some(id)
        });
    }
    let mut left = Vec::new();
    while let Some(found) = tasks.join_next().await {
        left.extend(found.ok().flatten());
    }
    left
}

/// Whether it is to be looked for again.
async fn find(shared: &Arc<Shared>, id: &str) -> bool {
    let wanted = |leased: &Leased| matches!(leased.standing, Standing::Until | Standing::Kept);
    if !shared.client.lease(id).is_ok_and(|leased| wanted(&leased)) {
        return false;
    }
    let problem = match tokio::time::timeout(LONGEST, shared.find(id)).await {
        Ok(Ok(_)) => return false,
        Ok(Err(error)) => error,
        Err(_) => tierbox::Error::new(ErrorKind::Timeout, "attach", "it did not answer in time"),
    };
    tracing::warn!(target: "tierbox::op", id, error = problem.message(), "could not attach again");
    if shared.client.list_one(id).await.is_ok_and(|listed| !listed.alive) {
        // It died with its host: nothing of it takes anything, and its lease ends by itself.
        let share = shared.shares().remove(id);
        drop(share);
        return false;
    }
    !matches!(problem.kind(), ErrorKind::TierRefused | ErrorKind::UnknownBackend)
}
