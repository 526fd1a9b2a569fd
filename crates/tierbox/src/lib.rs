//! Runs untrusted agent code in sandboxes: one API over many isolating engines.
#![deny(missing_docs)]
