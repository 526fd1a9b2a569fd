//! Inspect's sandbox providers: its own, and the one that speaks to the daemon.

use std::process::{Command, Stdio};
use std::time::Duration;

use super::mcp;
use crate::bench::{Bench, Failure};
use crate::report::Row;
use crate::stats::{Summary, in_turns};

/// A provider of Inspect's, in a Python that has it.
pub(crate) struct Inspect {
    child: std::process::Child,
    answers: std::io::Lines<std::io::BufReader<std::process::ChildStdout>>,
}

impl Inspect {
    /// Starts it; `None` where no Python with it is named.
    pub fn start(provider: &str) -> Result<Option<Self>, Failure> {
        Self::start_with(provider, |_| ())
    }

    fn start_with(provider: &str, adjust: impl FnOnce(&mut Command)) -> Result<Option<Self>, Failure> {
        let Some(python) = std::env::var_os("TIERBOX_TEST_PYTHON") else { return Ok(None) };
        let mut command = Command::new(python);
        command.arg("-c").arg(include_str!("inspect.py")).arg(provider).stdin(Stdio::piped()).stdout(Stdio::piped());
        adjust(&mut command);
        let mut child = command.stderr(Stdio::null()).spawn()?;
        let stdout = child.stdout.take().ok_or("Inspect has no output")?;
        let answers = std::io::BufRead::lines(std::io::BufReader::new(stdout));
        let mut inspect = Self { child, answers };
        match inspect.answer()?.as_str() {
            "ready" => Ok(Some(inspect)),
            other => Err(format!("Inspect says {other:?}").into()),
        }
    }

    fn answer(&mut self) -> Result<String, Failure> {
        self.answers
            .next()
            .ok_or("Inspect's provider does not work here; its own one for Docker needs compose 2.21 or later")?
            .map_err(Into::into)
    }

    pub fn step(&mut self, name: &str) -> Result<Duration, Failure> {
        let stdin = self.child.stdin.as_mut().ok_or("Inspect has no input")?;
        std::io::Write::write_all(stdin, format!("{name}\n").as_bytes())?;
        Ok(Duration::from_secs_f64(self.answer()?.parse()?))
    }
}

impl Drop for Inspect {
    fn drop(&mut self) {
        // It ends with its input, and clears up first.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The steps of a life, as [`Inspect`] knows them.
#[cfg(feature = "docker")]
pub(crate) const STEPS: [&str; 5] = ["create", "exec", "write", "read", "destroy"];

/// A command by the provider of the daemon, against Inspect's own providers that work here. Nothing where no Python with Inspect, or
/// no program with a daemon, is named.
pub(crate) fn exec(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let Some(program) = mcp::program() else { return Ok(Vec::new()) };
    // Of the provider's process, not of this one's.
    let Some(mut ours) = Inspect::start_with("tierbox", |command| {
        command.env("TIERBOX_PROGRAM", &program).env("TIERBOX_STATE_DIR", bench.directory().join("inspect"));
    })?
    else {
        return Ok(Vec::new());
    };
    ours.step("create")?;
    let mut rows = Vec::new();
    for peer in ["local", "docker"] {
        // Its Docker provider takes whatever engine the environment names.
        if peer == "docker" && std::env::var_os("DOCKER_HOST").is_none() {
            continue;
        }
        let Some(mut theirs) = Inspect::start(peer)? else { continue };
        theirs.step("create")?;
        let (by_us, by_them) = in_turns(bench.samples(), || ours.step("exec"), || theirs.step("exec"))?;
        theirs.step("destroy")?;
        let (by_us, by_them) = (Summary::of_times(&by_us), Summary::of_times(&by_them));
        let against = format!("Inspect's {peer} provider");
        rows.push(Row::less_is_better("Inspect: exec of /bin/true", "ms", by_us, &against, by_them, 1.0));
    }
    ours.step("destroy")?;
    Ok(rows)
}
