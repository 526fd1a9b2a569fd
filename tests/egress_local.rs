//! N1 on this machine, in a world of its own: the network part of the escape corpus as root and as a plain user, the programs
//! that people use, and what happens when the gateway is killed.

#[cfg(target_os = "linux")]
mod support;

#[cfg(target_os = "linux")]
#[path = "egress_local/daemon.rs"]
mod daemon;
#[cfg(target_os = "linux")]
#[path = "serve/http.rs"]
mod http;
#[cfg(target_os = "linux")]
#[path = "egress_local/page.rs"]
mod page;
#[cfg(target_os = "linux")]
#[path = "egress_local/trials.rs"]
mod trials;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    // The gateway of a sandbox that is detached.
    if let Some(code) = tierbox::egress::run_if_asked() {
        return code;
    }
    if std::env::var_os(page::AS_PROGRAM).is_some() {
        return tierbox_cli::main();
    }
    tierbox_testkit::world::run(run)
}

#[cfg(target_os = "linux")]
fn run() -> std::process::ExitCode {
    use libtest_mimic::Arguments;
    use tierbox_testkit::{Suite, minimum, run_with, world::ATTACKS};

    let suite = || Suite::escape(minimum::local_container_plain(), trials::factory()).only(ATTACKS);
    let suites = [suite().variant("local_n1"), suite().variant("local_n1_plain").as_plain_user()]
        .map(|suite| suite.required(support::REQUIRED));
    let others = trials::all().into_iter().chain(daemon::all()).chain(page::all()).collect();
    run_with(&Arguments::from_args(), &suites, others).exit_code()
}

#[cfg(not(target_os = "linux"))]
fn main() {}
