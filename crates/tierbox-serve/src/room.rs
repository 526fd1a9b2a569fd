//! Room for what an agent's request has to have in memory whole: so much for all requests of an environment together.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What is counted: a mebibyte.
const UNIT: u64 = 1 << 20;
/// Units in an environment's room. What takes more has it alone.
const UNITS: u64 = 128;

/// The room of one environment.
#[derive(Clone)]
pub(crate) struct Room(Arc<Semaphore>);

/// A part of it, given back when it is dropped.
pub(crate) struct Place {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(UNITS as usize)))
    }
}

impl Room {
    /// Waits for room for so many bytes.
    pub async fn enter(&self, bytes: u64) -> Place {
        let units = bytes.div_ceil(UNIT).clamp(1, UNITS) as u32;
        // It is never closed.
        Place { _permit: self.0.clone().acquire_many_owned(units).await.ok() }
    }
}

struct Kept(Vec<u8>, #[allow(dead_code, reason = "it is dropped with the bytes")] Place);

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Place {
    /// Bytes that have this place until the last of them is sent.
    pub fn keep(self, bytes: Vec<u8>) -> Bytes {
        Bytes::from_owner(Kept(bytes, self))
    }
}

#[cfg(test)]
mod unit {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn whoever_finds_no_room_waits_until_the_last_byte_was_sent() {
        let room = Room::default();
        let sent = room.enter(100 << 20).await.keep(vec![0; 3]);
        let part = sent.slice(1..2);
        drop(sent);
        let short = Duration::from_millis(10);
        assert!(tokio::time::timeout(short, room.enter(29 << 20)).await.is_err());
        drop(room.enter(28 << 20).await);
        drop(part);
        // More than there is has all of it.
        let _all = room.enter(u64::MAX).await;
        assert!(tokio::time::timeout(short, room.enter(0)).await.is_err());
    }
}
