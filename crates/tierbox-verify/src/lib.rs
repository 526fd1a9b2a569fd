//! Proves the tier of an environment, and keeps the record of what happened in it.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod clock;
pub mod log;

pub use log::{LogLimits, OperationLog};
