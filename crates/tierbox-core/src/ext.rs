//! What is convenient, on top of [`Sandbox`]. Nobody implements this.

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::AsyncReadExt;

use crate::files::ByteReader;
use crate::{
    Captured, Completed, Error, ErrorKind, ExecHandle, ExecRequest, ExecResult, GuestPath, KillReason, OnExceed, OutputLimit,
    ReadOptions, Result, Sandbox, WriteOptions,
};

/// How much is read from a stream at once.
const CHUNK: usize = 64 << 10;

/// Conveniences for every [`Sandbox`].
#[async_trait]
pub trait SandboxExt: Sandbox {
    /// Runs a command to its end and collects what it prints, within the request's (or the profile's) output limit.
    ///
    /// # Errors
    /// As [`Sandbox::spawn`]. A command that fails, is killed or is lost is an [`ExecResult`], not an error.
    async fn run(&self, request: ExecRequest) -> Result<ExecResult> {
        let limit = request.output_limit.unwrap_or(OutputLimit { bytes: self.limits().output, on_exceed: OnExceed::Truncate });
        let mut handle = self.spawn(request).await?;
        collect(handle.as_mut(), limit).await
    }

    /// Reads a whole file of at most `max` bytes.
    ///
    /// # Errors
    /// As [`Sandbox::read`]; `TooLarge` beyond `max`, also for a file that grows while it is read.
    async fn read_bytes(&self, path: impl Into<GuestPath> + Send, max: u64) -> Result<Vec<u8>> {
        let path = path.into();
        let (_, reader) = self.read(&path, ReadOptions { max: Some(max), ..ReadOptions::default() }).await?;
        let mut contents = Vec::new();
        reader
            .take(max.saturating_add(1))
            .read_to_end(&mut contents)
            .await
            .map_err(|error| stream_error("read", &path, error))?;
        if contents.len() as u64 > max {
            return Err(Error::new(ErrorKind::TooLarge, "read", format!("{path} holds more than {max} bytes")));
        }
        Ok(contents)
    }

    /// Writes a whole file.
    ///
    /// # Errors
    /// As [`Sandbox::write`].
    async fn write_bytes(&self, path: impl Into<GuestPath> + Send, contents: impl Into<Bytes> + Send) -> Result<()> {
        let contents: ByteReader = Box::new(std::io::Cursor::new(contents.into()));
        self.write(&path.into(), contents, WriteOptions::default()).await
    }
}

impl<S: Sandbox + ?Sized> SandboxExt for S {}

fn stream_error(operation: &'static str, path: &GuestPath, error: std::io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(error) => Error::io(operation, error).with_context("path", path),
    }
}

/// Collects what a command prints, within a limit, to its end. Its stdin, where it has one, is the caller's to write
/// meanwhile. Dropping the future cancels the command.
///
/// # Errors
/// As [`ExecHandle::wait`].
pub async fn collect(handle: &mut dyn ExecHandle, limit: OutputLimit) -> Result<ExecResult> {
    let stdout = handle.take_stdout();
    let stderr = handle.take_stderr();
    // One future drains both streams while `kill` stays callable through a flag, because `wait` borrows the handle.
    let overflow = tokio::sync::Notify::new();
    let mut out = Keeper::new(limit);
    let mut err = Keeper::new(limit);
    {
        let drain = async {
            tokio::join!(out.drain(stdout, &overflow), err.drain(stderr, &overflow));
        };
        tokio::pin!(drain);
        let mut running = CancelOnDrop { handle: &*handle, armed: true };
        loop {
            tokio::select! {
                () = &mut drain => break,
                () = overflow.notified() => handle.kill(KillReason::OutputLimit),
            }
        }
        running.armed = false;
    }
    let completed: Completed = handle.wait().await?;
    Ok(ExecResult { completed, stdout: out.finish(), stderr: err.finish() })
}

/// Cancels a command whose collector is dropped before the streams are. The other way round a chatty command would die of
/// its closed pipe first, by itself, and the cancel would spare what it started in the background.
struct CancelOnDrop<'a> {
    handle: &'a dyn ExecHandle,
    armed: bool,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.handle.kill(KillReason::Cancelled);
        }
    }
}

/// Retains the first and the last part of a stream.
struct Keeper {
    limit: OutputLimit,
    head: Vec<u8>,
    head_max: usize,
    tail: std::collections::VecDeque<u8>,
    tail_max: usize,
    total: u64,
}

impl Keeper {
    fn new(limit: OutputLimit) -> Self {
        let bytes = usize::try_from(limit.bytes).unwrap_or(usize::MAX);
        // Killing keeps what came first; truncating keeps both ends, since errors tend to stand last.
        let tail_max = if limit.on_exceed == OnExceed::Kill { 0 } else { bytes / 2 };
        Self { limit, head: Vec::new(), head_max: bytes - tail_max, tail: Default::default(), tail_max, total: 0 }
    }

    async fn drain(&mut self, reader: Option<ByteReader>, overflow: &tokio::sync::Notify) {
        let Some(mut reader) = reader else { return };
        let mut chunk = vec![0; CHUNK];
        loop {
            match reader.read(&mut chunk).await {
                Ok(0) => return,
                Ok(count) => self.keep(&chunk[..count]),
                // The outcome tells what became of the machine; what came before stands.
                Err(_) => return,
            }
            if self.limit.on_exceed == OnExceed::Kill && self.total > self.limit.bytes {
                overflow.notify_one();
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let room = (self.head_max - self.head.len()).min(bytes.len());
        self.head.extend_from_slice(&bytes[..room]);
        let rest = &bytes[room..];
        let rest = &rest[rest.len().saturating_sub(self.tail_max)..];
        let excess = (self.tail.len() + rest.len()).saturating_sub(self.tail_max);
        self.tail.drain(..excess);
        self.tail.extend(rest);
    }

    fn finish(self) -> Captured {
        Captured { head: self.head, tail: self.tail.into(), total: self.total }
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn both_ends_are_kept_and_the_count_is_exact() {
        let mut keeper = Keeper::new(OutputLimit { bytes: 10, on_exceed: OnExceed::Truncate });
        for chunk in [b"0123".as_slice(), b"456789abcdef", b"g"] {
            keeper.keep(chunk);
        }
        let captured = keeper.finish();
        assert_eq!(
            (captured.head.as_slice(), captured.tail.as_slice(), captured.total),
            (b"01234".as_slice(), b"cdefg".as_slice(), 17)
        );
        assert!(captured.truncated());
    }

    #[test]
    fn output_within_the_limit_is_whole() {
        let mut keeper = Keeper::new(OutputLimit { bytes: 10, on_exceed: OnExceed::Truncate });
        keeper.keep(b"012345678");
        let captured = keeper.finish();
        assert_eq!(captured.bytes(), b"012345678");
        assert!(!captured.truncated());
    }
}
