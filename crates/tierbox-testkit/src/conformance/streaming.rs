//! Output while a command runs, and all of it.

use std::time::Duration;

use tierbox_core::{ByteReader, ExecRequest, Outcome};
use tokio::io::AsyncReadExt;

use crate::case::{Verdict, ensure, ensure_eq};
use crate::subject::Subject;

cases! { "streaming":
    streams_are_separate [] "stdout and stderr arrive separately.";
    bytes_are_exact [] "Output is bytes: every value, no final newline, nothing added.";
    streams_are_taken_once [] "take_stdout and take_stderr give a stream once.";
    output_arrives_while_it_runs [StreamingOutput] "A handle streams output while the command runs.";
    stderr_arrives_while_it_runs [StreamingOutput] "stderr does too, and with nothing on stdout.";
    unread_output_holds_the_command [StreamingOutput] "A reader that stops reading stops the command.";
    short_commands_lose_nothing [] "No output is lost, however short the command: 200 in a row.";
    large_output_is_whole [] "32 MiB arrive whole and in order.";
    wait_drains_what_nobody_reads [] "wait without readers drains and discards, and never hangs on a full pipe.";
    both_streams_at_once [] "Filling both streams at once does not deadlock.";
    streams_end_with_the_command [] "Output streams end when the command has ended.";
}

async fn streams_are_separate(s: Subject) -> Verdict {
    let result = s.run(ExecRequest::shell("for i in 1 2 3; do echo out$i; echo err$i >&2; done")).await?;
    ensure_eq!(String::from_utf8_lossy(&result.stdout.bytes()), "out1\nout2\nout3\n", "stdout");
    ensure_eq!(String::from_utf8_lossy(&result.stderr.bytes()), "err1\nerr2\nerr3\n", "stderr");
    Ok(())
}

async fn bytes_are_exact(s: Subject) -> Verdict {
    let octal: String = (0..=255).map(|byte| format!("\\{byte:03o}")).collect();
    let expected: Vec<u8> = (0..=255).collect();
    let result = s.run(ExecRequest::shell(format!("printf '{octal}'; printf '{octal}' >&2"))).await?;
    ensure_eq!(result.stdout.bytes(), expected, "stdout");
    ensure_eq!(result.stderr.bytes(), expected, "stderr");
    Ok(())
}

async fn streams_are_taken_once(s: Subject) -> Verdict {
    let mut handle = s.spawn(ExecRequest::new(["/bin/true"])).await?;
    ensure!(handle.take_stdout().is_some() && handle.take_stderr().is_some(), "a stream was not given");
    ensure!(handle.take_stdout().is_none() && handle.take_stderr().is_none(), "a stream was given twice");
    ensure!(handle.take_stdin().is_none(), "stdin was given without being asked for");
    s.outcome(&mut handle).await?;
    Ok(())
}

