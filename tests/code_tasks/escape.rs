//! What hostile code tasks try.

use std::sync::Arc;
use std::time::Duration;

use tierbox::code::{CodeOutcome, CodeRunner, CodeTask};
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
    // Its own text, as a directory that cannot be entered: the same task runs again.
    for _ in 0..2 {
        let code = "rm \"$0\"; mkdir -p \"$0/x\"; chmod 0 \"$0\"";
        assert!(runner.run_code(&CodeTask::new("sh", code)).await.unwrap().success());
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

/// What a task left, it and others can go on with: the next one of its session runs, and their files can be listed and read.
async fn goes_on(runner: &CodeRunner, code: &str) -> (CodeOutcome, CodeOutcome) {
    let task = |code: &str| CodeTask::new("sh", code).session("s");
    let first = runner.run_code(&task(code)).await.unwrap();
    assert!(first.success(), "{:?}", first.result);
    let next = runner.run_code(&task("printf next > new")).await.unwrap();
    assert!(next.success(), "{:?}", next.result);
    let new = runner.get_files(&next.task_hash, Some(b"new"), 10).await.unwrap();
    assert_eq!(new[0].contents, b"next");
    (first, next)
}

/// A directory that cannot be entered, and one whose files can be named and not be looked at.
pub async fn a_locked_directory_does_not_end_a_session(environment: Arc<dyn Environment>) {
    let runner = runner(&environment).await;
    let code = "mkdir locked named; : > locked/x; : > named/y; chmod 0 locked; chmod 444 named; echo open > open; \
                ! ls locked >/dev/null 2>&1 || echo all-may";
    let (first, next) = goes_on(&runner, code).await;
    // Who may do everything is stopped by no mode.
    let hidden = first.result.stdout.text() != "all-may\n";
    let names: Vec<&str> = next.files_created.iter().map(|file| file.name.as_str()).collect();
    assert_eq!((names, next.files_incomplete.is_some()), (vec!["new"], hidden), "{:?}", next.files_incomplete);
    let listed = runner.list_files(&next.task_hash).await.unwrap();
    let seen = |name: &[u8]| listed.files.iter().find(|file| file.name == name).map(|file| file.size);
    assert_eq!((seen(b"open"), seen(b"new"), seen(b"locked/x").is_none()), (Some(5), Some(4), hidden));
    assert_eq!(listed.incomplete.is_some(), hidden);
    let files = runner.get_files(&next.task_hash, None, 100).await.unwrap();
    assert!(files.iter().any(|file| file.name == b"open" && file.contents == b"open\n"), "{files:?}");
}

/// More files than are listed: what is listed is told, and that it is not all.
pub async fn many_files_do_not_end_a_session(environment: Arc<dyn Environment>) {
    let runner = runner(&environment).await;
    let (first, next) = goes_on(&runner, "i=0; while [ $i -lt 10500 ]; do : > f$i; i=$((i + 1)); done").await;
    assert_eq!(first.files_created.len(), 10_000);
    for outcome in [&first, &next] {
        assert_eq!(outcome.files_incomplete.as_deref(), Some("there are more than 10000 files"));
    }
    assert!(next.files_created.len() <= 1000, "{} of them count as new", next.files_created.len());
    let listed = runner.list_files(&next.task_hash).await.unwrap();
    assert_eq!((listed.files.len(), listed.incomplete.as_deref()), (10_000, Some("there are more than 10000 files")));
}

/// Files that take no place, and whose hashes would take long: 60 of 256 MiB, and 200 of 1 MiB.
pub async fn huge_files_do_not_end_a_session(environment: Arc<dyn Environment>) {
    let runner = runner(&environment).await;
    let code = "mkdir big some; (cd big && truncate -s 268435456 $(seq 60)); cd some && truncate -s 1048576 $(seq 200)";
    let (first, next) = goes_on(&runner, code).await;
    assert_eq!((first.files_created.len(), first.files_incomplete.as_deref()), (260, None));
    let big = |outcome: &CodeOutcome| outcome.files_created.iter().filter(|file| file.size == 256 << 20).count();
    assert_eq!((big(&first), big(&next)), (60, 60), "what has no hash may be another one");
    assert!(first.files_created.iter().all(|file| file.size != 256 << 20 || file.sha256.is_none()));
    let hashed: u64 = first.files_created.iter().filter(|file| file.sha256.is_some()).map(|file| file.size).sum();
    assert!((1..=136 << 20).contains(&hashed), "{hashed} bytes were hashed");
    let listed = runner.list_files(&next.task_hash).await.unwrap();
    assert_eq!((listed.files.len(), listed.incomplete), (261, None));
    assert_eq!(runner.get_files(&next.task_hash, None, 1 << 20).await.unwrap_err().kind(), ErrorKind::TooLarge);
}

/// Whoever asks for files right after it, with no run between that would mend the record.
pub async fn a_pipe_in_the_place_of_a_record_keeps_nobody_waiting(environment: Arc<dyn Environment>) {
    let runner = runner(&environment).await;
    let code = "for record in ../.tasks/*; do rm -f $record; mkfifo $record; done";
    let outcome = runner.run_code(&CodeTask::new("sh", code)).await.unwrap();
    assert!(outcome.success(), "{outcome:?}");
    let asked = tokio::time::timeout(Duration::from_secs(30), runner.get_files(&outcome.task_hash, None, 100));
    assert_eq!(asked.await.expect("an answer").unwrap_err().kind(), ErrorKind::NotFound);
    let asked = tokio::time::timeout(Duration::from_secs(30), runner.list_files(&outcome.task_hash));
    assert_eq!(asked.await.expect("an answer").unwrap_err().kind(), ErrorKind::NotFound);
}
