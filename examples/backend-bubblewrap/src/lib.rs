//! A backend as a third party writes it: [bubblewrap](https://github.com/containers/bubblewrap) makes the machine, and
//! tierbox does the rest.
//!
//! A backend is a lifecycle and a byte stream to a supervisor inside. So there is little here:
//!
//! - [`backend`]: the traits: what is enforced, start, find again, destroy;
//! - [`command`]: the command line of bubblewrap, which is all that isolates;
//! - [`filter`]: the seccomp filter, which bubblewrap loads but does not bring;
//! - [`hold`]: whether a machine of a dead harness still lives, and its end.
//!
//! Commands, streams, timeouts, tree kill, files and outcomes come with `tierbox-guest`. The conformance suite and the escape
//! corpus run over it in `tests/conformance.rs`.
#![deny(missing_docs)]
#![forbid(unsafe_code)]
#![cfg(target_os = "linux")]

pub mod backend;
pub mod command;
pub mod filter;
pub mod hold;
mod machine;

pub use backend::Bubblewrap;

tierbox_core::register_backend!(|| std::sync::Arc::new(Bubblewrap));
