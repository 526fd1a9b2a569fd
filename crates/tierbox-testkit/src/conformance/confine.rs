//! Commands that are kept to named executables.

use tierbox_core::{ExecRequest, GuestPath, NotStartedCause, Outcome, SandboxExt, elf_loader};

use crate::case::{Verdict, ensure, ensure_eq, skip};
use crate::subject::Subject;

cases! { "confine":
    what_is_named_runs [ConfinedExec, Files] "A command that is kept to its own program runs, reads, and writes to devices.";
    nothing_else_is_executed [ConfinedExec, Files] "What it starts beside the named executables is refused with EACCES.";
    it_is_executed_once [ConfinedExec, Files] "It executes nothing more, not even what is named, unless it may start children.";
    nothing_named_nothing_runs [ConfinedExec] "Where no executable is named, the command itself cannot be executed.";
    no_file_is_written [ConfinedExec, Files] "It can write, make, rename and remove no file, wherever it may otherwise.";
    children_are_bound_too [ConfinedExec, Files] "What holds for the command holds for its children in the background.";
    others_are_not_bound [ConfinedExec, Files] "The next command without such a wish is as free as before.";
    relative_names_are_refused [ConfinedExec] "An executable by a relative path is InvalidInput.";
}

/// The machine's shell and its loader.
async fn shell_only(s: &Subject) -> Verdict<Vec<GuestPath>> {
    let shell = s.text("readlink -f /bin/sh").await?;
    let head = s.sandbox.read_bytes(shell.as_str(), 64 << 20).await?;
    let loader = elf_loader(&head)?;
    Ok([Some(shell.into_bytes()), loader].into_iter().flatten().map(GuestPath::from).collect())
}

/// A script of builtins, kept to the shell, which may be started again.
async fn confined(s: &Subject, script: &str) -> Verdict<String> {
    run(s, script, true).await
}

async fn run(s: &Subject, script: &str, children: bool) -> Verdict<String> {
    let (request, executables) = (s.shell(script), shell_only(s).await?);
    let request = if children { request.confine_with_children(executables) } else { request.confine(executables) };
    let result = s.run(request).await?;
    if result.outcome() == (Outcome::NotStarted { cause: NotStartedCause::Unconfined, retryable: false }) {
        return skip("the machine's kernel has no Landlock, or it is turned off");
    }
    ensure!(result.success(), "the confined script {script:?}: {result:?}");
    Ok(result.stdout.text())
}

async fn what_is_named_runs(s: Subject) -> Verdict {
    s.write("read-me", "text\n").await?;
    ensure_eq!(confined(&s, "read line < read-me; echo \"$line\"; echo x > /dev/null").await?, "text\n", "the output");
    Ok(())
}

async fn nothing_else_is_executed(s: Subject) -> Verdict {
    s.sh("cp /bin/cat own; chmod 755 own").await?;
    for program in ["/bin/cat", "/usr/bin/env", "./own", "/proc/self/exe -c :"] {
        let refused = format!("{program} </dev/null >/dev/null 2>&1; echo $?");
        let expected = if program.starts_with("/proc") { "0" } else { "126" };
        ensure_eq!(confined(&s, &refused).await?.trim(), expected, "the status of {program}");
    }
    Ok(())
}

async fn it_is_executed_once(s: Subject) -> Verdict {
    let executables = shell_only(&s).await?;
    for path in executables.iter().map(ToString::to_string).chain(["/proc/self/exe".to_owned()]) {
        let again =
            format!("{path} -c : </dev/null >/dev/null 2>&1; echo $?; (exec {path} -c :) </dev/null >/dev/null 2>&1; echo $?");
        ensure_eq!(run(&s, &again, false).await?, "126\n126\n", "the status of {path}");
    }
    // Children that execute nothing are free.
    ensure_eq!(run(&s, "(echo one) & wait; echo two", false).await?, "one\ntwo\n", "the output");
    Ok(())
}

async fn nothing_named_nothing_runs(s: Subject) -> Verdict {
    let result = s.run(ExecRequest::new(["/bin/true"]).confine([])).await?;
    if result.outcome() == (Outcome::NotStarted { cause: NotStartedCause::Unconfined, retryable: false }) {
        return skip("the machine's kernel has no Landlock, or it is turned off");
    }
    ensure_eq!((result.outcome(), result.completed.cannot_execute), (Outcome::Exited(126), Some(13)), "the outcome");
    Ok(())
}

async fn no_file_is_written(s: Subject) -> Verdict {
    s.write("old", "old").await?;
    let script = "(echo x > new) 2>/dev/null; (echo x >> old) 2>/dev/null; (: > old) 2>/dev/null; (echo x > /tmp/made) 2>/dev/null; \
                  (echo x > /dev/shm/made) 2>/dev/null; echo done";
    ensure_eq!(confined(&s, script).await?, "done\n", "the output");
    ensure_eq!(s.read("old").await?, b"old", "the file that was there");
    ensure!(!s.exists("new").await? && !s.exists("/tmp/made").await? && !s.exists("/dev/shm/made").await?, "a file was made");
    Ok(())
}

async fn children_are_bound_too(s: Subject) -> Verdict {
    let script = "( ( (echo x > made) 2>/dev/null || echo refused; /bin/cat /dev/null 2>/dev/null || echo refused ) & wait ); :";
    ensure_eq!(confined(&s, script).await?, "refused\nrefused\n", "the output of the child");
    Ok(())
}

async fn others_are_not_bound(s: Subject) -> Verdict {
    confined(&s, ":").await?;
    ensure_eq!(s.text("echo x > made && /bin/cat made").await?, "x", "the next command");
    Ok(())
}

async fn relative_names_are_refused(s: Subject) -> Verdict {
    let refused = s.sandbox.run(ExecRequest::new(["/bin/true"]).confine([GuestPath::from("bin/true")])).await;
    crate::case::ensure_kind(refused, tierbox_core::ErrorKind::InvalidInput, "a relative name")
}
