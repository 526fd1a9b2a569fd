//! How much a collected command retains.

use tierbox_core::{ExecRequest, KillReason, OnExceed, Outcome};

use crate::case::{Verdict, ensure, ensure_eq};
use crate::subject::Subject;

cases! { "output":
    truncation_keeps_both_ends [] "Beyond the limit the first and the last part are kept, and the count is exact.";
    truncated_commands_run_on [] "Truncation does not disturb the command.";
    limit_is_per_stream [] "The limit bounds each stream by itself.";
    kill_is_told [] "With OnExceed::Kill the command is Killed(OutputLimit), and what came first is kept.";
    exactly_the_limit_is_whole [] "Output of exactly the limit is neither cut nor killed.";
    profile_limit_is_the_default [] "The profile's output limit holds where the call sets none.";
}

async fn truncation_keeps_both_ends(s: Subject) -> Verdict {
    let script = "printf first; head -c 3000000 /dev/zero; printf last";
    let result = s.run(ExecRequest::shell(script).output_limit(1000, OnExceed::Truncate)).await?;
    ensure_eq!(result.stdout.total, 3_000_009, "the count");
    ensure!(result.stdout.truncated(), "it is not marked as truncated");
    ensure_eq!(result.stdout.head.len() + result.stdout.tail.len(), 1000, "bytes kept");
    ensure!(result.stdout.head.starts_with(b"first") && result.stdout.tail.ends_with(b"last"), "an end is missing");
    Ok(())
}

async fn truncated_commands_run_on(s: Subject) -> Verdict {
    let result = s.run(s.shell("head -c 2000000 /dev/zero; touch done; exit 3").output_limit(100, OnExceed::Truncate)).await?;
    ensure_eq!(result.outcome(), Outcome::Exited(3), "outcome");
    ensure!(s.exists("done").await?, "it did not get to its end");
    Ok(())
}

async fn limit_is_per_stream(s: Subject) -> Verdict {
    let script = "printf 12345678; head -c 100000 /dev/zero >&2";
    let result = s.run(ExecRequest::shell(script).output_limit(10, OnExceed::Truncate)).await?;
    ensure_eq!((result.stdout.bytes(), result.stdout.truncated()), (b"12345678".to_vec(), false), "stdout");
    ensure_eq!((result.stderr.bytes().len(), result.stderr.total), (10, 100_000), "stderr");
    Ok(())
}

async fn kill_is_told(s: Subject) -> Verdict {
    let result = s.run(ExecRequest::new(["yes"]).output_limit(1 << 20, OnExceed::Kill)).await?;
    ensure_eq!(result.outcome(), Outcome::Killed(KillReason::OutputLimit), "outcome");
    ensure_eq!(result.stdout.head.len(), 1 << 20, "bytes kept");
    ensure!(
        result.stdout.head.starts_with(b"y\ny\n") && result.stdout.tail.is_empty(),
        "it kept something else than the first part"
    );
    Ok(())
}

async fn exactly_the_limit_is_whole(s: Subject) -> Verdict {
    for on_exceed in [OnExceed::Truncate, OnExceed::Kill] {
        let result = s.run(ExecRequest::shell("head -c 65536 /dev/zero").output_limit(65536, on_exceed)).await?;
        ensure_eq!(result.outcome(), Outcome::Exited(0), "outcome");
        ensure_eq!((result.stdout.bytes().len(), result.stdout.truncated()), (65536, false), "stdout");
    }
    Ok(())
}

async fn profile_limit_is_the_default(s: Subject) -> Verdict {
    let own = s.another(&|spec| spec.limits.output = 1000).await?;
    let result = own.run(ExecRequest::shell("head -c 5000 /dev/zero")).await?;
    ensure_eq!((result.stdout.bytes().len(), result.stdout.total), (1000, 5000), "bytes kept and counted");
    own.stop().await
}
