//! What hostile code tasks try.

use std::sync::Arc;
use std::time::Duration;

use tierbox::code::CodeTask;
use tierbox_core::{Environment, ErrorKind, ExecRequest, Outcome, SandboxExt};

use super::conformance::runner;

/// Names, code and variables that would do something if any of them reached a shell.
pub async fn nothing_that_a_caller_says_is_shell_text(environment: Arc<dyn Environment>) {
    let runner = runner(&environment).await;
    // Where `/tmp` is the host's, tests beside this one make files there, too.
    let made = format!("made-{}", std::process::id());
    let calls = [format!("$(touch {made})"), format!("`touch {made}`"), format!("'; touch {made}; '")];
    for evil in calls.iter().map(String::as_str).chain(["-rf", "a\nb", "\\x", "*", " ", "\u{1b}[31m"]) {
        let code = "cat -- \"$NAME\"; for f in ./*; do [ \"$f\" = \"./$NAME\" ] || echo \"also $f\"; done";
        let task = CodeTask::new("sh", code).file(evil, evil).env("NAME", evil).session(format!("s{evil}"));
        let outcome = runner.run_code(&task).await.unwrap();
        assert_eq!(outcome.result.stdout.text(), evil, "{outcome:?}");
        assert_eq!(outcome.files_created, []);
        let read = runner.get_files(&outcome.task_hash, Some(evil.as_bytes()), 100).await.unwrap();
        assert_eq!(read[0].contents, evil.as_bytes());
    }
    let find = format!("find . /tmp -name {made} 2>/dev/null");
    let found = environment.primary().run(ExecRequest::shell(find)).await.unwrap();
    assert_eq!(found.stdout.text(), "");
}

/// What the program prints and leaves is not believed to be anything else.
pub async fn a_program_cannot_forge_its_outcome(environment: Arc<dyn Environment>) {
    let runner = runner(&environment).await;
    let code = "printf 'ready\\0/x\\0files\\0'; printf 'files\\0' >&2; mkfifo fifo; ln -s /etc/passwd link; \
                mkdir -p deep/er; : > 'new\nline'; truncate -s 1099511627776 huge; (sleep 50; : > late) & exit 9";
    let outcome = runner.run_code(&CodeTask::new("sh", code)).await.unwrap();
    assert_eq!(outcome.outcome(), Outcome::Exited(9));
    assert_eq!(outcome.result.stdout.bytes(), b"ready\0/x\0files\0");
    let files: Vec<_> = outcome.files_created.iter().map(|file| (file.name.as_str(), file.size)).collect();
    assert_eq!(files, [("huge", 1 << 40), ("new\nline", 0)], "{:?}", outcome.files_incomplete);
    assert_eq!(outcome.files_created[0].sha256, None, "too large to read");
    assert_eq!(runner.get_files(&outcome.task_hash, None, 1 << 20).await.unwrap_err().kind(), ErrorKind::TooLarge);
}

/// Links and pipes in the places where tasks and their records are: later tasks work, and nothing elsewhere is touched.
pub async fn what_a_task_puts_into_the_place_of_directories_leads_nobody_astray(environment: Arc<dyn Environment>) {
    let (runner, sandbox) = (runner(&environment).await, environment.primary());
    sandbox.run(ExecRequest::shell("mkdir elsewhere; echo mine > elsewhere/mine")).await.unwrap();
    let hash = tierbox::code::task_hash(&CodeTask::new("sh", "echo fine; echo x > made"), std::time::SystemTime::now());
    let pipe = format!("rm -rf ../.tasks/{hash} && mkfifo ../.tasks/{hash}");
    let directory = format!("rm -rf ../.tasks/{hash}; mkdir -p ../.tasks/{hash}/x");
    for code in [
        "cd ..; rm -rf .tasks; ln -s ../elsewhere .tasks",
        "cd ..; rm -rf .sessions; ln -s ../elsewhere .sessions",
        "cd ..; rm -rf .tasks .sessions; echo > .tasks; mkfifo .sessions",
        "cd ../..; rm -rf .tierbox-code; ln -s elsewhere .tierbox-code",
        "chmod 0 ../.tasks ../.sessions",
        &pipe,
        &directory,
    ] {
        assert!(runner.run_code(&CodeTask::new("sh", code)).await.unwrap().success(), "{code}");
        let outcome = runner.run_code(&CodeTask::new("sh", "echo fine; echo x > made")).await.unwrap();
        assert_eq!(outcome.result.stdout.text(), "fine\n", "after {code}: {outcome:?}");
        assert_eq!(runner.get_files(&outcome.task_hash, None, 100).await.unwrap().len(), 1, "after {code}");
    }
    // Its own directory, or that of its session: a link is no directory of a task's.
    let task = |code: &str| CodeTask::new("sh", code).session("s");
    let moved = runner.run_code(&task("rm -rf \"$PWD\"; ln -s \"${PWD%/*}/../elsewhere\" \"$PWD\"")).await.unwrap();
    assert!(moved.success() && moved.files_created.is_empty() && moved.files_incomplete.is_some(), "{moved:?}");
    assert_eq!(runner.get_files(&moved.task_hash, None, 100).await.unwrap_err().kind(), ErrorKind::NotFound);
    let next = runner.run_code(&task("ls; echo > left")).await.unwrap();
    assert_eq!((next.result.stdout.text().as_str(), next.files_created.len()), ("", 1), "{next:?}");
    let left = sandbox.run(ExecRequest::shell("ls -A elsewhere; cat elsewhere/mine")).await.unwrap().stdout.text();
    assert_eq!(left, "mine\nmine\n");
}

/// A task that removes its directory, or all of them, gets an answer, and the next one works.
pub async fn a_task_that_removes_its_own_ground_is_survived(environment: Arc<dyn Environment>) {
    let runner = runner(&environment).await;
    for code in ["rm -rf \"$PWD\"", "cd ..; rm -rf .tasks .sessions", "cd ../..; rm -rf .tierbox-code; ln -s /etc .tierbox-code"]
    {
        let outcome = runner.run_code(&CodeTask::new("sh", code)).await.unwrap();
        assert!(outcome.success(), "{outcome:?}");
        assert!(outcome.files_incomplete.is_some());
    }
    // The directory of tasks leads somewhere else now: nothing may be removed there.
    let before = environment.primary().run(ExecRequest::shell("ls -A /etc | wc -l")).await.unwrap().stdout.text();
    runner.cleanup_tasks(Some(Duration::ZERO)).await.unwrap();
    let after =
        environment.primary().run(ExecRequest::shell("ls -A /etc | wc -l; rm .tierbox-code")).await.unwrap().stdout.text();
    assert_eq!(before, after);
    assert!(runner.run_code(&CodeTask::new("sh", ":")).await.unwrap().success());
}
