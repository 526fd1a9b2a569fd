//! Every mutant, and what it must fail.

use super::Mutant;

macro_rules! catalogue {
    ($($(#[doc = $doc:literal])+ $fault:ident => [$($case:literal),+ $(,)?];)+) => {
        /// A broken promise.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Fault { $($(#[doc = $doc])+ $fault),+ }

        /// Every mutant there is.
        pub fn mutants() -> &'static [Mutant] {
            &[$(Mutant { fault: Fault::$fault, breaks: &[$($case),+] }),+]
        }
    };
}

catalogue! {
    /// Leaves out arguments that are empty.
    DropsEmptyArguments => ["exec::argv_is_exact"];
    /// Cuts arguments at 64 KiB.
    CutsArguments => ["exec::arguments_of_100_kib", "exec::too_big_argv_never_runs"];
    /// Passes the first 5000 arguments only.
    CutsArgv => ["exec::ten_thousand_arguments"];
    /// Joins arguments for a shell.
    GoesThroughAShell => ["exec::no_shell_between"];
    /// Cuts arguments and the like at NUL, as C would.
    CutsAtNul => ["exec::nul_in_an_argument_is_refused", "env::bad_keys_are_refused", "files_edges::bad_paths_are_refused"];
    /// Runs something for an empty argv.
    RunsTheEmpty => ["exec::empty_argv_is_refused"];
    /// Never tells why a program could not be executed.
    HidesErrno => [
        "exec::missing_program_is_127", "exec::missing_name_is_127", "exec::not_executable_is_126", "exec::directory_is_126",
        "exec::unknown_format_is_126",
    ];
    /// Guesses an errno from the exit code.
    GuessesErrno => ["exec::own_127_has_no_errno"];
    /// Looks names up in a PATH of its own.
    IgnoresPath => ["exec::path_of_the_command_decides"];
    /// Starts commands in the working directory, whatever was asked for.
    IgnoresCwd => [
        "exec::relative_program_starts_at_cwd", "cwd::absolute_is_taken", "cwd::relative_starts_at_the_workdir",
        "cwd::missing_never_runs", "cwd::file_never_runs", "cwd::forbidden_never_runs", "cwd::odd_names_work",
    ];
    /// Gives every command the same id.
    RepeatsIds => ["exec::ids_differ"];
    /// Tells the low seven bits of the exit code.
    CutsCodes => ["outcome::exit_codes_are_exact"];
    /// Makes an error of a failing command.
    FailureIsAnError => ["outcome::failure_is_no_error"];
    /// Tells a signal as 128 + n.
    SignalsAsCodes => ["outcome::signals_are_told", "signals::untrapped_signals_end_it"];
    /// Tells no time.
    HidesWallTime => ["outcome::wall_time_is_measured"];
    /// Tells no use of resources.
    HidesUsage => ["outcome::cpu_time_and_memory_are_measured"];
    /// Knows the end only once.
    TellsTheEndOnce => ["outcome::waiting_again_tells_the_same"];
    /// Sends stderr to stdout.
    MergesStreams => ["streaming::streams_are_separate", "output::limit_is_per_stream"];
    /// Treats output as text.
    DecodesOutput => ["streaming::bytes_are_exact"];
    /// Gives streams again and again.
    GivesStreamsTwice => ["streaming::streams_are_taken_once", "stdin::stream_is_taken_once"];
    /// Shows output when the command has ended.
    BuffersOutput => ["streaming::output_arrives_while_it_runs", "streaming::stderr_arrives_while_it_runs"];
    /// Reads output as fast as it comes, into memory.
    ReadsAhead => ["streaming::unread_output_holds_the_command"];
    /// Loses the output of one command in 150.
    LosesSome => ["streaming::short_commands_lose_nothing"];
    /// Loses a chunk beyond the first MiB.
    LosesAChunk => ["streaming::large_output_is_whole", "output::truncation_keeps_both_ends"];
    /// Leaves unread what the caller does not take.
    LeavesOutputUnread => ["streaming::wait_drains_what_nobody_reads"];
    /// Reads stderr when stdout is at its end.
    ReadsInTurn => ["streaming::both_streams_at_once"];
    /// Never ends a stream.
    NeverEndsStreams => ["streaming::streams_end_with_the_command", "leftovers::held_pipes_do_not_hold_the_call"];
    /// Adds a newline to output.
    AddsANewline => ["output::exactly_the_limit_is_whole"];

    /// Gives an empty pipe for no stdin.
    NoneIsEmpty => ["stdin::none_is_dev_null"];
    /// Gives /dev/null for an empty stdin.
    EmptyIsNone => ["stdin::empty_bytes_are_a_pipe_at_its_end"];
    /// Loses the last byte of stdin.
    LosesTheLastInputByte => ["stdin::bytes_are_exact"];
    /// Passes 64 KiB of stdin at most.
    CutsInput => ["stdin::a_mebibyte_arrives", "stdin::large_stream_arrives"];
    /// Loses a command that does not read its stdin.
    LosesWhatDoesNotRead => ["stdin::unread_bytes_are_no_error"];
    /// Sends streamed stdin when it is complete.
    BuffersInput => ["stdin::stream_is_interactive"];
    /// Does not pass the end of stdin on.
    IgnoresShutdown => ["stdin::shutdown_is_end_of_file"];
    /// Keeps stdin open when it is dropped.
    KeepsInputOpen => ["stdin::drop_is_end_of_file"];

    /// Passes the harness's environment.
    LeaksTheEnvironment => ["env::nothing_of_the_harness"];
    /// Gives commands no HOME.
    HasNoHome => ["env::base_is_complete"];
    /// Trims values.
    TrimsValues => ["env::call_is_added_exactly"];
    /// Lets the machine's variables win.
    LetsTheBaseWin => ["env::call_overrides_the_base"];
    /// Starts from the machine's environment, even if asked for an empty one.
    IgnoresClear => ["env::clear_starts_empty"];
    /// Leaves out what no shell could set.
    DropsOddKeys => ["env::odd_keys_arrive"];
    /// Keeps variables for later calls.
    RemembersVariables => ["env::does_not_outlive_the_call"];
    /// Ignores the profile's variables, directory and limits on exec and output.
    IgnoresTheProfile => [
        "env::profile_variables_arrive", "cwd::profile_workdir_is_used", "timeouts::profile_limit_is_the_default",
        "output::profile_limit_is_the_default",
    ];
    /// Starts commands in the root directory.
    StartsAtRoot => ["cwd::default_is_the_workdir"];

    /// Runs commands as root.
    RunsAsRoot => ["users::default_is_unprivileged"];
    /// Shows capabilities in /proc/self/status.
    KeepsCapabilities => ["users::default_has_no_capability", "users::root_is_bounded"];
    /// Knows no user by name.
    KnowsNobody => ["users::own_name_and_number_are_accepted"];
    /// Ignores the user that was asked for.
    IgnoresUser => ["users::root_by_option", "users::number_of_root", "users::unknown_user_never_runs"];
    /// Keeps no command to named executables.
    IgnoresConfine => [
        "confine::nothing_else_is_executed", "confine::nothing_named_nothing_runs", "confine::no_file_is_written",
        "confine::children_are_bound_too", "confine::relative_names_are_refused", "confine::it_is_executed_once",
    ];
    /// Lets every confined command execute named files again.
    LetsConfinedCommandsExecute => ["confine::it_is_executed_once"];
    /// Keeps confined commands from executing even what is named.
    ConfinesToNothing => ["confine::what_is_named_runs"];
    /// Keeps every later command from executing anything.
    ConfinesForEver => ["confine::others_are_not_bound"];
    /// Runs commands of users that cannot be, as the default user.
    AcceptsOddUsers => ["users::malformed_user_is_refused"];
    /// Makes files as root.
    OwnsFilesAsRoot => ["users::files_belong_to_the_default_user"];
    /// Reads and writes files as root.
    ActsOnFilesAsRoot => ["users::roots_files_are_closed_to_the_agent"];

    /// Tells a timeout as an exit code.
    TimeoutsAsCodes => ["timeouts::outcome_is_timeout", "pty::timeout_kills_its_session", "detached::timeouts_hold"];
    /// Loses what a command with a time limit printed.
    LosesPartialOutput => ["timeouts::partial_output_is_kept"];
    /// Kills the command alone when its time is up.
    TimesOutTheChildOnly => ["timeouts::descendants_die", "timeouts::stopped_commands_die"];
    /// Asks with SIGTERM when time is up.
    AsksWithTerm => ["timeouts::term_is_not_asked"];
    /// Is lost after a timeout.
    DiesOfTimeouts => ["timeouts::sandbox_stays_usable"];
    /// Takes every time limit for 30 ms.
    TimesOutEarly => ["timeouts::quick_commands_are_left_alone"];
    /// Kills everybody when time is up.
    TimesOutEverybody => ["timeouts::others_are_left_alone"];
    /// Takes zero for no limit.
    ZeroIsForever => ["timeouts::zero_is_refused", "pty::zero_size_is_refused"];
    /// Tells an idle timeout as a timeout.
    ConfusesIdle => ["timeouts::idle_is_told_apart"];
    /// Takes the idle time for the whole time.
    NeverResetsIdle => ["timeouts::output_resets_idle"];

    /// Tells a cancelled command as signalled.
    CancelsAsSignals => ["cancellation::kill_is_told"];
    /// Kills the command alone.
    KillsTheChildOnly => ["cancellation::kill_reaches_the_tree", "detached::kill_by_id"];
    /// Forgets a command whose handle is dropped.
    ForgetsDropped => [
        "cancellation::drop_of_the_handle_cancels", "cancellation::drop_of_run_cancels", "concurrency::launches_and_cancels_race_cleanly",
    ];
    /// Blocks while a handle is dropped.
    BlocksOnDrop => ["cancellation::drop_outside_a_runtime_cancels"];
    /// Tells the last end instead of the first.
    RewritesTheEnd => ["cancellation::kill_after_the_end_changes_nothing"];
    /// Is lost after a handle was dropped.
    DiesOfDrops => ["cancellation::sandbox_stays_usable"];
    /// Kills what commands leave behind.
    KillsLeftovers => [
        "cancellation::drop_after_the_end_kills_nothing", "leftovers::they_live_on", "leftovers::writers_live_on", "lifecycle::processes_last",
    ];
    /// Leaves what should be killed with the command.
    KeepsLeftovers => ["leftovers::kill_takes_them"];
    /// Tells a command as killed because its leftovers were.
    BlamesLeftovers => ["leftovers::kill_keeps_the_outcome"];

    /// Sends SIGKILL, whatever was asked for.
    OnlyKills => ["signals::trapped_signals_arrive", "signals::every_number_is_passed", "signals::stop_and_continue", "detached::signal_by_id"];
    /// Accepts signals for what is gone.
    SignalsTheDead => ["signals::after_the_end_is_not_found", "detached::ended_ids_take_no_signal"];

    /// Gives pipes instead of a terminal.
    HasNoTerminal => ["pty::all_three_streams_are_a_terminal"];
    /// Gives every terminal 24 rows of 80.
    FixesSize => ["pty::size_is_set"];
    /// Ignores changes of size.
    IgnoresResize => ["pty::resize_is_seen", "pty::resize_without_a_terminal_is_refused"];
    /// Takes control characters out of stdin.
    FiltersControls => ["pty::control_c_interrupts", "pty::end_of_file_ends_a_reader"];

    /// Kills a command whose output is truncated.
    KillsTheTalkative => ["output::truncated_commands_run_on"];
    /// Lets a command talk beyond its limit.
    SparesTheTalkative => ["output::kill_is_told"];

    /// Loses the last byte of a file that is written.
    LosesTheLastFileByte => ["files::round_trip_is_exact"];
    /// Takes an empty file for a missing one.
    EmptyIsMissing => ["files::empty_files_are_files"];
    /// Writes somewhere else.
    WritesElsewhere => ["files::commands_see_what_is_written"];
    /// Treats names as text.
    DecodesNames => ["files::any_name_works"];
    /// Refuses long names.
    RefusesLongNames => ["files::names_of_255_bytes_work"];
    /// Resolves relative paths from the root directory.
    ResolvesFromRoot => ["files::relative_paths_start_at_the_workdir"];
    /// Needs parent directories to be there.
    NeedsParents => ["files::parents_are_made", "archives::unpack_makes_the_directory"];
    /// Gives files mode 0600 unless told.
    ClosesFiles => ["files::new_files_are_0644", "files::mode_is_kept"];
    /// Ignores the mode that was asked for.
    IgnoresMode => ["files::given_mode_is_set"];
    /// Writes over the old contents.
    WritesInPlace => ["files::replacement_is_atomic"];
    /// Reads from the start, whatever the range.
    IgnoresOffset => ["files::ranges_are_exact"];
    /// Moves 16 MiB of a file at most.
    CutsFiles => ["files::sixty_four_mebibytes_stream"];
    /// Refuses to follow links.
    RefusesLinks => ["files::links_resolve_inside"];
    /// Follows links when asked for the link.
    StatFollows => ["files::stat_tells_the_facts"];
    /// Lists in any order.
    ListsUnsorted => ["files::list_is_sorted_and_complete"];
    /// Lists 1000 names at most.
    CutsLists => ["files::large_directories_are_listed"];
    /// Removes what links lead to.
    RemovesThroughLinks => ["files::remove_takes_files_links_and_trees", "files::removing_a_tree_follows_no_link"];
    /// Refuses to make what is there.
    MakesDirectoriesOnce => ["files::directories_are_made"];
    /// Tells every error of files as Io.
    ConfusesErrors => [
        "files_edges::missing_is_not_found", "files_edges::file_as_directory_is_not_found", "files_edges::directories_are_no_files",
        "files_edges::fifos_and_devices_are_no_files", "files_edges::forbidden_is_permission_denied",
        "files_edges::read_only_places_are_permission_denied", "files_edges::file_in_place_of_a_directory",
        "files_edges::dangling_links_are_not_found", "archives::missing_is_not_found", "limits::full_disk_is_no_space",
    ];
    /// Replaces what should be new.
    ReplacesTheNew => ["files_edges::create_new_refuses_what_exists"];
    /// Reads beyond the caller's limit.
    IgnoresMax => ["files_edges::max_bounds_a_read"];
    /// Removes trees without being asked to.
    RemovesTrees => ["files_edges::full_trees_need_recursive"];
    /// Does not say which path.
    HidesPaths => ["files_edges::errors_name_the_path"];
    /// Keeps what was written before the source failed.
    CommitsParts => ["files_edges::broken_source_leaves_the_old", "files_edges::cancelled_write_leaves_the_old"];
    /// Is lost after a reader was dropped.
    DiesOfDroppedReaders => ["files_edges::abandoned_read_harms_nothing"];

    /// Unpacks everything as 0777.
    ForgetsModes => ["archives::round_trip"];
    /// Packs from one directory above.
    PacksTheParent => ["archives::pack_is_relative"];
    /// Packs nothing.
    PacksNothing => ["archives::thousand_files_and_16_mebibytes"];
    /// Unpacks with a trusting tool.
    TrustsArchives => ["archives::hostile_entries_are_refused", "archives::devices_and_setuid_are_refused", "archives::cut_archives_fail"];

    /// Enforces no limit.
    HasNoLimits => [
        "limits::memory_outcome_is_told", "limits::memory_is_bounded", "limits::pids_are_bounded", "limits::disk_is_bounded",
        "limits::inodes_are_bounded", "limits::file_size_is_bounded", "limits::open_files_are_bounded", "limits::cpu_is_bounded",
        "limits::report_names_what_enforces",
    ];
    /// Dumps cores.
    DumpsCores => ["limits::cores_are_off"];

    /// Starts every command in an empty directory.
    ForgetsFiles => ["lifecycle::files_last"];
    /// Can be stopped once.
    StopsOnce => ["lifecycle::stop_is_idempotent"];
    /// Tells a machine that is gone as something else.
    DeniesLoss => ["lifecycle::stopped_machines_are_lost", "lifecycle::running_commands_are_lost"];
    /// Does not stop.
    NeverStops => ["lifecycle::nothing_is_left_alive"];
    /// Starts the same environment for everybody.
    SharesEnvironments => ["lifecycle::files_are_separate", "lifecycle::processes_are_separate", "lifecycle::ids_differ"];
    /// Reports a boundary that is not there.
    ReportsMore => ["lifecycle::report_matches_the_profile"];
    /// Takes every name for the primary machine's.
    AnswersToAnyName => ["lifecycle::machines_have_names", "lifecycle::connection_is_told"];
    /// Claims to have ended.
    HasAlwaysEnded => ["lifecycle::ended_tells_the_end"];
    /// Starts one environment at a time.
    StartsOneAtATime => ["lifecycle::a_dozen_start_at_once"];
    /// Ignores settings that it does not know.
    IgnoresSettings => ["lifecycle::unknown_settings_are_refused"];

    /// Runs one command at a time.
    RunsOneAtATime => ["concurrency::fifty_execs_run_at_once", "concurrency::a_reader_that_stops_stalls_nobody_else"];
    /// Mixes up what is written at the same time.
    MixesWrites => ["concurrency::files_move_in_parallel"];
    /// Reads one file at a time.
    ReadsOneAtATime => ["concurrency::an_unread_file_stalls_nobody_else"];
    /// Works in one kind of runtime.
    NeedsItsRuntime => ["concurrency::handles_work_from_several_threads"];

    /// Opens streams to nothing.
    DialsNothing => ["dial::tcp_echoes", "dial::unix_echoes", "dial::many_streams_at_once"];
    /// Closes both halves of a stream.
    ClosesBothHalves => ["dial::half_close_passes"];
    /// Carries one MiB.
    CutsStreams => ["dial::large_transfers_are_whole"];
    /// Claims to be connected.
    DialsAnything => ["dial::nothing_listening_is_not_found"];
    /// Keeps streams open.
    KeepsStreamsOpen => ["dial::dropped_streams_are_closed"];

    /// Lists no commands.
    ListsNoCommands => ["detached::they_are_listed"];
    /// Forgets an end that was told.
    ForgetsEnds => ["detached::wait_by_id"];
    /// Keeps no output.
    KeepsNoOutput => ["detached::output_is_kept", "detached::attach_follows", "detached::the_last_mebibyte_is_kept"];
    /// Gives all output, whatever the cursor.
    IgnoresCursors => ["detached::attach_from_a_cursor"];
    /// Kills a command whose follower leaves.
    KillsWhenUnfollowed => ["detached::dropping_an_attached_handle_kills_nothing"];
    /// Knows every id.
    KnowsEveryId => ["detached::unknown_ids_are_not_found"];
    /// Gives ids to what never ran.
    HidesFailedLaunches => ["detached::commands_that_never_ran_are_errors"];

    /// Does what it says it cannot do.
    DeclaresNothing => [
        "undeclared::streaming_stdin", "undeclared::pty", "undeclared::signals", "undeclared::idle_timeout", "undeclared::detached_exec",
        "undeclared::any_user", "undeclared::confined_exec", "undeclared::files", "undeclared::archives", "undeclared::dial", "undeclared::limit_memory",
        "undeclared::limit_cpu", "undeclared::limit_pids", "undeclared::limit_disk", "undeclared::limit_inodes",
        "undeclared::limit_file_size", "undeclared::limit_open_files",
    ];
}
