//! The conformance suite on this machine: containers as root and as a plain user, plain processes, a supervisor behind pipes;
//! and the mutants that prove the suite.

#[cfg(target_os = "linux")]
mod support;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    use std::sync::Arc;

    use libtest_mimic::Arguments;
    use tierbox_testkit::{BackendFactory, Suite, minimum, plain, run_with};

    let container_minimum = if plain::is_root() { minimum::local_container_root() } else { minimum::local_container_plain() };
    let container = support::local("local-container", "local");
    let framed =
        Arc::new(BackendFactory::new("local-process", Arc::new(support::framed::Framed), support::spec("local-process"), None));
    let suites = [
        Suite::conformance(container_minimum, container.clone()),
        Suite::conformance(minimum::local_container_plain(), container.clone()).variant("plain").as_plain_user(),
        Suite::conformance(minimum::local_process(), support::local("local-process", "local-process")).variant("process"),
        Suite::conformance(support::framed::capabilities(), framed).variant("framed"),
        Suite::mutants(container),
    ]
    .map(|suite| suite.required(support::REQUIRED));
    run_with(&Arguments::from_args(), &suites, Vec::new()).exit_code()
}

#[cfg(not(target_os = "linux"))]
fn main() {}
