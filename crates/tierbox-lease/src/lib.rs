//! The lease journal and the reaper of tierbox.
#![deny(missing_docs)]
