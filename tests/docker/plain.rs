//! Containers without the supervisor: scripts by the engine's own exec.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use serde_json::json;
use tierbox::{EnvironmentSpec, ErrorKind, ExecRequest, KillDomain, KillReason, Outcome, SandboxExt};

use crate::world::{docker, ensure, nothing_left, on_podman, remains, sh, spec, start, text, trial, try_docker};

pub fn all() -> Vec<Trial> {
    vec![
        trial("plain::nothing_of_ours_is_inside", nothing_of_ours_is_inside),
        trial("plain::whatever_detached_itself_is_killed", whatever_detached_itself_is_killed),
        trial("plain::long_scripts_are_no_argument", long_scripts_are_no_argument),
        trial("plain::it_ends_with_its_owner_and_when_it_is_killed", it_ends_with_its_owner_and_when_it_is_killed),
        trial("plain::what_cannot_be_kept_is_refused", what_cannot_be_kept_is_refused),
        trial("plain::what_a_command_is_given_stands_in_no_argument", what_a_command_is_given_stands_in_no_argument),
        on_podman("plain::nothing_of_ours_is_inside", nothing_of_ours_is_inside),
        on_podman("plain::whatever_detached_itself_is_killed", whatever_detached_itself_is_killed),
        on_podman("plain::long_scripts_are_no_argument", long_scripts_are_no_argument),
        on_podman("plain::it_ends_with_its_owner_and_when_it_is_killed", it_ends_with_its_owner_and_when_it_is_killed),
        on_podman("plain::what_a_command_is_given_stands_in_no_argument", what_a_command_is_given_stands_in_no_argument),
    ]
}

fn plain() -> EnvironmentSpec {
    let mut spec = spec("tierbox-test/debian:1");
    spec.settings["transport"] = json!("plain");
    spec
}

async fn nothing_of_ours_is_inside() -> Result<(), String> {
    let environment = start(plain()).await.map_err(text)?;
    let machine = environment.primary();
    let seen = sh(&machine, "id -u; pwd; ls /.tierbox 2>/dev/null; cat /proc/1/comm; touch /x 2>/dev/null || echo closed").await;
    let report = environment.report().clone();
    let domain = machine.capabilities().kill_domain;
    environment.stop().await.map_err(text)?;
    let seen = seen?;
    ensure(seen == "65534\n/workspace\nsh\nclosed", seen)?;
    let filter = report.mechanisms.iter().find(|found| found.name == "seccomp").map(|found| found.detail.clone());
    ensure(filter.as_deref().is_some_and(|filter| filter.contains("tierbox's list")), format!("{filter:?}"))?;
    ensure(domain == KillDomain::Cgroup && report.kill_domain == domain, format!("{domain:?}"))?;
    ensure(report.notes.iter().any(|note| note.contains("engine's own exec")), format!("{:?}", report.notes))?;
    nothing_left(environment.id())
}

/// A process that leaves its session, and whose parent is gone: nothing but the cgroup still says whose it was.
const ESCAPES: &str = "setsid sh -c 'setsid sleep 4711 >/dev/null 2>&1 </dev/null & exec sleep 4711' >/dev/null 2>&1 </dev/null & \
     sh -c 'setsid sh -c \"exec sleep 4711\" >/dev/null 2>&1 </dev/null &' ; ";

