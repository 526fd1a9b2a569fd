//! Hosts that deny what containers need. `tierbox run` there ends at once, with a documented status and one message that says
//! what is denied, by what, and the remedy; it never falls back to less by itself; and these very tests skip there and stay
//! green.

#[cfg(target_os = "linux")]
mod support;

#[cfg(target_os = "linux")]
#[path = "hostile_hosts/trials.rs"]
mod trials;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    use std::sync::Arc;

    use tierbox_testkit::{BackendFactory, Suite, minimum, run};

    match support::again::role().as_deref() {
        Some("watched") => trials::watched(),
        Some("cli") => tierbox_cli::main(),
        // The suite as a newcomer runs it: on a hostile host it must skip.
        Some("suite") => {
            let backend = Arc::new(tierbox::local::LocalBackend::new());
            let factory = Arc::new(BackendFactory::new("local-container", backend, support::spec("local"), None));
            run(&[Suite::conformance(minimum::local_container_plain(), factory).required(support::REQUIRED)]).exit_code()
        }
        _ => {
            let conclusion = libtest_mimic::run(&libtest_mimic::Arguments::from_args(), trials::all());
            tierbox_testkit::plain::clean();
            conclusion.exit_code()
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {}
