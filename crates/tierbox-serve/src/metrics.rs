//! What Prometheus reads.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tierbox::Outcome;

use crate::admission::Usage;

/// Upper bounds of the durations' buckets, in seconds.
const BOUNDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0];

/// Counters of one daemon.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Answers by the hundreds of their status, 1 to 5.
    answers: [AtomicU64; 6],
    outcomes: [AtomicU64; OUTCOMES.len()],
    exec_seconds: Histogram,
    start_seconds: Histogram,
    pub connections: AtomicU64,
    pub refused: AtomicU64,
}

const OUTCOMES: [&str; 5] = ["not-started", "exited", "signaled", "killed", "lost"];

#[derive(Debug, Default)]
struct Histogram {
    /// One bucket more than there are bounds.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Histogram {
    fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let index = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[index].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn write(&self, text: &mut String, name: &str, about: &str) {
        let _ = writeln!(text, "# TYPE {name} histogram\n# UNIT {name} seconds\n# HELP {name} {about}");
        let mut count = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            count += bucket.load(Ordering::Relaxed);
            let bound = BOUNDS.get(index).map_or("+Inf".to_owned(), |bound| format!("{bound:?}"));
            let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let sum = self.micros.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(text, "{name}_sum {sum}\n{name}_count {count}");
    }
}

impl Metrics {
    pub fn answered(&self, status: u16) {
        self.answers[usize::from(status / 100).min(5)].fetch_add(1, Ordering::Relaxed);
    }

    pub fn ended(&self, outcome: Outcome, wall: Duration) {
        let index = match outcome {
            Outcome::NotStarted { .. } => 0,
            Outcome::Exited(_) => 1,
            Outcome::Signaled(_) => 2,
            Outcome::Killed(_) => 3,
            Outcome::Lost => 4,
        };
        self.outcomes[index].fetch_add(1, Ordering::Relaxed);
        self.exec_seconds.observe(wall);
    }

    pub fn started(&self, took: Duration) {
        self.start_seconds.observe(took);
    }

    /// The text, with what is there at this moment.
    pub fn text(&self, environments: usize, usage: &Usage) -> String {
        let mut text = String::new();
        let mut family = |name: &str, kind: &str, about: &str, samples: Vec<(String, u64)>| {
            let _ = writeln!(text, "# TYPE {name} {kind}\n# HELP {name} {about}");
            let suffix = if kind == "counter" { "_total" } else { "" };
            for (labels, value) in samples {
                let _ = writeln!(text, "{name}{suffix}{labels} {value}");
            }
        };
        let plain = |value: u64| vec![(String::new(), value)];
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let answers = (1..=5).map(|class| (format!("{{status=\"{class}xx\"}}"), read(&self.answers[class])));
        family("tierbox_answers", "counter", "Answers by status.", answers.collect());
        let outcomes = OUTCOMES.iter().zip(&self.outcomes).map(|(name, count)| (format!("{{outcome=\"{name}\"}}"), read(count)));
        family("tierbox_execs", "counter", "Commands that ended, by outcome.", outcomes.collect());
        family("tierbox_refused", "counter", "Requests refused for want of a token or right.", plain(read(&self.refused)));
        family("tierbox_connections", "gauge", "Connections that are open.", plain(read(&self.connections)));
        family("tierbox_environments", "gauge", "Environments that this daemon serves.", plain(environments as u64));
        family("tierbox_waiting", "gauge", "Starts that wait for admission.", plain(usage.waiting.len() as u64));
        family("tierbox_admitted_memory_bytes", "gauge", "Memory that was admitted.", plain(usage.memory));
        family("tierbox_admitted_cpu_millis", "gauge", "Thousandths of CPUs that were admitted.", plain(usage.cpu_millis));
        let backends = usage.backends.iter().map(|(name, count)| (format!("{{backend=\"{name}\"}}"), *count));
        family("tierbox_admitted", "gauge", "Environments that were admitted, by backend.", backends.collect());
        self.exec_seconds.write(&mut text, "tierbox_exec_seconds", "How long commands ran.");
        self.start_seconds.write(&mut text, "tierbox_start_seconds", "How long starts took, after admission.");
        text.push_str("# EOF\n");
        text
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn buckets_add_up() {
        let metrics = Metrics::default();
        for millis in [1, 3, 700_000] {
            metrics.ended(Outcome::Exited(0), Duration::from_millis(millis));
        }
        let text = metrics.text(2, &Usage::default());
        for line in [
            "tierbox_exec_seconds_bucket{le=\"0.001\"} 1",
            "tierbox_exec_seconds_bucket{le=\"600.0\"} 2",
            "tierbox_exec_seconds_bucket{le=\"+Inf\"} 3",
            "tierbox_exec_seconds_count 3",
            "tierbox_execs_total{outcome=\"exited\"} 3",
            "tierbox_environments 2",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
