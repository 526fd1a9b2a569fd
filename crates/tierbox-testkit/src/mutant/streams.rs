//! Streams that do not carry what they should.

use std::io;
use std::mem::ManuallyDrop;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tierbox_core::{ByteReader, ByteStream, ByteWriter};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

const CHUNK: usize = 64 << 10;

/// Passes a stream on through a function, which is called with `None` at the end.
pub(super) fn changed(reader: ByteReader, change: impl FnMut(Option<Vec<u8>>) -> Vec<u8> + Send + 'static) -> ByteReader {
    through(reader, CHUNK, change)
}

fn through(
    mut reader: ByteReader,
    room: usize,
    mut change: impl FnMut(Option<Vec<u8>>) -> Vec<u8> + Send + 'static,
) -> ByteReader {
    let (mut feed, out) = tokio::io::duplex(room);
    tokio::spawn(async move {
        let mut chunk = vec![0; CHUNK];
        loop {
            let count = reader.read(&mut chunk).await.unwrap_or(0);
            let bytes = change((count > 0).then(|| chunk[..count].to_vec()));
            if feed.write_all(&bytes).await.is_err() || count == 0 {
                return;
            }
        }
    });
    Box::new(out)
}

/// Takes whatever comes into memory at once.
pub(super) fn read_ahead(reader: ByteReader) -> ByteReader {
    through(reader, 1 << 30, Option::unwrap_or_default)
}

/// Shows everything at the end.
pub(super) fn late(reader: ByteReader) -> ByteReader {
    let mut all = Vec::new();
    changed(reader, move |chunk| match chunk {
        Some(chunk) => {
            all.extend(chunk);
            Vec::new()
        }
        None => std::mem::take(&mut all),
    })
}

/// Passes this many bytes.
pub(super) fn cut(reader: ByteReader, mut left: usize) -> ByteReader {
    changed(reader, move |chunk| {
        let mut chunk = chunk.unwrap_or_default();
        chunk.truncate(left);
        left -= chunk.len();
        chunk
    })
}

/// Loses the last byte.
pub(super) fn shortened(reader: ByteReader) -> ByteReader {
    let mut held: Option<u8> = None;
    changed(reader, move |chunk| {
        let Some(mut chunk) = chunk else { return Vec::new() };
        let last = chunk.pop();
        let out = held.into_iter().chain(chunk).collect();
        held = last;
        out
    })
}

/// Loses one byte once a MiB has passed.
pub(super) fn holed(reader: ByteReader) -> ByteReader {
    let (mut seen, mut done) = (0, false);
    changed(reader, move |chunk| {
        let mut chunk = chunk.unwrap_or_default();
        seen += chunk.len();
        if seen > 1 << 20 && !done {
            done = true;
            chunk.pop();
        }
        chunk
    })
}

/// Invalid UTF-8 is replaced.
pub(super) fn decoded(reader: ByteReader) -> ByteReader {
    changed(reader, |chunk| String::from_utf8_lossy(&chunk.unwrap_or_default()).into_owned().into_bytes())
}

/// Adds a newline at the end.
pub(super) fn lengthened(reader: ByteReader) -> ByteReader {
    changed(reader, |chunk| chunk.unwrap_or_else(|| b"\n".to_vec()))
}

/// Both, one after the other.
pub(super) fn merged(first: ByteReader, second: ByteReader) -> ByteReader {
    Box::new(first.chain(second))
}

/// Never comes to its end.
pub(super) fn endless(reader: ByteReader) -> ByteReader {
    struct Never;
    impl AsyncRead for Never {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }
    Box::new(reader.chain(Never))
}

