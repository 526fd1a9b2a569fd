//! Runs untrusted agent code in sandboxes: one API over many isolating engines.
//!
//! A profile names a backend and states a tier such as `T0.H1.N2`; what is started enforces that tier or is refused.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod agent;
mod check;
mod client;
mod memo;
mod options;
mod profiles;
mod running;
mod start;
mod undertaker;

#[cfg(feature = "local")]
use tierbox_local as _;

pub use agent::AgentSandbox;
pub use client::{Listed, Listing, Tierbox, TierboxBuilder};
pub use options::StartOptions;
pub use profiles::{ProfileEntry, ProfileSource};
pub use running::Running;
pub use tierbox_core::*;
pub use tierbox_lease::{CleanupOptions, CleanupReport, Foreign, Standing, StateDir};
