//! What a command reads.

use tierbox_core::{ExecRequest, Outcome};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::streaming::read_until;
use crate::case::{Fail, Verdict, ensure, ensure_eq};
use crate::subject::Subject;

cases! { "stdin":
    none_is_dev_null [] "No stdin is /dev/null.";
    empty_bytes_are_a_pipe_at_its_end [] "Empty stdin differs from none: a pipe that is at its end.";
    bytes_are_exact [] "Bytes arrive exactly, then end of file.";
    a_mebibyte_arrives [] "Bytes beyond every pipe's size arrive whole while the command answers.";
    unread_bytes_are_no_error [] "A command that does not read its stdin ends as it likes.";
    stream_is_interactive [StreamingStdin, StreamingOutput] "What is written to a stream arrives at once.";
    shutdown_is_end_of_file [StreamingStdin] "Shutting stdin down is end of file, and output goes on.";
    drop_is_end_of_file [StreamingStdin] "Dropping stdin is end of file.";
    stream_is_taken_once [StreamingStdin] "take_stdin gives the stream once.";
    large_stream_arrives [StreamingStdin] "Streamed input beyond every buffer arrives whole.";
}

async fn none_is_dev_null(s: Subject) -> Verdict {
    ensure_eq!(s.text("readlink /proc/self/fd/0").await?, "/dev/null", "stdin");
    Ok(())
}

async fn empty_bytes_are_a_pipe_at_its_end(s: Subject) -> Verdict {
    let result = s.run(ExecRequest::shell("readlink /proc/self/fd/0; wc -c").stdin_bytes("")).await?;
    let text = String::from_utf8_lossy(&result.stdout.bytes()).into_owned();
    ensure!(!text.contains("/dev/null"), "empty stdin is /dev/null");
    ensure_eq!(text.lines().last().map(str::trim), Some("0"), "bytes read");
    Ok(())
}

async fn bytes_are_exact(s: Subject) -> Verdict {
    let bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
    let result = s.run(ExecRequest::new(["cat"]).stdin_bytes(bytes.clone())).await?;
    ensure_eq!(result.stdout.bytes(), bytes, "what cat saw");
    Ok(())
}

async fn a_mebibyte_arrives(s: Subject) -> Verdict {
    let bytes = pattern(1 << 20);
    let result = s.run(ExecRequest::new(["cat"]).stdin_bytes(bytes.clone())).await?;
    ensure!(result.stdout.bytes() == bytes, "cat saw {} of {} bytes, or others", result.stdout.total, bytes.len());
    Ok(())
}

/// Bytes without a short period.
pub(super) fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

async fn unread_bytes_are_no_error(s: Subject) -> Verdict {
    for request in
        [ExecRequest::new(["/bin/true"]), ExecRequest::shell("exec <&-; exit 0"), ExecRequest::shell("head -c 10 > /dev/null")]
    {
        let result = s.run(request.stdin_bytes(vec![b'x'; 4 << 20])).await?;
        ensure_eq!(result.outcome(), Outcome::Exited(0), "outcome");
    }
    Ok(())
}

async fn stream_is_interactive(s: Subject) -> Verdict {
    let mut handle = s.spawn(ExecRequest::shell("while read line; do echo \"got $line\"; done").stdin_stream()).await?;
    let mut stdin = handle.take_stdin().ok_or_else(missing)?;
    let mut stdout = handle.take_stdout().ok_or_else(missing)?;
    for number in 0..5 {
        stdin.write_all(format!("{number}\n").as_bytes()).await?;
        stdin.flush().await?;
        read_until(&s, &mut stdout, &format!("got {number}")).await?;
    }
    stdin.shutdown().await?;
    ensure_eq!(s.outcome(&mut handle).await?, Outcome::Exited(0), "outcome");
    Ok(())
}

fn missing() -> Fail {
    Fail::Broken("a stream of the handle is missing".to_owned())
}

async fn shutdown_is_end_of_file(s: Subject) -> Verdict {
    let mut handle = s.spawn(ExecRequest::shell("cat; echo after; sleep 0.1; echo later").stdin_stream()).await?;
    let mut stdin = handle.take_stdin().ok_or_else(missing)?;
    let mut stdout = handle.take_stdout().ok_or_else(missing)?;
    stdin.write_all(b"before\n").await?;
    stdin.shutdown().await?;
    let mut seen = String::new();
    s.soon("the end of the output", stdout.read_to_string(&mut seen)).await??;
    ensure_eq!(seen, "before\nafter\nlater\n", "output");
    ensure_eq!(s.outcome(&mut handle).await?, Outcome::Exited(0), "outcome");
    drop(stdin);
    Ok(())
}

async fn drop_is_end_of_file(s: Subject) -> Verdict {
    let mut handle = s.spawn(ExecRequest::shell("cat >/dev/null; exit 6").stdin_stream()).await?;
    drop(handle.take_stdin().ok_or_else(missing)?);
    ensure_eq!(s.outcome(&mut handle).await?, Outcome::Exited(6), "outcome");
    Ok(())
}

async fn stream_is_taken_once(s: Subject) -> Verdict {
    let mut handle = s.spawn(ExecRequest::new(["cat"]).stdin_stream()).await?;
    let first = handle.take_stdin();
    ensure!(first.is_some(), "no stdin");
    ensure!(handle.take_stdin().is_none(), "stdin was given twice");
    drop(first);
    ensure_eq!(s.outcome(&mut handle).await?, Outcome::Exited(0), "outcome");
    Ok(())
}

async fn large_stream_arrives(s: Subject) -> Verdict {
    let bytes = pattern(5 << 20);
    let mut handle = s.spawn(ExecRequest::new(["cat"]).stdin_stream()).await?;
    let mut stdin = handle.take_stdin().ok_or_else(missing)?;
    let mut stdout = handle.take_stdout().ok_or_else(missing)?;
    let mut seen = Vec::new();
    let write = async {
        stdin.write_all(&bytes).await?;
        stdin.shutdown().await
    };
    let (written, read) = s.soon("the round trip", async { tokio::join!(write, stdout.read_to_end(&mut seen)) }).await?;
    written?;
    read?;
    ensure!(seen == bytes, "{} bytes came back of {}, or others", seen.len(), bytes.len());
    s.outcome(&mut handle).await?;
    Ok(())
}
