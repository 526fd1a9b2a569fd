//! A streamed command: frames of a kind (one byte), a length (four bytes, big-endian) and a payload.
//!
//! | kind | payload |
//! |---|---|
//! | 0 | the first frame: a JSON document `{"exec": ID}` |
//! | 1 | bytes of stdout |
//! | 2 | bytes of stderr |
//! | 3 | the last frame: the JSON document `Ended` |
//! | 4 | the last frame: the JSON document `Problem` |

use bytes::{BufMut, Bytes, BytesMut};

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Started = 0,
    Stdout = 1,
    Stderr = 2,
    Ended = 3,
    Problem = 4,
}

pub(crate) fn frame(kind: Kind, payload: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(5 + payload.len());
    bytes.put_u8(kind as u8);
    bytes.put_u32(payload.len() as u32);
    bytes.extend_from_slice(payload);
    bytes.freeze()
}
