//! Named points at which a test can make tierbox die, to prove that nothing stays behind.

/// The point that a test asks for, for the supervisor.
#[cfg(feature = "crash-points")]
pub fn requested() -> Option<String> {
    std::env::var("TIERBOX_CRASH_AT").ok()
}

/// Never: the feature is off.
#[cfg(not(feature = "crash-points"))]
pub fn requested() -> Option<String> {
    None
}

/// Dies here if a test asks for it.
pub fn point(name: &str) {
    if requested().as_deref() == Some(name) {
        std::process::abort();
    }
}
