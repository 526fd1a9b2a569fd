//! Between asynchronous streams and blocking code on a thread of the runtime's pool.
//!
//! A stream that ends says so: a side that just goes away (a dropped future, a panic) is an error for the other, never
//! a short but complete stream.

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tierbox_core::{ByteReader, Error, ErrorKind, Result};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinHandle;

use super::TransferReport;

/// How much one message carries at most.
const CHUNK: usize = 128 << 10;

/// How many messages wait at most.
const WAITING: usize = 8;

enum Message {
    Data(Bytes),
    End,
    Broken(io::Error),
}

/// What the producing side of a stream came to.
pub type Sent = JoinHandle<Result<TransferReport>>;

/// A stream that blocking code produces.
pub fn reader(produce: impl FnOnce(Producer) -> Result<TransferReport> + Send + 'static) -> (ByteReader, Sent) {
    let (sender, receiver) = channel(WAITING);
    let sent = tokio::task::spawn_blocking(move || {
        let result = produce(Producer(sender.clone()));
        let last = match &result {
            Ok(_) => Message::End,
            Err(error) => Message::Broken(io::Error::other(error.to_string())),
        };
        // A consumer that is gone needs no end.
        let _ = sender.blocking_send(last);
        result
    });
    (Box::new(Produced { receiver, current: Bytes::new(), ended: false }), sent)
}

/// The result of the producing side.
pub async fn finished(sent: Sent) -> Result<TransferReport> {
    sent.await.unwrap_or_else(|error| Err(Error::new(ErrorKind::Internal, "transfer", error.to_string())))
}

/// Where blocking code puts the stream that it produces.
pub struct Producer(Sender<Message>);

impl Write for Producer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let chunk = &bytes[..bytes.len().min(CHUNK)];
        self.0.blocking_send(Message::Data(Bytes::copy_from_slice(chunk))).map_err(|_| io::Error::other(gone()))?;
        Ok(chunk.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Cancelled, "transfer", "the other side of the transfer went away before its end")
}

struct Produced {
    receiver: Receiver<Message>,
    current: Bytes,
    ended: bool,
}

impl AsyncRead for Produced {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.current.is_empty() && !self.ended {
            match ready!(self.receiver.poll_recv(cx)) {
                Some(Message::Data(data)) => self.current = data,
                Some(Message::End) => self.ended = true,
                Some(Message::Broken(error)) => return Poll::Ready(Err(error)),
                None => return Poll::Ready(Err(io::Error::other(gone()))),
            }
        }
        let count = self.current.len().min(buffer.remaining());
        buffer.put_slice(&self.current[..count]);
        self.current.advance(count);
        Poll::Ready(Ok(()))
    }
}

/// An asynchronous stream as blocking code reads it.
pub struct Blocking {
    receiver: Receiver<Message>,
    current: Bytes,
    ended: bool,
}

impl Read for Blocking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Message::Data(data)) => self.current = data,
                Some(Message::End) => self.ended = true,
                Some(Message::Broken(error)) => return Err(error),
                None => return Err(io::Error::other(gone())),
            }
        }
        let count = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

/// Gives an asynchronous stream to blocking code and waits for what that comes to.
pub async fn feed<T: Send + 'static>(
    mut source: ByteReader,
    consume: impl FnOnce(Blocking) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = channel(WAITING);
    let blocking = Blocking { receiver, current: Bytes::new(), ended: false };
    let consumed = tokio::task::spawn_blocking(move || consume(blocking));
    loop {
        let mut chunk = bytes::BytesMut::with_capacity(CHUNK);
        let (message, last) = match source.read_buf(&mut chunk).await {
            Ok(0) => (Message::End, true),
            Ok(_) => (Message::Data(chunk.freeze()), false),
            Err(error) => (Message::Broken(error), true),
        };
        // A consumer that stopped early has its reason, which is the result.
        if sender.send(message).await.is_err() || last {
            break;
        }
    }
    drop(sender);
    consumed.await.unwrap_or_else(|error| Err(Error::new(ErrorKind::Internal, "transfer", error.to_string())))
}
