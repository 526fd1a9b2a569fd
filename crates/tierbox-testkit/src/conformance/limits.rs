//! Limits of an environment.

use tierbox_core::{ErrorKind, ExecRequest, KillReason, Limit, Limits, Outcome, SandboxExt};

use crate::case::{Verdict, ensure, ensure_eq, ensure_kind};
use crate::subject::Subject;

cases! { "limits":
    memory_outcome_is_told [LimitMemory, MemoryOutcome] "A command beyond the machine's memory is Killed(Memory), and the sandbox works on.";
    memory_is_bounded [LimitMemory] "A command cannot hold more than the machine's memory.";
    pids_are_bounded [LimitPids] "Processes beyond the limit cannot be made, and the next exec works.";
    disk_is_bounded [LimitDisk] "Writing beyond the disk limit is ENOSPC inside, not a kill; freed space can be used again.";
    full_disk_is_no_space [LimitDisk, Files] "A file operation that finds no space is NoSpace, and leaves the old contents.";
    inodes_are_bounded [LimitInodes] "Making more files than allowed is ENOSPC inside.";
    file_size_is_bounded [LimitFileSize] "A file beyond the size limit cannot be written.";
    open_files_are_bounded [LimitOpenFiles] "A process has as many open files as the limit allows.";
    cores_are_off [] "No core is dumped by default.";
    cpu_is_bounded [LimitCpu] "A busy machine gets no more CPU than its limit.";
    report_names_what_enforces [] "The report lists each limit of the profile, and what enforces it.";
}

const MIB: u64 = 1 << 20;

/// A script that holds so many MiB in the memory of one process, and then prints how many bytes they were.
pub(crate) fn hold(mib: u64) -> String {
    let bytes = mib * MIB;
    format!("head -c {} /dev/zero | {{ tail -c {bytes} || kill -9 $$; }} | wc -c", bytes + MIB)
}

/// Limits memory, and with it the writable areas that may be kept there.
pub(crate) fn memory(limits: &mut Limits, limit: Limit<u64>) {
    limits.memory = Some(limit);
    limits.disk = limits.disk.map(|disk| Limit { max: disk.max.min(16 * MIB), ..disk });
}

async fn memory_outcome_is_told(s: Subject) -> Verdict {
    let own = s.another(&|spec| memory(&mut spec.limits, Limit::required(96 * MIB))).await?;
    let result = own.run(ExecRequest::shell(hold(400))).await?;
    ensure_eq!(result.outcome(), Outcome::Killed(KillReason::Memory), "outcome");
    ensure_eq!(own.text("echo works").await?, "works", "the next command");
    own.stop().await
}

async fn memory_is_bounded(s: Subject) -> Verdict {
    let own = s.another(&|spec| memory(&mut spec.limits, Limit::required(96 * MIB))).await?;
    let result = own.run(ExecRequest::shell(hold(400))).await?;
    ensure!(result.stdout.bytes() != format!("{}\n", 400 * MIB).into_bytes(), "400 MiB were held under a limit of 96 MiB");
    let result = own.run(ExecRequest::shell(hold(8))).await?;
    ensure_eq!(String::from_utf8_lossy(&result.stdout.bytes()).trim(), (8 * MIB).to_string(), "bytes held within the limit");
    own.stop().await
}

async fn pids_are_bounded(s: Subject) -> Verdict {
    let own = s.another(&|spec| spec.limits.pids = Some(Limit::required(64))).await?;
    let script = "i=0; while [ $i -lt 200 ]; do sleep 1000 >/dev/null 2>&1 & i=$((i+1)); done; echo all";
    let result = own.run(ExecRequest::shell(script).kill_leftovers()).await?;
    ensure!(result.stdout.bytes() != b"all\n" || result.stderr.total > 0, "200 processes were made under a limit of 64");
    let count = own.run(ExecRequest::shell("sleep 1000 >/dev/null 2>&1 & ls -d /proc/[0-9]* | wc -l").kill_leftovers()).await?;
    ensure!(count.success(), "the next command failed: {count:?}");
    own.stop().await
}

async fn disk_is_bounded(s: Subject) -> Verdict {
    let own = s.another(&|spec| spec.limits.disk = Some(Limit::required(8 * MIB))).await?;
    let full = own.run(own.shell("dd if=/dev/zero of=big bs=1M count=32")).await?;
    ensure_eq!(full.outcome(), Outcome::Exited(1), "outcome of dd");
    ensure!(full.stderr.text().contains("No space left"), "dd said {:?}", full.stderr.text());
    let size: u64 = own.text("stat -c %s big").await?.parse().unwrap_or(0);
    ensure!((4 * MIB..=8 * MIB).contains(&size), "{size} bytes were written under a limit of {}", 8 * MIB);
    own.sh("rm big && dd if=/dev/zero of=again bs=1M count=4").await?;
    own.stop().await
}

