//! The conformance suite and the escape corpus on instances of EC2, as a server imitates them, in which commands are really run.

#[cfg(target_os = "linux")]
#[path = "support/aws.rs"]
mod aws;

/// The attacks that an instance must hold off, with N2. Left out is what only a container has to refuse: system calls, namespaces,
/// devices, `/proc`, and everything of root. A kernel of its own may be spoken to, and the test server's machines have the host's, so that
/// such attacks would be made on the host. Limits of memory, processes and disk are not of this backend, a GiB of output
/// ends a command by its limit, ends that race take dozens of instances, and a home has the system's own files in it. N1's are in `aws::named`.
#[cfg(target_os = "linux")]
const ATTACKS: [&str; 24] = [
    "files::e01_links_to_host_files",
    "files::e02_swapped_parents",
    "files::e03_through_proc",
    "files::e04_names",
    "files::e05_archives",
    "files::e06_odd_files",
    "files::e12_deep_trees",
    "processes::e14_double_forks",
    "processes::e15_held_stdout",
    "processes::e16_stubborn_processes",
    "processes::e18_orphans",
    "processes::e19_kill_everything",
    "processes::e23_client_leaves_mid_stream",
    "processes::e25_overwrite_the_runner",
    "load::e27_yes_on_both_streams",
    "load::e27_bytes_that_are_no_text",
    "load::e30_no_core_file",
    "kernel::e37_descriptors",
    "kernel::e38_environments",
    "between::e41_abstract_sockets",
    "network::e43_default_deny",
    "network::e44_metadata",
    "network::e48_without_proxies",
    "network::e49_ports_of_the_host",
];

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    use libtest_mimic::Arguments;
    use tierbox_testkit::{Suite, minimum, run_with};

    let suites = [
        Suite::conformance(minimum::ec2(), aws::factory()).by_area(4),
        Suite::escape(minimum::ec2(), aws::closed()).only(&ATTACKS).by_area(2),
    ]
    .map(|suite| suite.variant("aws").required(include_str!("engines-required.txt")));
    run_with(&Arguments::from_args(), &suites, Vec::new()).exit_code()
}

#[cfg(not(target_os = "linux"))]
fn main() {}
