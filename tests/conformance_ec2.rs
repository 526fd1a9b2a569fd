//! The conformance suite on instances of EC2, as a server imitates them, in which commands are really run.

#[cfg(target_os = "linux")]
#[path = "support/aws.rs"]
mod aws;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    use libtest_mimic::Arguments;
    use tierbox_testkit::{Suite, minimum, run_with};

    let suites =
        [Suite::conformance(minimum::ec2(), aws::factory()).variant("aws").required(include_str!("engines-required.txt"))];
    run_with(&Arguments::from_args(), &suites, Vec::new()).exit_code()
}

#[cfg(not(target_os = "linux"))]
fn main() {}
