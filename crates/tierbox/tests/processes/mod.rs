//! The processes of this host.

use std::time::{Duration, Instant};

/// Waits until a process of this host has the argument.
pub async fn here(argument: &str) {
    wait(argument, true).await;
}

/// Waits until no process of this host has the argument.
pub async fn gone(argument: &str) {
    wait(argument, false).await;
}

async fn wait(argument: &str, wanted: bool) {
    let limit = Instant::now() + Duration::from_secs(20);
    while has_process(argument) != wanted {
        assert!(Instant::now() < limit, "a process with {argument}: still not {wanted}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn has_process(argument: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    lines.any(|line| line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes()))
}
