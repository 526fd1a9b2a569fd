//! The local backend of tierbox: processes and containers on this machine.
#![deny(missing_docs)]
