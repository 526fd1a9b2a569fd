//! Lines that can drop, and how they are opened again.

use std::any::Any;
use std::fmt;

use async_trait::async_trait;
use tierbox_core::Result;
use tokio::io::{AsyncRead, AsyncWrite};

/// An open byte stream to the program in the machine: what it writes, what it reads, and what keeps both open.
pub struct Line {
    pub(crate) reader: Box<dyn AsyncRead + Send + Unpin>,
    pub(crate) writer: Box<dyn AsyncWrite + Send + Unpin>,
    pub(crate) kept: Option<Box<dyn Any + Send>>,
}

impl Line {
    /// A line from its two halves: `reader` is the program's standard output, `writer` its standard input.
    ///
    /// Make them inside [`driver::handle`](crate::driver::handle)'s runtime if they need a reactor, so that they outlive the
    /// caller's runtime.
    pub fn new(reader: impl AsyncRead + Send + Unpin + 'static, writer: impl AsyncWrite + Send + Unpin + 'static) -> Self {
        Self { reader: Box::new(reader), writer: Box::new(writer), kept: None }
    }

    /// Keeps something for as long as the line is used: a child process that is killed when it is dropped, a connection.
    #[must_use]
    pub fn keeping(mut self, kept: impl Any + Send) -> Self {
        self.kept = Some(Box::new(kept));
        self
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").finish_non_exhaustive()
    }
}

/// Opens new lines to a machine whose supervisor outlives them. The backend's part of a resumable channel.
///
/// A line is a byte stream to a process in the machine that runs [`Installed::join`](crate::install::Installed::join): over ssh,
/// an engine's exec, or anything else that connects standard input and output.
#[async_trait]
pub trait Reconnect: Send + Sync {
    /// Opens a new line. Called on the [driver](crate::driver)'s one thread, again and again until one works or the grace is
    /// over: it must not block that thread, and should give up by itself after some seconds.
    ///
    /// # Errors
    /// Any; it is tried again. What it says is shown if the grace ends without a line.
    async fn open(&self) -> Result<Line>;
}
