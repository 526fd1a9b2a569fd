//! The conformance suite over plain transports: a shell with this host's tools, one with busybox alone, one that carries little at
//! once as run-command services do, one that loses answers, and shells that are kept.

#[cfg(target_os = "linux")]
mod support;

/// What goes in pieces where little is carried at once.
#[cfg(target_os = "linux")]
const NARROWED: &[&str] = &[
    "exec::argv_is_exact",
    "exec::arguments_of_100_kib",
    "exec::ten_thousand_arguments",
    "stdin::bytes_are_exact",
    "stdin::empty_bytes_are_a_pipe_at_its_end",
    "stdin::a_mebibyte_arrives",
    "streaming::bytes_are_exact",
    "output::truncation_keeps_both_ends",
    "output::kill_is_told",
    "files::round_trip_is_exact",
    "files::ranges_are_exact",
    "files::replacement_is_atomic",
    "files::large_directories_are_listed",
    "files_edges::broken_source_leaves_the_old",
    "files_edges::cancelled_write_leaves_the_old",
    "archives::round_trip",
];

/// What must not happen twice, or get lost, where answers do.
#[cfg(target_os = "linux")]
const LOSSY: &[&str] = &[
    "exec::argv_is_exact",
    "exec::missing_program_is_127",
    "outcome::exit_codes_are_exact",
    "outcome::signals_are_told",
    "stdin::bytes_are_exact",
    "streaming::streams_are_separate",
    "streaming::bytes_are_exact",
    "cancellation::kill_is_told",
    "timeouts::outcome_is_timeout",
    "timeouts::partial_output_is_kept",
    "files::commands_see_what_is_written",
];

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    use std::sync::Arc;

    use libtest_mimic::Arguments;
    use support::plain::{NARROW, Plain, Tools, WIDE, absent};
    use tierbox_testkit::{BackendFactory, Factory, Suite, minimum, run_with};

    let made = |engine: &str, tools, limits, loses, keeps| -> Arc<dyn Factory> {
        let backend = Arc::new(Plain { tools, limits, loses, keeps });
        Arc::new(BackendFactory::new(engine, backend, support::spec("local-process"), absent(tools)))
    };
    let factory = |engine: &str, tools, limits, loses| made(engine, tools, limits, loses, false);
    let kept = |engine: &str, tools, loses| made(engine, tools, WIDE, loses, true);
    let suites = [
        Suite::conformance(minimum::plain(), factory("plain-sh", Tools::Host, WIDE, false)).variant("plain::sh"),
        Suite::conformance(minimum::plain(), factory("plain-busybox", Tools::Busybox, WIDE, false)).variant("plain::busybox"),
        Suite::conformance(minimum::plain(), factory("plain-sh", Tools::Host, NARROW, false))
            .variant("plain::narrow")
            .only(NARROWED),
        Suite::conformance(minimum::plain(), factory("plain-sh", Tools::Host, WIDE, true)).variant("plain::lossy").only(LOSSY),
        Suite::conformance(minimum::plain(), kept("plain-sh", Tools::Host, false)).variant("plain::kept"),
        Suite::conformance(minimum::plain(), kept("plain-busybox", Tools::Busybox, false)).variant("plain::kept_busybox"),
        Suite::conformance(minimum::plain(), kept("plain-sh", Tools::Host, true)).variant("plain::kept_lossy").only(LOSSY),
    ]
    .map(|suite| suite.required(support::REQUIRED));
    run_with(&Arguments::from_args(), &suites, Vec::new()).exit_code()
}

#[cfg(not(target_os = "linux"))]
fn main() {}
