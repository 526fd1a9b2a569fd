//! Time limits.

use std::time::Duration;

use tierbox_core::{ErrorKind, ExecRequest, KillReason, Outcome, SandboxExt};

use crate::case::{Verdict, ensure, ensure_eq, ensure_kind};
use crate::subject::{Mark, Subject};

cases! { "timeouts":
    outcome_is_timeout [] "A command beyond its time is Killed(Timeout).";
    partial_output_is_kept [] "What it printed before is kept.";
    descendants_die [TreeKill] "setsid and double-forked children die with it.";
    term_is_not_asked [] "A command that ignores every signal it can is killed.";
    stopped_commands_die [] "A stopped command is killed.";
    sandbox_stays_usable [] "The sandbox works on afterwards.";
    quick_commands_are_left_alone [] "A command within its time ends by itself.";
    others_are_left_alone [] "Other commands, and what earlier ones left running, live on.";
    zero_is_refused [] "A time limit of zero is InvalidInput.";
    profile_limit_is_the_default [] "The profile's exec limit holds where the call sets none, and the call's wins.";
    idle_is_told_apart [IdleTimeout] "A silent command is Killed(Idle).";
    output_resets_idle [IdleTimeout] "Output resets the idle time, on either stream.";
}

const SHORT: Duration = Duration::from_millis(250);

async fn outcome_is_timeout(s: Subject) -> Verdict {
    let result = s.run(ExecRequest::new(["sleep", "1000"]).timeout(SHORT)).await?;
    ensure_eq!(result.outcome(), Outcome::Killed(KillReason::Timeout), "outcome");
    let wall = result.completed.usage.wall;
    // Not earlier by more than clocks and rounding make of it: over a plain transport the shell that waits is not the one that measures.
    ensure!(wall >= SHORT.mul_f64(0.8) && wall < Duration::from_secs(3), "it was killed after {wall:?}");
    Ok(())
}

async fn partial_output_is_kept(s: Subject) -> Verdict {
    let result = s.run(ExecRequest::shell("echo early; echo complaint >&2; sleep 1000").timeout(SHORT)).await?;
    ensure_eq!(result.outcome(), Outcome::Killed(KillReason::Timeout), "outcome");
    ensure_eq!((result.stdout.bytes(), result.stderr.bytes()), (b"early\n".to_vec(), b"complaint\n".to_vec()), "output");
    Ok(())
}

/// A script whose children leave its session, its process group, and its line of parents.
pub(super) fn scatter(mark: Mark) -> String {
    let sleep = mark.sleep();
    format!(
        "setsid {sleep} & (setsid sh -c '{sleep} & {sleep}' >/dev/null 2>&1 &) ; \
         (( {sleep} ) & ) ; sh -c 'trap \"\" TERM HUP INT; setsid {sleep} </dev/null >/dev/null 2>&1 &'; echo scattered; "
    )
}

async fn descendants_die(s: Subject) -> Verdict {
    let mark = Mark::new();
    let request = ExecRequest::shell(format!("{} sleep 1000", scatter(mark))).timeout(s.scaled(Duration::from_millis(400)));
    let mut handle = s.spawn(request).await?;
    s.until(s.scaled(Duration::from_secs(2)), "the children run", || s.alive(mark)).await?;
    ensure_eq!(s.outcome(&mut handle).await?, Outcome::Killed(KillReason::Timeout), "outcome");
    s.gone(mark).await
}

async fn term_is_not_asked(s: Subject) -> Verdict {
    let result = s.run(ExecRequest::shell("trap '' TERM INT HUP QUIT; while :; do sleep 0.1; done").timeout(SHORT)).await?;
    ensure_eq!(result.outcome(), Outcome::Killed(KillReason::Timeout), "outcome");
    Ok(())
}

async fn stopped_commands_die(s: Subject) -> Verdict {
    let mark = Mark::new();
    let result =
        s.run(ExecRequest::shell(format!("trap '' HUP; {} & sleep 0.1; kill -STOP $! $$", mark.sleep())).timeout(SHORT)).await?;
    ensure_eq!(result.outcome(), Outcome::Killed(KillReason::Timeout), "outcome");
    s.gone(mark).await
}

async fn sandbox_stays_usable(s: Subject) -> Verdict {
    s.sh("echo kept > file").await?;
    s.run(ExecRequest::new(["sleep", "1000"]).timeout(SHORT)).await?;
    ensure_eq!(s.text("cat file").await?, "kept", "the file afterwards");
    Ok(())
}

async fn quick_commands_are_left_alone(s: Subject) -> Verdict {
    let result = s.run(ExecRequest::shell("sleep 0.1; exit 5").timeout(Duration::from_secs(30))).await?;
    ensure_eq!(result.outcome(), Outcome::Exited(5), "outcome");
    Ok(())
}

async fn others_are_left_alone(s: Subject) -> Verdict {
    let (background, other) = (Mark::new(), Mark::new());
    s.sh(format!("{} >/dev/null 2>&1 &", background.sleep())).await?;
    let mut running = s.spawn(ExecRequest::shell(other.sleep())).await?;
    s.until(s.patience, "the other command runs", || s.alive(other)).await?;
    s.run(ExecRequest::new(["sleep", "1000"]).timeout(SHORT)).await?;
    ensure!(s.alive(other).await?, "another command died");
    ensure!(s.alive(background).await?, "what an earlier command left running died");
    running.kill(KillReason::Cancelled);
    s.outcome(&mut running).await?;
    Ok(())
}

async fn zero_is_refused(s: Subject) -> Verdict {
    let request = ExecRequest::new(["/bin/true"]).timeout(Duration::ZERO);
    ensure_kind(s.sandbox.run(request).await, ErrorKind::InvalidInput, "a timeout of zero")
}

async fn profile_limit_is_the_default(s: Subject) -> Verdict {
    let own = s.another(&|spec| spec.limits.exec = Some(Duration::from_millis(300))).await?;
    let result = own.run(ExecRequest::new(["sleep", "1000"])).await?;
    ensure_eq!(result.outcome(), Outcome::Killed(KillReason::Timeout), "outcome under the profile's limit");
    let result = own.run(ExecRequest::new(["sleep", "0.5"]).timeout(Duration::from_secs(20))).await?;
    ensure_eq!(result.outcome(), Outcome::Exited(0), "outcome under the call's limit");
    own.stop().await
}

async fn idle_is_told_apart(s: Subject) -> Verdict {
    let request = ExecRequest::shell("echo once; sleep 1000").idle_timeout(SHORT).timeout(Duration::from_secs(20));
    let result = s.run(request).await?;
    ensure_eq!(result.outcome(), Outcome::Killed(KillReason::Idle), "outcome");
    ensure_eq!(result.stdout.bytes(), b"once\n".to_vec(), "output");
    Ok(())
}

async fn output_resets_idle(s: Subject) -> Verdict {
    let script = "for i in 1 2 3 4; do sleep 0.2; echo $i; sleep 0.2; echo $i >&2; done; exit 8";
    let result = s.run(ExecRequest::shell(script).idle_timeout(Duration::from_millis(900))).await?;
    ensure_eq!(result.outcome(), Outcome::Exited(8), "outcome of a command that is never silent for long");
    Ok(())
}
