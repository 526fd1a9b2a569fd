//! Bodies of requests and answers, counted.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use crate::room::Flow;

/// Which way a body goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the sandbox.
    Out,
    /// To the sandbox.
    In,
}

/// A body whose bytes are counted, or a short text.
pub(crate) enum Counted {
    /// On its way.
    Passing(Incoming, Way, Arc<Flow>),
    /// The gateway's own words.
    Own(Option<Bytes>),
}

impl Counted {
    /// The gateway's own words.
    pub(crate) fn own(text: String) -> Self {
        Self::Own(Some(text.into()).filter(|bytes: &Bytes| !bytes.is_empty()))
    }
}

impl Body for Counted {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Own(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Passing(body, way, flow) => {
                let frame = std::task::ready!(Pin::new(body).poll_frame(cx));
                if let Some(Ok(data)) = frame.as_ref().map(|frame| frame.as_ref().map(|frame| frame.data_ref()))
                    && let Some(data) = data
                {
                    match way {
                        Way::Out => flow.sent(data.len()),
                        Way::In => flow.received(data.len()),
                    }
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(text) => text.is_none(),
            Self::Passing(body, ..) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(text) => SizeHint::with_exact(text.as_ref().map_or(0, Bytes::len) as u64),
            Self::Passing(body, ..) => body.size_hint(),
        }
    }
}
