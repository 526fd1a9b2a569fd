//! Images without a shell, with users of their own, that are built, and that are not there.

use libtest_mimic::Trial;
use serde_json::json;
use tierbox::{ErrorKind, ExecRequest, Outcome, SandboxExt};

use crate::world::{ensure, nothing_left, sh, spec, start, text, trial, with_settings, write};

pub fn all() -> Vec<Trial> {
    vec![
        trial("images::without_a_shell", without_a_shell),
        trial("images::their_env_user_and_workdir_count", their_env_user_and_workdir_count),
        trial("images::missing_ones_are_named", missing_ones_are_named),
        trial("images::root_is_a_choice_that_is_reported", root_is_a_choice_that_is_reported),
        trial("images::unknown_users_are_refused", unknown_users_are_refused),
        trial("images::a_dockerfile_is_built_and_removed", a_dockerfile_is_built_and_removed),
        trial("images::what_is_ignored_is_not_sent", what_is_ignored_is_not_sent),
        trial("images::links_in_a_context_lead_nowhere", links_in_a_context_lead_nowhere),
        trial("images::a_broken_build_tells_its_last_lines", a_broken_build_tells_its_last_lines),
    ]
}

async fn without_a_shell() -> Result<(), String> {
    let environment = start(spec("tierbox-test/scratch:1")).await.map_err(text)?;
    let machine = environment.primary();
    let result = machine.run(ExecRequest::new(["/busybox", "echo", "hello"])).await.map_err(text)?;
    ensure(result.stdout.text() == "hello\n", format!("{result:?}"))?;
    let missing = machine.run(ExecRequest::shell("true")).await.map_err(text)?;
    ensure(missing.outcome() == Outcome::Exited(127), format!("{missing:?}"))?;
    machine.write_bytes("/workspace/dir/file", "contents").await.map_err(text)?;
    let read = machine.read_bytes("/workspace/dir/file", 100).await.map_err(text)?;
    ensure(read == b"contents", "the file has other contents")?;
    environment.stop().await.map_err(text)?;
    nothing_left(environment.id())
}

async fn their_env_user_and_workdir_count() -> Result<(), String> {
    let mut spec = spec("tierbox-test/busybox:1");
    spec.settings["read-only"] = json!(false);
    spec.limits.disk = None;
    spec.limits.inodes = None;
    let environment = start(spec).await.map_err(text)?;
    let machine = environment.primary();
    let seen = sh(&machine, "echo $GREETING $(id -un) $HOME $PWD; touch here").await?;
    ensure(seen == "hello app /home/app /srv/data", seen)?;
    let report = environment.report();
    ensure(report.weakened.iter().any(|line| line.contains("read-only")), format!("{:?}", report.weakened))?;
    environment.stop().await.map_err(text)
}

async fn missing_ones_are_named() -> Result<(), String> {
    let error = start(spec("tierbox-test/no-such-image:1")).await.err().ok_or("it started")?;
    ensure(error.kind() == ErrorKind::NotFound && error.message().contains("no-such-image"), format!("{error:?}"))?;
    ensure(error.help().is_some_and(|help| help.contains("docker pull")), format!("{error:?}"))
}

async fn root_is_a_choice_that_is_reported() -> Result<(), String> {
    let mut spec = spec("tierbox-test/debian:1");
    spec.user = Some("root".to_owned());
    let environment = start(spec).await.map_err(text)?;
    let seen = sh(&environment.primary(), "id -u; grep CapEff /proc/self/status").await;
    let weakened = environment.report().weakened.join("; ");
    let mechanism = environment.report().mechanisms.iter().find(|found| found.name == "capabilities").cloned();
    environment.stop().await.map_err(text)?;
    ensure(seen?.starts_with('0'), "not root")?;
    ensure(weakened.contains("root"), weakened)?;
    ensure(mechanism.is_some(), "capabilities are not reported")
}

async fn unknown_users_are_refused() -> Result<(), String> {
    let mut spec = spec("tierbox-test/debian:1");
    spec.user = Some("nobody-here".to_owned());
    let error = start(spec).await.err().ok_or("it started")?;
    ensure(error.message().contains("nobody-here"), format!("{error:?}"))
}

