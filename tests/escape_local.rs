//! The escape corpus on this machine: containers as root and as a plain user, and what applies to plain processes.

#[cfg(target_os = "linux")]
mod support;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    use libtest_mimic::Arguments;
    use tierbox_testkit::{Suite, minimum, plain, run_with};

    let container_minimum = if plain::is_root() { minimum::local_container_root() } else { minimum::local_container_plain() };
    let container = support::local("local-container", "local");
    let suites = [
        Suite::escape(container_minimum, container.clone()),
        Suite::escape(minimum::local_container_plain(), container).variant("plain").as_plain_user(),
        Suite::escape(minimum::local_process(), support::local("local-process", "local-process")).variant("process"),
    ]
    .map(|suite| suite.required(support::REQUIRED).expected(include_str!("escape_local/expected.toml")));
    run_with(&Arguments::from_args(), &suites, Vec::new()).exit_code()
}

#[cfg(not(target_os = "linux"))]
fn main() {}
