//! One command in a running sandbox, and one sandbox for one command.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use tierbox::{ExecRequest, SandboxExt, StartOptions};

use crate::bench::{Bench, Failure, PROFILE};
use crate::peers::{TRUE, bwrap, spawn_and_wait, timed};
use crate::report::{Row, short};
use crate::stats::{Summary, in_turns};

/// `/bin/true` in a running sandbox against `posix_spawn` and wait.
pub(crate) fn exec(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let running = bench.wait(bench.start())?;
    let sandbox = running.sandbox();
    let inside = RefCell::new(Vec::new());
    let ours = || -> Result<Duration, Failure> {
        let start = Instant::now();
        let result = bench.wait(sandbox.run(ExecRequest::new([TRUE])))?;
        let time = start.elapsed();
        inside.borrow_mut().push(result.completed.usage.wall);
        if result.success() { Ok(time) } else { Err(format!("{TRUE} {}", result.outcome()).into()) }
    };
    let (ours, floor) = in_turns(bench.samples() * 5, ours, spawn_and_wait)?;
    bench.wait(running.stop())?;
    let (measured, floor) = (Summary::of_times(&ours), Summary::of_times(&floor));
    let inside = Summary::of_times(&inside.borrow());
    let row = Row::less_is_better("exec of /bin/true", "ms", measured, "posix_spawn + wait", floor, 2.0);
    let line = measured.median - inside.median;
    Ok(vec![row.note(format!("of that {} ms from launch to end inside, {} ms on the way", short(inside.median), short(line)))])
}

/// A whole sandbox for one `/bin/true` against bubblewrap.
pub(crate) fn lifecycle(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let parts: RefCell<[Vec<Duration>; 4]> = RefCell::default();
    let ours = || -> Result<Duration, Failure> {
        let begin = Instant::now();
        let marks = bench.wait(one_life(bench))?;
        let mut before = begin;
        for (times, mark) in parts.borrow_mut().iter_mut().zip(marks) {
            times.push(mark - before);
            before = mark;
        }
        Ok(before - begin)
    };
    let (ours, theirs) = in_turns(bench.samples(), ours, || timed(&mut bwrap()))?;
    let row = Row::less_is_better(
        "start + exec + stop",
        "ms",
        Summary::of_times(&ours),
        "bwrap --unshare-all",
        Summary::of_times(&theirs),
        1.0,
    );
    let parts = parts.into_inner();
    let names = ["reading the profile", "start", "exec", "stop"];
    let told = names.iter().zip(&parts).map(|(name, times)| format!("{name} {} ms", short(Summary::of_times(times).median)));
    Ok(vec![row.note(told.collect::<Vec<_>>().join(", "))])
}

/// The ends of its parts: the profile is read, the sandbox runs, the command has ended, everything is gone.
async fn one_life(bench: &Bench) -> Result<[Instant; 4], Failure> {
    let options = StartOptions::new();
    let spec = bench.client.resolve(PROFILE, &options)?;
    let read = Instant::now();
    let running = bench.client.start_spec(spec, options).await?;
    let started = Instant::now();
    let result = running.sandbox().run(ExecRequest::new([TRUE])).await?;
    let ended = Instant::now();
    running.stop().await?;
    if !result.success() {
        return Err(format!("{TRUE} {}", result.outcome()).into());
    }
    Ok([read, started, ended, Instant::now()])
}
