//! An attached stream as the two halves of a channel.

use std::io;
use std::pin::Pin;

use bollard::container::LogOutput;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::StreamReader;

/// What comes out of a process.
pub type Output = Pin<Box<dyn Stream<Item = Result<LogOutput, bollard::errors::Error>> + Send>>;

/// What goes into it.
pub type Input = Pin<Box<dyn AsyncWrite + Send>>;

/// What the program writes to stdout, as bytes. What it says on stderr is dropped: nothing of it is the protocol's.
pub fn reader(output: Output) -> Box<dyn AsyncRead + Send + Unpin> {
    let bytes = output.filter_map(async |part| match part {
        Ok(LogOutput::StdOut { message } | LogOutput::Console { message }) => Some(Ok::<Bytes, io::Error>(message)),
        Ok(LogOutput::StdErr { .. } | LogOutput::StdIn { .. }) => None,
        Err(error) => Some(Err(io::Error::other(error))),
    });
    Box::new(StreamReader::new(Box::pin(bytes)))
}

/// The way to the program's stdin.
pub fn writer(input: Input) -> Box<dyn AsyncWrite + Send + Unpin> {
    Box::new(input)
}
