//! Ctrl-C and its kin: the first ends the work in an orderly way, the second at once.

use std::future::Future;
use std::time::{Duration, Instant};

use tierbox::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long the same signal is taken for one: `timeout` sends its own to a program and to the program's group.
const ECHO: Duration = Duration::from_secs(1);

/// Why a command of the command line did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something went wrong.
    Error(Error),
    /// This process was told to end, by this signal.
    Interrupted(u8),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// The signals that tell this process to end.
pub(crate) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    received: u32,
    last: Option<(u8, Instant)>,
}

impl Interrupts {
    pub fn listen() -> Result<Self, Error> {
        let listen = |kind| signal(kind).map_err(|error| Error::io("listen for signals", error));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
            received: 0,
            last: None,
        })
    }

    /// Waits for the next signal and returns its number.
    async fn next(&mut self) -> u8 {
        loop {
            let number = tokio::select! {
                _ = self.interrupt.recv() => 2,
                _ = self.terminate.recv() => 15,
                _ = self.hangup.recv() => 1,
            };
            if self.last.is_some_and(|(last, at)| last == number && at.elapsed() < ECHO) {
                continue;
            }
            self.last = Some((number, Instant::now()));
            self.received += 1;
            return number;
        }
    }

    /// Whether somebody asked again, and so does not want to wait for an orderly end.
    pub fn hurry(&self) -> bool {
        self.received > 1
    }

    /// Does the work, or drops it when a signal comes.
    pub async fn guard<T>(&mut self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Failure> {
        tokio::select! {
            biased;
            result = work => Ok(result?),
            signal = self.next() => Err(Failure::Interrupted(signal)),
        }
    }
}
