//! Pseudo-terminals.

use tierbox_core::{ErrorKind, ExecHandle, ExecRequest, Outcome, PtySize, SandboxExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::streaming::read_until;
use crate::case::{Fail, Verdict, ensure, ensure_eq, ensure_kind};
use crate::subject::Subject;

cases! { "pty":
    all_three_streams_are_a_terminal [Pty] "With a pty all three streams are a terminal, the controlling one, and stderr carries nothing.";
    size_is_set [Pty] "The terminal has the size that was asked for.";
    resize_is_seen [Pty, StreamingStdin] "A change of size is seen, with SIGWINCH.";
    control_c_interrupts [Pty, StreamingStdin] "Control characters act: ^C is SIGINT.";
    end_of_file_ends_a_reader [Pty, StreamingStdin] "^D ends a reader, and the exit status is the command's.";
    resize_without_a_terminal_is_refused [] "resize without a terminal is InvalidInput.";
    zero_size_is_refused [] "A terminal of size zero is InvalidInput.";
    timeout_kills_its_session [Pty] "A timeout kills a command with a terminal like any other.";
}

const SIZE: PtySize = PtySize { rows: 33, cols: 101 };

fn missing() -> Fail {
    Fail::Broken("a stream of the handle is missing".to_owned())
}

async fn run(s: &Subject, script: &str) -> Verdict<(Outcome, String, String)> {
    let mut handle = s.spawn(ExecRequest::shell(script).pty(SIZE)).await?;
    let (mut out, mut err) = (handle.take_stdout().ok_or_else(missing)?, handle.take_stderr());
    let (mut seen, mut complaint) = (Vec::new(), Vec::new());
    s.soon("the end of the terminal's output", out.read_to_end(&mut seen)).await??;
    if let Some(err) = &mut err {
        s.soon("the end of stderr", err.read_to_end(&mut complaint)).await??;
    }
    let outcome = s.outcome(&mut handle).await?;
    Ok((outcome, String::from_utf8_lossy(&seen).into_owned(), String::from_utf8_lossy(&complaint).into_owned()))
}

async fn all_three_streams_are_a_terminal(s: Subject) -> Verdict {
    let (outcome, out, err) =
        run(&s, "test -t 0 && test -t 1 && test -t 2 && : </dev/tty && tty && echo oops >&2 && exit 4").await?;
    ensure_eq!(outcome, Outcome::Exited(4), "outcome, having said {out:?}");
    ensure!(out.contains("/dev/pts/") && out.contains("oops"), "the terminal said {out:?}");
    ensure_eq!(err, "", "stderr");
    Ok(())
}

async fn size_is_set(s: Subject) -> Verdict {
    let (_, out, _) = run(&s, "stty size").await?;
    ensure_eq!(out.trim(), "33 101", "stty size");
    Ok(())
}

async fn interactive(s: &Subject, script: &str) -> Verdict<Box<dyn ExecHandle>> {
    s.spawn(ExecRequest::shell(script).pty(SIZE).stdin_stream()).await
}

async fn resize_is_seen(s: Subject) -> Verdict {
    let mut handle = interactive(&s, "trap 'stty size; exit 5' WINCH; echo ready; while :; do sleep 0.02; done").await?;
    let mut out = handle.take_stdout().ok_or_else(missing)?;
    read_until(&s, &mut out, "ready").await?;
    handle.resize(PtySize { rows: 10, cols: 20 }).await?;
    read_until(&s, &mut out, "10 20").await?;
    ensure_eq!(s.outcome(&mut handle).await?, Outcome::Exited(5), "outcome");
    ensure_kind(handle.resize(PtySize { rows: 0, cols: 20 }).await, ErrorKind::InvalidInput, "a resize to zero rows")
}

async fn control_c_interrupts(s: Subject) -> Verdict {
    let mut handle = interactive(&s, "trap 'exit 6' INT; echo ready; while :; do sleep 0.02; done").await?;
    let mut out = handle.take_stdout().ok_or_else(missing)?;
    let mut stdin = handle.take_stdin().ok_or_else(missing)?;
    read_until(&s, &mut out, "ready").await?;
    stdin.write_all(b"\x03").await?;
    stdin.flush().await?;
    ensure_eq!(s.outcome(&mut handle).await?, Outcome::Exited(6), "outcome");
    Ok(())
}

async fn end_of_file_ends_a_reader(s: Subject) -> Verdict {
    let mut handle = interactive(&s, "stty -echo; echo ready; cat; echo over; exit 9").await?;
    let mut out = handle.take_stdout().ok_or_else(missing)?;
    let mut stdin = handle.take_stdin().ok_or_else(missing)?;
    read_until(&s, &mut out, "ready").await?;
    stdin.write_all(b"typed\n").await?;
    read_until(&s, &mut out, "typed").await?;
    stdin.write_all(b"\x04").await?;
    stdin.flush().await?;
    read_until(&s, &mut out, "over").await?;
    ensure_eq!(s.outcome(&mut handle).await?, Outcome::Exited(9), "outcome");
    Ok(())
}

async fn resize_without_a_terminal_is_refused(s: Subject) -> Verdict {
    let mut handle = s.spawn(ExecRequest::new(["sleep", "0.2"])).await?;
    ensure_kind(handle.resize(SIZE).await, ErrorKind::InvalidInput, "a resize without a terminal")?;
    s.outcome(&mut handle).await?;
    Ok(())
}

async fn zero_size_is_refused(s: Subject) -> Verdict {
    for size in [PtySize { rows: 0, cols: 80 }, PtySize { rows: 24, cols: 0 }] {
        ensure_kind(
            s.sandbox.run(ExecRequest::new(["/bin/true"]).pty(size)).await,
            ErrorKind::InvalidInput,
            "a terminal of size zero",
        )?;
    }
    Ok(())
}

async fn timeout_kills_its_session(s: Subject) -> Verdict {
    let request = ExecRequest::shell("trap '' HUP TERM INT; while :; do sleep 0.1; done").pty(SIZE);
    let result = s.run(request.timeout(std::time::Duration::from_millis(300))).await?;
    ensure_eq!(result.outcome(), Outcome::Killed(tierbox_core::KillReason::Timeout), "outcome");
    Ok(())
}
