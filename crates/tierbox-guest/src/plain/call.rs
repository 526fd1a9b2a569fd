//! Scripts on their way through a transport: bounded, tried again where that is safe, on the driver's thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tierbox_core::{Error, ErrorKind, ExecId, Result};

use super::kept::Shells;
use super::{PlainLimits, PlainOutput, PlainRun, PlainTransport};
use crate::driver;

/// How much longer than a script the transport may take.
const LATE: Duration = Duration::from_secs(30);
/// How often a script is tried that did not run, and the first pause before that.
const TRIES: u32 = 8;
const PAUSE: Duration = Duration::from_millis(50);

#[derive(Clone)]
pub(super) struct Caller {
    transport: Arc<dyn PlainTransport>,
    limits: PlainLimits,
    closed: Arc<AtomicBool>,
}

impl Caller {
    pub(super) fn new(transport: Arc<dyn PlainTransport>) -> Result<Self> {
        let limits = transport.limits();
        if limits.script < 16 << 10 || limits.stdin < 4 << 10 || limits.output < 4 << 10 {
            let message = format!("the transport carries too little at once: {limits:?}");
            return Err(Error::new(ErrorKind::Internal, "open sandbox", message));
        }
        Ok(Self { transport, limits, closed: Arc::default() })
    }

    pub(super) fn limits(&self) -> PlainLimits {
        self.limits
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Whether there is nobody who could still be asked.
    pub(super) fn is_over(&self) -> bool {
        self.is_closed() || self.transport.is_gone()
    }

    /// Shells that are kept, where there are any.
    pub(super) fn shells(&self) -> Option<&Shells> {
        self.transport.shells()
    }

    /// How long a short script takes.
    pub(super) fn usual(&self) -> Duration {
        self.transport.usual()
    }

    /// How much of a file or an output is moved at once.
    pub(super) fn piece(&self) -> usize {
        (self.limits.output - 1024).min(8 << 20) / 1024 * 1024
    }

    /// Runs a script on the driver, so that it goes on whatever becomes of the caller's runtime.
    pub(super) async fn run(&self, run: PlainRun, tried: &'static str) -> Result<PlainOutput> {
        let caller = self.clone();
        let running = driver::handle()?.spawn(async move { caller.run_here(run, tried).await });
        running.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, tried, "the transport panicked")))
    }

    /// Kills what is left of a command.
    pub(super) async fn kill_all(&self, command: ExecId) -> Result<()> {
        self.transport.kill_all(command).await
    }

    /// The same, for those who are on the driver already: bounded, and tried again where that is safe.
    pub(super) async fn run_here(&self, run: PlainRun, tried: &'static str) -> Result<PlainOutput> {
        debug_assert!(run.script.is_ascii(), "a script is ASCII");
        let (script, stdin, limit) = (run.script.len(), run.stdin.len(), run.limit);
        if script > self.limits.script || stdin > self.limits.stdin {
            let message = format!("{script} bytes of script and {stdin} of input are more than the transport carries");
            return Err(Error::new(ErrorKind::TooLarge, tried, message));
        }
        let mut pause = PAUSE;
        for left in (0..TRIES).rev() {
            if self.is_closed() {
                return Err(Error::new(ErrorKind::Lost, tried, "the sandbox was stopped"));
            }
            let late = || Error::new(ErrorKind::Lost, tried, format!("the transport gave no answer within {limit:?}"));
            let deadline = limit.saturating_add(LATE);
            let result = tokio::time::timeout(deadline, self.transport.run(run.clone())).await.unwrap_or_else(|_| Err(late()));
            match result {
                Err(error) if error.is_retryable() && left > 0 => {}
                Ok(output) if output.stdout.len() > self.limits.output => {
                    return Err(Error::new(ErrorKind::Protocol, tried, "more bytes came back than the transport carries"));
                }
                result => return result,
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Err(Error::new(ErrorKind::Lost, tried, "the transport did not get through"))
    }
}
