//! Answers.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use tierbox::{ByteReader, Error, ErrorKind, Result};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use crate::wire::Problem;

/// The media type of a JSON line with raw bytes behind it.
pub(crate) const WITH_BYTES: &str = "application/vnd.tierbox.exec";
/// The media type of frames: see the crate's `frames` module.
pub(crate) const FRAMES: &str = "application/vnd.tierbox.frames";
/// Raw bytes.
pub(crate) const BYTES: &str = "application/octet-stream";
/// A tar archive.
pub(crate) const TAR: &str = "application/x-tar";
/// JSON documents, one a line.
pub(crate) const EVENTS: &str = "application/x-ndjson";
/// JSON.
pub(crate) const JSON: &str = "application/json";
/// Prometheus' text format.
pub(crate) const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How much is read from a machine at once.
const CHUNK: usize = 64 << 10;

pub(crate) type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// Bytes of a type, whole.
pub(crate) fn bytes(media: &'static str, contents: impl Into<Bytes>) -> Answer {
    let body = Full::new(contents.into()).map_err(|never| match never {}).boxed_unsync();
    typed(media, body)
}

/// A document.
pub(crate) fn json(document: &impl Serialize) -> Result<Answer> {
    Ok(bytes(JSON, line(document)?))
}

/// A document, as one line without its end.
pub(crate) fn line<T: Serialize + ?Sized>(document: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(document).map_err(|error| Error::new(ErrorKind::Internal, "write answer", error.to_string()))
}

/// Something that went wrong.
pub(crate) fn problem(error: &Error) -> Answer {
    refusal(status(error.kind()), &Problem::of(error))
}

/// A document that says no.
pub(crate) fn refusal(status: StatusCode, problem: &Problem) -> Answer {
    let mut answer = bytes(JSON, serde_json::to_vec(problem).unwrap_or_default());
    *answer.status_mut() = status;
    answer
}

/// Bytes that come one after another. Whoever does not read them stops the sender.
pub(crate) fn streamed(media: &'static str, receiver: mpsc::Receiver<io::Result<Bytes>>) -> Answer {
    typed(media, Incremental(receiver).boxed_unsync())
}

/// What a reader has, to its end.
pub(crate) fn reader(media: &'static str, mut reader: ByteReader) -> Answer {
    let (sender, receiver) = mpsc::channel(2);
    tokio::spawn(async move {
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            let read = reader.read_buf(&mut chunk).await;
            let last = !matches!(read, Ok(1..));
            let item = match read {
                Ok(0) => return,
                Ok(_) => Ok(Bytes::from(chunk)),
                // The connection breaks off, so that nobody takes a part for the whole.
                Err(error) => Err(error),
            };
            if sender.send(item).await.is_err() || last {
                return;
            }
        }
    });
    streamed(media, receiver)
}

fn typed(media: &'static str, body: UnsyncBoxBody<Bytes, io::Error>) -> Answer {
    let mut answer = Response::new(body);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    answer
}

struct Incremental(mpsc::Receiver<io::Result<Bytes>>);

impl Body for Incremental {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(context).map(|item| item.map(|bytes| bytes.map(Frame::data)))
    }
}

/// The status of an error. Programs look at the kind in the document instead.
pub(crate) fn status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::InvalidInput | ErrorKind::InvalidProfile => StatusCode::BAD_REQUEST,
        ErrorKind::WeakerRefused
        | ErrorKind::TierRefused
        | ErrorKind::LimitRefused
        | ErrorKind::PolicyDenied
        | ErrorKind::PermissionDenied => StatusCode::FORBIDDEN,
        ErrorKind::UnknownProfile | ErrorKind::UnknownBackend | ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::AlreadyExists | ErrorKind::IsADirectory | ErrorKind::NotAFile | ErrorKind::Cancelled => StatusCode::CONFLICT,
        ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::Unsupported | ErrorKind::UnsafeArchive => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorKind::LimitReached => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::Lost | ErrorKind::Expired => StatusCode::GONE,
        ErrorKind::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
        ErrorKind::Timeout => StatusCode::GATEWAY_TIMEOUT,
        ErrorKind::HostUnable | ErrorKind::MissingEngine | ErrorKind::Credentials => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
