//! A small eval harness: three samples at once, each in a sandbox of its own with values of its own, and a score.
#![allow(clippy::print_stdout, reason = "an example talks")]

use std::time::Duration;

use tierbox::{ExecRequest, OnExceed, Outcome, Overrides, SandboxExt, StartOptions, Tierbox};

/// One task: what the agent is given, what it answers, and what would be right.
struct Sample {
    name: &'static str,
    input: &'static str,
    /// Stands for what a model would have proposed.
    solution: &'static str,
    target: &'static str,
    seconds: u64,
}

const SAMPLES: [Sample; 3] = [
    Sample {
        name: "sum",
        input: "1\n2\n3\n",
        solution: "s=0; while read n; do s=$((s + n)); done < input; echo $s",
        target: "6",
        seconds: 10,
    },
    Sample { name: "wrong", input: "a\n", solution: "echo b", target: "a", seconds: 10 },
    Sample { name: "endless", input: "", solution: "while :; do :; done", target: "", seconds: 1 },
];

/// What came of one sample.
#[derive(Debug, PartialEq)]
enum Score {
    Right,
    Wrong,
    OutOfTime,
    /// The sample says nothing about the agent: it has to be run again.
    NotValid(String),
}

#[tokio::main]
pub(crate) async fn main() -> tierbox::Result<()> {
    let client = Tierbox::new()?;
    let tasks: Vec<_> = SAMPLES.iter().map(|sample| tokio::spawn(run(client.clone(), sample))).collect();
    let mut right = 0;
    for (sample, task) in SAMPLES.iter().zip(tasks) {
        let score = task.await.expect("a sample does not panic")?;
        println!("{}: {score:?}", sample.name);
        right += usize::from(score == Score::Right);
    }
    println!("score: {right}/{}", SAMPLES.len());
    assert_eq!(right, 1);
    Ok(())
}

async fn run(client: Tierbox, sample: &Sample) -> tierbox::Result<Score> {
    let limit = Duration::from_secs(sample.seconds);
    let options = StartOptions::new()
        .env("SAMPLE", sample.name)
        .overrides(Overrides::new().limits(move |limits| limits.exec = Some(limit)));
    let running = client.start_with("local", options).await?;
    running.write_bytes("input", sample.input).await?;
    let answer = running.agent().run(ExecRequest::shell(sample.solution).output_limit(64 << 10, OnExceed::Kill)).await?;
    // The outcome tells what the agent did from what happened to the machine.
    let score = match answer.outcome() {
        Outcome::Exited(0) if answer.stdout.text().trim() == sample.target => Score::Right,
        Outcome::Exited(_) | Outcome::Signaled(_) => Score::Wrong,
        Outcome::Killed(_) => Score::OutOfTime,
        other @ (Outcome::NotStarted { .. } | Outcome::Lost) => Score::NotValid(other.to_string()),
    };
    running.stop().await?;
    Ok(score)
}
