//! Points at which a test can make tierbox die, to prove that nothing stays behind.

/// Dies here if a test asks for it.
#[cfg(feature = "crash-points")]
pub fn point(name: &str) {
    if std::env::var("TIERBOX_CRASH_AT").is_ok_and(|wanted| wanted == name) {
        // SIGKILL, as the harness would die of it: no handler runs.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// Nothing: the feature is off.
#[cfg(not(feature = "crash-points"))]
pub fn point(_name: &str) {}
