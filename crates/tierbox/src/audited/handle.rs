//! A running command whose end and streams are recorded.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tierbox_core::{
    AuditOperation, AuditOutcome, ByteReader, ByteWriter, Completed, ExecHandle, ExecId, KillReason, Principal, PtySize, Result,
    Signal,
};
use tokio::io::AsyncReadExt;

use super::tap::{Passed, ReadTap, WriteTap};
use super::{AuditLayer, Pending};

/// The entry of a command's end. It is recorded as soon as the end is known and every stream that somebody reads is at its
/// end; or when nobody is left to tell.
struct Ending {
    pending: Option<Pending>,
    outcome: Option<AuditOutcome>,
    readers: usize,
    passed: Vec<Arc<Passed>>,
}

impl Ending {
    fn settle(&mut self) {
        if self.readers == 0 && self.outcome.is_some() {
            self.record();
        }
    }

    fn record(&mut self) {
        let Some(pending) = self.pending.take() else { return };
        let data = self.passed.iter().map(|passed| passed.take()).collect();
        pending.end(self.outcome.clone().unwrap_or(AuditOutcome::Abandoned), data);
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.record();
    }
}

/// Where the orders to a running command are recorded.
pub(super) struct Orders {
    pub(super) layer: AuditLayer,
    pub(super) machine: String,
    pub(super) principal: Principal,
}

impl Orders {
    fn begin(&self, operation: AuditOperation, id: ExecId) -> Result<Pending> {
        let mut pending = self.layer.begin(&self.machine, self.principal, operation)?;
        pending.change(|entry| entry.exec(id));
        Ok(pending)
    }
}

pub(super) struct AuditedHandle {
    inner: Box<dyn ExecHandle>,
    orders: Orders,
    ending: Arc<Mutex<Ending>>,
    keep: usize,
    /// Streams that nobody took, read to the end by `wait`.
    unread: Vec<ByteReader>,
    taken: bool,
}

impl AuditedHandle {
    /// `pending` is the entry of the command's end.
    pub(super) fn new(inner: Box<dyn ExecHandle>, orders: Orders, pending: Pending) -> Self {
        let keep = orders.layer.keep;
        let ending = Ending { pending: Some(pending), outcome: None, readers: 0, passed: Vec::new() };
        Self { inner, orders, ending: Arc::new(Mutex::new(ending)), keep, unread: Vec::new(), taken: false }
    }

    fn reader(&self, stream: &'static str, inner: ByteReader) -> ByteReader {
        let passed = Passed::new(stream, self.keep, &self.orders.layer);
        {
            let mut ending = lock(&self.ending);
            ending.readers += 1;
            ending.passed.push(passed.clone());
        }
        let ending = self.ending.clone();
        let ended = move |_| {
            let mut ending = lock(&ending);
            ending.readers -= 1;
            ending.settle();
        };
        Box::new(ReadTap { inner, passed, ended: Some(ended) })
    }

    /// Takes what the caller did not, so that it is recorded too.
    fn take_rest(&mut self) {
        if std::mem::replace(&mut self.taken, true) {
            return;
        }
        for stream in [self.take_stdout(), self.take_stderr()].into_iter().flatten() {
            self.unread.push(stream);
        }
    }
}

fn lock(ending: &Mutex<Ending>) -> std::sync::MutexGuard<'_, Ending> {
    ending.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn drain(streams: &mut Vec<ByteReader>) {
    let mut chunk = vec![0; 16 << 10];
    let mut spare = vec![0; 16 << 10];
    let mut streams = streams.iter_mut();
    let (first, second) = (streams.next(), streams.next());
    tokio::join!(discard(first, &mut chunk), discard(second, &mut spare));
}

async fn discard(stream: Option<&mut ByteReader>, chunk: &mut [u8]) {
    let Some(stream) = stream else { return };
    while let Ok(1..) = stream.read(chunk).await {}
}

#[async_trait]
impl ExecHandle for AuditedHandle {
    fn id(&self) -> ExecId {
        self.inner.id()
    }

    fn retained(&self) -> Option<[u64; 2]> {
        self.inner.retained()
    }

    fn take_stdin(&mut self) -> Option<ByteWriter> {
        let inner = self.inner.take_stdin()?;
        let passed = Passed::new("stdin", self.keep, &self.orders.layer);
        lock(&self.ending).passed.push(passed.clone());
        Some(Box::new(WriteTap { inner, passed }))
    }

    fn take_stdout(&mut self) -> Option<ByteReader> {
        let inner = self.inner.take_stdout()?;
        Some(self.reader("stdout", inner))
    }

    fn take_stderr(&mut self) -> Option<ByteReader> {
        let inner = self.inner.take_stderr()?;
        Some(self.reader("stderr", inner))
    }

    async fn signal(&self, signal: Signal) -> Result<()> {
        let mut pending = self.orders.begin(AuditOperation::Signal, self.id())?;
        pending.change(|entry| entry.argument("signal", signal.number()));
        let result = self.inner.signal(signal).await;
        pending.end(AuditOutcome::of(&result), Vec::new());
        result
    }

    async fn resize(&self, size: PtySize) -> Result<()> {
        self.inner.resize(size).await
    }

    fn kill(&self, reason: KillReason) {
        // A kill is carried out even if the log is full: not killing would be worse.
        self.inner.kill(reason);
        let orders = &self.orders;
        let entry = orders.layer.entry(orders.principal, AuditOperation::Kill).machine(&orders.machine).exec(self.id());
        orders.layer.record(entry.argument("reason", super::sandbox::json(&reason)));
    }

    async fn wait(&mut self) -> Result<Completed> {
        self.take_rest();
        let result = {
            let (result, ()) = tokio::join!(self.inner.wait(), drain(&mut self.unread));
            result
        };
        let mut ending = lock(&self.ending);
        ending.outcome = Some(match &result {
            Ok(completed) => AuditOutcome::Ended { completed: *completed },
            Err(error) => AuditOutcome::failed(error),
        });
        ending.settle();
        drop(ending);
        result
    }
}
