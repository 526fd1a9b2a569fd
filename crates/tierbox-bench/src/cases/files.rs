//! A large file, in and out.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tierbox::{GuestPath, ReadOptions, Running, SandboxExt};
use tokio::io::AsyncReadExt as _;

use crate::bench::{Bench, Failure};
use crate::peers::cp;
use crate::report::Row;
use crate::stats::{Summary, in_turns};

const BYTES: usize = 100 << 20;
const NAME: &str = "large";

/// Files on a tmpfs of the host, as the sandbox's are; removed at the end.
struct HostFiles {
    from: PathBuf,
    to: PathBuf,
}

impl HostFiles {
    fn new(bench: &Bench) -> Result<Self, Failure> {
        let shm = PathBuf::from("/dev/shm");
        let directory = if shm.is_dir() { shm } else { bench.directory().to_path_buf() };
        let name = |part: &str| directory.join(format!("tierbox-bench-{}-{part}", std::process::id()));
        let files = Self { from: name("from"), to: name("to") };
        std::fs::write(&files.from, contents())?;
        Ok(files)
    }

    fn copy(&self) -> Result<Duration, Failure> {
        let time = cp(&self.from, &self.to)?;
        std::fs::remove_file(&self.to)?;
        Ok(time)
    }
}

impl Drop for HostFiles {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.from);
        let _ = std::fs::remove_file(&self.to);
    }
}

fn contents() -> Bytes {
    (0..BYTES).map(|index| (index % 251) as u8).collect()
}

fn rates(name: &str, ours: &[Duration], theirs: &[Duration]) -> Vec<Row> {
    let rate = |times: &[Duration]| Summary::of_times(times).map(|millis| BYTES as f64 / f64::from(1 << 20) / millis * 1e3);
    vec![Row::more_is_better(name, "MiB/s", rate(ours), "cp on a tmpfs", rate(theirs), 2.0)]
}

fn samples(bench: &Bench) -> usize {
    if bench.quick { 10 } else { 100 }
}

/// 100 MiB into a sandbox against `cp`.
pub(crate) fn write(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let (running, files, data) = (bench.wait(bench.start())?, HostFiles::new(bench)?, contents());
    let sandbox = running.sandbox();
    let ours = || -> Result<Duration, Failure> {
        let start = Instant::now();
        bench.wait(sandbox.write_bytes(NAME, data.clone()))?;
        let time = start.elapsed();
        bench.wait(sandbox.remove(&GuestPath::from(NAME), false))?;
        Ok(time)
    };
    let (ours, theirs) = in_turns(samples(bench), ours, || files.copy())?;
    bench.wait(running.stop())?;
    Ok(rates("write 100 MiB", &ours, &theirs))
}

/// 100 MiB out of a sandbox against `cp`.
pub(crate) fn read(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let (running, files) = (bench.wait(bench.start())?, HostFiles::new(bench)?);
    bench.wait(running.sandbox().write_bytes(NAME, contents()))?;
    let mut buffer = vec![0; 1 << 20];
    let ours = || -> Result<Duration, Failure> {
        let start = Instant::now();
        let total = bench.wait(read_once(&running, &mut buffer))?;
        if total == BYTES { Ok(start.elapsed()) } else { Err(format!("{total} bytes came of {BYTES}").into()) }
    };
    let (ours, theirs) = in_turns(samples(bench), ours, || files.copy())?;
    bench.wait(running.stop())?;
    Ok(rates("read 100 MiB", &ours, &theirs))
}

async fn read_once(running: &Running, buffer: &mut [u8]) -> Result<usize, Failure> {
    let (_, mut reader) = running.sandbox().read(&GuestPath::from(NAME), ReadOptions::default()).await?;
    let mut total = 0;
    loop {
        match reader.read(buffer).await? {
            0 => return Ok(total),
            count => total += count,
        }
    }
}
