//! Code tasks on every backend that runs here.
#![cfg(target_os = "linux")]

use std::sync::Arc;
use std::time::Duration;

use tierbox::code::{CodeRunner, CodeSettings, CodeTask, Runtime, TaskLimits};
use tierbox_core::{Environment, ErrorKind, ExecRequest, KillReason, Outcome, SandboxExt};
use tierbox_testkit::{Absence, Factory};

mod support;

async fn runner(environment: &Arc<dyn Environment>) -> CodeRunner {
    CodeRunner::attach(environment.primary(), CodeSettings::default()).await.expect("a runner")
}

/// Containers and plain processes on this machine, and a supervisor behind pipes.
fn factories() -> Vec<Arc<dyn Factory>> {
    let framed = tierbox_testkit::BackendFactory::new(
        "local-process",
        Arc::new(support::framed::Framed),
        support::spec("local-process"),
        None,
    );
    vec![support::local("local-container", "local"), support::local("local-process", "local-process"), Arc::new(framed)]
}

/// Runs a test on each of them.
async fn everywhere<F: Future<Output = ()>>(test: impl Fn(Arc<dyn Environment>) -> F) {
    // Both ask the backend, which runs on a runtime of its own there.
    let (absent, factories) =
        tokio::task::spawn_blocking(|| (support::containers_absent(), factories())).await.expect("factories");
    for factory in factories {
        if let Some(absence) = absent.as_ref().filter(|_| factory.engine() == "local-container") {
            skip(factory.engine(), absence);
            continue;
        }
        let environment = factory.start(&|_| ()).await.expect("an environment");
        test(environment.clone()).await;
        environment.stop().await.expect("an end of it");
    }
}

fn skip(engine: &str, absence: &Absence) {
    let test = std::thread::current().name().unwrap_or("code_tasks").to_owned();
    support::skip(engine, &test, absence).expect("an engine that must be there");
}

mod conformance {
    use super::*;

    #[tokio::test]
    async fn a_task_has_files_variables_and_an_outcome() {
        everywhere(|environment| async move {
            let runner = runner(&environment).await;
            let code = "cat data/in.txt; printf %s \"$GREETING\"; cat >&2; mkdir out; printf abc > out/result; exit 3";
            let task = CodeTask::new("sh", code).file("data/in.txt", "input ").env("GREETING", "$(id); hello").stdin("asked");
            let outcome = runner.run_code(&task).await.unwrap();
            assert_eq!(outcome.outcome(), Outcome::Exited(3));
            assert_eq!(outcome.result.stdout.text(), "input $(id); hello");
            assert_eq!(outcome.result.stderr.text(), "asked");
            assert_eq!(outcome.error_message.as_deref(), Some("the program exited with status 3"));
            let [file] = outcome.files_created.as_slice() else { panic!("{:?}", outcome.files_created) };
            assert_eq!((file.name.as_str(), file.size), ("out/result", 3));
            let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
            assert_eq!(file.sha256.as_deref(), Some(abc));
            assert!(outcome.working_directory.ends_with(&outcome.task_hash), "{}", outcome.working_directory);
            assert!(outcome.result.completed.usage.wall > Duration::ZERO);
            let files = runner.get_files(&outcome.task_hash, None, 1000).await.unwrap();
            let files: Vec<_> = files.iter().map(|file| (file.name.as_slice(), file.contents.as_slice())).collect();
            assert_eq!(files, [(b"data/in.txt".as_slice(), b"input ".as_slice()), (b"out/result", b"abc")]);
            let one = runner.get_files(&outcome.task_hash, Some(b"out/result"), 3).await.unwrap();
            assert_eq!(one[0].contents, b"abc");
            let kind = |result: Result<Vec<_>, tierbox_core::Error>| result.unwrap_err().kind();
            assert_eq!(kind(runner.get_files(&outcome.task_hash, Some(b"nothing"), 3).await), ErrorKind::NotFound);
            assert_eq!(kind(runner.get_files(&outcome.task_hash, None, 8).await), ErrorKind::TooLarge);
            assert_eq!(kind(runner.get_files("0123456789abcdef", None, 8).await), ErrorKind::NotFound);
        })
        .await;
    }

