//! How long a command takes through a supervisor, beside the floor: `posix_spawn` and wait of the same file.
//!
//! ```sh
//! cargo run --release -p tierbox-guest --features descriptors,embed --example exec_latency
//! ```
#![allow(clippy::print_stdout, reason = "it prints a table")]

#[path = "../tests/support/mod.rs"]
#[allow(dead_code)]
mod support;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tierbox_core::{ExecRequest, SandboxExt};

use support::{Line, machine};

const ROUNDS: usize = 500;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let passed = machine(Line::Socket).await;
    let framed = machine(Line::Pipes).await;
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
