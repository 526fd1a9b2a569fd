//! The host's side of a tierbox machine: a full [`Sandbox`](tierbox_core::Sandbox), once for all backends.
//!
//! A backend has one of three ways into its machine:
//!
//! - **A socket on this host** ([`Channel::socket`]), or a stream that lives as long as the machine ([`Channel::stream`]): send a
//!   set-up ([`Channel::setup`]), greet ([`Channel::hello`]), and make a [`GuestSandbox`].
//! - **Lines that can drop**: ssh, an engine's exec, anything that connects standard input and output to a process in the machine.
//!   [`install`] puts the supervisor there and starts it as one process that outlives its lines; [`Channel::begin`] speaks to it
//!   over the first [`Line`], and a [`Reconnect`] of the backend's opens the next ones. Above, nobody notices but for the time it
//!   takes: frames are counted and sent again where they are missing, so commands run once, and no byte is lost.
//! - **Scripts alone**: where neither is to be had, a [`plain::PlainTransport`] that runs a shell script makes a
//!   [`plain::PlainSandbox`], with the same semantics for what it declares.
//!
//! What the machine says is never trusted: it is bounded, checked, and a machine that breaks the protocol loses its channel.
#![deny(missing_docs)]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(all(target_os = "linux", feature = "descriptors")),
    allow(dead_code, reason = "some parts serve only channels that pass descriptors")
)]

mod calls;
mod channel;
mod dial;
pub mod driver;
mod errors;
mod exec;
mod files;
mod flow;
mod handshake;
mod incoming;
#[cfg(all(target_os = "linux", feature = "descriptors"))]
mod inside;
pub mod install;
mod line;
mod operation;
mod outgoing;
#[cfg(all(target_os = "linux", feature = "descriptors"))]
mod pipe;
pub mod plain;
mod sandbox;
mod session;
pub mod supervisor;
pub mod transfer;

use tierbox_core::{Capabilities, HostIsolation, KillDomain, Locality};

pub use channel::Channel;
pub use handshake::{Ready, SetupReply};
#[cfg(all(target_os = "linux", feature = "descriptors"))]
pub use inside::{bar_inside, listen_inside};
pub use line::{Line, Reconnect};
pub use sandbox::{GuestConfig, GuestSandbox};

/// What every machine that a supervisor serves can do; the rest (networks, users, mounts, limits, what isolates it) is for its
/// backend to add with struct update. The kill domain is the weakest that the supervisor uses; its [`Ready`] says which it is.
pub fn capabilities(host: HostIsolation, locality: Locality) -> Capabilities {
    Capabilities {
        kill_domain: KillDomain::Subreaper,
        streaming_output: true,
        streaming_stdin: true,
        pty: true,
        signals: true,
        idle_timeout: true,
        detached_exec: true,
        usage: true,
        files: true,
        archives: true,
        dial: true,
        ..Capabilities::none(host, locality)
    }
}

#[cfg(all(test, target_os = "linux", feature = "descriptors"))]
mod unit;
