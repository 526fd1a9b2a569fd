//! Lines that are too long, or no JSON: the library drops them without a word, and whoever asked would wait for ever.
//!
//! Every byte goes on as it came. Behind a line that the library does not take, a short line stands in for it: a request with the same
//! id, by a method of our own, which is answered by an error. A line without an id gets none: it may be no request, and two programs
//! that complain of each other's complaints never end.

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
/// The method of the line that stands in for one that is no JSON; `why` is its parameter.
pub(crate) const NO_JSON: &str = "tierbox/no-json";

/// How much is read at once.
const CHUNK: usize = 64 << 10;
/// The longest key or id that is looked at.
const LONGEST_TOKEN: usize = 300;

/// Input whose lines that are not taken are followed by one that stands in for them.
pub(crate) struct Lines<R> {
    input: R,
    chunk: Box<[u8]>,
    /// What of the chunk has not gone on yet.
    left: std::ops::Range<usize>,
    longest: usize,
    /// The line that is being read, as far as it is not too long.
    line: Vec<u8>,
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
        Self { input, chunk, left: 0..0, longest, line: Vec::new(), length: 0, scan: Scan::default(), stand_in: Vec::new() }
    }

    /// How much of what is left goes on next: to the end of a line that needs one behind it, else all.
    fn pass(&mut self, room: usize) -> usize {
        let end = self.left.end.min(self.left.start + room);
        for index in self.left.start..end {
            let byte = self.chunk[index];
            self.length += 1;
            if byte != b'\n' {
                self.scan.step(byte);
                if self.length <= self.longest {
                    self.line.push(byte);
                }
                continue;
            }
            let (scan, line) = (std::mem::take(&mut self.scan), std::mem::take(&mut self.line));
            let refused = match std::mem::take(&mut self.length) > self.longest {
                true => Some((TOO_LONG, json!({}))),
                false => no_json(&line).map(|why| (NO_JSON, json!({ "why": why }))),
            };
            if let Some((id, (method, params))) = scan.request().zip(refused) {
                self.stand_in = stand_in(&id, method, &params);
                return index + 1 - self.left.start;
            }
        }
        end - self.left.start
    }
}

/// Why a line is no JSON that the library could read.
fn no_json(line: &[u8]) -> Option<String> {
    let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
    serde_json::from_slice::<Value>(line).err().map(|error| error.to_string())
}

fn stand_in(id: &Value, method: &str, params: &Value) -> Vec<u8> {
    format!("{}\n", json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })).into_bytes()
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
            let behind = format!("{{\"id\":{id},\"jsonrpc\":\"2.0\",\"method\":\"{TOO_LONG}\",\"params\":{{}}}}\n");
            assert_eq!(through(&format!("{short}{line}{short}")).await, format!("{short}{line}{behind}{short}"));
        }
    }

    #[tokio::test]
    async fn a_request_that_is_no_json_is_followed_by_one_with_its_id() {
        for line in [r#"{"id":1,"method":"\ud800"}"#, r#"{"method":"m","id":1,"params":}"#, r#"{"id":1,"method":"m","x":1e999}"#]
        {
            let out = through(&format!("{line}\n")).await;
            let behind = out.strip_prefix(&format!("{line}\n")).unwrap();
            let behind: Value = serde_json::from_str(behind).unwrap();
            assert_eq!((&behind["id"], &behind["method"]), (&1.into(), &NO_JSON.into()), "{line}");
            assert!(behind["params"]["why"].as_str().unwrap().contains("at line 1"), "{behind}");
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
            "no json\n\n{\"method\":\"notify\",}\n".to_owned(),
        ] {
            assert_eq!(through(&line).await, line);
        }
    }
}
