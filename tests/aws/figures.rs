//! How long things take and how many calls, beside Inspect's Python plugin on the same server with the same delays; and two hundred
//! instances within rates of the API. They print what they measured, and need a machine to themselves: they are there only where
//! `TIERBOX_TEST_FIGURES` is set.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use serde_json::json;
use tierbox_core::{ExecRequest, Outcome as End, SandboxExt};
use tokio::sync::Semaphore;

use super::world::{Outcome, World, ensure, text, trial};

pub fn all() -> Vec<Trial> {
    if std::env::var_os("TIERBOX_TEST_FIGURES").is_none() {
        return Vec::new();
    }
    vec![trial("slow::figures::latency_and_calls", latency), trial("slow::figures::two_hundred_instances_within_rates", crowd)]
}

fn total(calls: &BTreeMap<String, u64>) -> u64 {
    calls.values().sum()
}

/// The median time and the median number of calls of some rounds.
async fn median<F>(world: &World, rounds: usize, work: impl Fn() -> F) -> Result<(Duration, u64), String>
where
    F: Future<Output = Outcome>,
{
    let (mut times, mut counts) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let begun = Instant::now();
        let (done, calls) = world
            .counted(async {
                let done = work().await;
                (done, begun.elapsed())
            })
            .await;
        done.0?;
        times.push(done.1);
        counts.push(total(&calls));
    }
    times.sort();
    counts.sort_unstable();
    Ok((times[rounds / 2], counts[rounds / 2]))
}

async fn latency(world: World) -> Outcome {
    let started = world.usual().await?;
    let sandbox = started.environment.primary();
    let sandbox = &sandbox;
    let run = |request: fn() -> ExecRequest| {
        move || async move {
            let done = sandbox.run(request()).await.map_err(text)?;
            ensure!(done.outcome() == End::Exited(0), "{done:?}");
            Ok(())
        }
    };
    let exec = median(&world, 15, run(|| ExecRequest::new(["true"]))).await?;
    let stdin = median(&world, 7, run(|| ExecRequest::new(["cat"]).stdin_bytes(vec![7; 100_000]))).await?;
    let write = median(&world, 15, || async { sandbox.write_bytes("small", "0123456789").await.map_err(text) }).await?;
    let read = median(&world, 15, || async { sandbox.read_bytes("small", 100).await.map(drop).map_err(text) }).await?;
    println!("exec true: {:?}, {} calls (the plugin: 1.6 s, 9 calls)", exec.0, exec.1);
    println!("write of 10 bytes: {:?}, {} calls (the plugin: 2.7 s, 21 calls)", write.0, write.1);
    println!("read of 10 bytes: {:?}, {} calls", read.0, read.1);
    println!("100 kB of stdin and back: {:?}, {} calls (the plugin: fails)", stdin.0, stdin.1);
    ensure!(exec.1 <= 3 && write.1 <= 3 && read.1 <= 3, "too many calls: {exec:?} {write:?} {read:?}");
    started.environment.stop().await.map_err(text)
}

/// Rates about as AWS states them for an account: buckets whose burst is their rate.
async fn crowd(world: World) -> Outcome {
    const COUNT: usize = 200;
    let rates = json!({"ec2:RunInstances": 5, "ec2:TerminateInstances": 5, "ec2:DescribeInstances": 20, "SendCommand": 20,
                       "GetCommandInvocation": 20, "ListCommandInvocations": 5, "DescribeInstanceInformation": 10});
    world.server.set(json!({"tps": rates}));
    let world = Arc::new(world);
    let places = Arc::new(Semaphore::new(24));
    let begun = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for number in 0..COUNT {
        let (world, places) = (world.clone(), places.clone());
        running.spawn(async move {
            let _place = places.acquire_owned().await.map_err(text)?;
            let spec = world.spec(|spec| spec.limits.startup = Duration::from_secs(600));
            let started = world.start(&spec).await.map_err(text)?;
            let sandbox = started.environment.primary();
            let done = sandbox.run(ExecRequest::shell(format!("echo {number} >> ran; cat ran"))).await.map_err(text)?;
            ensure!(done.stdout.text() == format!("{number}\n"), "{number} ran otherwise than once: {done:?}");
            started.environment.stop().await.map_err(text)
        });
    }
    let mut failed = Vec::new();
    while let Some(done) = running.join_next().await {
        failed.extend(done.map_err(text)?.err());
    }
    let calls = world.server.calls();
    println!("{COUNT} instances in {:?}, {} calls: {calls:?}", begun.elapsed(), total(&calls));
    ensure!(failed.is_empty(), "{} of {COUNT} failed: {}", failed.len(), failed[0]);
    ensure!(world.is_clean(), "{:?}", world.server.objects());
    Ok(())
}
