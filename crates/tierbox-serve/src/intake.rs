//! What clients send, bounded.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use serde::de::DeserializeOwned;
use tierbox::{ByteWriter, Error, ErrorKind, Result};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};

/// The longest JSON document: a megabyte of arguments, each of whose bytes may take six as JSON.
const DOCUMENT: usize = 8 << 20;
/// Stdin that is collected before the command starts, which is quicker for a little of it.
const LITTLE: u64 = 64 << 10;

/// The most stdin that is collected where it cannot be passed on.
pub(crate) const WHOLE: usize = 64 << 20;

/// The body of one request.
pub(crate) struct Intake {
    body: Incoming,
    /// Read, but not used yet.
    rest: Bytes,
    patience: Duration,
}

impl Intake {
    pub fn new(body: Incoming, patience: Duration) -> Self {
        Self { body, rest: Bytes::new(), patience }
    }

    /// The next bytes; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        if !self.rest.is_empty() {
            return Ok(Some(std::mem::take(&mut self.rest)));
        }
        loop {
            let frame = tokio::time::timeout(self.patience, self.body.frame()).await;
            match frame {
                Err(_) => return Err(fail(ErrorKind::Timeout, "the request's body did not go on")),
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => return Err(fail(ErrorKind::InvalidInput, &error.to_string())),
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(bytes) if bytes.is_empty() => {}
                    Ok(bytes) => return Ok(Some(bytes)),
                    Err(_) => return Ok(None),
                },
            }
        }
    }

    /// The whole body as a document. Nothing at all is the document `{}`.
    pub async fn document<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut text = BytesMut::new();
        while let Some(bytes) = self.next().await? {
            if text.len() + bytes.len() > DOCUMENT {
                return Err(too_long());
            }
            text.extend_from_slice(&bytes);
        }
        parse(if text.is_empty() { b"{}" } else { &text })
    }

    /// The first line as a document. What follows it stays.
    pub async fn head<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut text = BytesMut::new();
        while let Some(mut bytes) = self.next().await? {
            if let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
                text.extend_from_slice(&bytes[..end]);
                bytes.advance(end + 1);
                self.rest = bytes;
                return parse(&text);
            }
            text.extend_from_slice(&bytes);
            if text.len() > DOCUMENT {
                return Err(too_long());
            }
        }
        parse(&text)
    }

    /// How long the body is, if its client said so.
    pub fn length(&self) -> Option<u64> {
        self.body.size_hint().exact()
    }

    /// What follows the head, whole, if it is little and its length is known; `None` otherwise.
    pub async fn little(&mut self) -> Result<Option<Bytes>> {
        let left = self.body.size_hint().exact().map(|left| left + self.rest.len() as u64);
        if left.is_none_or(|left| left > LITTLE) {
            return Ok(None);
        }
        let mut all = BytesMut::new();
        while let Some(bytes) = self.next().await? {
            all.extend_from_slice(&bytes);
        }
        Ok(Some(all.freeze()))
    }

    /// What follows the head, whole, for a machine that takes no input while a command runs.
    pub async fn whole(&mut self) -> Result<Bytes> {
        let mut all = BytesMut::new();
        while let Some(bytes) = self.next().await? {
            if all.len() + bytes.len() > WHOLE {
                let message =
                    format!("more than {} MiB of stdin, for a machine that takes it before the command starts", WHOLE >> 20);
                return Err(fail(ErrorKind::TooLarge, &message));
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all.freeze())
    }

    /// Writes everything that comes to a command, then ends its input. `silence` is how long the client may be silent.
    pub async fn pump(&mut self, mut to: ByteWriter, silence: Option<Duration>) -> Result<()> {
        self.patience = silence.unwrap_or(Duration::from_secs(365 * 86400));
        while let Some(bytes) = self.next().await? {
            // A command that does not want its input is no error.
            if to.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
        // The rest is read and forgotten, so that the end of the connection is noticed.
        while self.next().await?.is_some() {}
        Ok(())
    }

    /// The body as a stream of bytes. One that breaks off is an error to whoever reads.
    pub fn into_reader(self) -> impl AsyncRead + Send + Sync + Unpin + 'static {
        BodyReader {
            body: self.body,
            rest: self.rest,
            silence: Box::pin(tokio::time::sleep(self.patience)),
            patience: self.patience,
        }
    }
}

struct BodyReader {
    body: Incoming,
    rest: Bytes,
    silence: std::pin::Pin<Box<tokio::time::Sleep>>,
    patience: Duration,
}

impl AsyncRead for BodyReader {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        use std::task::Poll;
        while self.rest.is_empty() {
            match std::pin::Pin::new(&mut self.body).poll_frame(context) {
                Poll::Pending => {
                    let silent = std::future::Future::poll(self.silence.as_mut(), context);
                    return silent.map(|()| Err(std::io::ErrorKind::TimedOut.into()));
                }
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(std::io::Error::other(error))),
                Poll::Ready(Some(Ok(frame))) => {
                    self.rest = frame.into_data().unwrap_or_default();
                    let next = tokio::time::Instant::now() + self.patience;
                    self.silence.as_mut().reset(next);
                }
            }
        }
        let count = self.rest.len().min(buffer.remaining());
        buffer.put_slice(&self.rest[..count]);
        self.rest.advance(count);
        Poll::Ready(Ok(()))
    }
}

fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T> {
    serde_json::from_slice(text).map_err(|error| {
        // The position and what was expected, never the text itself: it may hold a secret.
        let what = format!("the document is not as the API describes it, at line {} column {}", error.line(), error.column());
        let reason = error.to_string();
        let reason = reason.split(" at line").next().unwrap_or_default();
        let shown = if reason.starts_with("unknown field") || reason.starts_with("missing field") { reason } else { "" };
        Error::new(ErrorKind::InvalidInput, "read request", if shown.is_empty() { what } else { format!("{what}: {shown}") })
            .with_help("GET /v1/openapi.json describes every document")
    })
}

fn fail(kind: ErrorKind, what: &str) -> Error {
    Error::new(kind, "read request", what)
}

fn too_long() -> Error {
    Error::new(ErrorKind::TooLarge, "read request", format!("the document is longer than {DOCUMENT} bytes"))
}
