//! An eval harness that embeds tierbox: tasks with samples, set-up and clean-up of both, limits on concurrency, retries, and
//! scores that are found in a fresh sealed sandbox, from the tree that the agent left.
//!
//! Nothing in it knows a backend: the profile's name decides where samples run.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod progress;
pub mod record;
pub mod run;
pub mod score;
pub mod task;
pub mod tasks;
