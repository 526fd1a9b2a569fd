//! Memory, CPU and output without end.

use std::time::{Duration, Instant};

use tierbox_core::{ExecRequest, KillReason, Limit, OnExceed, Outcome};

use super::{Canary, attacks};
use crate::case::{Verdict, ensure, ensure_eq};
use crate::subject::Subject;

attacks! { "load":
    e26_memory [LimitMemory, MemoryOutcome] "Allocating past the limit is told as Memory, and only for the command that did.";
    e26_memory_in_files [LimitMemory] "Files in memory count towards the limit, and do not end the sandbox.";
    e27_yes_on_both_streams [] "Endless output on both streams is bounded, and does not deadlock.";
    e27_a_line_of_a_gibibyte [] "A line of a GiB leaves the harness's memory as it was.";
    e27_bytes_that_are_no_text [] "Invalid UTF-8 arrives as it is.";
    e29_spinning_processors [] "With every processor busy inside, the sandbox still answers.";
    e30_no_core_file [] "A crash leaves no core file, neither inside nor on the host.";
}

const MIB: u64 = 1 << 20;

async fn e26_memory(s: Subject, _: Canary) -> Verdict {
    let own = s.another(&|spec| crate::conformance::limit_memory(&mut spec.limits, Limit::required(96 * MIB))).await?;
    let mut quiet = own.spawn(ExecRequest::new(["sleep", "1000"])).await?;
    for _ in 0..2 {
        let eater = own.run(ExecRequest::shell(crate::conformance::hold(300))).await?;
        ensure_eq!(eater.outcome(), Outcome::Killed(KillReason::Memory), "outcome");
    }
    let blameless = own.run(ExecRequest::shell("kill -9 $$")).await?;
    ensure_eq!(blameless.outcome(), Outcome::Signaled(9), "outcome of a command that killed itself");
    quiet.kill(KillReason::Cancelled);
    ensure_eq!(own.outcome(&mut quiet).await?, Outcome::Killed(KillReason::Cancelled), "outcome of a command that used nothing");
    own.stop().await
}

async fn e26_memory_in_files(s: Subject, _: Canary) -> Verdict {
    let own = s.another(&|spec| crate::conformance::limit_memory(&mut spec.limits, Limit::required(96 * MIB))).await?;
    let filled = own.run(own.shell("for d in /dev/shm . /tmp; do dd if=/dev/zero of=$d/fill bs=1M count=200 2>/dev/null; done; rm -f /dev/shm/fill fill /tmp/fill")).await?;
    ensure!(!matches!(filled.outcome(), Outcome::Lost), "the machine went away");
    ensure_eq!(own.text("rm -f /dev/shm/fill fill /tmp/fill; echo works").await?, "works", "the next command");
    own.stop().await
}

/// The harness's resident memory in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

async fn e27_yes_on_both_streams(s: Subject, _: Canary) -> Verdict {
    let before = resident();
    // Where output comes at the end alone, the machine holds it meanwhile, and only so much.
    let ends = match s.can(crate::case::Need::StreamingOutput) {
        true => [KillReason::Timeout; 2],
        false => [KillReason::Timeout, KillReason::OutputLimit],
    };
    let mut totals = [0, 0];
    // A busy machine may give one of the two no processor for the first of these times.
    for millis in [800, 1600, 3200] {
        let time = s.scaled(Duration::from_millis(millis));
        let request = ExecRequest::shell("yes & yes >&2").timeout(time).output_limit(MIB, OnExceed::Truncate);
        let result = s.run(request).await?;
        ensure!(ends.iter().any(|end| result.outcome() == Outcome::Killed(*end)), "the command ended as {}", result.outcome());
        ensure!(
            result.stdout.bytes().len() as u64 <= MIB && result.stderr.bytes().len() as u64 <= MIB,
            "more than the limit was kept"
        );
        totals = [result.stdout.total, result.stderr.total];
        if totals.iter().all(|total| *total > MIB) {
            break;
        }
    }
    ensure!(totals.iter().all(|total| *total > MIB), "a stream stood still: {totals:?} bytes");
    let grown = resident().saturating_sub(before);
    ensure!(grown < 64 * MIB, "the harness grew by {} MiB", grown / MIB);
    Ok(())
}

async fn e27_a_line_of_a_gibibyte(s: Subject, _: Canary) -> Verdict {
    let before = resident();
    let request = ExecRequest::shell("head -c 1073741824 /dev/zero").output_limit(MIB, OnExceed::Truncate);
    let result =
        crate::subject::within(s.scaled(Duration::from_secs(30)), "a GiB", tierbox_core::SandboxExt::run(&*s.sandbox, request))
            .await??;
    match s.can(crate::case::Need::StreamingOutput) {
        true => ensure_eq!((result.outcome(), result.stdout.total), (Outcome::Exited(0), 1 << 30), "outcome and bytes"),
        // Where the machine holds it until the end, it holds only so much.
        false => ensure_eq!(result.outcome(), Outcome::Killed(KillReason::OutputLimit), "outcome"),
    }
    let grown = resident().saturating_sub(before);
    ensure!(grown < 64 * MIB, "the harness grew by {} MiB", grown / MIB);
    Ok(())
}

async fn e27_bytes_that_are_no_text(s: Subject, _: Canary) -> Verdict {
    let result = s.run(ExecRequest::shell("printf '\\377\\376\\300\\257\\355\\240\\200\\033[2J'")).await?;
    ensure_eq!(result.stdout.bytes(), b"\xff\xfe\xc0\xaf\xed\xa0\x80\x1b[2J".to_vec(), "bytes");
    Ok(())
}

async fn e29_spinning_processors(s: Subject, _: Canary) -> Verdict {
    let own = s.another(&|_| ()).await?;
    let spin = "while :; do :; done";
    let mut spinning =
        own.spawn(ExecRequest::shell(format!("{spin} & {spin} & {spin} & {spin} & {spin} & {spin} & wait"))).await?;
    for _ in 0..5 {
        let start = Instant::now();
        ensure_eq!(own.text("echo works").await?, "works", "a command beside busy ones");
        ensure!(start.elapsed() < s.scaled(Duration::from_secs(8)), "it took {:?}", start.elapsed());
    }
    spinning.kill(KillReason::Cancelled);
    ensure_eq!(own.outcome(&mut spinning).await?, Outcome::Killed(KillReason::Cancelled), "outcome");
    own.stop().await
}

async fn e30_no_core_file(s: Subject, _: Canary) -> Verdict {
    let cores = || -> Vec<String> {
        let here = std::env::current_dir().into_iter().chain([std::path::PathBuf::from("/"), "/tmp".into(), "/var/crash".into()]);
        let names = here.filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten();
        names
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name == "core" || name.starts_with("core."))
            .collect()
    };
    let before = cores();
    let crash = s.run(s.shell("ulimit -c unlimited 2>/dev/null; sh -c 'kill -SEGV $$'; ls -A | grep -c core; :")).await?;
    ensure!(crash.stdout.bytes().ends_with(b"0\n"), "a core file is inside: {crash:?}");
    ensure_eq!(cores(), before, "core files on the host");
    Ok(())
}
