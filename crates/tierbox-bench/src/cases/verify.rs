//! What proving and recording cost.

use std::time::{Duration, Instant};

use tierbox::{ExecRequest, SandboxExt, StartOptions};

use crate::bench::{Bench, Failure, NAMED, PROFILE};
use crate::peers::TRUE;
use crate::report::Row;
use crate::stats::{Summary, in_turns};

/// All probes with their twins, against the 2 s that they may take.
pub(crate) fn all(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for (name, profile) in [("verification", PROFILE), ("verification with named hosts", NAMED)] {
        let running = bench.wait(bench.client.start(profile))?;
        let mut times = Vec::new();
        for _ in 0..if bench.quick { 3 } else { 10 } {
            let start = Instant::now();
            let found = bench.wait(running.verify())?;
            times.push(start.elapsed());
            if !found.verified {
                return Err(format!("{profile} is not verified here").into());
            }
        }
        bench.wait(running.stop())?;
        let (measured, allowed) = (Summary::of_times(&times), Summary::of_times(&[Duration::from_secs(2)]));
        rows.push(Row::less_is_better(name, "ms", measured, "the 2 s it may take", allowed, 1.0));
    }
    Ok(rows)
}

/// The look from outside at every start, against the half millisecond that it may take.
pub(crate) fn outside(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let running = bench.wait(bench.start())?;
    let spec = bench.client.resolve(PROFILE, &StartOptions::new())?;
    let lease = bench.wait(bench.client.list_one(running.id()))?.record;
    let check = tierbox::local::SelfCheck::of(&spec, &lease)?;
    let mut times = Vec::new();
    for _ in 0..bench.samples() * 5 {
        let start = Instant::now();
        let seen = check.run()?;
        times.push(start.elapsed());
        if seen.is_none() {
            return Err("nothing could be seen from outside".into());
        }
    }
    bench.wait(running.stop())?;
    let (measured, allowed) = (Summary::of_times(&times), Summary::of_times(&[Duration::from_micros(500)]));
    Ok(vec![Row::less_is_better("self-check from outside", "ms", measured, "the 0.5 ms it may take", allowed, 1.0)])
}

/// A command whose operation is logged, against one whose is not.
pub(crate) fn log(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let logged = bench.wait(bench.client.start_with(PROFILE, StartOptions::new().log()))?;
    let plain = bench.wait(bench.start())?;
    let exec = |running: &tierbox::Running| -> Result<Duration, Failure> {
        let start = Instant::now();
        let result = bench.wait(running.run(ExecRequest::new([TRUE])))?;
        if result.success() { Ok(start.elapsed()) } else { Err(format!("{TRUE} {}", result.outcome()).into()) }
    };
    let (with, without) = in_turns(bench.samples() * 5, || exec(&logged), || exec(&plain))?;
    bench.wait(logged.stop())?;
    bench.wait(plain.stop())?;
    let (with, without) = (Summary::of_times(&with), Summary::of_times(&without));
    Ok(vec![Row::less_is_better("exec with an operation log", "ms", with, "exec without", without, 1.2)])
}
