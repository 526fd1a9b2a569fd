//! The backend `ec2`: instances of EC2 that nobody can reach from outside. Commands go through SSM's Run Command, files and secrets
//! through a bucket of S3. See [`Settings`] for what a profile's `[ec2]` table takes.
//!
//! AWS itself was never reached by the project's tests: they run against a server that imitates its API, with machines in which
//! commands are really run.
//!
//! # How a command gets there
//!
//! Run Command has no byte stream, so the sandbox is one over a plain transport (`tierbox_guest::plain`): scripts with input and
//! output. Around each is an envelope that makes it run at most once, in a session of its own, and tells its bytes exactly; a small
//! command is one `SendCommand` and one or two looks. What is given to one command alone (variables, input), and what is large,
//! goes by presigned addresses through the bucket, since SSM keeps the text of commands for weeks.
//!
//! # What ends what
//!
//! An instance is terminated when it shuts down, and shuts itself down when its harness gave no sign of life for
//! `outlive-minutes`; the tag `ExpiresAt` says when that is. A lease names it before it exists.
//!
//! # Tiers
//!
//! H3, remote, with N0; with N2 where the network around the instances is closed, of which every way out is checked; with N1 where
//! the gateway of the stack is the only way out.
#![deny(missing_docs)]
#![forbid(unsafe_code)]
#![cfg(unix)]

mod attach;
mod aws;
mod backend;
mod call;
mod check;
mod control;
mod crash;
mod destroy;
mod doctor;
mod door;
mod envelope;
mod environment;
mod expired;
mod gateway;
mod guest;
mod image;
mod import;
mod install;
mod isolation;
mod link;
mod memory;
mod network;
mod objects;
mod place;
mod poll;
mod ready;
mod report;
mod role;
mod settings;
mod setup;
mod signed;
mod stack;
mod start;
mod tags;
mod task;
mod variables;

use backend::capabilities;

pub use backend::Ec2Backend;
pub use control::{Control, Find, Given, Instance, Order};
pub use expired::{Left, Whose};
pub use import::{Imported, import};
pub use settings::{Mode, Settings};
pub use setup::{SetUp, Wanted};
pub use stack::{IDLE_COST, Stack};
pub use task::Status;
/// The program of N1's gateway on this host, for [`Wanted::gateway`].
pub use tierbox_egress::installed as gateway_program;

/// The backend's name.
pub const BACKEND: &str = "ec2";

tierbox_core::register_backend!(|| std::sync::Arc::new(Ec2Backend::new()));
