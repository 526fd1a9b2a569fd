//! Counted places that hold across processes, such as "at most four machines start at once".

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tierbox_core::{Error, ErrorKind, Result};

use crate::journal::file_part;
use crate::{Journal, lock};

/// How long is slept between two looks for a free place: from, to.
const NAPS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));

/// A number of places, shared by every process that uses the same state directory and the same name.
#[derive(Debug, Clone)]
pub struct Slots {
    directory: PathBuf,
    name: String,
    count: usize,
}

/// A place that is taken. It is free again when this is dropped or its process ends, in whatever way.
#[derive(Debug)]
pub struct Slot(#[expect(dead_code, reason = "the lock lives as long as the descriptor")] File);

impl Slots {
    /// `count` places (at least one) under a name.
    pub fn new(journal: &Journal, name: &str, count: usize) -> Self {
        Self { directory: journal.state().locks(), name: file_part(name), count: count.max(1) }
    }

    /// Takes a place if one is free.
    ///
    /// # Errors
    /// What the file system says.
    pub fn try_acquire(&self) -> Result<Option<Slot>> {
        for number in 0..self.count {
            let file = lock::open_lock_file(&self.directory.join(format!("slot-{}-{number}", self.name)))?;
            if lock::try_exclusive(&file)? {
                return Ok(Some(Slot(file)));
            }
        }
        Ok(None)
    }

    /// Waits for a place, for at most `limit`.
    ///
    /// # Errors
    /// `Timeout`, retryable; what the file system says.
    pub async fn acquire(&self, limit: Duration) -> Result<Slot> {
        let started = Instant::now();
        let mut nap = NAPS.0;
        loop {
            if let Some(slot) = self.try_acquire()? {
                return Ok(slot);
            }
            if started.elapsed() >= limit {
                let message = format!("all {} places of {} stayed taken for {limit:?}", self.count, self.name);
                return Err(Error::new(ErrorKind::Timeout, "wait for a place", message).retryable());
            }
            tokio::time::sleep(nap.min(limit.saturating_sub(started.elapsed()))).await;
            nap = (nap * 2).min(NAPS.1);
        }
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn places_are_counted() {
        let outer = tempfile::tempdir().unwrap();
        let journal = Journal::at(&outer.path().join("s")).unwrap();
        let slots = Slots::new(&journal, "vagrant/start", 2);
        let first = slots.try_acquire().unwrap().unwrap();
        let _second = slots.try_acquire().unwrap().unwrap();
        assert!(slots.try_acquire().unwrap().is_none());
        assert_eq!(slots.acquire(Duration::from_millis(20)).await.unwrap_err().kind(), ErrorKind::Timeout);
        let waiting = slots.acquire(Duration::from_secs(20));
        drop(first);
        waiting.await.unwrap();
    }
}
