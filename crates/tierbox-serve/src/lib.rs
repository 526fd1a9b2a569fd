//! The tierbox daemon: what the library does, as HTTP for programs in other languages.
//!
//! It listens on a Unix socket that only its own user can reach, and if asked to on loopback TCP, where every request
//! carries a token. A *harness* may do everything; an *agent* may do in one environment what its tier's tooling axis
//! allows. Bytes travel raw beside a JSON head, never as base64; output streams have backpressure; a client that goes away
//! in the middle of a command kills that command.
//!
//! Environments are detached ones with leases of limited time, which their client renews. They outlive the daemon, and a
//! daemon that is started again finds them. What the API is in detail says its OpenAPI document, which [`openapi`] makes.
//!
//! ```no_run
//! # async fn example() -> tierbox::Result<()> {
//! use tierbox_serve::{Options, Server};
//!
//! let client = tierbox::Tierbox::new()?;
//! let server = Server::bind(client, Options::default()).await?;
//! server.run(std::future::pending()).await
//! # }
//! ```
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod admission;
mod answer;
mod code;
mod environments;
mod events;
mod exec;
mod files;
mod frames;
mod grant;
mod handler;
mod held;
mod intake;
mod labels;
mod leases;
mod listen;
mod metrics;
mod openapi;
mod options;
mod presence;
mod principal;
mod reaper;
mod recovery;
mod room;
mod routes;
mod runs;
mod seats;
mod server;
mod tokens;
mod turns;
mod watch;
pub mod wire;

pub use admission::{Budget, Waiting};
pub use openapi::openapi;
pub use options::{Options, default_socket, queue_file, waiting};
pub use server::Server;
pub use tokens::Tokens;
