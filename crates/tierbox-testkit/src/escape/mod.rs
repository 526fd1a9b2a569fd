//! The escape corpus.

use tierbox_core::Capabilities;

use crate::case::Case;

/// The attacks for a set of capabilities.
pub fn cases(capabilities: &Capabilities) -> Vec<Case> {
    let _ = capabilities;
    Vec::new()
}
