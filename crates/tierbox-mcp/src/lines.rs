//! Lines that are too long: the library drops them without a word, and whoever asked would wait for ever.
//!
//! Every byte goes on as it came. Behind a line that is longer than the library takes, a short line stands in for it: a request with
//! the same id, by a method of our own, which is answered by an error.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rmcp::transport::async_rw::DEFAULT_MAX_LINE_LENGTH;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, ReadBuf};

/// The longest line.
pub(crate) const LONGEST: usize = DEFAULT_MAX_LINE_LENGTH;
/// The method of the line that stands in.
pub(crate) const TOO_LONG: &str = "tierbox/too-long";

/// How much is read at once.
const CHUNK: usize = 64 << 10;
/// The longest key or id that is looked at.
const LONGEST_TOKEN: usize = 300;

/// Input whose lines that are too long are followed by one that stands in for them.
pub(crate) struct Lines<R> {
    input: R,
    chunk: Box<[u8]>,
    /// What of the chunk has not gone on yet.
    left: std::ops::Range<usize>,
    longest: usize,
    length: usize,
    scan: Scan,
    stand_in: Vec<u8>,
}

impl<R> Lines<R> {
    pub fn new(input: R) -> Self {
        Self::at_most(input, LONGEST)
    }

    fn at_most(input: R, longest: usize) -> Self {
        let chunk = vec![0; CHUNK].into_boxed_slice();
        Self { input, chunk, left: 0..0, longest, length: 0, scan: Scan::default(), stand_in: Vec::new() }
    }

    /// How much of what is left goes on next: to the end of a line that needs one behind it, else all.
    fn pass(&mut self, room: usize) -> usize {
        let end = self.left.end.min(self.left.start + room);
        for index in self.left.start..end {
            let byte = self.chunk[index];
            self.length += 1;
            if byte != b'\n' {
                self.scan.step(byte);
                continue;
            }
            let scan = std::mem::take(&mut self.scan);
            if std::mem::take(&mut self.length) > self.longest {
                self.stand_in = scan.request().map(stand_in).unwrap_or_default();
                return index + 1 - self.left.start;
            }
        }
        end - self.left.start
    }
}

fn stand_in(id: Value) -> Vec<u8> {
    format!("{}\n", json!({ "jsonrpc": "2.0", "id": id, "method": TOO_LONG })).into_bytes()
}

impl<R: AsyncRead + Unpin> AsyncRead for Lines<R> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.stand_in.is_empty() {
            let count = this.stand_in.len().min(buffer.remaining());
            buffer.put_slice(&this.stand_in.drain(..count).collect::<Vec<u8>>());
            return Poll::Ready(Ok(()));
        }
        if this.left.is_empty() {
            let mut chunk = ReadBuf::new(&mut this.chunk);
            ready!(Pin::new(&mut this.input).poll_read(context, &mut chunk))?;
            this.left = 0..chunk.filled().len();
        }
        let count = this.pass(buffer.remaining());
        buffer.put_slice(&this.chunk[this.left.start..this.left.start + count]);
        this.left.start += count;
        Poll::Ready(Ok(()))
    }
}

/// Looks for the id of a request in JSON that is never held as a whole.
#[derive(Default)]
struct Scan {
    depth: usize,
    is_quoted: bool,
    is_escaped: bool,
    /// The key or value of the outermost object that is being read.
    token: Vec<u8>,
    key: Vec<u8>,
    id: Vec<u8>,
    has_method: bool,
}

impl Scan {
    fn step(&mut self, byte: u8) {
        if self.depth == 1 && (self.is_quoted || !b"{}[]:, \t\r".contains(&byte)) && self.token.len() < LONGEST_TOKEN {
            self.token.push(byte);
        }
        match byte {
            _ if self.is_escaped => self.is_escaped = false,
            b'\\' if self.is_quoted => self.is_escaped = true,
            b'"' => self.is_quoted = !self.is_quoted,
            _ if self.is_quoted => {}
            b'{' | b'[' => self.depth += 1,
            b':' if self.depth == 1 => self.key = std::mem::take(&mut self.token),
            b',' if self.depth == 1 => self.member(),
            b'}' | b']' => {
                if self.depth == 1 {
                    self.member();
                }
                self.depth = self.depth.saturating_sub(1);
            }
            _ => {}
        }
    }

    fn member(&mut self) {
        let (key, value) = (std::mem::take(&mut self.key), std::mem::take(&mut self.token));
        match key.as_slice() {
            b"\"id\"" => self.id = value,
            b"\"method\"" => self.has_method = true,
            _ => {}
        }
    }

    /// The id, if it was a request.
    fn request(self) -> Option<Value> {
        let id: Value = serde_json::from_slice(&self.id).ok()?;
        (self.has_method && (id.is_string() || id.is_number())).then_some(id)
    }
}

#[cfg(test)]
mod unit {
    use tokio::io::AsyncReadExt;

    use super::*;

    async fn through(text: &str) -> String {
        let mut out = String::new();
        Lines::at_most(text.as_bytes(), 60).read_to_string(&mut out).await.unwrap();
        out
    }

    #[tokio::test]
    async fn a_request_that_is_too_long_is_followed_by_one_with_its_id() {
        let long = "x".repeat(80);
        let short = "{\"id\": 1, \"method\": \"m\"}\n";
        for (id, line) in [
            (
                "7",
                format!("{{\"jsonrpc\": \"2.0\", \"id\": 7, \"method\": \"m\", \"params\": {{\"id\": 8, \"x\": \"{long}\"}}}}\n"),
            ),
            ("\"a\\\"b\"", format!("{{\"method\":\"m\",\"params\":[{{\"id\":8}},\"}}{long}\\\"\"],\"id\":\"a\\\"b\"}}\n")),
        ] {
            let behind = format!("{{\"id\":{id},\"jsonrpc\":\"2.0\",\"method\":\"{TOO_LONG}\"}}\n");
            assert_eq!(through(&format!("{short}{line}{short}")).await, format!("{short}{line}{behind}{short}"));
        }
    }

    #[tokio::test]
    async fn what_expects_no_answer_gets_none() {
        let long = "x".repeat(80);
        for line in [
            format!("{{\"method\": \"notify\", \"params\": \"{long}\"}}\n"),
            format!("{{\"id\": 3, \"result\": \"{long}\"}}\n"),
            format!("{{\"id\": {{\"x\": 1}}, \"method\": \"{long}\"}}\n"),
            format!("[{{\"id\": 3, \"method\": \"{long}\"}}]\n"),
            format!("{long}\n{long}"),
            "}}]]\n".to_owned(),
        ] {
            assert_eq!(through(&line).await, line);
        }
    }
}
