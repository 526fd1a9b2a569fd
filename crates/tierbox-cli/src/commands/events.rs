//! `tierbox events`.

use std::path::PathBuf;

use tierbox::{Error, ErrorKind, Result};
use tierbox_serve::default_socket;
use tierbox_serve::wire::{Event, EventKind};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::interrupt::Failure;
use crate::{Context, neutral, output};

/// The longest piece of a daemon's answer that is believed.
const LONGEST: u64 = 1 << 20;

const REQUEST: &[u8] = b"GET /v1/events HTTP/1.1\r\nhost: tierbox\r\nconnection: close\r\n\r\n";

pub(crate) async fn events(context: &mut Context, socket: Option<PathBuf>) -> Result<u8, Failure> {
    let socket = socket.map_or_else(|| default_socket(&context.client), Ok)?;
    let json = context.global.json;
    context.interrupts.guard(follow(socket, json)).await?;
    Ok(0)
}

async fn follow(socket: PathBuf, json: bool) -> Result<()> {
    let mut stream = UnixStream::connect(&socket).await.map_err(|error| {
        Error::io("follow events", error)
            .with_context("path", socket.display())
            .with_help("start the daemon with `tierbox serve`")
    })?;
    let failed = |error| Error::io("follow events", error);
    stream.write_all(REQUEST).await.map_err(failed)?;
    let mut answer = BufReader::new(stream);
    if !line(&mut answer).await?.contains(" 200 ") {
        return Err(Error::new(ErrorKind::Protocol, "follow events", "the daemon refused"));
    }
    while !line(&mut answer).await?.is_empty() {}
    let mut rest = Vec::new();
    loop {
        let size = u64::from_str_radix(&line(&mut answer).await?, 16).unwrap_or(0);
        if size == 0 || size > LONGEST {
            return Ok(());
        }
        (&mut answer).take(size).read_to_end(&mut rest).await.map_err(failed)?;
        line(&mut answer).await?;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let text: Vec<u8> = rest.drain(..=end).collect();
            show(&text[..end], json);
        }
    }
}

/// A line without its end; empty at the end of everything.
async fn line(from: &mut (impl AsyncBufRead + Unpin)) -> Result<String> {
    let mut text = Vec::new();
    let read = from.take(LONGEST).read_until(b'\n', &mut text).await;
    read.map_err(|error| Error::io("follow events", error))?;
    Ok(String::from_utf8_lossy(&text).trim_end().to_owned())
}

fn show(text: &[u8], json: bool) {
    let Ok(event) = serde_json::from_slice::<Event>(text) else { return };
    if event.event == EventKind::Beat {
        return;
    }
    if json {
        return output::raw(&[text, b"\n"].concat());
    }
    let kind = serde_json::to_value(event.event).ok().and_then(|kind| kind.as_str().map(str::to_owned)).unwrap_or_default();
    let outcome = event.outcome.map(|outcome| outcome.to_string());
    let missed = event.missed.map(|missed| format!("{missed} events"));
    let words = [event.environment, event.backend, event.profile, event.client, event.exec, event.task, outcome, missed];
    let words: Vec<String> = words.into_iter().flatten().collect();
    output::line(neutral::line(format!("{kind:12} {}", words.join("  ")).as_bytes()));
}
