//! Bytes between this process's standard streams and a command's.

use std::io::{IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tierbox::{ByteReader, ByteWriter, Error, ErrorKind, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::neutral::Neutralizer;
use crate::output;

/// How much is read at once.
const CHUNK: usize = 64 << 10;

/// The most input that is given as a whole, where a machine takes none while a command runs.
const WHOLE: u64 = 64 << 20;

/// How long the end of such an input is waited for without a word.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a pipe takes without blocking when it says that it is ready.
const PIPE_ATOMIC: usize = 4096;

/// One of this process's output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Stdout,
    Stderr,
}

/// Copies a command's output to the end, or until nobody reads it any more: then it returns false. Control characters are neutralised
/// on a terminal unless `raw`.
pub(crate) async fn forward_output(reader: Option<ByteReader>, target: Target, raw: bool) -> bool {
    let Some(mut reader) = reader else { return true };
    let mut sink = Sink::new(target, raw);
    let mut chunk = vec![0; CHUNK];
    // What became of the machine when reading fails, the outcome tells.
    while let Ok(count @ 1..) = reader.read(&mut chunk).await {
        if let Err(error) = sink.write(&chunk[..count]).await {
            // Nobody reads us any more. Closing the command's pipe tells it so, as a shell's pipeline would.
            output::lost(&error);
            return false;
        }
    }
    sink.finish().await;
    true
}

/// Copies the next so many bytes of a command's output: what a machine retained of it. A command that goes on printing is not
/// followed.
pub(crate) async fn forward_retained(reader: Option<ByteReader>, target: Target, bytes: u64) {
    let Some(reader) = reader else { return };
    forward_output(Some(Box::new(reader.take(bytes))), target, false).await;
}

/// One of this process's output streams, with a filter where it is a terminal.
struct Sink {
    target: Target,
    filter: Option<Neutralizer>,
}

impl Sink {
    fn new(target: Target, raw: bool) -> Self {
        let is_terminal = match target {
            Target::Stdout => std::io::stdout().is_terminal(),
            Target::Stderr => std::io::stderr().is_terminal(),
        };
        Self { target, filter: (is_terminal && !raw).then(Neutralizer::default) }
    }

    async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match &mut self.filter {
            Some(filter) => write(self.target, &filter.push(bytes)).await,
            None => write(self.target, bytes).await,
        }
    }

    async fn finish(self) {
        let rest = self.filter.map(|mut filter| filter.finish()).unwrap_or_default();
        if !rest.is_empty() {
            // The last half of a character: whether it can still be shown changes nothing.
            let _ = write(self.target, &rest).await;
        }
    }
}

/// Writes all, without blocking the runtime. Little output takes the short way.
async fn write(target: Target, bytes: &[u8]) -> std::io::Result<()> {
    if bytes.len() <= PIPE_ATOMIC && is_ready(target) {
        return match target {
            Target::Stdout => write_now(std::io::stdout().lock(), bytes),
            Target::Stderr => write_now(std::io::stderr().lock(), bytes),
        };
    }
    match target {
        Target::Stdout => write_later(tokio::io::stdout(), bytes).await,
        Target::Stderr => write_later(tokio::io::stderr(), bytes).await,
    }
}

