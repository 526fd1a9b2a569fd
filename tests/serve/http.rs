//! A daemon in this process, and a client that speaks plain HTTP to it.
#![allow(dead_code, reason = "every suite uses a part")]

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tierbox::Tierbox;
use tierbox_serve::{Options, Server};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// The longest that anything here may take.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A daemon with a state directory of its own.
pub struct Daemon {
    pub directory: tempfile::TempDir,
    pub socket: PathBuf,
    pub address: Option<std::net::SocketAddr>,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<tierbox::Result<()>>>,
}

pub fn client(directory: &tempfile::TempDir) -> Tierbox {
    Tierbox::builder().user_config(false).state_dir(directory.path().join("state")).build().expect("a client")
}

impl Daemon {
    pub async fn start(change: impl Fn(&mut Options)) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut daemon = Self { socket: PathBuf::new(), address: None, directory, stop: None, task: None };
        daemon.again(change).await;
        daemon
    }

    /// Starts it on the same state.
    pub async fn again(&mut self, change: impl Fn(&mut Options)) {
        let mut options = Options::default();
        change(&mut options);
        self.take(Server::bind(client(&self.directory), options).await.expect("a daemon"));
    }

    /// One with a harness token for each of these, on TCP as well.
    pub async fn with_tokens(tokens: &[&str], change: impl Fn(&mut Options)) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("tokens");
        let lines: String = tokens.iter().map(|token| format!("harness {token}\n")).collect();
        std::fs::write(&path, lines).expect("a file");
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("its mode");
        let tokens = tierbox_serve::Tokens::read(&path).expect("tokens");
        Self::start(move |options| {
            options.tcp = Some(([127, 0, 0, 1], 0).into());
            options.tokens = Some(tokens.clone());
            change(options);
        })
        .await
    }

    /// What ends it, and its task.
    pub fn parts(&mut self) -> (oneshot::Sender<()>, JoinHandle<tierbox::Result<()>>) {
        (self.stop.take().expect("it runs"), self.task.take().expect("it runs"))
    }

    /// Lets this one run.
    pub fn take(&mut self, server: Server) {
        (self.socket, self.address) = (server.socket().to_owned(), server.address());
        let (stop, stopped) = oneshot::channel();
        self.stop = Some(stop);
        self.task = Some(tokio::spawn(server.run(async move { drop(stopped.await) })));
    }

    /// Ends the daemon and leaves its environments.
    pub async fn end(&mut self) {
        if let (Some(stop), Some(task)) = (self.stop.take(), self.task.take()) {
            let _ = stop.send(());
            task.await.expect("no panic").expect("an orderly end");
        }
    }

    /// Ends the daemon and every environment.
    pub async fn finish(mut self) {
        self.end().await;
        let all = tierbox::CleanupOptions { all: true, ..Default::default() };
        let report = client(&self.directory).cleanup(all).await.expect("a clean-up");
        assert!(report.failed.is_empty(), "{report:?}");
    }

    pub async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).await.expect("a connection")
    }

    /// A request with a JSON document.
    pub async fn json(&self, method: &str, path: &str, body: Value) -> Answer {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.send(method, path, &[("content-type", "application/json")], &body).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"").await
    }

    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        exchange(self.connect().await, &request(method, path, headers, body)).await
    }

    /// A request over TCP.
    pub async fn tcp(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let stream = TcpStream::connect(self.address.expect("an address")).await.expect("a connection");
        exchange(stream, &request(method, path, headers, body)).await
    }

    /// An environment of a profile, by its id.
    pub async fn create(&self, document: Value) -> String {
        let answer = self.json("POST", "/v1/environments", document).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.value()["id"].as_str().expect("an id").to_owned()
    }

    /// A collected shell command: the head of the answer, and what was printed.
    pub async fn shell(&self, environment: &str, script: &str) -> (Value, String) {
        let document = serde_json::json!({ "argv": ["/bin/sh", "-c", script] });
        let answer = self.json("POST", &format!("/v1/environments/{environment}/exec"), document).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.head_and_bytes()
    }
}

/// A request as bytes.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    if !headers.iter().any(|(name, _)| *name == "host") {
        text.push_str("host: tierbox\r\n");
    }
    headers.iter().for_each(|(name, value)| text.push_str(&format!("{name}: {value}\r\n")));
    if !headers.iter().any(|(name, _)| ["transfer-encoding", "content-length"].contains(name)) {
        text.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    [text.as_bytes(), b"\r\n", body].concat()
}

/// What a daemon said.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn kind(&self) -> String {
        self.value()["kind"].as_str().unwrap_or_default().to_owned()
    }

    pub fn head_and_bytes(&self) -> (Value, String) {
        let end = self.body.iter().position(|byte| *byte == b'\n').expect("a head");
        let head = serde_json::from_slice(&self.body[..end]).expect("a document");
        (head, String::from_utf8_lossy(&self.body[end + 1..]).into_owned())
    }

    /// Frames of a streamed command.
    pub fn frames(&self) -> Vec<(u8, Vec<u8>)> {
        let (mut frames, mut rest) = (Vec::new(), self.body.as_slice());
        while let [kind, a, b, c, d, tail @ ..] = rest {
            let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
            frames.push((*kind, tail[..length].to_vec()));
            rest = &tail[length..];
        }
        frames
    }
}

/// Sends a request and reads the answer to its end.
pub async fn exchange(stream: impl AsyncRead + AsyncWrite + Unpin, request: &[u8]) -> Answer {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut bytes = Vec::new();
    // A daemon that has heard enough may close its end before all is written.
    let both = async { tokio::join!(writer.write_all(request), reader.read_to_end(&mut bytes)) };
    let _ = tokio::time::timeout(LIMIT, both).await.expect("an answer in time");
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Answer {
    let split = bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4).unwrap_or(bytes.len());
    let headers = String::from_utf8_lossy(&bytes[..split]).to_ascii_lowercase();
    let status = headers.split_whitespace().nth(1).and_then(|text| text.parse().ok()).unwrap_or(0);
    let body = &bytes[split..];
    let body = if headers.contains("transfer-encoding: chunked") { unchunked(body) } else { body.to_vec() };
    Answer { status, headers, body }
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") {
        let length = std::str::from_utf8(&bytes[..end]).ok().and_then(|text| usize::from_str_radix(text, 16).ok()).unwrap_or(0);
        if length == 0 || bytes.len() < end + 2 + length {
            break;
        }
        body.extend_from_slice(&bytes[end + 2..end + 2 + length]);
        bytes = &bytes[(end + 4 + length).min(bytes.len())..];
    }
    body
}
