//! How many calls of the API an operation takes.

use std::collections::BTreeMap;

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use tierbox_core::{ByteReader, ExecRequest, Outcome as End, SandboxExt};
use tokio::io::AsyncReadExt;

use super::world::{Outcome, World, ensure, text, trial};

pub fn all() -> Vec<Trial> {
    vec![
        trial("calls::a_small_command_takes_three_at_most", small_command),
        trial("calls::a_small_write_and_a_small_read_take_three_at_most", small_files),
        trial("calls::a_slow_api_takes_no_more_calls", slow_api),
        trial("calls::what_one_command_is_given_stays_out_of_the_history", private),
        trial("calls::many_commands_are_looked_at_together", many),
        trial("calls::many_commands_are_seen_to_end_whatever_this_hosts_clock_says", skewed),
        trial("calls::output_comes_while_a_command_runs", live),
    ]
}

fn total(calls: &BTreeMap<String, u64>) -> u64 {
    calls.values().sum()
}

/// How often something is tried before it counts, while it is learnt when to look; and then.
const WARM: usize = 3;
const TRIES: usize = 9;

/// The usual calls of something: the median of some tries, once it is known when to look.
macro_rules! usual {
    ($world:expr, $work:expr) => {{
        let mut all: Vec<BTreeMap<String, u64>> = Vec::new();
        for number in 0..WARM + TRIES {
            let (value, calls) = $world.counted($work).await;
            value?;
            if number >= WARM {
                all.push(calls);
            }
        }
        all.sort_by_key(total);
        all.swap_remove(TRIES / 2)
    }};
}

async fn small_command(world: World) -> Outcome {
    let started = world.usual().await?;
    let sandbox = started.environment.primary();
    let calls = usual!(world, async {
        let done = sandbox.run(ExecRequest::new(["true"])).await.map_err(text)?;
        ensure!(done.outcome() == End::Exited(0), "{done:?}");
        Ok::<_, String>(())
    });
    ensure!(total(&calls) <= 3 && calls.get("SendCommand") == Some(&1), "a small command took {calls:?}");
    started.environment.stop().await.map_err(text)
}

async fn small_files(world: World) -> Outcome {
    let started = world.usual().await?;
    let sandbox = started.environment.primary();
    let calls = usual!(world, async { sandbox.write_bytes("file", "0123456789").await.map_err(text) });
    ensure!(total(&calls) <= 3, "a small write took {calls:?}");
    let calls = usual!(world, async {
        let bytes = sandbox.read_bytes("file", 100).await.map_err(text)?;
        ensure!(bytes == b"0123456789"[..], "{bytes:?}");
        Ok::<_, String>(())
    });
    ensure!(total(&calls) <= 3, "a small read took {calls:?}");
    started.environment.stop().await.map_err(text)
}

/// Every call takes 0.3 s, and the agent and SSM take their time too: over a second in all, and yet nobody asks for output meanwhile.
async fn slow_api(world: World) -> Outcome {
    let slow = serde_json::json!({"latency_s": {"*": 0.3}, "deliver_s": 0.3, "report_s": 0.3, "invocation_visible_s": 0.6});
    world.server.set(slow);
    small_command(world).await
}

/// SSM keeps the parameters of commands for weeks.
async fn private(world: World) -> Outcome {
    let started = world.usual().await?;
    let sandbox = started.environment.primary();
    let request = ExecRequest::shell("echo \"$TOKEN\"; cat").env("TOKEN", "hunter2").stdin_bytes("hunter3\n");
    let (done, calls) = world.counted(sandbox.run(request)).await;
    let done = done.map_err(text)?;
    ensure!(done.stdout.text() == "hunter2\nhunter3\n", "{done:?}");
    ensure!(calls.get("s3:PUT") == Some(&1), "it did not go through the bucket: {calls:?}");
    let listed = world.server.history();
    for secret in ["hunter2", "hunter3"] {
        ensure!(!listed.contains(secret), "the history of commands holds {secret}");
    }
    ensure!(listed.contains("tierbox-ssm"), "the history is empty, so nothing was looked at: {listed}");
    world.until(std::time::Duration::from_secs(10), "the object is removed", || world.server.objects().is_empty()).await?;
    started.environment.stop().await.map_err(text)
}

/// AWS's clock is two minutes behind: what was sent since then, by this host's, is nothing.
async fn skewed(world: World) -> Outcome {
    world.server.set(serde_json::json!({"clock_s": -120}));
    let begun = Instant::now();
    many(world).await?;
    ensure!(begun.elapsed() < Duration::from_secs(90), "it took {:?}", begun.elapsed());
    Ok(())
}

async fn many(world: World) -> Outcome {
    let started = world.usual().await?;
    let sandbox = started.environment.primary();
    let (done, calls) = world
        .counted(async {
            let mut all = tokio::task::JoinSet::new();
            for number in 0..24u8 {
                let sandbox = sandbox.clone();
                all.spawn(
                    async move { sandbox.run(ExecRequest::shell(format!("exit {number}"))).await.map(|done| (number, done)) },
                );
            }
            let mut ends = Vec::new();
            while let Some(end) = all.join_next().await {
                ends.push(end.map_err(text)?.map_err(text)?);
            }
            Ok::<_, String>(ends)
        })
        .await;
    for (number, done) in done? {
        ensure!(done.outcome() == End::Exited(number.into()), "command {number} ended as {done:?}");
    }
    let sent = calls.get("SendCommand").copied().unwrap_or_default();
    ensure!(total(&calls) <= 24 * 5, "24 commands at once took {calls:?}");
    ensure!(sent >= 24, "{sent} were sent");
    started.environment.stop().await.map_err(text)
}

/// Reads a line, and tells when it came.
async fn line(reader: &mut ByteReader) -> Result<(String, Instant), String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        line.push(reader.read_u8().await.map_err(text)?);
    }
    Ok((String::from_utf8_lossy(&line).into_owned(), Instant::now()))
}

/// What is printed arrives within seconds, in its order, and asking for it costs less than a call for each second.
async fn live(world: World) -> Outcome {
    let started = world.usual().await?;
    let sandbox = started.environment.primary();
    let script = "for i in 1 2 3; do echo $i; sleep 4; done; echo end; echo err >&2";
    let (all, calls) = world
        .counted(async {
            let mut handle = sandbox.spawn(ExecRequest::shell(script)).await.map_err(text)?;
            let mut stdout = handle.take_stdout().ok_or("no stdout")?;
            let mut came = Vec::new();
            for wanted in ["1\n", "2\n", "3\n", "end\n"] {
                let (line, at) = line(&mut stdout).await?;
                ensure!(line == wanted, "{line:?} came in place of {wanted:?}");
                came.push(at);
            }
            let done = handle.wait().await.map_err(text)?;
            ensure!(done.outcome == End::Exited(0), "{done:?}");
            Ok::<_, String>(came)
        })
        .await;
    let all = all?;
    // Each came at about its time: what came late did not wait for the end.
    for (number, pair) in all.windows(2).enumerate() {
        let between = pair[1] - pair[0];
        ensure!(between > Duration::from_millis(800), "line {number} came together with the next: {between:?}");
    }
    // Four looks a second: on a busy machine the ends of what waits there come late, and are looked for longer.
    ensure!(total(&calls) <= 48, "twelve seconds with output took {calls:?}");
    started.environment.stop().await.map_err(text)
}
