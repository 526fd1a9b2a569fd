//! The conformance suite and the escape corpus of tierbox.
#![deny(missing_docs)]