async fn whatever_detached_itself_is_killed() -> Result<(), String> {
    let environment = start(plain()).await.map_err(text)?;
    let machine = environment.primary();
    let living = async || sh(&machine, "grep -lsz '47[1]1' /proc/[0-9]*/cmdline | wc -l").await;
    // The control: what a command leaves behind lives on, if nobody asks for its end.
    sh(&machine, ESCAPES).await?;
    let left = living().await?;
    ensure(left.trim().parse().is_ok_and(|count: u32| count >= 2), format!("{left} were left"))?;
    sh(&machine, "for p in $(grep -lsz '47[1]1' /proc/[0-9]*/cmdline); do p=${p%/*}; kill -9 ${p#/proc/}; done").await?;
    for (request, outcome) in [
        (
            ExecRequest::shell(format!("{ESCAPES} sleep 1000")).timeout(Duration::from_secs(1)),
            Outcome::Killed(KillReason::Timeout),
        ),
        (ExecRequest::shell(format!("{ESCAPES} sleep 1")).kill_leftovers(), Outcome::Exited(0)),
    ] {
        let ended = machine.run(request).await.map_err(text)?;
        ensure(ended.outcome() == outcome, format!("{ended:?}"))?;
        let left = living().await?;
        ensure(left == "0", format!("{left} are left after {outcome:?}"))?;
    }
    let mut cancelled = machine.spawn(ExecRequest::shell(format!("{ESCAPES} sleep 1000"))).await.map_err(text)?;
    let begun = Instant::now();
    while living().await? == "0" {
        ensure(begun.elapsed() < Duration::from_secs(60), "it does not begin")?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cancelled.kill(KillReason::Cancelled);
    let begun = Instant::now();
    let ended = cancelled.wait().await.map_err(text)?;
    ensure(ended.outcome == Outcome::Killed(KillReason::Cancelled), format!("{ended:?}"))?;
    // The command itself would take a thousand; each script is a process of a busy engine's.
    ensure(begun.elapsed() < Duration::from_secs(60), format!("it took {:?}", begun.elapsed()))?;
    let left = living().await?;
    ensure(left == "0", format!("{left} are left after it was cancelled"))?;
    environment.stop().await.map_err(text)?;
    nothing_left(environment.id())
}

async fn long_scripts_are_no_argument() -> Result<(), String> {
    let environment = start(plain()).await.map_err(text)?;
    let machine = environment.primary();
    let words: Vec<String> = (0..5).map(|number| format!("{number}").repeat(100_000)).collect();
    let argv = ["/bin/sh", "-c", "for word; do printf %s \"$word\" | wc -c; done", "sh"].map(str::to_owned);
    let result = machine.run(ExecRequest::new(argv.into_iter().chain(words))).await.map_err(text)?;
    ensure(result.stdout.text().lines().eq(["100000"; 5]), format!("{result:?}"))?;
    let input = vec![b'x'; 5 << 20];
    let counted = machine.run(ExecRequest::new(["wc", "-c"]).stdin_bytes(input)).await.map_err(text)?;
    ensure(counted.stdout.text().trim() == (5 << 20).to_string(), format!("{counted:?}"))?;
    environment.stop().await.map_err(text)
}

async fn it_ends_with_its_owner_and_when_it_is_killed() -> Result<(), String> {
    let environment = start(plain()).await.map_err(text)?;
    let machine = environment.primary();
    let container = remains(environment.id()).pop().ok_or("no container")?;
    let mut running = machine.spawn(ExecRequest::new(["sleep", "1000"])).await.map_err(text)?;
    docker(&["kill", &container]);
    let ended = running.wait().await;
    let lost = match &ended {
        Ok(ended) => ended.outcome == Outcome::Lost,
        Err(error) => error.kind() == ErrorKind::Lost,
    };
    ensure(lost, format!("{ended:?}"))?;
    ensure(environment.ended(Duration::from_secs(60)).await, "it has not ended")?;
    environment.stop().await.map_err(text)?;
    nothing_left(environment.id())?;
    // Whoever goes away takes it with him.
    let environment = start(plain()).await.map_err(text)?;
    let (id, container) = (environment.id().to_owned(), remains(environment.id()).pop().ok_or("no container")?);
    drop(environment);
    for _ in 0..600 {
        if remains(&id).is_empty() || docker(&["inspect", "-f", "{{.State.Running}}", &container]) == "false" {
            docker(&["rm", "-f", &container]);
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err("it lives on without its owner".to_owned())
}

async fn what_cannot_be_kept_is_refused() -> Result<(), String> {
    let mut shellless = spec("tierbox-test/scratch:1");
    shellless.settings["transport"] = json!("plain");
    let error = start(shellless).await.err().ok_or("it started without a shell")?;
    ensure(
        matches!(error.kind(), ErrorKind::HostUnable | ErrorKind::InvalidProfile | ErrorKind::NotFound),
        format!("{error:?}"),
    )?;
    let mut composed = plain();
    composed.settings["image"].take();
    let settings = composed.settings.as_object_mut().ok_or("no table")?;
    settings.remove("image");
    settings.insert("compose".to_owned(), json!("compose.yaml"));
    let error = start(composed).await.err().ok_or("services started")?;
    ensure(error.kind() == ErrorKind::InvalidProfile && error.message().contains("transport"), format!("{error:?}"))?;
    let mut odd = plain();
    odd.env.insert("my.token".to_owned(), "x".to_owned());
    let error = start(odd).await.err().ok_or("a secret became an argument")?;
    ensure(error.kind() == ErrorKind::InvalidProfile && error.message().contains("my.token"), format!("{error:?}"))?;
    let mut detached = plain();
    detached.hold = tierbox::Hold::Kept;
    let error = start(detached).await.err().ok_or("one that could not be detached was started to be")?;
    ensure(error.kind() == ErrorKind::Unsupported, format!("{error:?}"))
}

/// Every argument of every process of this host, and what the engine tells of those it started in a container.
fn shown(container: &str) -> Vec<u8> {
    let mut all = Vec::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        all.extend(std::fs::read(process.path().join("cmdline")).unwrap_or_default());
    }
    // podman tells nothing of a container at the very moment when it is busy with it.
    all.extend(try_docker(&["inspect", container]).unwrap_or_default().into_bytes());
    all
}

async fn what_a_command_is_given_stands_in_no_argument() -> Result<(), String> {
    let mut asked = plain();
    asked.env.insert("PROFILES_TOKEN".to_owned(), "tb-of-the-profile".to_owned());
    let environment = start(asked).await.map_err(text)?;
    let container = remains(environment.id()).pop().ok_or("no container")?;
    let machine = environment.primary();
    let (over, is_over) = std::sync::mpsc::channel::<()>();
    // As often as it can, while commands run.
    let watch = tokio::task::spawn_blocking(move || {
        let (mut seen, mut looks) = (Vec::new(), 0);
        while is_over.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            let all = shown(&container);
            let holds = |text: &str| all.windows(text.len()).any(|part| part == text.as_bytes());
            seen.extend(
                ["tb-of-the-profile", "tb-of-the-call", "tb-of-the-locale", "tb-of-the-uid", "tb-of-the-input", "tb-an-argument"]
                    .into_iter()
                    .filter(|text| holds(text)),
            );
            looks += 1;
        }
        (seen, looks)
    });
    for round in 0..20 {
        // What holds it there for a moment, so that it is seen at all; the last word is the control.
        let script = "read -r input; echo $PROFILES_TOKEN $CALLS $LC_ALL $UID $input; sleep 0.2";
        let words = ["/bin/sh", "-c", script, "sh", "tb-an-argument"].map(str::to_owned);
        let request = ExecRequest::new(words).env("CALLS", "tb-of-the-call");
        let request =
            request.env("LC_ALL", "tb-of-the-locale").env("UID", "tb-of-the-uid").stdin_bytes(b"tb-of-the-input\n".to_vec());
        let said = machine.run(request).await.map_err(text)?;
        let expected = "tb-of-the-profile tb-of-the-call tb-of-the-locale tb-of-the-uid tb-of-the-input\n";
        ensure(said.stdout.text() == expected, format!("round {round}: {said:?}"))?;
    }
    // What no shell can make would stand in one: no secret is sent so.
    let odd = machine.run(ExecRequest::new(["/bin/true"]).env("my.token", "x")).await;
    ensure(odd.is_err_and(|error| error.kind() == ErrorKind::InvalidInput), "a secret became an argument")?;
    drop(over);
    let (seen, looks) = watch.await.map_err(|error| error.to_string())?;
    environment.stop().await.map_err(text)?;
    ensure(seen.contains(&"tb-an-argument"), format!("nothing was seen in {looks} looks"))?;
    let given: Vec<_> = seen.iter().filter(|text| **text != "tb-an-argument").collect();
    ensure(given.is_empty(), format!("{given:?} stood in arguments"))
}
