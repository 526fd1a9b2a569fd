//! A harness that is killed leaves nothing: at every named point, and at random moments of start, exec and stop.
//!
//! Each experiment has a process of its own, the judge, to which everything that loses its parent comes home. It starts the
//! harness, sees it die, waits until every process of it is gone, cleans up, and looks for what is left.

#[cfg(target_os = "linux")]
mod support;

#[cfg(target_os = "linux")]
#[path = "crash_local/harness.rs"]
mod harness;
#[cfg(target_os = "linux")]
#[path = "crash_local/judge.rs"]
mod judge;
#[cfg(target_os = "linux")]
#[path = "crash_local/trials.rs"]
mod trials;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    match support::again::role().as_deref() {
        Some("harness") => harness::main(),
        Some("judge") => judge::main(),
        Some("cleaner") => judge::clean(),
        _ => {
            let conclusion = libtest_mimic::run(&libtest_mimic::Arguments::from_args(), trials::all());
            tierbox_testkit::plain::clean();
            conclusion.exit_code()
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {}
