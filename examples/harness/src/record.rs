//! What came of samples, as JSON lines.

use std::io::Write;
use std::sync::Mutex;

use serde::Serialize;
use tierbox::verify::Attestation;

/// How a sample ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "verdict", content = "why")]
pub enum Verdict {
    /// The scorer says yes.
    Right,
    /// The scorer says no, and this.
    Wrong(String),
    /// The agent's own doing kept it from being scored: its time was up, it filled the disk, it locked what is scored, or left the
    /// clean-up no process.
    Failed(String),
    /// It says nothing about the agent: a sandbox could not be had, or went away, after all retries.
    Invalid(String),
}

impl Verdict {
    /// One word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Right => "right",
            Self::Wrong(_) => "wrong",
            Self::Failed(_) => "failed",
            Self::Invalid(_) => "invalid",
        }
    }
}

/// One line of the results.
#[derive(Debug, Clone, Serialize)]
pub struct Record {
    /// The task.
    pub task: String,
    /// The sample.
    pub sample: String,
    /// How it ended.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// How many attempts it took.
    pub attempts: u32,
    /// Seconds, all attempts together.
    pub seconds: f64,
    /// The profile.
    pub profile: String,
    /// The tier, as `T0.H1.N2`: what was enforced; without an attestation, what the profile asks for. Null if there is no such profile.
    pub tier: Option<String>,
    /// What the tier rested on, in the form of `docs/attestation.schema.json`; null if no sandbox was ever started.
    pub attestation: Option<Attestation>,
}

/// Where records go: each is a line, written at once, so that a killed harness leaves whole lines.
pub struct Records {
    out: Mutex<Box<dyn Write + Send>>,
}

impl Records {
    /// Records to a file or a stream.
    pub fn new(out: impl Write + Send + 'static) -> Self {
        Self { out: Mutex::new(Box::new(out)) }
    }

    /// Writes one.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, record: &Record) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        let mut out = self.out.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        out.write_all(&line)?;
        out.flush()
    }
}