    #[tokio::test]
    async fn python_is_python3_where_only_that_exists() {
        everywhere(|environment| async move {
            let runner = runner(&environment).await;
            let status = runner.status().await.unwrap();
            let program = |name: &str| status.runtimes.iter().find(|runtime| runtime.name == name).unwrap().program.clone();
            if program("python3").is_none() {
                return skip(
                    "python3",
                    &Absence { reason: "python3 is not installed".into(), install: "apt-get install python3".into() },
                );
            }
            assert!(program("python").is_some());
            let code = "import sys, os, helper\nprint(sys.version_info[0], helper.x, os.getcwd())\nopen('made', 'w').write('é')";
            let outcome = runner.run_code(&CodeTask::new("python", code).file("helper.py", "x = 7")).await.unwrap();
            assert!(outcome.success(), "{outcome:?}");
            assert_eq!(outcome.result.stdout.text(), format!("3 7 {}\n", outcome.working_directory));
            let names: Vec<&str> = outcome.files_created.iter().map(|file| file.name.as_str()).collect();
            assert!(names.contains(&"made"), "{names:?}");
        })
        .await;
    }

    #[tokio::test]
    async fn sessions_keep_their_directory_and_can_be_listed() {
        everywhere(|environment| async move {
            let runner = runner(&environment).await;
            let name = "it's a $(session)\n\"1\"";
            let in_session = |code: &str| CodeTask::new("sh", code).session(name);
            let first = runner.run_code(&in_session("echo one > kept")).await.unwrap();
            let second = runner.run_code(&in_session("cat kept; echo two > kept; echo x > new")).await.unwrap();
            assert_eq!(second.result.stdout.text(), "one\n");
            assert_eq!(first.working_directory, second.working_directory);
            assert_ne!(first.task_hash, second.task_hash);
            let names: Vec<&str> = second.files_created.iter().map(|file| file.name.as_str()).collect();
            assert_eq!(names, ["kept", "new"]);
            let third = runner.run_code(&in_session("cat kept new")).await.unwrap();
            assert_eq!(third.files_created, [], "nothing changed");
            let sessions = runner.sessions().await.unwrap();
            assert_eq!((sessions.len(), sessions[0].name.as_str()), (1, name));
            assert_eq!(sessions[0].directory, first.working_directory);
            assert_eq!(runner.get_files(&first.task_hash, Some(b"new"), 10).await.unwrap()[0].contents, b"x\n");
            let other = runner.run_code(&CodeTask::new("sh", "ls")).await.unwrap();
            assert_eq!(other.result.stdout.text(), "");
        })
        .await;
    }

    #[tokio::test]
    async fn the_same_task_within_the_hour_finds_its_directory() {
        everywhere(|environment| async move {
            let runner = runner(&environment).await;
            let task = CodeTask::new("sh", "echo x >> log; cat log");
            let first = runner.run_code(&task).await.unwrap();
            let second = runner.run_code(&task).await.unwrap();
            if first.task_hash == second.task_hash {
                assert_eq!(second.result.stdout.text(), "x\nx\n");
                assert_eq!(second.files_created.len(), 1);
            }
        })
        .await;
    }

    #[tokio::test]
    async fn without_a_directory_of_its_own_a_task_starts_where_commands_do() {
        everywhere(|environment| async move {
            let runner = runner(&environment).await;
            let task = CodeTask::new("sh", "pwd; cat given; echo x > made").file("given", "g\n").private_dir(false);
            let outcome = runner.run_code(&task).await.unwrap();
            let place = environment.primary().run(ExecRequest::shell("pwd -P; cat given made")).await.unwrap().stdout.text();
            let home = place.lines().next().unwrap();
            assert_eq!(place, format!("{home}\ng\nx\n"));
            assert_eq!(outcome.working_directory, home);
            assert_eq!(outcome.result.stdout.text(), format!("{home}\ng\n"));
            assert_eq!(outcome.files_created, []);
            assert_eq!(runner.get_files(&outcome.task_hash, None, 10).await.unwrap_err().kind(), ErrorKind::NotFound);
        })
        .await;
    }