async fn full_disk_is_no_space(s: Subject) -> Verdict {
    let own = s.another(&|spec| spec.limits.disk = Some(Limit::required(8 * MIB))).await?;
    own.write("file", "old").await?;
    let write = own.soon("the refusal", own.sandbox.write_bytes(own.path("file"), vec![b'x'; 20 << 20])).await?;
    ensure_kind(write, ErrorKind::NoSpace, "a write of 20 MiB under a limit of 8 MiB")?;
    ensure_eq!(own.read("file").await?, b"old".to_vec(), "the file");
    own.write("next", vec![b'y'; 4 << 20]).await?;
    own.stop().await
}

async fn inodes_are_bounded(s: Subject) -> Verdict {
    let own = s.another(&|spec| spec.limits.inodes = Some(Limit::required(300))).await?;
    let result = own.run(own.shell("mkdir many; cd many; seq 1000 | xargs touch")).await?;
    ensure!(!result.success(), "1000 files were made under a limit of 300");
    ensure!(
        result.stderr.text().contains("No space left"),
        "touch said {:?}",
        result.stderr.text().chars().take(200).collect::<String>()
    );
    let made: u64 = own.text("ls many | wc -l").await?.parse().unwrap_or(u64::MAX);
    ensure!(made <= 300, "{made} files were made under a limit of 300");
    own.sh("rm -r many; touch again").await?;
    own.stop().await
}

async fn file_size_is_bounded(s: Subject) -> Verdict {
    let own = s.another(&|spec| spec.limits.file_size = Some(Limit::required(MIB))).await?;
    let result = own.run(own.shell("head -c 3000000 /dev/zero > big")).await?;
    ensure!(!result.success(), "3 MB were written under a limit of 1 MiB");
    let size: u64 = own.text("stat -c %s big").await?.parse().unwrap_or(u64::MAX);
    ensure!(size <= MIB, "the file has {size} bytes");
    own.stop().await
}

async fn open_files_are_bounded(s: Subject) -> Verdict {
    let own = s.another(&|spec| spec.limits.open_files = Some(Limit::required(77))).await?;
    ensure_eq!(own.text("ulimit -n; ulimit -Hn").await?, "77\n77", "soft and hard limit");
    own.stop().await
}

async fn cores_are_off(s: Subject) -> Verdict {
    let result = s.run(s.shell("ulimit -c; ulimit -Hc; sh -c 'kill -SEGV $$'; ls -A")).await?;
    ensure_eq!(String::from_utf8_lossy(&result.stdout.bytes()).trim(), "0\n0", "core limits, and files after a crash");
    Ok(())
}

async fn cpu_is_bounded(s: Subject) -> Verdict {
    let own = s.another(&|spec| spec.limits.cpu_millis = Some(Limit::required(50))).await?;
    // The shell counts its own CPU time; `times` prints it as 0m0.123s.
    let script = "end=$(($(date +%s%N)+1500000000)); while [ $(date +%s%N) -lt $end ]; do :; done; times";
    let result = own.run(ExecRequest::shell(script)).await?;
    let text = result.stdout.text();
    let used_ms: u64 = text.split_whitespace().filter_map(milliseconds).sum();
    ensure!(used_ms > 0, "the shell counted no CPU time: {text:?}");
    let wall_ms = result.completed.usage.wall.as_millis() as u64;
    // So low a limit that a busy machine gives more than twice as much to whoever has none.
    ensure!(used_ms * 100 < wall_ms * 11, "{used_ms} ms of CPU in {wall_ms} ms under a limit of a twentieth");
    own.stop().await
}

/// What `times` prints, such as 0m0.123s.
fn milliseconds(part: &str) -> Option<u64> {
    let (minutes, seconds) = part.strip_suffix('s')?.split_once('m')?;
    let seconds: f64 = seconds.parse().ok()?;
    Some(minutes.parse::<u64>().ok()? * 60_000 + (seconds * 1000.0) as u64)
}

async fn report_names_what_enforces(s: Subject) -> Verdict {
    let own = s
        .another(&|spec| {
            memory(&mut spec.limits, Limit::best(256 * MIB));
            spec.limits.pids = Some(Limit::best(200));
            spec.limits.open_files = Some(Limit::best(500));
        })
        .await?;
    let limits = &own.environment.report().limits;
    for name in ["memory", "pids", "open-files"] {
        let found = limits.iter().find(|limit| limit.name.replace('_', "-") == name);
        ensure!(found.is_some_and(|limit| !limit.by.is_empty()), "{name} is not in the report: {limits:?}");
    }
    own.stop().await
}
