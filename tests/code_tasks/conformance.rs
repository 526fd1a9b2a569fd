//! What code tasks do.

use std::sync::Arc;
use std::time::Duration;

use tierbox::code::{CodeRunner, CodeSettings, CodeTask, Runtime, TaskLimits};
use tierbox_core::{Environment, ErrorKind, ExecRequest, KillReason, Outcome, SandboxExt};

/// A runner, after what expired was removed.
pub async fn runner(environment: &Arc<dyn Environment>) -> CodeRunner {
    CodeRunner::attach(environment.primary(), CodeSettings::default()).await.expect("a runner")
}

pub async fn a_task_has_files_variables_and_an_outcome(environment: Arc<dyn Environment>) {
    let runner = runner(&environment).await;
    // Some machines count time in hundredths of a second: it takes longer than one.
    let code = "cat data/in.txt; printf %s \"$GREETING\"; cat >&2; mkdir out; printf abc > out/result; \
                i=0; while [ $i -lt 40000 ]; do i=$((i + 1)); done; exit 3";
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
    let listed = runner.list_files(&outcome.task_hash).await.unwrap();
    let sizes: Vec<_> = listed.files.iter().map(|file| (file.name.as_slice(), file.size)).collect();
    assert_eq!((sizes, listed.incomplete), (vec![(b"data/in.txt".as_slice(), 6), (b"out/result", 3)], None));
    let one = runner.get_files(&outcome.task_hash, Some(b"out/result"), 3).await.unwrap();
    assert_eq!(one[0].contents, b"abc");
    let kind = |result: Result<Vec<_>, tierbox_core::Error>| result.unwrap_err().kind();
    assert_eq!(kind(runner.get_files(&outcome.task_hash, Some(b"nothing"), 3).await), ErrorKind::NotFound);
    assert_eq!(kind(runner.get_files(&outcome.task_hash, None, 8).await), ErrorKind::TooLarge);
    assert_eq!(kind(runner.get_files("0123456789abcdef", None, 8).await), ErrorKind::NotFound);
    assert_eq!(runner.list_files("0123456789abcdef").await.unwrap_err().kind(), ErrorKind::NotFound);
}

pub async fn python_is_python3_where_only_that_exists(environment: Arc<dyn Environment>) {
    let runner = runner(&environment).await;
    let status = runner.status().await.unwrap();
    let program = |name: &str| status.runtimes.iter().find(|runtime| runtime.name == name).unwrap().program.clone();
    if program("python3").is_none() {
        // This host has one, and local sandboxes see it; images need none.
        assert_ne!(environment.report().backend, "local", "python3 is not installed: apt-get install python3");
        return;
    }
    assert!(program("python").is_some());
    let code = "import sys, os, helper\nprint(sys.version_info[0], helper.x, os.getcwd())\nopen('made', 'w').write('é')";
    let outcome = runner.run_code(&CodeTask::new("python", code).file("helper.py", "x = 7")).await.unwrap();
    assert!(outcome.success(), "{outcome:?}");
    assert_eq!(outcome.result.stdout.text(), format!("3 7 {}\n", outcome.working_directory));
    let names: Vec<&str> = outcome.files_created.iter().map(|file| file.name.as_str()).collect();
    assert!(names.contains(&"made"), "{names:?}");
}

pub async fn sessions_keep_their_directory_and_can_be_listed(environment: Arc<dyn Environment>) {
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
}

pub async fn the_same_task_within_the_hour_finds_its_directory(environment: Arc<dyn Environment>) {
    let runner = runner(&environment).await;
    let task = CodeTask::new("sh", "echo x >> log; cat log");
    let first = runner.run_code(&task).await.unwrap();
    let second = runner.run_code(&task).await.unwrap();
    if first.task_hash == second.task_hash {
        assert_eq!(second.result.stdout.text(), "x\nx\n");
        assert_eq!(second.files_created.len(), 1);
    }
}

pub async fn without_a_directory_of_its_own_a_task_starts_where_commands_do(environment: Arc<dyn Environment>) {
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
}

pub async fn limits_bind_the_task(environment: Arc<dyn Environment>) {
    let runner = runner(&environment).await;
    let limited = |code: &str, limits: TaskLimits| CodeTask::new("sh", code).limits(limits);
    let time = TaskLimits { time: Some(Duration::from_millis(300)), ..TaskLimits::default() };
    let outcome = runner.run_code(&limited("echo before; sleep 100", time)).await.unwrap();
    assert_eq!(outcome.outcome(), Outcome::Killed(KillReason::Timeout));
    assert_eq!(outcome.result.stdout.text(), "before\n");
    assert_eq!(outcome.error_message.as_deref(), Some("the program was killed: it took longer than 0.3 s"));
    // The most that a task may ask for is what one gets that asks for nothing.
    let settings = CodeSettings { max_time: Some(Duration::from_millis(300)), ..CodeSettings::default() };
    let brief = CodeRunner::new(environment.primary(), settings).unwrap();
    let outcome = brief.run_code(&CodeTask::new("sh", "sleep 100")).await.unwrap();
    assert_eq!(outcome.outcome(), Outcome::Killed(KillReason::Timeout));
    let cpu = TaskLimits { cpu: Some(Duration::from_secs(1)), ..TaskLimits::default() };
    let outcome = runner.run_code(&limited("while :; do :; done", cpu)).await.unwrap();
    assert!(matches!(outcome.outcome(), Outcome::Signaled(24 | 9)), "{outcome:?}");
    let all = TaskLimits { memory: Some(1 << 30), file_size: Some(1 << 20), open_files: Some(20), ..TaskLimits::default() };
    let outcome =
        runner.run_code(&limited("ulimit -v; ulimit -f; ulimit -n; head -c 2000000 /dev/zero > big", all)).await.unwrap();
    assert_eq!(outcome.result.stdout.text(), "1048576\n2048\n20\n");
    assert!(!outcome.success());
    assert_eq!(outcome.files_created[0].size, 1 << 20);
}