fn write_now(mut to: impl Write, bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

async fn write_later(mut to: impl tokio::io::AsyncWrite + Unpin, bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}

fn is_ready(target: Target) -> bool {
    let (stdout, stderr) = (std::io::stdout(), std::io::stderr());
    let descriptor: BorrowedFd<'_> = match target {
        Target::Stdout => stdout.as_fd(),
        Target::Stderr => stderr.as_fd(),
    };
    let mut wanted = [PollFd::new(&descriptor, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut wanted, Some(&now)).is_ok_and(|count| count == 1)
}

/// Whether this process's input has anything to forward: it is not a terminal and not `/dev/null`.
pub(crate) fn has_input() -> bool {
    let stdin = std::io::stdin();
    !stdin.is_terminal() && !is_null(stdin.as_fd())
}

fn is_null(descriptor: BorrowedFd<'_>) -> bool {
    use rustix::fs::{FileType, fstat, stat};
    let (Ok(input), Ok(null)) = (fstat(descriptor), stat("/dev/null")) else { return false };
    FileType::from_raw_mode(input.st_mode) == FileType::CharacterDevice && input.st_rdev == null.st_rdev
}

/// This process's whole input, up to [`WHOLE`].
pub(crate) async fn whole_input() -> Result<Vec<u8>> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    // A thread of its own, which ends with the process: the runtime would wait for a blocking task.
    let reading = std::thread::Builder::new().name("stdin".into()).spawn(move || {
        let mut all = Vec::new();
        let read = std::io::stdin().lock().take(WHOLE + 1).read_to_end(&mut all).map(|_| all);
        // Nobody waits any more: the command was given up.
        let _ = sender.send(read);
    });
    reading.map_err(|error| Error::io("read stdin", error))?;
    tokio::pin!(receiver);
    let read = match tokio::time::timeout(PATIENCE, &mut receiver).await {
        Ok(read) => read,
        Err(_) => {
            output::remark(
                "waiting for the end of the input, which a command here gets as a whole; with </dev/null it gets none",
            );
            receiver.await
        }
    };
    let read = read.map_err(|_| Error::new(ErrorKind::Internal, "read stdin", "its reader is gone"))?;
    within(read.map_err(|error| Error::io("read stdin", error))?)
}

fn within(input: Vec<u8>) -> Result<Vec<u8>> {
    if input.len() as u64 <= WHOLE {
        return Ok(input);
    }
    let message = format!("the input is more than {} MiB, and a command here gets it as a whole", WHOLE >> 20);
    Err(Error::new(ErrorKind::InvalidInput, "read stdin", message).with_help("copy a file in, and let the command read that"))
}

/// What is made of the end of this process's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InputEnd {
    /// The end.
    AsItIs,
    /// The end of its last line first: a shell that edits a line waits for it.
    OfALine,
}

/// Copies this process's input to a command, in the background. A thread reads it, because reading a terminal blocks;
/// the thread ends with the process.
pub(crate) fn forward_input(mut to: ByteWriter, end: InputEnd) {
    let (sender, mut receiver) = mpsc::channel::<Vec<u8>>(4);
    let reading = std::thread::Builder::new().name("stdin".into()).spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut chunk = vec![0; CHUNK];
        loop {
            match stdin.read(&mut chunk) {
                Ok(count) if count > 0 && sender.blocking_send(chunk[..count].to_vec()).is_ok() => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    });
    if reading.is_ok() {
        tokio::spawn(async move {
            let mut last = b'\n';
            while let Some(bytes) = receiver.recv().await {
                last = bytes.last().copied().unwrap_or(last);
                if to.write_all(&bytes).await.and(to.flush().await).is_err() {
                    return;
                }
            }
            if end == InputEnd::OfALine && last != b'\n' && to.write_all(b"\n").await.is_err() {
                return;
            }
            let _ = to.shutdown().await;
        });
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn input_that_is_too_much_to_be_given_as_a_whole_is_refused() {
        assert_eq!(within(vec![b'x'; 100]).unwrap().len(), 100);
        let refused = within(vec![0; WHOLE as usize + 1]).unwrap_err();
        assert!(refused.kind() == ErrorKind::InvalidInput && refused.help().is_some(), "{refused}");
    }

    #[tokio::test]
    async fn a_command_that_goes_on_printing_is_not_followed() {
        let (mut end, reader) = tokio::io::duplex(CHUNK);
        end.write_all(&[b'\n'; 100]).await.unwrap();
        // Its other end stays open, as of a command that runs.
        let forwarded = forward_retained(Some(Box::new(reader)), Target::Stderr, 60);
        assert!(tokio::time::timeout(Duration::from_secs(30), forwarded).await.is_ok());
        drop(end);
    }
}