/// Reads until the stream has shown this text.
pub(super) async fn read_until(s: &Subject, reader: &mut ByteReader, wanted: &str) -> Verdict<String> {
    let mut seen = String::new();
    let mut chunk = [0; 4096];
    while !seen.contains(wanted) {
        let count = s.soon(&format!("{wanted:?} on a stream that so far said {seen:?}"), reader.read(&mut chunk)).await??;
        ensure!(count > 0, "the stream ended without {wanted:?}; it said {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&chunk[..count]));
    }
    Ok(seen)
}

async fn output_arrives_while_it_runs(s: Subject) -> Verdict {
    live(s, "echo ready").await
}

async fn stderr_arrives_while_it_runs(s: Subject) -> Verdict {
    live(s, "echo ready >&2").await
}

async fn live(s: Subject, say: &str) -> Verdict {
    let script = format!("{say}; while ! test -e go; do sleep 0.02; done; echo done; echo done >&2");
    let mut handle = s.spawn(s.shell(script)).await?;
    let (Some(mut stdout), Some(mut stderr)) = (handle.take_stdout(), handle.take_stderr()) else {
        ensure!(false, "a stream is missing");
        return Ok(());
    };
    let live = if say.contains('&') { &mut stderr } else { &mut stdout };
    read_until(&s, live, "ready").await?;
    s.sh("touch go").await?;
    read_until(&s, &mut stdout, "done").await?;
    read_until(&s, &mut stderr, "done").await?;
    ensure_eq!(s.outcome(&mut handle).await?, Outcome::Exited(0), "outcome");
    Ok(())
}

async fn unread_output_holds_the_command(s: Subject) -> Verdict {
    const SIZE: u64 = 32 << 20;
    let mut handle = s.spawn(s.shell(format!("head -c {SIZE} /dev/zero && touch done"))).await?;
    let Some(mut stdout) = handle.take_stdout() else {
        ensure!(false, "stdout is missing");
        return Ok(());
    };
    // Time enough for an unbounded reader to swallow all of it.
    tokio::time::sleep(Duration::from_millis(400)).await;
    ensure!(!s.exists("done").await?, "{SIZE} bytes that nobody read are gone from the command: something buffers without bound");
    let mut total = 0;
    let mut chunk = vec![0; 256 << 10];
    loop {
        match s.soon("more output", stdout.read(&mut chunk)).await?? {
            0 => break,
            count => total += count as u64,
        }
    }
    ensure_eq!(total, SIZE, "bytes that arrived once they were read");
    ensure_eq!(s.outcome(&mut handle).await?, Outcome::Exited(0), "outcome");
    Ok(())
}

async fn short_commands_lose_nothing(s: Subject) -> Verdict {
    for number in 0..200 {
        let result = s.run(ExecRequest::new(["/bin/echo", &number.to_string()])).await?;
        ensure_eq!(
            (result.outcome(), result.stdout.bytes()),
            (Outcome::Exited(0), format!("{number}\n").into_bytes()),
            "echo {number}"
        );
    }
    Ok(())
}

async fn large_output_is_whole(s: Subject) -> Verdict {
    // 32 MiB of numbered lines of 64 bytes: whatever is lost, doubled or swapped shows.
    const LINES: u64 = (32 << 20) / 64;
    let lines = "seq -f %063.0f 1 $0 2>/dev/null || awk -v n=\"$0\" 'BEGIN { for (i = 1; i <= n; i++) printf \"%063d\\n\", i }'";
    let mut handle = s.spawn(ExecRequest::new(["/bin/sh", "-c", lines, &LINES.to_string()])).await?;
    let mut reader = tokio::io::BufReader::with_capacity(256 << 10, handle.take_stdout().ok_or_else(missing)?);
    let mut line = [0; 64];
    for number in 1..=LINES {
        s.soon("a line", reader.read_exact(&mut line)).await??;
        let seen =
            line[..63].iter().try_fold(0u64, |sum, digit| digit.is_ascii_digit().then(|| sum * 10 + u64::from(digit - b'0')));
        ensure!(seen == Some(number) && line[63] == b'\n', "line {number} of {LINES} is \"{}\"", line.escape_ascii());
    }
    ensure_eq!(s.soon("the end", reader.read(&mut line)).await??, 0, "bytes after the last line");
    ensure_eq!(s.outcome(&mut handle).await?, Outcome::Exited(0), "outcome");
    Ok(())
}

fn missing() -> crate::case::Fail {
    crate::case::Fail::Broken("stdout is missing".to_owned())
}

async fn wait_drains_what_nobody_reads(s: Subject) -> Verdict {
    let mut handle = s.spawn(ExecRequest::shell("head -c 8388608 /dev/zero; head -c 8388608 /dev/zero >&2; exit 4")).await?;
    ensure_eq!(s.outcome(&mut handle).await?, Outcome::Exited(4), "outcome");
    Ok(())
}

async fn both_streams_at_once(s: Subject) -> Verdict {
    let script = "(head -c 4000000 /dev/zero >&2) & head -c 4000000 /dev/zero; wait";
    let result = s.run(ExecRequest::shell(script)).await?;
    ensure_eq!((result.stdout.total, result.stderr.total), (4_000_000, 4_000_000), "bytes on each stream");
    Ok(())
}

async fn streams_end_with_the_command(s: Subject) -> Verdict {
    let mut handle = s.spawn(ExecRequest::shell("echo a; echo b >&2")).await?;
    let mut both = Vec::new();
    for reader in [handle.take_stdout(), handle.take_stderr()].into_iter().flatten() {
        let mut reader = reader;
        let mut seen = Vec::new();
        s.soon("the end of a stream", reader.read_to_end(&mut seen)).await??;
        both.push(seen);
    }
    ensure_eq!(both, vec![b"a\n".to_vec(), b"b\n".to_vec()], "both streams");
    s.outcome(&mut handle).await?;
    Ok(())
}
