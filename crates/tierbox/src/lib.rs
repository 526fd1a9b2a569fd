//! Runs untrusted agent code in sandboxes: one API over many isolating engines.
//!
//! A profile names a backend and states a tier such as `T0.H1.N2` (tooling, host isolation, network). What is started
//! enforces that tier, or is refused. From a profile's name to the output of a command:
//!
//! ```
//! use tierbox::{ExecRequest, SandboxExt, Tierbox};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> tierbox::Result<()> {
//! #     // Where this host cannot start a sandbox there is nothing to show.
//! #     match example().await {
//! #         Err(error) if error.kind() == tierbox::ErrorKind::HostUnable => Ok(()),
//! #         other => other,
//! #     }
//! # }
//! # async fn example() -> tierbox::Result<()> {
//! # let state = tempfile::tempdir().unwrap();
//! # let client = Tierbox::builder().user_config(false).state_dir(state.path().join("tierbox")).build()?;
//! # #[cfg(any())]
//! let client = Tierbox::new()?;
//! let running = client.start("local").await?;
//! let result = running.run(ExecRequest::shell("echo $((6 * 7))")).await?;
//! assert!(result.success());
//! assert_eq!(result.stdout.text(), "42\n");
//! running.stop().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What to know
//!
//! - [`Tierbox`] starts, finds and cleans up; [`StartOptions`] changes a profile for one start; [`Profile::builder`] makes a
//!   profile in code.
//! - [`Running`] is an environment. Dropping it ends it; [`Running::stop`] ends it and waits. It derefs to its primary
//!   machine, a [`Sandbox`], and [`SandboxExt`] adds `run`, `read_bytes` and `write_bytes`.
//! - The harness uses [`Running::sandbox`]. What belongs to the agent goes through [`Running::agent`], which the tooling
//!   axis binds.
//! - A command that fails, is killed or gets lost is an [`Outcome`], not an [`Error`].
//! - Nothing is left behind: a lease is written before anything is made, and [`Tierbox::cleanup`] removes what the death of
//!   a harness left.
//!
//! # Features
//!
//! `local` (default): processes and containers on this machine (Linux). `docker`: containers of a Docker Engine. `ec2`: instances
//! of EC2. `vagrant`: machines of any hypervisor that Vagrant drives. Other backends are other crates; they register themselves when they are
//! linked, or by [`TierboxBuilder::registry`].
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod agent;
mod around;
mod asked;
mod audited;
mod check;
mod client;
mod confinement;
mod decided;
mod gate;
mod life;
mod memo;
mod noted;
mod options;
mod probed;
mod profiles;
#[cfg(target_os = "linux")]
mod records;
mod running;
mod runs;
mod start;
mod termination;
mod timed;
#[cfg(target_os = "linux")]
mod tooling;
mod traced;
mod undertaker;
#[cfg(target_os = "linux")]
mod verification;

pub use agent::{AgentOptions, AgentSandbox};
pub use audited::{AuditLayer, DEFAULT_KEEP};
pub use client::{Leased, Listed, Listing, Tierbox, TierboxBuilder, prepare};
pub use options::StartOptions;
pub use profiles::ProfileSource;
pub use running::Running;
pub use runs::Run;
pub use tierbox_code as code;
pub use tierbox_core::*;
pub use tierbox_guest::transfer;
pub use tierbox_lease::{CleanupOptions, CleanupReport, Foreign, Standing, StateDir};
// Naming it here is also what links it, so that it registers itself.
#[cfg(feature = "docker")]
pub use tierbox_docker as docker;
#[cfg(feature = "ec2")]
pub use tierbox_ec2 as ec2;
/// The N1 gateway. A program that starts detached sandboxes with N1 calls `egress::run_if_asked` first thing in `main`.
#[cfg(target_os = "linux")]
pub use tierbox_egress as egress;
#[cfg(feature = "local")]
pub use tierbox_local as local;
pub use tierbox_profile as profile;
pub use tierbox_profile::{Loader, Overrides, Profile, ProfileBuilder, Secret, SecretRef};
#[cfg(feature = "vagrant")]
pub use tierbox_vagrant as vagrant;
/// The program that verification runs inside, where this build carries it.
pub fn supervisor_program() -> Option<&'static [u8]> {
    tierbox_guest::supervisor::BYTES
}

pub use tierbox_verify as verify;
pub use tierbox_verify::Verified;
pub use undertaker::settle;

#[cfg(test)]
mod unit {
    use super::Registry;

    #[test]
    fn the_registered_backends_are_the_enabled_features() {
        let mut enabled = Vec::new();
        if cfg!(feature = "docker") {
            enabled.push("docker");
        }
        if cfg!(feature = "ec2") {
            enabled.push("ec2");
        }
        if cfg!(feature = "local") {
            enabled.push("local");
        }
        if cfg!(feature = "vagrant") {
            enabled.push("vagrant");
        }
        assert_eq!(Registry::linked().names(), enabled);
    }
}
