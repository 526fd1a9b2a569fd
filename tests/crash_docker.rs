//! A harness that is killed leaves nothing in the engine: at every named point, and at random moments. Cleanup touches nothing
//! of others.

#[cfg(target_os = "linux")]
mod support;

#[cfg(target_os = "linux")]
#[path = "crash_docker/trials.rs"]
mod trials;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    match support::again::role().as_deref() {
        Some("harness") => trials::harness(),
        _ => libtest_mimic::run(&libtest_mimic::Arguments::from_args(), trials::all()).exit_code(),
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {}
