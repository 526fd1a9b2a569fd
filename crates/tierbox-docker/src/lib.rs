//! The backend `docker`: containers of a Docker Engine, or of podman's compatible service, on this machine (H1).
//!
//! It plans containers that are safe by default, starts the supervisor once in each over one attached stream, and leaves the
//! rest to `tierbox-guest`. No `docker` command is needed: the engine is spoken to over its socket. See [`Settings`] for what a
//! profile's `[docker]` table takes.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod backend;
mod beside;
mod build;
mod built;
mod compose;
mod crash;
mod destroy;
mod dockerfile;
mod doctor;
mod domain;
mod egress;
mod engine;
mod environment;
mod first;
mod ignore;
mod image;
mod join;
mod launch;
mod limits;
mod names;
mod network;
mod outside;
mod plain;
mod plan;
mod program;
mod removal;
mod report;
mod seccomp;
mod services;
mod settings;
mod start;
mod stream;
mod triggers;
mod twin;
mod way;

pub use backend::DockerBackend;
pub use settings::{Pull, Settings, Transport};

/// The backend's name.
pub const BACKEND: &str = "docker";

tierbox_core::register_backend!(|| std::sync::Arc::new(DockerBackend::new()));