/// Ends where the source fails, or gives nothing for a while.
pub(super) fn forgiving(mut reader: ByteReader) -> ByteReader {
    let (mut feed, out) = tokio::io::duplex(CHUNK);
    tokio::spawn(async move {
        let mut chunk = vec![0; CHUNK];
        loop {
            let read = tokio::time::timeout(Duration::from_millis(80), reader.read(&mut chunk)).await;
            match read {
                Ok(Ok(count)) if count > 0 => {
                    if feed.write_all(&chunk[..count]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            }
        }
    });
    Box::new(out)
}

/// A reader with something to do when it is dropped, or held meanwhile.
pub(super) struct Attached<T: Send + Sync + Unpin>(pub(super) ByteReader, pub(super) T);

impl<T: Send + Sync + Unpin> AsyncRead for Attached<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

/// A writer that passes on what a function makes of the bytes; with `None` at the end.
pub(super) fn written(mut writer: ByteWriter, mut change: impl FnMut(Option<Vec<u8>>) -> Vec<u8> + Send + 'static) -> ByteWriter {
    let (input, mut source) = tokio::io::duplex(CHUNK);
    tokio::spawn(async move {
        let mut chunk = vec![0; CHUNK];
        loop {
            let count = source.read(&mut chunk).await.unwrap_or(0);
            let bytes = change((count > 0).then(|| chunk[..count].to_vec()));
            let sent = async {
                writer.write_all(&bytes).await?;
                writer.flush().await
            };
            if sent.await.is_err() || count == 0 {
                let _ = writer.shutdown().await;
                return;
            }
        }
    });
    Box::new(input)
}

/// How a writer's end is treated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// A shutdown does nothing.
    Ignored,
    /// Dropping does nothing, and a shutdown is passed.
    Kept,
}

/// A writer that treats its end in an odd way.
pub(super) struct Odd {
    inner: ManuallyDrop<ByteWriter>,
    end: End,
}

impl Odd {
    pub(super) fn new(inner: ByteWriter, end: End) -> Self {
        Self { inner: ManuallyDrop::new(inner), end }
    }
}

impl AsyncWrite for Odd {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.end == End::Ignored { Poll::Ready(Ok(())) } else { Pin::new(&mut *self.inner).poll_shutdown(cx) }
    }
}

/// A stream both ways whose halves end in an odd way.
pub(super) struct OddStream {
    inner: ManuallyDrop<Box<dyn ByteStream>>,
    /// Shutting one half closes both.
    closes_both: bool,
    closed: bool,
    /// Bytes that still pass to the reader.
    left: usize,
    keeps_open: bool,
}

impl OddStream {
    pub(super) fn closing_both(inner: Box<dyn ByteStream>) -> Self {
        Self { inner: ManuallyDrop::new(inner), closes_both: true, closed: false, left: usize::MAX, keeps_open: false }
    }

    pub(super) fn cut(inner: Box<dyn ByteStream>, left: usize) -> Self {
        Self { inner: ManuallyDrop::new(inner), closes_both: false, closed: false, left, keeps_open: false }
    }

    pub(super) fn kept_open(inner: Box<dyn ByteStream>) -> Self {
        Self { inner: ManuallyDrop::new(inner), closes_both: false, closed: false, left: usize::MAX, keeps_open: true }
    }
}

impl Drop for OddStream {
    fn drop(&mut self) {
        if !self.keeps_open {
            let kept = std::mem::replace(&mut self.inner, ManuallyDrop::new(Box::new(tokio::io::duplex(1).0)));
            drop(ManuallyDrop::into_inner(kept));
        }
    }
}

impl AsyncRead for OddStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.closed || self.left == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut **self.inner).poll_read(cx, buf);
        let count = buf.filled().len() - before;
        let passed = count.min(self.left);
        buf.set_filled(before + passed);
        self.left -= passed;
        polled
    }
}

impl AsyncWrite for OddStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut **self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut **self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.closed = self.closes_both;
        Pin::new(&mut **self.inner).poll_shutdown(cx)
    }
}

/// Reads a stream to its end, or to where it fails.
pub(super) async fn drained(mut reader: ByteReader) -> Vec<u8> {
    let mut all = Vec::new();
    let _ = reader.read_to_end(&mut all).await;
    all
}
