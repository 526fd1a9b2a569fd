//! Exit statuses.

use tierbox::{ErrorKind, KillReason, NotStartedCause, Outcome};

/// For people.
pub(crate) const TABLE: &str = "\
What the exit statuses mean

The status of `run`, `exec`, `shell` and `logs -f` is the command's own, as a shell would
show it: its exit code, or 128 and the number of the signal that ended it. tierbox's own
failures use these; --json tells the two apart for sure.

   64  the command line is wrong
   65  the profile is wrong
   66  there is no such profile, backend, sandbox, command or file
   69  this host cannot do it, or an engine is missing
   70  a defect in tierbox, or a machine that broke the protocol
   73  something could not be made: it exists, is too large, has no room, or is not the right kind of file
   74  an operating system error
   75  lost: the machine went away, and the command may have run
   76  a count limit was reached, or somebody else uses it; try later
   77  refused: the tier, a required limit, the agent's policy or a permission
  124  a time limit: the command's, its silence's, the sandbox's lifetime, or the start's
  125  the command never ran (bad directory, unknown user, no room for one more process)
  126  the command is not executable
  127  the command does not exist
  130  interrupted by Ctrl-C (143: by SIGTERM, 129: by a hang-up)
  137  killed: out of memory, too much output, or cancelled";

/// The status for a failure of tierbox's own.
pub(crate) fn of_error(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::InvalidInput => 64,
        ErrorKind::InvalidProfile => 65,
        ErrorKind::UnknownProfile | ErrorKind::UnknownBackend | ErrorKind::NotFound => 66,
        ErrorKind::HostUnable | ErrorKind::MissingEngine | ErrorKind::Credentials | ErrorKind::Unsupported => 69,
        ErrorKind::AlreadyExists
        | ErrorKind::NoSpace
        | ErrorKind::TooLarge
        | ErrorKind::IsADirectory
        | ErrorKind::NotAFile
        | ErrorKind::UnsafeArchive => 73,
        ErrorKind::Io => 74,
        ErrorKind::Lost => 75,
        ErrorKind::LimitReached => 76,
        ErrorKind::TierRefused
        | ErrorKind::LimitRefused
        | ErrorKind::WeakerRefused
        | ErrorKind::PolicyDenied
        | ErrorKind::PermissionDenied => 77,
        ErrorKind::Timeout | ErrorKind::Expired => 124,
        ErrorKind::Cancelled => 130,
        // A kind that this program does not know is a defect of this program.
        _ => 70,
    }
}

/// The status for what came of a command.
pub(crate) fn of_outcome(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::NotStarted { .. } => 125,
        Outcome::Lost => 75,
        other => other.shell_status().and_then(|status| u8::try_from(status).ok()).unwrap_or(70),
    }
}

/// What to say about an outcome that is tierbox's doing; `None` for what the command did by itself.
pub(crate) fn remark(outcome: Outcome) -> Option<String> {
    Some(match outcome {
        // 13 is SIGPIPE: whoever read the output went away, as in `tierbox run … | head`, and knows it.
        Outcome::Exited(_) | Outcome::Signaled(13) => return None,
        Outcome::Signaled(signal) => format!("the command was ended by signal {signal}"),
        Outcome::Killed(KillReason::Timeout) => "killed: the command's time was up".into(),
        Outcome::Killed(KillReason::Idle) => "killed: the command was silent too long".into(),
        Outcome::Killed(KillReason::OutputLimit) => "killed: the command printed more than it may".into(),
        Outcome::Killed(KillReason::Memory) => "killed: the command used more memory than limits.memory".into(),
        Outcome::Killed(KillReason::Cancelled) => "killed: cancelled".into(),
        Outcome::Killed(KillReason::Lifetime) => "killed: the sandbox's lifetime (limits.lifetime) is over".into(),
        Outcome::Lost => "lost: the machine went away; the command may have run".into(),
        Outcome::NotStarted { cause, .. } => format!("the command never ran: {}", why(cause)),
    })
}

fn why(cause: NotStartedCause) -> &'static str {
    match cause {
        NotStartedCause::BadCwd => "its directory does not exist or may not be entered",
        NotStartedCause::UnknownUser => "the sandbox has no such user",
        NotStartedCause::UserNotMapped => "this sandbox cannot run commands as that user",
        NotStartedCause::TooBig => "its arguments and variables are too big",
        NotStartedCause::NoResources => "the sandbox has no room for one more process",
        NotStartedCause::AlreadyLaunched => "it was launched before",
        NotStartedCause::Cancelled => "it was cancelled",
        NotStartedCause::Unconfined => "the sandbox's kernel cannot keep it to named executables",
        NotStartedCause::NotAdmitted => {
            "the cgroup of its limits does not take it; with a real-time policy (chrt), use a profile without limits.cpu"
        }
        _ => "the sandbox could not launch it",
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn every_status_is_documented() {
        let kinds = [
            ErrorKind::InvalidInput,
            ErrorKind::InvalidProfile,
            ErrorKind::UnknownProfile,
            ErrorKind::HostUnable,
            ErrorKind::Internal,
            ErrorKind::NoSpace,
            ErrorKind::Io,
            ErrorKind::Lost,
            ErrorKind::LimitReached,
            ErrorKind::TierRefused,
            ErrorKind::Timeout,
            ErrorKind::Expired,
            ErrorKind::Cancelled,
            ErrorKind::Protocol,
        ];
        for kind in kinds {
            let line = format!("\n{:>5}  ", of_error(kind));
            assert!(TABLE.contains(&line), "{kind} gives {line:?}");
        }
    }

    #[test]
    fn the_status_of_a_command_is_its_own() {
        assert_eq!(of_outcome(Outcome::Exited(3)), 3);
        assert_eq!(of_outcome(Outcome::Signaled(15)), 143);
        assert_eq!(of_outcome(Outcome::Killed(KillReason::Timeout)), 124);
        assert_eq!(of_outcome(Outcome::Killed(KillReason::Lifetime)), 124);
        assert_eq!(of_outcome(Outcome::NotStarted { cause: NotStartedCause::BadCwd, retryable: false }), 125);
    }
}
