//! Signals to a running command.

use std::time::Duration;

use tierbox_core::{ErrorKind, ExecHandle, ExecRequest, Outcome, Signal};

use super::streaming::read_until;
use crate::case::{Fail, Verdict, ensure_eq, ensure_kind};
use crate::subject::Subject;

cases! { "signals":
    trapped_signals_arrive [Signals] "A signal reaches the command, which may handle it.";
    untrapped_signals_end_it [Signals] "A signal that is not handled ends the command, and the outcome says so.";
    every_number_is_passed [Signals] "The signal that arrives is the one that was sent.";
    stop_and_continue [Signals] "A command can be stopped and continued.";
    after_the_end_is_not_found [Signals] "A signal to a command that ended is NotFound.";
}

async fn started(s: &Subject, script: String) -> Verdict<Box<dyn ExecHandle>> {
    let mut handle = s.spawn(s.shell(script)).await?;
    let mut stdout = handle.take_stdout().ok_or_else(|| Fail::Broken("stdout is missing".into()))?;
    read_until(s, &mut stdout, "ready").await?;
    Ok(handle)
}

async fn trapped_signals_arrive(s: Subject) -> Verdict {
    let mut handle = started(&s, "trap 'exit 7' TERM; echo ready; while :; do sleep 0.02; done".into()).await?;
    handle.signal(Signal::TERM).await?;
    ensure_eq!(s.outcome(&mut handle).await?, Outcome::Exited(7), "outcome");
    Ok(())
}

async fn untrapped_signals_end_it(s: Subject) -> Verdict {
    for signal in [Signal::TERM, Signal::KILL, Signal::USR1] {
        let mut handle = started(&s, "echo ready; exec sleep 1000".into()).await?;
        handle.signal(signal).await?;
        ensure_eq!(s.outcome(&mut handle).await?, Outcome::Signaled(signal.number()), "outcome");
    }
    Ok(())
}

async fn every_number_is_passed(s: Subject) -> Verdict {
    let script =
        "for n in 1 2 3 10 12 15; do trap \"exit 1$(printf %02d $n)\" $n; done; echo ready; while :; do sleep 0.02; done";
    for number in [1, 2, 3, 10, 12, 15] {
        let mut handle = started(&s, script.into()).await?;
        handle.signal(Signal::new(number)?).await?;
        ensure_eq!(s.outcome(&mut handle).await?, Outcome::Exited(100 + number), "outcome after signal {number}");
    }
    Ok(())
}

async fn stop_and_continue(s: Subject) -> Verdict {
    let script = "echo ready; i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo $i > t; mv t beat; sleep 0.01; done";
    let mut handle = started(&s, script.into()).await?;
    let beat = || async { Ok::<u64, Fail>(s.text("cat beat 2>/dev/null || echo 0").await?.parse().unwrap_or(0)) };
    s.until(s.patience, "it works", || async { Ok(beat().await? > 0) }).await?;
    handle.signal(Signal::STOP).await?;
    // A stopped shell makes no progress between two looks; a running one makes about thirty steps.
    s.until(s.patience, "it stands still", || async {
        let before = beat().await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        Ok(beat().await? == before)
    })
    .await?;
    let before = beat().await?;
    handle.signal(Signal::CONT).await?;
    s.until(s.patience, "it works again", || async { Ok(beat().await? > before) }).await?;
    handle.signal(Signal::KILL).await?;
    ensure_eq!(s.outcome(&mut handle).await?, Outcome::Signaled(9), "outcome");
    Ok(())
}

async fn after_the_end_is_not_found(s: Subject) -> Verdict {
    let mut handle = s.spawn(ExecRequest::new(["/bin/true"])).await?;
    s.outcome(&mut handle).await?;
    ensure_kind(handle.signal(Signal::TERM).await, ErrorKind::NotFound, "a signal after the end")
}
