//! Cancelling.

use std::time::Duration;

use tierbox_core::{ExecRequest, KillReason, Outcome, SandboxExt};

use super::timeouts::scatter;
use crate::case::{Fail, Verdict, ensure, ensure_eq};
use crate::subject::{Mark, Subject};

cases! { "cancellation":
    kill_is_told [] "A cancelled command is Killed(Cancelled), and what it printed is kept.";
    kill_reaches_the_tree [TreeKill] "Cancelling kills setsid and double-forked children too.";
    drop_of_the_handle_cancels [TreeKill] "Dropping the handle kills the whole tree.";
    drop_outside_a_runtime_cancels [] "Dropping works on a thread without a runtime, and does not block.";
    drop_of_run_cancels [] "Dropping the future of a collected run kills the command.";
    kill_after_the_end_changes_nothing [] "The end that the machine recorded first is never rewritten.";
    sandbox_stays_usable [] "The sandbox works on afterwards, and what earlier commands left lives.";
    drop_after_the_end_kills_nothing [] "Dropping a handle whose command has ended leaves its background children alone.";
}

async fn sleeper(s: &Subject, script: String, mark: Mark) -> Verdict<Box<dyn tierbox_core::ExecHandle>> {
    let handle = s.spawn(ExecRequest::shell(script)).await?;
    s.until(s.patience, "the command runs", || s.alive(mark)).await?;
    Ok(handle)
}

async fn kill_is_told(s: Subject) -> Verdict {
    use tokio::io::AsyncReadExt;
    let mark = Mark::new();
    let mut handle = sleeper(&s, format!("echo early; {}", mark.sleep()), mark).await?;
    handle.kill(KillReason::Cancelled);
    let mut seen = String::new();
    let mut stdout = handle.take_stdout().ok_or_else(|| Fail::Broken("stdout is missing".into()))?;
    s.soon("the end of the output", stdout.read_to_string(&mut seen)).await??;
    ensure_eq!(seen, "early\n", "output");
    ensure_eq!(s.outcome(&mut handle).await?, Outcome::Killed(KillReason::Cancelled), "outcome");
    s.gone(mark).await
}

async fn kill_reaches_the_tree(s: Subject) -> Verdict {
    let mark = Mark::new();
    let mut handle = sleeper(&s, format!("{} sleep 1000", scatter(mark)), mark).await?;
    handle.kill(KillReason::Cancelled);
    ensure_eq!(s.outcome(&mut handle).await?, Outcome::Killed(KillReason::Cancelled), "outcome");
    s.gone(mark).await
}

async fn drop_of_the_handle_cancels(s: Subject) -> Verdict {
    let mark = Mark::new();
    drop(sleeper(&s, format!("{} sleep 1000", scatter(mark)), mark).await?);
    s.gone(mark).await
}

async fn drop_outside_a_runtime_cancels(s: Subject) -> Verdict {
    let mark = Mark::new();
    let handle = sleeper(&s, mark.sleep(), mark).await?;
    let took = std::thread::spawn(move || {
        let start = std::time::Instant::now();
        drop(handle);
        start.elapsed()
    })
    .join()
    .map_err(|_| Fail::Broken("dropping the handle panicked".into()))?;
    ensure!(took < Duration::from_millis(200), "dropping the handle blocked for {took:?}");
    s.gone(mark).await
}

async fn drop_of_run_cancels(s: Subject) -> Verdict {
    let mark = Mark::new();
    let run = s.sandbox.run(ExecRequest::shell(mark.sleep()));
    let cut = tokio::time::timeout(Duration::from_millis(300), run).await;
    ensure!(cut.is_err(), "the command ended by itself: {cut:?}");
    s.gone(mark).await
}

async fn kill_after_the_end_changes_nothing(s: Subject) -> Verdict {
    let mut handle = s.spawn(ExecRequest::shell("exit 3")).await?;
    ensure_eq!(s.outcome(&mut handle).await?, Outcome::Exited(3), "outcome");
    handle.kill(KillReason::Cancelled);
    ensure_eq!(s.outcome(&mut handle).await?, Outcome::Exited(3), "outcome after a late kill");
    Ok(())
}

async fn sandbox_stays_usable(s: Subject) -> Verdict {
    let (background, mark) = (Mark::new(), Mark::new());
    s.sh(format!("echo kept > file; {} >/dev/null 2>&1 &", background.sleep())).await?;
    drop(sleeper(&s, mark.sleep(), mark).await?);
    s.gone(mark).await?;
    ensure_eq!(s.text("cat file").await?, "kept", "the file afterwards");
    ensure!(s.alive(background).await?, "a background process of an earlier command died");
    Ok(())
}

async fn drop_after_the_end_kills_nothing(s: Subject) -> Verdict {
    let mark = Mark::new();
    let mut handle = s.spawn(ExecRequest::shell(format!("{} >/dev/null 2>&1 &", mark.sleep()))).await?;
    ensure_eq!(s.outcome(&mut handle).await?, Outcome::Exited(0), "outcome");
    drop(handle);
    tokio::time::sleep(Duration::from_millis(200)).await;
    ensure!(s.alive(mark).await?, "dropping the handle of an ended command killed what it left");
    Ok(())
}
