//! The escape corpus on this machine: containers as root and as a plain user, containers with a network, and what applies to
//! plain processes; and attacks on what the host's side unpacks.

#[cfg(target_os = "linux")]
mod support;

#[cfg(target_os = "linux")]
#[path = "escape_local/downloads.rs"]
mod downloads;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    use libtest_mimic::Arguments;
    use tierbox_testkit::{Suite, minimum, plain, run_with};

    let container_minimum = if plain::is_root() { minimum::local_container_root() } else { minimum::local_container_plain() };
    let container = support::local("local-container", "local");
    let open = || support::local("local-network", "local-open");
    let metadata = &["network::e44_metadata"];
    let suites = [
        Suite::escape(container_minimum, container.clone()),
        Suite::escape(minimum::local_container_plain(), container).variant("plain").as_plain_user(),
        Suite::escape(minimum::local_process(), support::local("local-process", "local-process")).variant("process"),
        // Metadata services are out of reach in every mode.
        Suite::escape(minimum::local_container_plain(), open()).variant("open").only(metadata),
        Suite::escape(minimum::local_container_plain(), open()).variant("open_plain").only(metadata).as_plain_user(),
    ]
    .map(|suite| suite.required(support::REQUIRED).expected(include_str!("escape_local/expected.toml")));
    run_with(&Arguments::from_args(), &suites, downloads::all()).exit_code()
}

#[cfg(not(target_os = "linux"))]
fn main() {}
