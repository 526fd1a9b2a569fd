//! Code tasks over any sandbox: a language, a text, input files; out come an outcome and the files that were made.
//!
//! Every task has a private directory, named by a stable hash. Tasks of one session share theirs, which stays between
//! them. A task costs three commands in the machine and needs no more of it than `run` and a POSIX shell, so that it works
//! over every transport. Code, names and variables are data: none of them is ever part of a script.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod files;
mod hash;
mod runner;
mod script;
mod task;

pub use hash::task_hash;
pub use runner::CodeRunner;
pub use task::{
    CodeOutcome, CodeStatus, CodeTask, CreatedFile, RuntimeStatus, SessionInfo, TaskCleanup, TaskEntry, TaskFile, TaskFiles,
    TaskLimits, TaskReport,
};
pub use tierbox_core::{CodeSettings, Runtime};
