//! Many sandboxes at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tierbox::{ExecRequest, Running, SandboxExt, StartOptions, Tierbox};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::bench::{Bench, Failure, PROFILE};
use crate::machine::memory;
use crate::peers::{TRUE, bwrap, timed};
use crate::report::{Row, short};
use crate::stats::{Summary, in_turns};

const AT_ONCE: usize = 8;
const ALIVE: usize = 200;

/// Sandboxes per second, eight at a time, against bubblewrap.
pub(crate) fn throughput(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let ours = || -> Result<Duration, Failure> {
        let start = Instant::now();
        bench.wait_with_all_cores(eight_lives(&bench.client))?;
        Ok(start.elapsed())
    };
    let (ours, theirs) = in_turns(bench.samples(), ours, eight_bubbles)?;
    let rate = |times: &[Duration]| Summary::of_times(times).map(|millis| AT_ONCE as f64 * 1e3 / millis);
    Ok(vec![Row::more_is_better("sandboxes, 8 at once", "/s", rate(&ours), "bwrap, 8 at once", rate(&theirs), 1.0)])
}

async fn eight_lives(client: &Tierbox) -> Result<(), Failure> {
    let mut lives = JoinSet::new();
    for _ in 0..AT_ONCE {
        let client = client.clone();
        lives.spawn(async move {
            let running = client.start(PROFILE).await?;
            let result = running.sandbox().run(ExecRequest::new([TRUE])).await?;
            running.stop().await?;
            if result.success() { Ok::<_, Failure>(()) } else { Err(format!("{TRUE} {}", result.outcome()).into()) }
        });
    }
    while let Some(life) = lives.join_next().await {
        life??;
    }
    Ok(())
}

fn eight_bubbles() -> Result<Duration, Failure> {
    let start = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(|| timed(&mut bwrap()))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?.map(drop))
    })?;
    Ok(start.elapsed())
}

/// Two hundred sandboxes alive, each of which answers, and what each costs the harness.
pub(crate) fn alive(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let (before, _) = memory();
    let start = Instant::now();
    let all = bench.wait_with_all_cores(start_many(&bench.client))?;
    let started = start.elapsed();
    let answered = bench.wait_with_all_cores(ask_all(&all))?;
    let (after, _) = memory();
    bench.wait_with_all_cores(stop_all(all))?;
    let each = after.saturating_sub(before) as f64 / ALIVE as f64 / 1024.0;
    let row = Row::more_is_better(
        "200 alive, each answers",
        "",
        Summary::one(answered as f64),
        "all of them",
        Summary::one(ALIVE as f64),
        1.0,
    );
    Ok(vec![row.note(format!("{} KiB of the harness's memory each; started in {} s", short(each), short(started.as_secs_f64())))])
}

async fn start_many(client: &Tierbox) -> Result<Vec<Running>, Failure> {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut starts = JoinSet::new();
    for _ in 0..ALIVE {
        let (client, places) = (client.clone(), places.clone());
        starts.spawn(async move {
            let _place = places.acquire_owned().await;
            client.start_with(PROFILE, StartOptions::new()).await
        });
    }
    let mut all = Vec::with_capacity(ALIVE);
    while let Some(running) = starts.join_next().await {
        all.push(running??);
    }
    Ok(all)
}

/// How many echo what they were told.
async fn ask_all(all: &[Running]) -> Result<usize, Failure> {
    let mut answers = JoinSet::new();
    for (index, running) in all.iter().enumerate() {
        let sandbox = running.sandbox();
        answers.spawn(async move {
            let word = index.to_string();
            let result = sandbox.run(ExecRequest::new(["/bin/echo", &word])).await?;
            Ok::<_, tierbox::Error>(result.stdout.text().trim() == word)
        });
    }
    let mut good = 0;
    while let Some(answer) = answers.join_next().await {
        good += usize::from(answer??);
    }
    Ok(good)
}

async fn stop_all(all: Vec<Running>) -> Result<(), Failure> {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut stops = JoinSet::new();
    for running in all {
        let places = places.clone();
        stops.spawn(async move {
            let _place = places.acquire_owned().await;
            running.stop().await
        });
    }
    while let Some(stopped) = stops.join_next().await {
        stopped??;
    }
    Ok(())
}
