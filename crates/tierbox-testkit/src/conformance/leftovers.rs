//! Processes that a command leaves behind.

use std::time::Duration;

use tierbox_core::{ExecRequest, Outcome};

use super::timeouts::scatter;
use crate::case::{Verdict, ensure, ensure_eq};
use crate::subject::{Mark, Subject};

cases! { "leftovers":
    held_pipes_do_not_hold_the_call [] "The end of the command ends the call, not the end of its pipes.";
    they_live_on [] "What a command leaves running lives on, by default.";
    writers_live_on [] "A background child that goes on writing to the command's stdout is not killed by a closed pipe.";
    kill_takes_them [TreeKill] "With Leftovers::Kill they die with the command, setsid or not.";
    kill_keeps_the_outcome [] "Killing leftovers does not change the command's own end.";
}

async fn held_pipes_do_not_hold_the_call(s: Subject) -> Verdict {
    let mark = Mark::new();
    let request = ExecRequest::shell(format!("{} & echo hi; echo ho >&2; exit 3", mark.sleep()));
    let result =
        s.soon("the end of a command whose child holds stdout", tierbox_core::SandboxExt::run(&*s.sandbox, request)).await??;
    ensure_eq!(result.outcome(), Outcome::Exited(3), "outcome");
    ensure_eq!((result.stdout.bytes(), result.stderr.bytes()), (b"hi\n".to_vec(), b"ho\n".to_vec()), "output");
    ensure!(s.alive(mark).await?, "the background child was killed");
    Ok(())
}

async fn they_live_on(s: Subject) -> Verdict {
    let mark = Mark::new();
    s.sh(format!("{} >/dev/null 2>&1 &", mark.sleep())).await?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    ensure!(s.alive(mark).await?, "it was killed");
    Ok(())
}

async fn writers_live_on(s: Subject) -> Verdict {
    let script = "(i=0; while [ $i -lt 400 ]; do i=$((i+1)); echo tick; echo $i > beat.tmp; mv beat.tmp beat; sleep 0.03; done) & \
                  while ! test -e beat; do sleep 0.01; done; exit 0";
    let result = s.run(s.shell(script)).await?;
    ensure_eq!(result.outcome(), Outcome::Exited(0), "outcome");
    let first: u64 = s.text("cat beat").await?.parse().unwrap_or(u64::MAX);
    s.until(s.patience, "the background writer goes on", || async {
        Ok(s.text("cat beat").await?.parse::<u64>().unwrap_or(0) > first.saturating_add(20))
    })
    .await
}

async fn kill_takes_them(s: Subject) -> Verdict {
    let mark = Mark::new();
    let result = s.run(ExecRequest::shell(format!("{} exit 0", scatter(mark))).kill_leftovers()).await?;
    ensure_eq!(result.outcome(), Outcome::Exited(0), "outcome");
    ensure_eq!(result.stdout.bytes(), b"scattered\n".to_vec(), "output");
    s.gone(mark).await
}

async fn kill_keeps_the_outcome(s: Subject) -> Verdict {
    let mark = Mark::new();
    let result = s.run(ExecRequest::shell(format!("{} & exit 11", mark.sleep())).kill_leftovers()).await?;
    ensure_eq!(result.outcome(), Outcome::Exited(11), "outcome");
    Ok(())
}
