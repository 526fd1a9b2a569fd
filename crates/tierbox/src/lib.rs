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

pub use agent::AgentSandbox;
pub use client::{Listed, Listing, Tierbox, TierboxBuilder};
pub use options::StartOptions;
pub use profiles::ProfileSource;
pub use running::Running;
pub use tierbox_core::*;
pub use tierbox_guest::transfer;
pub use tierbox_lease::{CleanupOptions, CleanupReport, Foreign, Standing, StateDir};
#[cfg(feature = "local")]
pub use tierbox_local as local;
pub use tierbox_profile as profile;
pub use tierbox_profile::{Loader, Overrides, Profile, ProfileBuilder, Secret, SecretRef};
pub use undertaker::settle;
