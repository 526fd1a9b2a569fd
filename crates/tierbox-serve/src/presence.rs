//! Whether the client at the other end of a connection is still there.
//!
//! The HTTP library notices the end of a connection whenever it reads from it. It does not read while a command does not
//! take its input, nor past what it has not been asked for yet, so that the socket itself is asked.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

const INTERVAL: Duration = Duration::from_millis(200);

/// A second descriptor of a client's connection.
#[derive(Debug, Clone)]
pub(crate) struct Presence(Arc<OwnedFd>);

impl Presence {
    pub fn new(connection: OwnedFd) -> Self {
        Self(Arc::new(connection))
    }

    /// Waits until the client is gone.
    pub async fn gone(&self) {
        // Later first: what is answered at once asks nobody.
        loop {
            tokio::time::sleep(INTERVAL).await;
            if self.is_gone() {
                return;
            }
        }
    }

    fn is_gone(&self) -> bool {
        let mut wanted = [PollFd::new(&*self.0, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
        poll(&mut wanted, Some(&now)).is_ok() && wanted[0].revents().intersects(gone)
    }
}
