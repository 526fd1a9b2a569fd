//! Streams to what listens inside.

use tierbox_core::{DialTarget, ErrorKind, ExecHandle};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::stdin::pattern;
use super::streaming::read_until;
use crate::attack;
use crate::case::{Fail, Verdict, ensure, ensure_eq, ensure_kind};
use crate::subject::Subject;

cases! { "dial":
    tcp_echoes [Dial, Files] "A stream to a TCP port on the machine's loopback carries bytes both ways.";
    unix_echoes [Dial, Files] "A stream to a Unix socket carries bytes both ways.";
    half_close_passes [Dial, Files] "Shutting the sending half down is end of file inside, and the answer still arrives.";
    large_transfers_are_whole [Dial, Files] "Four MiB each way arrive whole.";
    many_streams_at_once [Dial, Files] "Twenty streams at once do not mix.";
    nothing_listening_is_not_found [Dial] "Dialling where nothing listens is NotFound.";
    dropped_streams_are_closed [Dial, Files] "Dropping a stream closes it inside.";
}

struct Echo {
    _handle: Box<dyn ExecHandle>,
    said: String,
}

/// Starts the echo server of the attack program inside, and waits until it listens.
async fn echo(s: &Subject, target: &str) -> Verdict<Echo> {
    let program = attack::install(s).await?;
    let mut handle = s.spawn(s.shell(format!("exec '{program}' echo {target}"))).await?;
    let mut stdout = handle.take_stdout().ok_or_else(|| Fail::Broken("stdout is missing".into()))?;
    let said = read_until(s, &mut stdout, "listening").await?;
    Ok(Echo { _handle: handle, said })
}

async fn tcp(s: &Subject) -> Verdict<(Echo, DialTarget)> {
    let echo = echo(s, "tcp").await?;
    let port = echo.said.split_whitespace().last().and_then(|word| word.parse().ok());
    let port = port.ok_or_else(|| Fail::Broken(format!("no port in {:?}", echo.said)))?;
    Ok((echo, DialTarget::Tcp(port)))
}

async fn round_trip(s: &Subject, target: DialTarget, bytes: &[u8]) -> Verdict {
    let stream = s.soon("a dial", s.sandbox.dial(target)).await??;
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut seen = Vec::new();
    let write = async {
        writer.write_all(bytes).await?;
        writer.shutdown().await
    };
    s.soon("the echo", async { tokio::try_join!(write, reader.read_to_end(&mut seen)) }).await??;
    ensure!(seen == bytes, "{} bytes came back of {}, or others", seen.len(), bytes.len());
    Ok(())
}

async fn tcp_echoes(s: Subject) -> Verdict {
    let (_echo, target) = tcp(&s).await?;
    let mut stream = s.soon("a dial", s.sandbox.dial(target)).await??;
    for text in ["hello", "again"] {
        stream.write_all(text.as_bytes()).await?;
        stream.flush().await?;
        let mut seen = [0; 5];
        s.soon("the echo", stream.read_exact(&mut seen)).await??;
        ensure_eq!(String::from_utf8_lossy(&seen), text, "the echo");
    }
    Ok(())
}

async fn unix_echoes(s: Subject) -> Verdict {
    let path = format!("{}/socket", s.dir);
    let _echo = echo(&s, &format!("unix '{path}'")).await?;
    round_trip(&s, DialTarget::Unix(path.into()), &pattern(1000)).await
}

async fn half_close_passes(s: Subject) -> Verdict {
    let (_echo, target) = tcp(&s).await?;
    round_trip(&s, target, b"the end is near").await
}

async fn large_transfers_are_whole(s: Subject) -> Verdict {
    let (_echo, target) = tcp(&s).await?;
    round_trip(&s, target, &pattern(4 << 20)).await
}

async fn many_streams_at_once(s: Subject) -> Verdict {
    let (_echo, target) = tcp(&s).await?;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..20 {
        let (s, target) = (s.clone(), target.clone());
        tasks.spawn(async move { round_trip(&s, target, &pattern(10_000 + number)).await });
    }
    while let Some(done) = tasks.join_next().await {
        done.map_err(|error| Fail::Broken(error.to_string()))??;
    }
    Ok(())
}

async fn nothing_listening_is_not_found(s: Subject) -> Verdict {
    let dialled = s.soon("the refusal", s.sandbox.dial(DialTarget::Tcp(1))).await?;
    ensure_kind(dialled.map(drop), ErrorKind::NotFound, "a dial to a port where nothing listens")?;
    let dialled = s.soon("the refusal", s.sandbox.dial(DialTarget::Unix(s.path("no-socket")))).await?;
    ensure_kind(dialled.map(drop), ErrorKind::NotFound, "a dial to a socket that is not there")
}

async fn dropped_streams_are_closed(s: Subject) -> Verdict {
    let path = format!("{}/socket", s.dir);
    let program = attack::install(&s).await?;
    let mut handle = s.spawn(s.shell(format!("exec '{program}' until-closed unix '{path}'"))).await?;
    let mut stdout = handle.take_stdout().ok_or_else(|| Fail::Broken("stdout is missing".into()))?;
    read_until(&s, &mut stdout, "listening").await?;
    drop(s.soon("a dial", s.sandbox.dial(DialTarget::Unix(path.into()))).await??);
    read_until(&s, &mut stdout, "closed").await?;
    Ok(())
}
