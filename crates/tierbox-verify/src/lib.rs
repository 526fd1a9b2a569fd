//! Proves the tier of an environment, and keeps the record of what happened in it.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod clock;
pub mod log;
pub mod probe;

pub use log::{LogLimits, OperationLog};

/// A SHA-256 in hex.
pub fn digest(bytes: &[u8]) -> String {
    log::hash(bytes)
}
pub use probe::{ControlResult, ProbeResult, ProbeStatus, Verification, Verified};
#[cfg(target_os = "linux")]
pub use probe::{Twin, Twins, verify};
