//! Code tasks, as every backend has to run them.

mod conformance;
mod escape;

use std::pin::Pin;
use std::sync::Arc;

use tierbox_core::{Environment, ExecRequest, SandboxExt};

/// What a case does.
pub type Done = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A case, on an environment whose working directory is empty.
pub type Case = fn(Arc<dyn Environment>) -> Done;

macro_rules! cases {
    ($($area:ident: $($name:ident),+ $(,)?;)+) => {
        &[$($((
            concat!(stringify!($area), "::", stringify!($name)),
            (|environment| Box::pin($area::$name(environment))) as Case,
        )),+),+]
    };
}

/// All of them.
pub const ALL: &[(&str, Case)] = cases! {
    conformance:
        a_task_has_files_variables_and_an_outcome,
        python_is_python3_where_only_that_exists,
        sessions_keep_their_directory_and_can_be_listed,
        the_same_task_within_the_hour_finds_its_directory,
        without_a_directory_of_its_own_a_task_starts_where_commands_do,
        limits_bind_the_task,
        what_makes_no_sense_is_refused_before_anything_is_made,
        tasks_expire_and_the_base_directory_never_goes,
        input_files_that_find_no_place_are_refused_by_what_is_there,
    ;
    escape:
        nothing_that_a_caller_says_is_shell_text,
        a_program_cannot_forge_its_outcome,
        a_task_that_removes_its_own_ground_is_survived,
        what_a_task_puts_into_the_place_of_directories_leads_nobody_astray,
        a_locked_directory_does_not_end_a_session,
        many_files_do_not_end_a_session,
        huge_files_do_not_end_a_session,
        a_pipe_in_the_place_of_a_record_keeps_nobody_waiting,
    ;
};

/// Those that are about amounts: minutes where a file takes milliseconds, and no other there than elsewhere.
const HEAVY: &[&str] = &["escape::many_files_do_not_end_a_session", "escape::huge_files_do_not_end_a_session"];

/// Runs them one after another in one environment; on a slow machine without the heavy ones.
pub async fn run_all(environment: &Arc<dyn Environment>, is_slow: bool) {
    for (name, case) in ALL.iter().filter(|(name, _)| !is_slow || !HEAVY.contains(name)) {
        let done = tokio::spawn(case(environment.clone())).await;
        assert!(done.is_ok(), "{name} failed");
        // What a case left is nobody's: locked directories too.
        let empty = "chmod -R u+rwx . 2>/dev/null; rm -rf ./* ./.[!.]* /tmp/made";
        let emptied = environment.primary().run(ExecRequest::shell(empty)).await.expect("a command");
        assert!(emptied.success(), "after {name}: {emptied:?}");
    }
}
