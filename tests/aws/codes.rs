//! What SSM misreads is told as it was, and what it would keep is kept out of reach.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use serde_json::json;
use tierbox_core::{ExecRequest, KillReason, Outcome as End, SandboxExt};

use super::world::{Outcome, World, ensure, text, trial};

pub fn all() -> Vec<Trial> {
    vec![
        trial("codes::what_ssm_misreads_is_told_as_it_was", misread),
        trial("codes::addresses_stand_in_no_command_line", addresses),
        trial("codes::python_serves_where_curl_is_not", without_curl),
    ]
}

async fn misread(world: World) -> Outcome {
    let started = world.usual().await?;
    let sandbox = started.environment.primary();
    let boots = sandbox.run(ExecRequest::shell("cat /proc/sys/kernel/random/boot_id; ps -o lstart= -p 1")).await.map_err(text)?;
    for (script, end) in [
        ("exit 137", End::Exited(137)),
        // By this SSM would restart the machine, and run the command once more.
        ("echo ran >> again; exit 194", End::Exited(194)),
        ("kill -9 $$", End::Signaled(9)),
        ("kill -TERM $$", End::Signaled(15)),
        ("exit 1", End::Exited(1)),
    ] {
        let done = sandbox.run(ExecRequest::shell(script)).await.map_err(text)?;
        ensure!(done.outcome() == end, "{script}: {done:?}");
        ensure!(done.stderr.text().is_empty(), "{script}: {:?}", done.stderr.text());
    }
    let after = sandbox.run(ExecRequest::shell("cat /proc/sys/kernel/random/boot_id; ps -o lstart= -p 1")).await.map_err(text)?;
    ensure!(boots.stdout.text() == after.stdout.text(), "the machine was restarted");
    ensure!(sandbox.read_bytes("again", 100).await.map_err(text)? == b"ran\n", "it ran twice");
    // SSM takes an executionTimeout under 5 for an hour.
    let begun = Instant::now();
    let short = sandbox.run(ExecRequest::new(["sleep", "1000"]).timeout(Duration::from_secs(1))).await.map_err(text)?;
    ensure!(short.outcome() == End::Killed(KillReason::Timeout), "{short:?}");
    ensure!(begun.elapsed() < Duration::from_secs(30), "it took {:?}", begun.elapsed());
    let home = sandbox.run(ExecRequest::shell("echo $HOME; pwd; id -un")).await.map_err(text)?;
    ensure!(home.stdout.text() == "/home/tierbox\n/home/tierbox\ntierbox\n", "{home:?}");
    let missing = sandbox.run(ExecRequest::new(["pwd"]).cwd("/not/there")).await.map_err(text)?;
    ensure!(matches!(missing.outcome(), End::NotStarted { retryable: false, .. }), "{missing:?}");
    // More than the 24,000 characters of standard output and 8,000 of standard error that SSM keeps, and none of it text.
    let bytes = "head -c 70000 /dev/zero | tr '\\0' '\\377'; head -c 30000 /dev/zero | tr '\\0' '\\376' >&2";
    let done = sandbox.run(ExecRequest::shell(bytes)).await.map_err(text)?;
    ensure!(done.stdout.bytes() == vec![255; 70_000] && done.stderr.bytes() == vec![254; 30_000], "output came back changed");
    started.environment.stop().await.map_err(text)
}

/// Who has a presigned address can read the object or write it, and command lines are everybody's.
async fn addresses(world: World) -> Outcome {
    let started = world.usual().await?;
    let sandbox = started.environment.primary();
    let look = "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline; echo; done 2>/dev/null >>lines";
    let script = format!("n=0; while [ $n -lt 500 ] && [ ! -e over ]; do {look}; n=$((n+1)); sleep 0.02; done");
    let watching = sandbox.spawn(ExecRequest::shell(script)).await.map_err(text)?;
    world
        .until(Duration::from_secs(20), "somebody looks", || world.server.calls().get("SendCommand").is_some_and(|n| *n > 3))
        .await?;
    // Long enough under way to be seen.
    world.server.set(json!({"latency_s": {"s3:GET": 0.7, "s3:PUT": 0.7}}));
    sandbox.write_bytes("large", vec![3; 300_000]).await.map_err(text)?;
    ensure!(sandbox.read_bytes("large", 1 << 20).await.map_err(text)?.len() == 300_000, "the file came back shorter");
    world.server.set(json!({"latency_s": {}}));
    sandbox.write_bytes("over", "").await.map_err(text)?;
    drop(watching);
    let lines = sandbox.run(ExecRequest::shell("sort -u lines")).await.map_err(text)?.stdout.text();
    ensure!(lines.contains("curl -K -"), "no transfer was seen, so nothing was shown: {lines}");
    ensure!(!lines.contains("X-Amz") && !lines.contains("Signature"), "an address shows: {lines}");
    started.environment.stop().await.map_err(text)
}

async fn without_curl(world: World) -> Outcome {
    let started = world.usual().await?;
    let sandbox = started.environment.primary();
    let hide = |what: &str| ExecRequest::shell(format!("for f in {what}; do mv $f $f.hidden; done")).user("root");
    let hidden = sandbox.run(hide("/usr/bin/curl")).await.map_err(text)?;
    ensure!(hidden.success(), "{hidden:?}");
    let bytes: Vec<u8> = (0..300_000u32).map(|at| (at % 249) as u8).collect();
    sandbox.write_bytes("large", bytes.clone()).await.map_err(text)?;
    ensure!(sandbox.read_bytes("large", 1 << 20).await.map_err(text)? == bytes, "the file came back changed");
    let hidden = sandbox.run(hide("/usr/bin/python3")).await.map_err(text)?;
    ensure!(hidden.success(), "{hidden:?}");
    let error = sandbox.write_bytes("other", bytes).await.err().ok_or("it went by nothing")?;
    ensure!(error.to_string().contains("neither curl nor python3"), "{error:?}");
    started.environment.stop().await.map_err(text)
}
