//! Images without a shell, with users of their own, that are built, and that are not there.

use libtest_mimic::Trial;
use serde_json::json;
use tierbox::{ErrorKind, ExecRequest, Outcome, SandboxExt};

use crate::world::{docker, ensure, nothing_left, sh, spec, start, text, trial, try_docker, with_settings, write};

pub fn all() -> Vec<Trial> {
    vec![
        trial("images::without_a_shell", without_a_shell),
        trial("images::their_env_user_and_workdir_count", their_env_user_and_workdir_count),
        trial("images::missing_ones_are_named", missing_ones_are_named),
        trial("images::root_is_a_choice_that_is_reported", root_is_a_choice_that_is_reported),
        trial("images::unknown_users_are_refused", unknown_users_are_refused),
        trial("images::a_dockerfile_is_built_and_removed", a_dockerfile_is_built_and_removed),
        trial("images::builds_leave_nothing_however_they_end", builds_leave_nothing_however_they_end),
        trial("images::what_triggers_of_a_base_leave_is_removed_too", what_triggers_of_a_base_leave_is_removed_too),
        trial("images::what_somebody_makes_of_a_built_image_is_left_alone", what_somebody_makes_of_a_built_image_is_left_alone),
        trial("images::volumes_where_areas_lie_have_their_limit", volumes_where_areas_lie_have_their_limit),
        trial("images::root_by_another_name_is_no_default_user", root_by_another_name_is_no_default_user),
        trial("images::a_users_group_counts", a_users_group_counts),
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

/// Images and containers of the engine's in whose variables a text stands: what bears no label is found all the same.
fn marked(mark: &str) -> Vec<String> {
    let all = |list: &[&str]| docker(list).split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let mut found = Vec::new();
    for id in all(&["images", "-aq", "--no-trunc"]).into_iter().chain(all(&["ps", "-aq", "--no-trunc"])) {
        // Other tests remove theirs meanwhile.
        if try_docker(&["inspect", "-f", "{{.Config.Env}}", &id]).is_some_and(|env| env.contains(mark)) {
            found.push(id);
        }
    }
    found
}

async fn builds_leave_nothing_however_they_end() -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let mark = format!("mark-{}-{:?}", std::process::id(), std::time::SystemTime::now())
        .replace(|char: char| !char.is_alphanumeric(), "");
    let with = |last: &str| {
        let stage = |name: &str| {
            format!("FROM tierbox-test/busybox:1 AS {name}\nUSER root\nENV MARK={mark}\nRUN echo {name} > /{name}\n")
        };
        let text = format!("{}{}COPY --from=one /one /copied\nRUN {last}\nUSER app\n", stage("one"), stage("two"));
        write(dir.path(), "Dockerfile", &text);
        let mut spec = with_settings(json!({"dockerfile": "Dockerfile"}));
        spec.base_dir = dir.path().to_owned();
        spec
    };
    let environment = start(with("true")).await.map_err(text)?;
    let seen = sh(&environment.primary(), "cat /copied /two; echo $MARK").await?;
    ensure(seen == format!("one\ntwo\n{mark}"), seen)?;
    // The control: the mark is found, in the earlier stage too.
    ensure(marked(&mark).len() > 3, format!("{:?} are found", marked(&mark)))?;
    environment.stop().await.map_err(text)?;
    nothing_left(environment.id())?;
    ensure(marked(&mark).is_empty(), format!("{:?} are left", marked(&mark)))?;
    let error = start(with("exit 3")).await.err().ok_or("it started")?;
    ensure(error.kind() == ErrorKind::HostUnable, format!("{error:?}"))?;
    ensure(marked(&mark).is_empty(), format!("{:?} are left of a build that failed", marked(&mark)))?;
    let given_up = tokio::spawn(start(with("sleep 1000")));
    for _ in 0..600 {
        if marked(&mark).iter().any(|id| running(id)) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    ensure(marked(&mark).iter().any(|id| running(id)), "no step of the build runs")?;
    given_up.abort();
    for _ in 0..300 {
        if marked(&mark).is_empty() {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    Err(format!("{:?} are left of a build that was given up", marked(&mark)))
}

/// A base image whose triggers leave something: it is made here by its builder, and bears no label.
struct Triggering(String);

impl Triggering {
    fn make(dir: &std::path::Path, mark: &str) -> Self {
        let name = format!("tierbox-test/triggering:{mark}");
        let triggers = format!("ONBUILD USER root\nONBUILD ENV MARK={mark}\nONBUILD RUN echo triggered > /triggered\n");
        write(dir, "base/Dockerfile", &format!("FROM tierbox-test/busybox:1\n{triggers}"));
        let context = dir.join("base");
        // The builder of the engine itself, which is what is tested.
        docker(&["build", "-q", "-t", &name, &context.display().to_string()]);
        Self(name)
    }
}

impl Drop for Triggering {
    fn drop(&mut self) {
        docker(&["rmi", "-f", &self.0]);
    }
}

async fn what_triggers_of_a_base_leave_is_removed_too() -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let mark = format!("trigger{}", std::process::id());
    let base = Triggering::make(dir.path(), &mark);
    let with = |last: &str| {
        let text = format!("ARG BASE={}\nFROM $BASE AS one\nRUN {last}\nUSER app\n", base.0);
        write(dir.path(), "Dockerfile", &text);
        let mut spec = with_settings(json!({"dockerfile": "Dockerfile"}));
        spec.base_dir = dir.path().to_owned();
        spec
    };
    let environment = start(with("true")).await.map_err(text)?;
    let seen = sh(&environment.primary(), "cat /triggered; echo $MARK").await?;
    // The control: what the triggers made is found, and all of it bears the label.
    let label = |id: &String| docker(&["inspect", "-f", "{{index .Config.Labels \"dev.tierbox.lease\"}}", id]);
    let found: Vec<(String, String)> = marked(&mark).into_iter().map(|id| (label(&id), id)).collect();
    environment.stop().await.map_err(text)?;
    ensure(seen == format!("triggered\n{mark}"), seen)?;
    ensure(found.len() > 3 && found.iter().all(|(label, _)| label == environment.id()), format!("{found:?}"))?;
    nothing_left(environment.id())?;
    ensure(marked(&mark).is_empty(), format!("{:?} are left", marked(&mark)))?;
    let error = start(with("exit 3")).await.err().ok_or("it started")?;
    ensure(error.kind() == ErrorKind::HostUnable, format!("{error:?}"))?;
    ensure(marked(&mark).is_empty(), format!("{:?} are left of a build that failed", marked(&mark)))
}

/// A container that somebody makes by hand.
struct Guest(String);

impl Guest {
    fn run(name: String, image: &str) -> Self {
        docker(&["run", "-d", "--network", "none", "--name", &name, "--entrypoint", "sleep", image, "1000"]);
        Self(name)
    }

    fn lives(&self) -> bool {
        running(&self.0)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = try_docker(&["rm", "-f", &self.0]);
    }
}

async fn what_somebody_makes_of_a_built_image_is_left_alone() -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    write(dir.path(), "Dockerfile", "FROM tierbox-test/busybox:1\nUSER root\nRUN echo built > /built\nUSER app\n");
    let mut spec = with_settings(json!({"dockerfile": "Dockerfile"}));
    spec.base_dir = dir.path().to_owned();
    let environment = start(spec).await.map_err(text)?;
    let image = format!("tierbox-{}-default", environment.id());
    let number = docker(&["image", "inspect", "-f", "{{.Id}}", &image]);
    let guests =
        [("name", &image), ("number", &number)].map(|(by, image)| Guest::run(format!("guest-{by}-{}", environment.id()), image));
    for _ in 0..2 {
        let error = environment.stop().await.err().ok_or("the image of somebody's container was removed")?;
        ensure(guests.iter().any(|guest| error.message().contains(&guest.0)), format!("{error:?}"))?;
        ensure(guests.iter().all(Guest::lives), "somebody's container was removed")?;
        ensure(try_docker(&["image", "inspect", "-f", "{{.Id}}", &image]).is_some(), "the image lost its name")?;
    }
    drop(guests);
    environment.stop().await.map_err(text)?;
    nothing_left(environment.id())
}

async fn volumes_where_areas_lie_have_their_limit() -> Result<(), String> {
    let with = |volumes: &str| {
        let dir = tempfile::tempdir().expect("a directory");
        write(dir.path(), "Dockerfile", &format!("FROM tierbox-test/debian:1\nVOLUME {volumes}\n"));
        let mut spec = with_settings(json!({"dockerfile": "Dockerfile"}));
        spec.base_dir = dir.path().to_owned();
        spec.limits.disk = Some(tierbox::Limit::required(8 << 20));
        (dir, spec)
    };
    let (_dir, spec) = with("/tmp /workspace/");
    let environment = start(spec).await.map_err(text)?;
    let fill =
        "for dir in /tmp /workspace; do head -c 9000000 /dev/zero > $dir/x 2>/dev/null; done; cat /tmp/x /workspace/x | wc -c";
    let held = sh(&environment.primary(), fill).await;
    environment.stop().await.map_err(text)?;
    let held: u64 = held?.parse().map_err(|error| format!("{error}"))?;
    ensure((4 << 20..=8 << 20).contains(&held), format!("{held} bytes in 8 MiB"))?;
    nothing_left(environment.id())?;
    for elsewhere in ["/data", "/tmp/below"] {
        let (_dir, spec) = with(elsewhere);
        let error = start(spec).await.err().ok_or("a volume without a bound was taken")?;
        ensure(error.kind() == ErrorKind::LimitRefused, format!("{elsewhere}: {error:?}"))?;
    }
    Ok(())
}

fn running(id: &str) -> bool {
    try_docker(&["inspect", "-f", "{{if .State}}{{.State.Running}}{{end}}", id]).is_some_and(|running| running == "true")
}

/// An image in which another name than root's is root.
fn with_toor(user: &str) -> (tempfile::TempDir, tierbox::EnvironmentSpec) {
    let dir = tempfile::tempdir().expect("a directory");
    let text = format!("FROM tierbox-test/busybox:1\nUSER root\nRUN echo toor:x:0:0::/:/bin/sh >> /etc/passwd\nUSER {user}\n");
    write(dir.path(), "Dockerfile", &text);
    let mut spec = with_settings(json!({"dockerfile": "Dockerfile"}));
    spec.base_dir = dir.path().to_owned();
    (dir, spec)
}

async fn root_by_another_name_is_no_default_user() -> Result<(), String> {
    let (_dir, spec) = with_toor("toor");
    for transport in ["supervisor", "plain"] {
        let mut spec = spec.clone();
        spec.settings["transport"] = json!(transport);
        let error = start(spec).await.err().ok_or(format!("{transport}: it started as root"))?;
        ensure(error.kind() == ErrorKind::InvalidProfile && error.message().contains("toor"), format!("{transport}: {error:?}"))?;
    }
    // Whoever says so himself gets it, and the report says it.
    let mut asked = spec.clone();
    asked.user = Some("toor".to_owned());
    let environment = start(asked).await.map_err(text)?;
    let (seen, weakened) = (sh(&environment.primary(), "id -u").await, environment.report().weakened.join("; "));
    environment.stop().await.map_err(text)?;
    ensure(seen? == "0" && weakened.contains("toor"), weakened)?;
    let mut other = spec;
    other.user = Some("app".to_owned());
    let environment = start(other).await.map_err(text)?;
    let (seen, weakened) = (sh(&environment.primary(), "id -u").await, environment.report().weakened.clone());
    environment.stop().await.map_err(text)?;
    ensure(seen? == "4242" && weakened.is_empty(), format!("{weakened:?}"))
}

/// One machine whose user a compose file names, or its image.
fn with_user(user: &str, of_image: bool) -> (tempfile::TempDir, tierbox::EnvironmentSpec) {
    let dir = tempfile::tempdir().expect("a directory");
    let settings = if of_image {
        write(dir.path(), "Dockerfile", &format!("FROM tierbox-test/debian:1\nUSER {user}\n"));
        json!({"dockerfile": "Dockerfile"})
    } else {
        let compose = format!("services: {{default: {{image: 'tierbox-test/debian:1', user: '{user}'}}}}\n");
        write(dir.path(), "compose.yaml", &compose);
        json!({"compose": "compose.yaml"})
    };
    let mut spec = with_settings(settings);
    spec.base_dir = dir.path().to_owned();
    (dir, spec)
}

async fn a_users_group_counts() -> Result<(), String> {
    for (user, of_image, expected) in [
        ("nobody:audio", true, "65534 29"),
        ("nobody:audio", false, "65534 29"),
        ("1234:audio", false, "1234 29"),
        ("nobody:4711", true, "65534 4711"),
    ] {
        let (_dir, spec) = with_user(user, of_image);
        let environment = start(spec).await.map_err(text)?;
        let seen =
            sh(&environment.primary(), "echo $(id -u) $(id -g); touch /workspace/mine && stat -c %g /workspace/mine").await;
        environment.stop().await.map_err(text)?;
        let group = expected.split(' ').next_back().unwrap_or_default();
        ensure(seen.clone()? == format!("{expected}\n{group}"), format!("{user}: {seen:?}"))?;
    }
    for user in ["nobody:no-such-group", "no-such-user:audio"] {
        let (_dir, spec) = with_user(user, false);
        let error = start(spec).await.err().ok_or(format!("{user}: it started"))?;
        ensure(error.message().contains("no-such"), format!("{error:?}"))?;
    }
    let (_dir, mut plain) = with_user("nobody:audio", true);
    plain.settings["transport"] = json!("plain");
    let error = start(plain).await.err().ok_or("the group was dropped")?;
    ensure(error.kind() == ErrorKind::InvalidProfile && error.message().contains("group"), format!("{error:?}"))
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
