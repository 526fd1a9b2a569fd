//! How many connections a sandbox may have at once, so that a flood from one leaves the others theirs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The most connections of one sandbox.
const MOST: usize = 512;

/// What a sandbox has in any case.
const LEAST: usize = 16;

/// Descriptors of this process for each connection: one to the sandbox, one to the server, and one for the rest of the
/// process.
const DESCRIPTORS: usize = 3;

/// The connections of all sandboxes that this process serves.
#[derive(Debug)]
pub(crate) struct Budget {
    total: usize,
    rooms: AtomicUsize,
}

impl Budget {
    /// As many as this process's descriptors are enough for.
    pub(crate) fn of_this_process() -> Self {
        let soft = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1 << 20);
        Self::new(usize::try_from(soft).unwrap_or(usize::MAX) / DESCRIPTORS)
    }

    fn new(total: usize) -> Self {
        Self { total, rooms: AtomicUsize::new(0) }
    }

    /// A share for one more sandbox.
    pub(crate) fn share(self: &Arc<Self>) -> Share {
        self.rooms.fetch_add(1, Ordering::AcqRel);
        Share { budget: self.clone(), live: Arc::default() }
    }
}

/// One sandbox's part.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    live: Arc<AtomicUsize>,
}

impl Share {
    /// A place for a connection, if there is one.
    pub(crate) fn take(&self) -> Option<Place> {
        let rooms = self.budget.rooms.load(Ordering::Acquire).max(1);
        let most = (self.budget.total / rooms).clamp(LEAST, MOST);
        let take = |live| (live < most).then_some(live + 1);
        self.live.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).ok().map(|_| Place(self.live.clone()))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.rooms.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A connection's place, free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn one_sandbox_leaves_the_others_their_share() {
        let budget = Arc::new(Budget::new(100));
        let (first, second) = (budget.share(), budget.share());
        let flood: Vec<_> = std::iter::from_fn(|| first.take()).take(1000).collect();
        assert_eq!(flood.len(), 50);
        let other: Vec<_> = std::iter::from_fn(|| second.take()).take(1000).collect();
        assert_eq!(other.len(), 50);
        drop(flood);
        drop(second);
        let alone: Vec<_> = std::iter::from_fn(|| first.take()).take(1000).collect();
        assert_eq!(alone.len(), 100);
    }
}
