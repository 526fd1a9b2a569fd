//! Why a machine could not be set up.

use std::borrow::Cow;
use std::io;

use crate::protocol::FromSupervisor;

/// The step that failed. The names are stable: the host explains hostile hosts by them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What was tried.
    pub step: Cow<'static, str>,
    /// The errno, or 0.
    pub errno: i32,
    /// Particulars, if any.
    pub detail: String,
}

/// The result of a step.
pub type Step<T = ()> = Result<T, Refusal>;

impl Refusal {
    /// A refusal without an errno.
    pub fn because(step: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self { step: step.into(), errno: 0, detail: detail.into() }
    }

    /// The refusal as the host gets it.
    pub fn message(&self) -> FromSupervisor {
        FromSupervisor::Refused { step: self.step.to_string(), errno: self.errno, detail: self.detail.clone() }
    }
}

/// Names the step at which a call failed.
pub trait AtStep<T> {
    /// With a fixed name.
    fn at(self, step: &'static str) -> Step<T>;
    /// With a name that is made only if it is needed.
    fn at_step(self, step: impl FnOnce() -> String) -> Step<T>;
    /// With a fixed name and particulars.
    fn at_with(self, step: &'static str, detail: impl FnOnce() -> String) -> Step<T>;
}

impl<T, E: Into<io::Error>> AtStep<T> for Result<T, E> {
    fn at(self, step: &'static str) -> Step<T> {
        self.map_err(|error| refusal(step.into(), error.into(), String::new()))
    }

    fn at_step(self, step: impl FnOnce() -> String) -> Step<T> {
        self.map_err(|error| refusal(step().into(), error.into(), String::new()))
    }

    fn at_with(self, step: &'static str, detail: impl FnOnce() -> String) -> Step<T> {
        self.map_err(|error| refusal(step.into(), error.into(), detail()))
    }
}

fn refusal(step: Cow<'static, str>, error: io::Error, detail: String) -> Refusal {
    let errno = error.raw_os_error().unwrap_or(0);
    let detail = if errno == 0 && detail.is_empty() { error.to_string() } else { detail };
    Refusal { step, errno, detail }
}

/// A path for a message: lossy, cut to a length that is safe in a frame.
pub fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(&path[..path.len().min(512)]).into_owned()
}
