//! Named points at which a test can make the harness die, to prove that nothing stays behind.

/// Dies here if a test asks for it.
#[cfg(feature = "crash-points")]
pub fn point(name: &str) {
    if std::env::var("TIERBOX_CRASH_AT").is_ok_and(|wanted| wanted == name) {
        std::process::abort();
    }
}

/// Nothing: the feature is off.
#[cfg(not(feature = "crash-points"))]
pub fn point(_: &str) {}