async fn a_dockerfile_is_built_and_removed() -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    write(
        dir.path(),
        "image/Dockerfile",
        "FROM tierbox-test/busybox:1\nUSER root\nCOPY greeting /greeting\nRUN echo built > /built\nUSER app\n",
    );
    write(dir.path(), "image/greeting", "hi\n");
    let mut spec = with_settings(json!({"dockerfile": "image/Dockerfile"}));
    spec.base_dir = dir.path().to_owned();
    let environment = start(spec).await.map_err(text)?;
    let seen = sh(&environment.primary(), "cat /greeting /built").await?;
    ensure(seen == "hi\nbuilt", seen)?;
    ensure(!crate::world::remains(environment.id()).is_empty(), "nothing bears the label")?;
    environment.stop().await.map_err(text)?;
    nothing_left(environment.id())
}

async fn what_is_ignored_is_not_sent() -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    write(dir.path(), "Dockerfile", "FROM tierbox-test/busybox:1\nUSER root\nCOPY . /context\nUSER app\n");
    write(dir.path(), ".dockerignore", "# secrets\n**/*.key\ntarget\n!target/kept\n");
    for name in ["a", "b.key", "sub/c.key", "sub/d", "target/e", "target/kept"] {
        write(dir.path(), name, "x");
    }
    let mut spec = with_settings(json!({"dockerfile": "Dockerfile"}));
    spec.base_dir = dir.path().to_owned();
    let environment = start(spec).await.map_err(text)?;
    let seen = sh(&environment.primary(), "cd /context; find . -type f | sort | tr '\\n' ' '").await;
    environment.stop().await.map_err(text)?;
    let seen = seen?;
    ensure(seen.split_whitespace().eq(["./.dockerignore", "./Dockerfile", "./a", "./sub/d", "./target/kept"]), seen)?;
    nothing_left(environment.id())
}

async fn links_in_a_context_lead_nowhere() -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let outside = tempfile::tempdir().map_err(|error| error.to_string())?;
    write(outside.path(), "secret", "of this host");
    write(dir.path(), "Dockerfile", "FROM tierbox-test/busybox:1\nUSER root\nCOPY . /context\nUSER app\n");
    std::os::unix::fs::symlink(outside.path().join("secret"), dir.path().join("file")).map_err(|error| error.to_string())?;
    std::os::unix::fs::symlink(outside.path(), dir.path().join("directory")).map_err(|error| error.to_string())?;
    let mut spec = with_settings(json!({"dockerfile": "Dockerfile"}));
    spec.base_dir = dir.path().to_owned();
    let environment = start(spec.clone()).await.map_err(text)?;
    let seen = sh(&environment.primary(), "cat /context/file /context/directory/secret 2>/dev/null; ls /context").await;
    environment.stop().await.map_err(text)?;
    let seen = seen?;
    ensure(!seen.contains("of this host") && seen.contains("directory"), seen)?;
    // A Dockerfile by a link that leads out of its context is none.
    std::fs::rename(dir.path().join("Dockerfile"), outside.path().join("Dockerfile")).map_err(|error| error.to_string())?;
    std::os::unix::fs::symlink(outside.path().join("Dockerfile"), dir.path().join("Dockerfile"))
        .map_err(|error| error.to_string())?;
    let error = start(spec).await.err().ok_or("it was built from outside its context")?;
    ensure(error.kind() == ErrorKind::InvalidProfile, format!("{error:?}"))
}

async fn a_broken_build_tells_its_last_lines() -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    write(dir.path(), "Dockerfile", "FROM tierbox-test/busybox:1\nRUN echo the-last-words; exit 3\n");
    let mut spec = with_settings(json!({"dockerfile": "Dockerfile"}));
    spec.base_dir = dir.path().to_owned();
    let error = start(spec).await.err().ok_or("it started")?;
    ensure(error.message().contains("the-last-words"), format!("{error:?}"))?;
    let mut outside = with_settings(json!({"dockerfile": "Dockerfile", "context": "sub"}));
    std::fs::create_dir(dir.path().join("sub")).map_err(|error| error.to_string())?;
    outside.base_dir = dir.path().to_owned();
    let error = start(outside).await.err().ok_or("it started")?;
    ensure(error.kind() == ErrorKind::InvalidProfile, format!("{error:?}"))
}
