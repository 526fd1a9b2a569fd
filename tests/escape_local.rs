//! The escape corpus on this machine: containers as root and as a plain user, containers with a network, and what applies to
//! plain processes; and attacks on what the host's side unpacks.

#[cfg(target_os = "linux")]
mod support;

#[cfg(target_os = "linux")]
#[path = "escape_local/downloads.rs"]
mod downloads;

#[cfg(target_os = "linux")]
#[path = "escape_local/rooted.rs"]
mod rooted;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    use libtest_mimic::Arguments;
    use tierbox_testkit::{Suite, minimum, plain, run_with};

    let container_minimum = if plain::is_root() { minimum::local_container_root() } else { minimum::local_container_plain() };
    let container = support::local("local-container", "local");
    let open = || support::local("local-network", "local-open");
    let metadata = &["network::e44_metadata"];
    // A root that is a directory's copy on write is built in another way than one of the host's programs.
    let above = &[
        "files::e01_links_to_host_files",
        "files::e02_swapped_parents",
        "files::e03_through_proc",
        "files::e03_above_the_root",
        "kernel::e39_proc",
        "kernel::e39_sys_and_dev",
        "kernel::e39_sockets_of_the_host",
        "kernel::e39_mounts",
    ];
    let suites = [
        Suite::escape(minimum::local_container_plain(), rooted::factory()).variant("rooted").only(above),
        Suite::escape(minimum::local_container_plain(), rooted::factory()).variant("rooted_plain").only(above).as_plain_user(),
        Suite::escape(container_minimum, container.clone()),
        Suite::escape(minimum::local_container_plain(), container).variant("plain").as_plain_user(),
        Suite::escape(minimum::local_process(), support::local("local-process", "local-process")).variant("process"),
        // Metadata services are out of reach in every mode.
        Suite::escape(minimum::local_container_plain(), open()).variant("open").only(metadata),
        Suite::escape(minimum::local_container_plain(), open()).variant("open_plain").only(metadata).as_plain_user(),
    ]
    .map(|suite| suite.required(support::REQUIRED).expected(include_str!("escape_local/expected.toml")));
    let code = run_with(&Arguments::from_args(), &suites, downloads::all()).exit_code();
    rooted::clean();
    code
}

#[cfg(not(target_os = "linux"))]
fn main() {}