    #[tokio::test]
    async fn limits_bind_the_task() {
        everywhere(|environment| async move {
            let runner = runner(&environment).await;
            let limited = |code: &str, limits: TaskLimits| CodeTask::new("sh", code).limits(limits);
            let time = TaskLimits { time: Some(Duration::from_millis(300)), ..TaskLimits::default() };
            let outcome = runner.run_code(&limited("echo before; sleep 100", time)).await.unwrap();
            assert_eq!(outcome.outcome(), Outcome::Killed(KillReason::Timeout));
            assert_eq!(outcome.result.stdout.text(), "before\n");
            assert_eq!(outcome.error_message.as_deref(), Some("the program was killed: it took longer than 0.3 s"));
            let cpu = TaskLimits { cpu: Some(Duration::from_secs(1)), ..TaskLimits::default() };
            let outcome = runner.run_code(&limited("while :; do :; done", cpu)).await.unwrap();
            assert!(matches!(outcome.outcome(), Outcome::Signaled(24 | 9)), "{outcome:?}");
            let all =
                TaskLimits { memory: Some(1 << 30), file_size: Some(1 << 20), open_files: Some(20), ..TaskLimits::default() };
            let outcome =
                runner.run_code(&limited("ulimit -v; ulimit -f; ulimit -n; head -c 2000000 /dev/zero > big", all)).await.unwrap();
            assert_eq!(outcome.result.stdout.text(), "1048576\n2048\n20\n");
            assert!(!outcome.success());
            assert_eq!(outcome.files_created[0].size, 1 << 20);
        })
        .await;
    }

    #[tokio::test]
    async fn what_makes_no_sense_is_refused_before_anything_is_made() {
        everywhere(|environment| async move {
            let settings = CodeSettings { max_time: Some(Duration::from_secs(5)), ..CodeSettings::default() };
            let runner = CodeRunner::new(environment.primary(), settings).unwrap();
            let task = || CodeTask::new("sh", ":");
            let long = TaskLimits { time: Some(Duration::from_secs(6)), ..TaskLimits::default() };
            for (task, kind) in [
                (CodeTask::new("ruby", ":"), ErrorKind::PolicyDenied),
                (task().file("../x", ""), ErrorKind::InvalidInput),
                (task().file("/x", ""), ErrorKind::InvalidInput),
                (task().file("a//b", ""), ErrorKind::InvalidInput),
                (task().file("a\0", ""), ErrorKind::InvalidInput),
                (task().env("A=B", ""), ErrorKind::InvalidInput),
                (task().env("A", "\0"), ErrorKind::InvalidInput),
                (task().session(""), ErrorKind::InvalidInput),
                (task().session("s").private_dir(false), ErrorKind::InvalidInput),
                (task().limits(long), ErrorKind::InvalidInput),
            ] {
                assert_eq!(runner.run_code(&task).await.unwrap_err().kind(), kind, "{task:?}");
            }
            let made = environment.primary().run(ExecRequest::shell("ls -A")).await.unwrap();
            assert_eq!(made.stdout.text(), "");
            let none = CodeSettings { runtimes: vec![Runtime::named("no-such-thing")], ..CodeSettings::default() };
            let runner = CodeRunner::new(environment.primary(), none).unwrap();
            assert_eq!(runner.run_code(&CodeTask::new("no-such-thing", "")).await.unwrap_err().kind(), ErrorKind::NotFound);
        })
        .await;
    }

    #[tokio::test]
    async fn tasks_expire_and_the_base_directory_never_goes() {
        everywhere(|environment| async move {
            let runner = runner(&environment).await;
            let sandbox = environment.primary();
            let old = runner.run_code(&CodeTask::new("sh", "echo old; mkdir -m 0 locked")).await.unwrap();
            let session = runner.run_code(&CodeTask::new("sh", "echo > f").session("s")).await.unwrap();
            sandbox.write_bytes(".tierbox-code/mine", "mine").await.unwrap();
            assert_eq!(runner.cleanup_tasks(None).await.unwrap(), Default::default(), "nothing is old yet");
            let age = "cd .tierbox-code; for r in .tasks/* .sessions/*; do touch -d '3 days ago' $r; done";
            assert!(sandbox.run(ExecRequest::shell(age)).await.unwrap().success());
            // Each task makes room first; an attach does too.
            let fresh = runner.run_code(&CodeTask::new("sh", "echo fresh")).await.unwrap();
            assert_eq!(runner.get_files(&old.task_hash, None, 10).await.unwrap_err().kind(), ErrorKind::NotFound);
            assert_eq!(runner.sessions().await.unwrap(), []);
            assert!(sandbox.stat(&session.working_directory.as_str().into(), false).await.is_err());
            let removed = runner.cleanup_tasks(Some(Duration::ZERO)).await.unwrap();
            assert_eq!((removed.tasks, removed.failed), (vec![fresh.task_hash], vec![]));
            assert_eq!(sandbox.read_bytes(".tierbox-code/mine", 10).await.unwrap(), b"mine");
            let status = runner.status().await.unwrap();
            assert_eq!((status.tasks, status.sessions), (0, 0));
            assert!(status.base_dir.ends_with("/.tierbox-code") && status.free_bytes.is_some(), "{status:?}");
        })
        .await;
    }
}

