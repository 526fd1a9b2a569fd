//! What a person sees while it runs.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;

use crate::record::{Record, Verdict};

/// A line that is kept up to date on a terminal, and a line per sample elsewhere.
pub struct Progress {
    total: usize,
    state: Mutex<State>,
    live: bool,
}

#[derive(Default)]
struct State {
    done: usize,
    running: usize,
    verdicts: BTreeMap<&'static str, usize>,
}

impl Progress {
    /// For so many samples.
    pub fn new(total: usize) -> Self {
        Self { total, state: Mutex::default(), live: std::io::stderr().is_terminal() }
    }

    /// A sample began.
    pub fn began(&self) {
        self.change(|state| state.running += 1, None);
    }

    /// A sample ended.
    pub fn ended(&self, record: &Record) {
        let line = format!("{}/{}: {}", record.task, record.sample, shown(&record.verdict));
        self.change(
            |state| {
                state.running = state.running.saturating_sub(1);
                state.done += 1;
                *state.verdicts.entry(record.verdict.word()).or_default() += 1;
            },
            Some(line),
        );
    }

    fn change(&self, change: impl FnOnce(&mut State), line: Option<String>) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        change(&mut state);
        let counts: Vec<String> = state.verdicts.iter().map(|(verdict, count)| format!("{count} {verdict}")).collect();
        let summary = format!("[{}/{}] {} running, {}", state.done, self.total, state.running, counts.join(", "));
        let mut err = std::io::stderr().lock();
        // A display that cannot be written to must not end the run.
        let _ = match (self.live, line) {
            (true, Some(line)) => write!(err, "\r\x1b[K{line}\n{summary}"),
            (true, None) => write!(err, "\r\x1b[K{summary}"),
            (false, Some(line)) => writeln!(err, "[{}/{}] {line}", state.done, self.total),
            (false, None) => Ok(()),
        };
    }

    /// The end of it.
    pub fn finish(&self) {
        if self.live {
            let _ = writeln!(std::io::stderr());
        }
    }
}

/// Reasons may quote what a sandbox printed, so that nothing in them may steer a terminal.
fn shown(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Right => "right".to_owned(),
        Verdict::Wrong(why) | Verdict::Failed(why) | Verdict::Invalid(why) => {
            format!("{} ({})", verdict.word(), why.escape_debug())
        }
    }
}

/// Says that a task's clean-up failed.
pub fn unclean(task: &str, error: &tierbox::Error) {
    let _ = writeln!(std::io::stderr(), "warning: {task}: its clean-up failed: {error}");
}

/// Says why the whole run failed.
pub fn complain(error: &tierbox::Error) {
    let _ = writeln!(std::io::stderr(), "error: {error}");
}
