//! What a supervisor costs: a command beside `posix_spawn` and wait of the same file, its output beside a plain pipe, a file
//! written and read beside `cp`.
//!
//! ```sh
//! cargo run --release -p tierbox-guest --features descriptors,embed --example measure
//! ```
#![allow(clippy::print_stdout, reason = "it prints a table")]

#[path = "../tests/support/mod.rs"]
#[allow(dead_code)]
mod support;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tierbox_core::{ExecRequest, ReadOptions, Sandbox, SandboxExt};
use tokio::io::AsyncReadExt;

use support::{Line, machine_in};
use tierbox_supervisor::setup::Cgroup;
use tierbox_supervisor::wire::Blob;

const ROUNDS: usize = 500;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let passed = machine_in(Line::Socket, cgroup()).await;
    let framed = machine_in(Line::Pipes, Vec::new()).await;
    let (mut floor, mut by_socket, mut by_pipes) = (Vec::new(), Vec::new(), Vec::new());
    // In turns, so that whatever else the host does falls on all of them.
    for _ in 0..ROUNDS {
        floor.push(spawn_and_wait());
        by_socket.push(run(&passed).await);
        by_pipes.push(run(&framed).await);
    }
    let floor = report("posix_spawn + wait", floor, None);
    report("run() over a socket", by_socket, Some(floor));
    report("run() over pipes", by_pipes, Some(floor));

    let plain = plain_pipe();
    println!("{:<22} {:>6.0} MiB/s", "plain pipe", plain);
    for (name, machine) in [("handle over a socket", &passed), ("handle over pipes", &framed)] {
        let rate = stream(machine).await;
        println!("{name:<22} {rate:>6.0} MiB/s  {:.2}x", rate / plain);
    }

    let copied = copy(&passed.dir);
    println!("{:<22} {:>6.0} MiB/s", "cp", copied);
    for (name, machine) in [("files over a socket", &passed), ("files over pipes", &framed)] {
        let (written, read) = files(machine).await;
        println!("{name:<22} write {written:>6.0} MiB/s {:.2}x  read {read:>6.0} MiB/s {:.2}x", written / copied, read / copied);
    }
}

const FILE: usize = 100 << 20;

fn file_rate(started: Instant) -> f64 {
    (FILE >> 20) as f64 / started.elapsed().as_secs_f64()
}

fn copy(dir: &tempfile::TempDir) -> f64 {
    std::fs::write(dir.path().join("from"), vec![1; FILE]).unwrap();
    let started = Instant::now();
    assert!(Command::new("cp").args(["from", "to"]).current_dir(dir.path()).status().unwrap().success());
    file_rate(started)
}

async fn files(machine: &support::Machine) -> (f64, f64) {
    let contents = bytes::Bytes::from(vec![2; FILE]);
    let started = Instant::now();
    machine.sandbox.write_bytes("file", contents).await.unwrap();
    let written = file_rate(started);
    let started = Instant::now();
    let (_, mut reader) = machine.sandbox.read(&"file".into(), ReadOptions::default()).await.unwrap();
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        match reader.read(&mut buffer).await.unwrap() {
            0 => break,
            count => total += count,
        }
    }
    assert_eq!(total, FILE);
    (written, file_rate(started))
}

const STREAMED: u64 = 1 << 30;

fn rate(started: Instant) -> f64 {
    (STREAMED >> 20) as f64 / started.elapsed().as_secs_f64()
}

fn plain_pipe() -> f64 {
    let started = Instant::now();
    let mut child = Command::new("head").args(["-c", "1G", "/dev/zero"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0;
    loop {
        match std::io::Read::read(&mut stdout, &mut buffer).unwrap() {
            0 => break,
            count => total += count as u64,
        }
    }
    assert_eq!(total, STREAMED);
    child.wait().unwrap();
    rate(started)
}

async fn stream(machine: &support::Machine) -> f64 {
    let started = Instant::now();
    let mut handle = machine.sandbox.spawn(ExecRequest::new(["head", "-c", "1G", "/dev/zero"])).await.unwrap();
    let mut stdout = handle.take_stdout().unwrap();
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0;
    loop {
        match stdout.read(&mut buffer).await.unwrap() {
            0 => break,
            count => total += count as u64,
        }
    }
    assert_eq!(total, STREAMED);
    assert!(handle.wait().await.unwrap().outcome.success());
    rate(started)
}

/// A cgroup of the v2 hierarchy where one can be made, as a container has it.
fn cgroup() -> Vec<Cgroup> {
    let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].into_iter().find(|root| {
        let file = std::path::Path::new(root).join("cgroup.procs");
        std::fs::OpenOptions::new().write(true).open(file).is_ok()
    });
    let group = |root| Cgroup {
        path: Blob(format!("{root}/tierbox-latency-{}", std::process::id()).into_bytes()),
        kind: "v2".to_owned(),
        settings: Vec::new(),
    };
    root.map(group).into_iter().collect()
}

fn spawn_and_wait() -> Duration {
    let started = Instant::now();
    let status = Command::new("/bin/true").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.unwrap().success());
    started.elapsed()
}

async fn run(machine: &support::Machine) -> Duration {
    let started = Instant::now();
    assert!(machine.sandbox.run(ExecRequest::new(["/bin/true"])).await.unwrap().success());
    started.elapsed()
}

fn report(name: &str, mut times: Vec<Duration>, floor: Option<Duration>) -> Duration {
    times.sort();
    let median = times[times.len() / 2];
    let ratio = floor.map_or(String::new(), |floor| format!("{:.2}x", median.as_secs_f64() / floor.as_secs_f64()));
    println!("{name:<22} median {median:>10.1?}  p90 {:>10.1?}  {ratio}", times[times.len() * 9 / 10]);
    median
}
