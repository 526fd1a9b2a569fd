//! The conformance suite and the escape corpus on instances of EC2, as a server imitates them, in which commands are really run.

#[cfg(target_os = "linux")]
#[path = "support/aws.rs"]
mod aws;

/// Attacks that take minutes: a thousand commands, each a few calls of an API.
#[cfg(target_os = "linux")]
const SLOW: [&str; 1] = ["processes::e21_ends_that_race"];

/// What tasks on one instance do not keep from each other, as the documentation says.
#[cfg(target_os = "linux")]
const SHARED: &str = r#"
"conformance::attach::aws::lifecycle::files_are_separate" = "what everybody may read, such as /tmp, is the instance's"
"conformance::attach::aws::lifecycle::processes_are_separate" = "the table of processes is the instance's"
"#;

/// An attack whose lookups are counted in the gateway's process, which is on a machine of its own.
#[cfg(target_os = "linux")]
const ELSEWHERE: &str = "egress::e51_slow_names";

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    use libtest_mimic::Arguments;
    use tierbox_testkit::{Suite, minimum, run_with, world::ATTACKS};

    // What a kernel of its own is not to hold off is told by the corpus, and not tried: the
    // test server's machines have the host's.
    let escapes = || Suite::escape(minimum::ec2(), aws::closed()).expected(include_str!("aws/expected.toml"));
    let named: Vec<&str> = ATTACKS.iter().copied().filter(|name| *name != ELSEWHERE).collect();
    let suites = [
        Suite::conformance(minimum::ec2(), aws::factory()).by_area(4).variant("aws"),
        Suite::conformance(minimum::ec2_task(), aws::attached()).expected(SHARED).by_area(4).variant("attach::aws"),
        escapes().without(&SLOW).by_area(2).variant("aws"),
        escapes().only(&SLOW).by_area(1).variant("slow::aws"),
        // A flood takes all that its sandbox may have, so one case at a time.
        Suite::escape(minimum::ec2(), aws::named()).only(&named).by_area(1).variant("aws::n1"),
    ]
    .map(|suite| suite.required(include_str!("engines-required.txt")));
    run_with(&Arguments::from_args(), &suites, Vec::new()).exit_code()
}

#[cfg(not(target_os = "linux"))]
fn main() {}
