//! The escape corpus on containers of a Docker Engine, with the supervisor and without.

#[cfg(target_os = "linux")]
mod support;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    use libtest_mimic::Arguments;
    use tierbox_testkit::{Suite, minimum, run_with};

    let docker = support::engines::docker("docker", "docker");
    let plain = support::engines::docker_plain("docker", "docker");
    let suites = [
        Suite::escape(minimum::docker(), docker).variant("docker"),
        Suite::escape(minimum::docker_plain(), plain).variant("docker::plain"),
    ]
    .map(|suite| suite.required(support::REQUIRED).expected(include_str!("escape_docker/expected.toml")));
    run_with(&Arguments::from_args(), &suites, Vec::new()).exit_code()
}

#[cfg(not(target_os = "linux"))]
fn main() {}
