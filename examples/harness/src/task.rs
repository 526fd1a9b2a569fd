//! What is evaluated.

use std::time::Duration;

/// A task: what its samples share, and the samples. Scripts are for `/bin/sh`, and start in the directory of the sample.
#[derive(Debug, Clone)]
pub struct Task {
    /// Its name.
    pub name: &'static str,
    /// Makes what all samples are given. Runs once, in a sandbox of the task's own.
    pub setup: &'static str,
    /// Runs there when the last sample is scored, whatever came of them.
    pub cleanup: &'static str,
    /// The samples.
    pub samples: Vec<Sample>,
}

/// One attempt at a task.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Its name.
    pub name: &'static str,
    /// Prepares this sample, as the harness, in its sandbox.
    pub setup: &'static str,
    /// What the agent does, step by step. It stands for what a model proposes, and goes through the agent's handle.
    pub steps: Vec<&'static str>,
    /// Ends this sample, as the harness, after the tree was taken.
    pub cleanup: &'static str,
    /// Scores the tree in a fresh sandbox: exit status 0 is right, everything else wrong. What it prints is kept.
    pub scorer: &'static str,
    /// The time of one step.
    pub time: Duration,
}

impl Sample {
    /// A sample of one step, without set-up and clean-up of its own.
    pub fn new(name: &'static str, step: &'static str, scorer: &'static str) -> Self {
        Self { name, setup: ":", steps: vec![step], cleanup: ":", scorer, time: Duration::from_secs(30) }
    }
}
