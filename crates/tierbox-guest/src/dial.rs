//! A stream to something that listens inside the machine.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tierbox_core::{ByteStream, DialTarget, Error, ErrorKind, Result};
use tierbox_supervisor::protocol::{Dial, FromSupervisor, STDOUT, ToSupervisor};
use tierbox_supervisor::wire::Blob;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::channel::Channel;
use crate::flow::{FramedReader, FramedWriter};
use crate::operation::{Operation, Running};

/// Opens the stream.
pub(crate) async fn dial(channel: &Channel, target: DialTarget) -> Result<Box<dyn ByteStream>> {
    if target == DialTarget::Tcp(0) {
        return Err(Error::new(ErrorKind::InvalidInput, "dial", "port 0 is no port"));
    }
    let (target, subject) = match target {
        DialTarget::Tcp(port) => (Dial::Tcp { port }, format!("port {port}")),
        DialTarget::Unix(path) => (Dial::Unix { path: Blob::from(path.as_bytes()) }, path.to_string()),
    };
    let running = Running::start(channel, Operation::duplex("dial"), &ToSupervisor::Dial { target }, "dial", subject).await?;
    let FromSupervisor::Dialed = running.answer().await? else { return Err(running.unexpected()) };
    let (Some(output), Some(input)) = (running.operation.output.clone(), running.operation.input.clone()) else {
        return Err(running.unexpected());
    };
    Ok(Box::new(Dialed {
        reader: FramedReader::new(channel.clone(), running.call, STDOUT, output),
        writer: FramedWriter::new(channel.clone(), running.call, input),
        _running: running,
    }))
}

/// An open stream. Dropping it closes both directions, which the machine hears of by the end of the call.
struct Dialed {
    // Dropped in this order: the end of the input, then the call.
    writer: FramedWriter,
    reader: FramedReader,
    _running: Running,
}

impl AsyncRead for Dialed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(cx, buf)
    }
}

impl AsyncWrite for Dialed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}
