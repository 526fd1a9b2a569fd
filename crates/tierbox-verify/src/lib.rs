//! Proves the tier of an environment, and keeps the record of what happened in it.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod attestation;
mod clock;
pub mod log;
pub mod probe;
mod report;

pub use attestation::{
    ATTESTATION_VERSION, Affordances, Attestation, AttestedLimit, AttestedMechanism, AttestedVerification, LogLink,
};
pub use log::{LogLimits, OperationLog};
pub use report::page;

/// A SHA-256 in hex.
pub fn digest(bytes: &[u8]) -> String {
    log::hash(bytes)
}
pub use probe::{
    ControlResult, ProbeResult, ProbeStatus, SABOTAGES, Sabotage, Unprobed, Verdict, Verification, Verified, sabotage_table,
};
#[cfg(target_os = "linux")]
pub use probe::{Twin, Twins, probe_names, remove_orphans, unconfined, verify, verify_confined};
#[cfg(target_os = "linux")]
pub use probe::{is_own_name, names_asked};
