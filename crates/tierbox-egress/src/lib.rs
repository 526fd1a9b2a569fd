//! The N1 gateway: the only way out of a sandbox whose profile names what it may reach.
//!
//! A sandbox gets a network in which nothing exists but one address, and on that address these [`Sockets`]: DNS on port
//! 53, an HTTP proxy, and a transparent listener on each allowed port. The gateway accepts what comes there, finds out
//! which *name* is asked for, compares it with the [`Rules`], resolves it once, and dials the address that it has checked.
//! Programs that honour proxy variables use the proxy; all others resolve names to the gateway's own address and connect
//! to it without knowing.
//!
//! What is compared, for each request or connection:
//! - plain HTTP: the URI, the one `Host` and the dialled name are the same, for each request of a connection;
//! - TLS: the server name (SNI) is the dialled name, and the name of `CONNECT` where there is one. No server name, an
//!   encrypted client hello, and bytes that are not TLS are refused;
//! - `tcp://` rules: the name of `CONNECT` alone.
//!
//! Queries are answered from the rules alone: no query ever leaves. Names are resolved when they are dialled, and addresses
//! that are private, local or a metadata service's are refused, as are this host's own. Each decision is a line in a log
//! before a byte flows; if the log cannot be written, nothing more is allowed.
//!
//! Not seen: what is inside TLS. A server that answers for several names (a content delivery network) can be asked for
//! another one than the server name says; the report says so for wildcard rules.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod address;
mod body;
mod budget;
mod dial;
mod dns;
mod gateway;
mod hello;
mod http;
mod idle;
mod left;
mod log;
mod opening;
mod process;
mod room;
mod rules;
mod serve;
mod shared;
mod sockets;
mod tenant;
mod tunnel;

pub use address::refused as refused_address;
pub use dial::{Resolver, SystemResolver};
pub use gateway::{Config, Gateway};
pub use hello::{HelloError, server_name};
pub use left::{log_path, merge, read_left};
pub use log::{Log, read as read_log};
pub use process::{installed, run_if_asked, spawn, stand_alone};
pub use rules::Rules;
pub use shared::{Lodger, share};
pub use sockets::{PROXY_PORT, Plan, Sockets};

#[cfg(test)]
mod unit;
