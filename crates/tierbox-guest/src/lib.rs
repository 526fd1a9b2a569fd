//! The host's side of a tierbox machine: a full sandbox over a channel to its supervisor.
#![deny(missing_docs)]
