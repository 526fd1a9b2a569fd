//! What came of a command.

use std::time::Duration;

use tierbox_core::{ExecRequest, Outcome};

use crate::case::{Verdict, ensure, ensure_eq};
use crate::subject::Subject;

cases! { "outcome":
    exit_codes_are_exact [] "Exited carries the status, 0 to 255.";
    failure_is_no_error [] "A command that fails is a result, not an error, and keeps its output.";
    signals_are_told [] "A command that a signal ends is Signaled, not Killed, not 128 + n.";
    wall_time_is_measured [] "Wall time is from launch to end.";
    cpu_time_and_memory_are_measured [Usage] "CPU time and peak memory are reported where declared.";
    waiting_again_tells_the_same [] "wait may be called again and returns the same.";
}

async fn exit_codes_are_exact(s: Subject) -> Verdict {
    for code in [0, 1, 2, 42, 100, 125, 126, 127, 128, 129, 137, 143, 255] {
        let result = s.run(ExecRequest::shell(format!("exit {code}"))).await?;
        ensure_eq!(result.outcome(), Outcome::Exited(code), "outcome of exit {code}");
        ensure_eq!(result.success(), code == 0, "success of exit {code}");
    }
    Ok(())
}

async fn failure_is_no_error(s: Subject) -> Verdict {
    let result = s.run(ExecRequest::shell("echo out; echo err >&2; exit 3")).await?;
    ensure_eq!(result.outcome(), Outcome::Exited(3), "outcome");
    ensure_eq!((result.stdout.bytes(), result.stderr.bytes()), (b"out\n".to_vec(), b"err\n".to_vec()), "output");
    Ok(())
}

async fn signals_are_told(s: Subject) -> Verdict {
    for (name, number) in [("KILL", 9), ("TERM", 15), ("ABRT", 6), ("SEGV", 11), ("PIPE", 13)] {
        let result = s.run(ExecRequest::shell(format!("kill -{name} $$; sleep 5"))).await?;
        ensure_eq!(result.outcome(), Outcome::Signaled(number), "outcome of kill -{name} $$");
    }
    Ok(())
}

async fn wall_time_is_measured(s: Subject) -> Verdict {
    let wall = s.run(ExecRequest::new(["sleep", "0.3"])).await?.completed.usage.wall;
    ensure!(wall >= Duration::from_millis(290), "sleep 0.3 took only {wall:?}");
    ensure!(wall < Duration::from_secs(8), "sleep 0.3 took {wall:?}");
    Ok(())
}

async fn cpu_time_and_memory_are_measured(s: Subject) -> Verdict {
    let script = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
    let usage = s.run(ExecRequest::shell(script)).await?.completed.usage;
    let (Some(user), Some(_)) = (usage.cpu_user, usage.cpu_system) else {
        ensure!(false, "CPU time is declared and missing: {usage:?}");
        return Ok(());
    };
    ensure!(user >= Duration::from_millis(5) && user < Duration::from_secs(20), "a busy loop used {user:?} of CPU");
    ensure!(
        usage.peak_memory.is_some_and(|peak| (64 << 10..1 << 30).contains(&peak)),
        "a shell's peak memory: {:?}",
        usage.peak_memory
    );
    Ok(())
}

async fn waiting_again_tells_the_same(s: Subject) -> Verdict {
    let mut handle = s.spawn(ExecRequest::shell("exit 9")).await?;
    let first = s.soon("the end", handle.wait()).await??;
    let second = s.soon("the same end", handle.wait()).await??;
    ensure_eq!(first.outcome, Outcome::Exited(9), "outcome");
    ensure_eq!(second, first, "the second wait");
    Ok(())
}
