//! The conformance suite on containers of a Docker Engine, with the supervisor and without, and of podman's compatible service.

#[cfg(target_os = "linux")]
mod support;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    use libtest_mimic::Arguments;
    use tierbox_testkit::{Suite, minimum, run_with};

    let docker = support::engines::docker("docker", "docker");
    let plain = support::engines::docker_plain("docker", "docker");
    let podman = support::engines::docker("podman", "docker");
    let suites = [
        Suite::conformance(minimum::docker(), docker).variant("docker"),
        Suite::conformance(minimum::docker_plain(), plain).variant("docker::plain"),
        Suite::conformance(minimum::podman(), podman).variant("docker::podman"),
    ]
    .map(|suite| suite.required(support::REQUIRED));
    run_with(&Arguments::from_args(), &suites, Vec::new()).exit_code()
}

#[cfg(not(target_os = "linux"))]
fn main() {}
