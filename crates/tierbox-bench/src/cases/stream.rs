//! A lot of output.

use std::time::{Duration, Instant};

use tierbox::{ByteReader, ExecRequest, OnExceed, OutputLimit, SandboxExt};
use tokio::io::AsyncReadExt as _;

use crate::bench::{Bench, Failure};
use crate::machine::{forget_peak, memory};
use crate::peers::pipe;
use crate::report::{Row, short};
use crate::stats::{Summary, in_turns};

const BYTES: u64 = 1 << 30;
const LIMIT: u64 = 10 << 20;
/// What may be held beside the limit.
const BESIDE: u64 = 8 << 20;

fn zeros() -> ExecRequest {
    ExecRequest::new(["head", "-c", &BYTES.to_string(), "/dev/zero"])
}

/// 1 GiB through a handle against 1 GiB through a plain pipe.
pub(crate) fn handle(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let running = bench.wait(bench.start())?;
    let sandbox = running.sandbox();
    let mut held = 0;
    let ours = || -> Result<Duration, Failure> {
        forget_peak()?;
        let (before, _) = memory();
        let start = Instant::now();
        let read = bench.wait(async {
            let mut handle = sandbox.spawn(zeros()).await?;
            let stdout = handle.take_stdout().ok_or("no output")?;
            let read = drain(stdout).await?;
            let completed = handle.wait().await?;
            if completed.outcome.success() { Ok::<_, Failure>(read) } else { Err(completed.outcome.to_string().into()) }
        })?;
        let time = start.elapsed();
        held = held.max(memory().1.saturating_sub(before));
        if read == BYTES { Ok(time) } else { Err(format!("{read} bytes came of {BYTES}").into()) }
    };
    let samples = if bench.quick { 5 } else { 100 };
    let (ours, plain) = in_turns(samples, ours, || pipe(BYTES))?;
    bench.wait(running.stop())?;
    let rate = |times: &[Duration]| Summary::of_times(times).map(|millis| 1e3 / millis);
    let row = Row::more_is_better("1 GiB through a handle", "GiB/s", rate(&ours), "a plain pipe", rate(&plain), 2.0);
    Ok(vec![row.note(format!("the harness held at most {} MiB more", short(held as f64 / f64::from(1 << 20))))])
}

async fn drain(mut reader: ByteReader) -> Result<u64, Failure> {
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        match reader.read(&mut buffer).await? {
            0 => return Ok(total),
            count => total += count as u64,
        }
    }
}

/// The memory that collecting 1 GiB takes, with a limit of 10 MiB.
pub(crate) fn collected(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let running = bench.wait(bench.start())?;
    let sandbox = running.sandbox();
    let mut held = Vec::new();
    for _ in 0..if bench.quick { 3 } else { 20 } {
        forget_peak()?;
        let (before, _) = memory();
        let mut request = zeros();
        request.output_limit = Some(OutputLimit { bytes: LIMIT, on_exceed: OnExceed::Truncate });
        let result = bench.wait(sandbox.run(request))?;
        held.push(memory().1.saturating_sub(before) as f64 / f64::from(1 << 20));
        if result.stdout.total != BYTES {
            return Err(format!("{} bytes were counted of {BYTES}", result.stdout.total).into());
        }
    }
    bench.wait(running.stop())?;
    let bound = Summary::one((LIMIT + BESIDE) as f64 / f64::from(1 << 20));
    Ok(vec![Row::less_is_better("memory to collect 1 GiB", "MiB", Summary::of(held), "limit 10 MiB + 8 MiB", bound, 1.0)])
}
