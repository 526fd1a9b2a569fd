//! Many things at once.

use std::time::Duration;

use tierbox_core::{ExecRequest, KillReason, Outcome, ReadOptions, SandboxExt};
use tokio::task::JoinSet;

use super::stdin::pattern;
use crate::case::{Fail, Verdict, ensure, ensure_eq};
use crate::subject::Subject;

cases! { "concurrency":
    fifty_execs_run_at_once [] "Fifty commands run at the same time, each with its own output.";
    files_move_in_parallel [Files] "Files are written and read in parallel without mixing.";
    a_reader_that_stops_stalls_nobody_else [] "A command whose output nobody reads does not hold up others.";
    an_unread_file_stalls_nobody_else [Files] "A file that nobody goes on reading does not hold up others.";
    handles_work_from_several_threads [] "A sandbox may be used from several threads and runtimes.";
    launches_and_cancels_race_cleanly [] "A hundred launches cancelled at once leave the sandbox working.";
}

async fn all(mut tasks: JoinSet<Verdict>) -> Verdict {
    while let Some(done) = tasks.join_next().await {
        done.map_err(|error| Fail::Broken(error.to_string()))??;
    }
    Ok(())
}

async fn fifty_execs_run_at_once(s: Subject) -> Verdict {
    // Each waits until all have begun, so they end only if they really run together.
    let script = "mkdir -p here; touch here/$1; me=$1; while set -- here/*; [ $# -lt 50 ]; do sleep 0.3; done; echo $me";
    let mut tasks = JoinSet::new();
    for number in 0..50 {
        let s = s.clone();
        tasks.spawn(async move {
            let request = ExecRequest::new(["/bin/sh", "-c", script, "sh", &number.to_string()]).cwd(s.dir.as_str());
            let result = s.run(request).await?;
            ensure_eq!(
                (result.outcome(), result.stdout.bytes()),
                (Outcome::Exited(0), format!("{number}\n").into_bytes()),
                "command {number}"
            );
            Ok(())
        });
    }
    all(tasks).await
}

async fn files_move_in_parallel(s: Subject) -> Verdict {
    let mut tasks = JoinSet::new();
    for number in 0..24 {
        let s = s.clone();
        tasks.spawn(async move {
            let (name, bytes) = (format!("file{number}"), pattern(100_000 + number * 7_001));
            for _ in 0..3 {
                s.write(&name, bytes.clone()).await?;
                ensure!(s.read(&name).await? == bytes, "{name} came back changed");
            }
            Ok(())
        });
    }
    all(tasks).await
}

async fn a_reader_that_stops_stalls_nobody_else(s: Subject) -> Verdict {
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let mut handle = s.spawn(ExecRequest::new(["yes"])).await?;
        stalled.push((handle.take_stdout(), handle));
    }
    for number in 0..10 {
        let result = s.run(ExecRequest::new(["echo", &number.to_string()])).await?;
        ensure_eq!(result.stdout.bytes(), format!("{number}\n").into_bytes(), "another command's output");
    }
    for (stdout, mut handle) in stalled {
        handle.kill(KillReason::Cancelled);
        drop(stdout);
        s.outcome(&mut handle).await?;
    }
    Ok(())
}

async fn an_unread_file_stalls_nobody_else(s: Subject) -> Verdict {
    s.sh("head -c 20000000 /dev/zero > big; echo x > small").await?;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(s.soon("a reader", s.sandbox.read(&s.path("big"), ReadOptions::default())).await??);
    }
    for _ in 0..5 {
        ensure_eq!(s.read("small").await?, b"x\n".to_vec(), "another file");
    }
    drop(open);
    s.sh("rm big").await?;
    Ok(())
}

async fn handles_work_from_several_threads(s: Subject) -> Verdict {
    let threads: Vec<_> = (0..4)
        .map(|number: i32| {
            let sandbox = s.sandbox.clone();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                Ok::<_, std::io::Error>(runtime.block_on(async move {
                    tokio::time::timeout(Duration::from_secs(10), sandbox.run(ExecRequest::shell(format!("exit {number}")))).await
                }))
            })
        })
        .collect();
    for (number, thread) in (0..).zip(threads) {
        let joined = tokio::task::spawn_blocking(move || thread.join()).await.map_err(|error| Fail::Broken(error.to_string()))?;
        let result = joined.map_err(|_| Fail::Broken("a thread panicked".into()))??;
        let result = result.map_err(|_| Fail::Broken("a command from another runtime did not end".into()))??;
        ensure_eq!(result.outcome(), Outcome::Exited(number), "outcome on thread {number}");
    }
    Ok(())
}

async fn launches_and_cancels_race_cleanly(s: Subject) -> Verdict {
    let mark = crate::subject::Mark::new();
    for _ in 0..100 {
        drop(s.spawn(ExecRequest::shell(mark.sleep())).await?);
    }
    s.gone(mark).await?;
    ensure_eq!(s.text("echo works").await?, "works", "the next command");
    Ok(())
}
