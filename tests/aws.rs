//! The EC2 backend on a server that imitates AWS, with machines in which commands are really run: how many calls what takes, what
//! a launch asks for, what stays behind, what the agent can reach, and what happens when AWS fails.
#![allow(clippy::print_stdout, reason = "a child of a test tells what it did")]

#[cfg(target_os = "linux")]
#[path = "aws/mod.rs"]
mod cases;
#[cfg(target_os = "linux")]
#[path = "support/aws.rs"]
mod server;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    if cases::is_harness() {
        return cases::be_harness();
    }
    libtest_mimic::run(&libtest_mimic::Arguments::from_args(), cases::all()).exit_code()
}

#[cfg(not(target_os = "linux"))]
fn main() {}
