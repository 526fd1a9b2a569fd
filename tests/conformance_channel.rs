//! The conformance suite over a channel to a supervisor that outlives its lines: over one that stays, and over lines that drop at
//! random points. Nothing may be noticed of that but the time it takes.

#[cfg(target_os = "linux")]
mod support;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    use std::sync::Arc;

    use libtest_mimic::Arguments;
    use tierbox_testkit::{BackendFactory, Factory, Suite, run_with};

    let factory = |engine: &str, cut| -> Arc<dyn Factory> {
        let backend = Arc::new(support::joined::Joined { cut });
        Arc::new(BackendFactory::new(engine, backend, support::spec("local-process"), None))
    };
    let suites = [
        Suite::conformance(support::framed::capabilities(), factory("channel", false)).variant("channel"),
        Suite::conformance(support::framed::capabilities(), factory("channel", true)).variant("channel::cut"),
    ]
    .map(|suite| suite.required(support::REQUIRED));
    run_with(&Arguments::from_args(), &suites, Vec::new()).exit_code()
}

#[cfg(not(target_os = "linux"))]
fn main() {}