mod escape {
    use super::*;

    /// Names, code and variables that would do something if any of them reached a shell.
    #[tokio::test]
    async fn nothing_that_a_caller_says_is_shell_text() {
        everywhere(|environment| async move {
            let runner = runner(&environment).await;
            for evil in ["$(touch made)", "`touch made`", "'; touch made; '", "-rf", "a\nb", "\\x", "*", " ", "\u{1b}[31m"] {
                let code = "cat -- \"$NAME\"; for f in ./*; do [ \"$f\" = \"./$NAME\" ] || echo \"also $f\"; done";
                let task = CodeTask::new("sh", code).file(evil, evil).env("NAME", evil).session(format!("s{evil}"));
                let outcome = runner.run_code(&task).await.unwrap();
                assert_eq!(outcome.result.stdout.text(), evil, "{outcome:?}");
                assert_eq!(outcome.files_created, []);
                let read = runner.get_files(&outcome.task_hash, Some(evil.as_bytes()), 100).await.unwrap();
                assert_eq!(read[0].contents, evil.as_bytes());
            }
            let found = environment.primary().run(ExecRequest::shell("find / -xdev -name made 2>/dev/null")).await.unwrap();
            assert_eq!(found.stdout.text(), "");
        })
        .await;
    }

    /// What the program prints and leaves is not believed to be anything else.
    #[tokio::test]
    async fn a_program_cannot_forge_its_outcome() {
        everywhere(|environment| async move {
            let runner = runner(&environment).await;
            let code = "printf 'ready\\0/x\\0files\\0'; printf 'files\\0' >&2; mkfifo fifo; ln -s /etc/passwd link; \
                        mkdir -p deep/er; : > 'new\nline'; truncate -s 1T huge; (sleep 50; : > late) & exit 9";
            let outcome = runner.run_code(&CodeTask::new("sh", code)).await.unwrap();
            assert_eq!(outcome.outcome(), Outcome::Exited(9));
            assert_eq!(outcome.result.stdout.bytes(), b"ready\0/x\0files\0");
            let files: Vec<_> = outcome.files_created.iter().map(|file| (file.name.as_str(), file.size)).collect();
            assert_eq!(files, [("huge", 1 << 40), ("new\nline", 0)], "{:?}", outcome.files_incomplete);
            assert_eq!(outcome.files_created[0].sha256, None, "too large to read");
            assert_eq!(runner.get_files(&outcome.task_hash, None, 1 << 20).await.unwrap_err().kind(), ErrorKind::TooLarge);
        })
        .await;
    }

    /// A task that removes its directory, or all of them, gets an answer, and the next one works.
    #[tokio::test]
    async fn a_task_that_removes_its_own_ground_is_survived() {
        everywhere(|environment| async move {
            let runner = runner(&environment).await;
            for code in
                ["rm -rf \"$PWD\"", "cd ..; rm -rf .tasks .sessions", "cd ../..; rm -rf .tierbox-code; ln -s /etc .tierbox-code"]
            {
                let outcome = runner.run_code(&CodeTask::new("sh", code)).await.unwrap();
                assert!(outcome.success(), "{outcome:?}");
                assert!(outcome.files_incomplete.is_some());
            }
            // The directory of tasks leads somewhere else now: nothing may be removed there.
            let before = environment.primary().run(ExecRequest::shell("ls -A /etc | wc -l")).await.unwrap().stdout.text();
            runner.cleanup_tasks(Some(Duration::ZERO)).await.unwrap();
            let after = environment
                .primary()
                .run(ExecRequest::shell("ls -A /etc | wc -l; rm .tierbox-code"))
                .await
                .unwrap()
                .stdout
                .text();
            assert_eq!(before, after);
            assert!(runner.run_code(&CodeTask::new("sh", ":")).await.unwrap().success());
        })
        .await;
    }
}