pub async fn what_makes_no_sense_is_refused_before_anything_is_made(environment: Arc<dyn Environment>) {
    let settings = CodeSettings { max_time: Some(Duration::from_secs(5)), ..CodeSettings::default() };
    let runner = CodeRunner::new(environment.primary(), settings).unwrap();
    let task = || CodeTask::new("sh", ":");
    let none = TaskLimits::default();
    let long = TaskLimits { time: Some(Duration::from_secs(6)), ..TaskLimits::default() };
    for (task, kind) in [
        (CodeTask::new("ruby", ":"), ErrorKind::PolicyDenied),
        (task().file("../x", ""), ErrorKind::InvalidInput),
        (task().file("/x", ""), ErrorKind::InvalidInput),
        (task().file("a//b", ""), ErrorKind::InvalidInput),
        (task().file("a\0", ""), ErrorKind::InvalidInput),
        (task().file("a", "").file("a-b", "").file("a/b/c", ""), ErrorKind::InvalidInput),
        (task().env("A=B", ""), ErrorKind::InvalidInput),
        (task().env("A", "\0"), ErrorKind::InvalidInput),
        (task().session(""), ErrorKind::InvalidInput),
        (task().session("s").private_dir(false), ErrorKind::InvalidInput),
        (task().limits(long), ErrorKind::InvalidInput),
        (task().limits(TaskLimits { time: Some(Duration::ZERO), ..none }), ErrorKind::InvalidInput),
        (task().limits(TaskLimits { memory: Some(u64::MAX), ..none }), ErrorKind::InvalidInput),
        (task().limits(TaskLimits { memory: Some(0), ..none }), ErrorKind::InvalidInput),
        (task().limits(TaskLimits { file_size: Some(u64::MAX), ..none }), ErrorKind::InvalidInput),
        (task().limits(TaskLimits { open_files: Some(u64::MAX), ..none }), ErrorKind::InvalidInput),
        (task().limits(TaskLimits { cpu: Some(Duration::MAX), ..none }), ErrorKind::InvalidInput),
    ] {
        assert_eq!(runner.run_code(&task).await.unwrap_err().kind(), kind, "{task:?}");
    }
    // Its directory would expire while it runs.
    let brief = CodeSettings { expiry: Duration::from_secs(90), ..CodeSettings::default() };
    let brief = CodeRunner::new(environment.primary(), brief).unwrap();
    let refused = brief.run_code(&task().limits(TaskLimits { time: Some(Duration::from_secs(3600)), ..none })).await.unwrap_err();
    assert!(refused.kind() == ErrorKind::InvalidInput && refused.message().contains("before it expires"), "{refused}");
    let made = environment.primary().run(ExecRequest::shell("ls -A")).await.unwrap();
    assert_eq!(made.stdout.text(), "");
    let unknown = CodeSettings { runtimes: vec![Runtime::named("no-such-thing")], ..CodeSettings::default() };
    let runner = CodeRunner::new(environment.primary(), unknown).unwrap();
    assert_eq!(runner.run_code(&CodeTask::new("no-such-thing", "")).await.unwrap_err().kind(), ErrorKind::NotFound);
}

pub async fn tasks_expire_and_the_base_directory_never_goes(environment: Arc<dyn Environment>) {
    let runner = runner(&environment).await;
    let sandbox = environment.primary();
    let old = runner.run_code(&CodeTask::new("sh", "echo old; mkdir -m 0 locked")).await.unwrap();
    let session = runner.run_code(&CodeTask::new("sh", "echo > f").session("s")).await.unwrap();
    sandbox.write_bytes(".tierbox-code/mine", "mine").await.unwrap();
    assert_eq!(runner.cleanup_tasks(None).await.unwrap(), Default::default(), "nothing is old yet");
    let age = "cd .tierbox-code; for r in .tasks/* .sessions/*; do touch -d @$(($(date +%s) - 259200)) $r; done";
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
    assert!(status.base_dir.ends_with("/.tierbox-code"), "{status:?}");
    // Where `df` finds no list of mounts, nobody knows.
    let known = sandbox.run(ExecRequest::shell("df -Pk .")).await.unwrap().success();
    assert_eq!(status.free_bytes.is_some(), known, "{status:?}");
}

/// What an earlier task of the session left may stand in the way of input files.
pub async fn input_files_that_find_no_place_are_refused_by_what_is_there(environment: Arc<dyn Environment>) {
    let runner = runner(&environment).await;
    let task = || CodeTask::new("sh", "echo > file; mkdir -p directory").session("s");
    runner.run_code(&task()).await.unwrap();
    let kind = async |name: &str| runner.run_code(&task().file(name, "x")).await.unwrap_err().kind();
    assert_eq!(kind("file/x/y").await, ErrorKind::AlreadyExists);
    assert_eq!(kind("directory").await, ErrorKind::IsADirectory);
}
