//! Engines that fail, and machines that somebody else ends.

use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::json;
use tierbox::{Backend, ErrorKind, ExecRequest, Outcome, SandboxExt, StartOptions, Tierbox};

use crate::support::again;
use crate::world::{docker, ensure, nothing_left, remains, sh, spec, start, text, trial, with_settings};

pub fn all() -> Vec<Trial> {
    vec![
        trial("engine::a_socket_that_is_not_there_is_told", a_socket_that_is_not_there_is_told),
        trial("engine::a_socket_that_is_closed_is_told", a_socket_that_is_closed_is_told),
        trial("engine::n1_with_a_kernel_of_its_own_is_refused", n1_with_a_kernel_of_its_own_is_refused),
        trial("engine::a_container_killed_from_outside_is_lost", a_container_killed_from_outside_is_lost),
        trial("engine::what_bears_no_label_is_left_alone", what_bears_no_label_is_left_alone),
        trial("engine::an_unknown_runtime_is_told", an_unknown_runtime_is_told),
        trial("engine::a_runtime_is_passed_on_and_reported", a_runtime_is_passed_on_and_reported),
        trial("engine::a_command_that_lacked_memory_is_named_only_if_alone", a_command_that_lacked_memory_is_named_only_if_alone),
        trial("engine::the_socket_is_never_mounted", the_socket_is_never_mounted),
        trial("engine::mounts_are_read_only_and_reported", mounts_are_read_only_and_reported),
        trial("engine::a_start_that_is_given_up_leaves_nothing", a_start_that_is_given_up_leaves_nothing),
        trial("engine::what_is_in_force_is_reported", what_is_in_force_is_reported),
        trial("engine::what_it_was_made_of_is_attested", what_it_was_made_of_is_attested),
    ]
}

async fn a_socket_that_is_not_there_is_told() -> Result<(), String> {
    let mut spec = spec("tierbox-test/debian:1");
    spec.settings["host"] = json!("unix:///nonexistent/docker.sock");
    let error = start(spec).await.err().ok_or("it started")?;
    ensure(error.kind() == ErrorKind::MissingEngine && error.message().contains("/nonexistent/docker.sock"), format!("{error:?}"))
}

/// The role of a process that may not use the engine's socket.
pub const CLOSED: &str = "closed-socket";

/// Names the socket to it.
const SOCKET: &str = "TIERBOX_TEST_CLOSED_SOCKET";

/// Becomes somebody to whom the socket is closed, and tells what a start says.
pub fn closed() -> std::process::ExitCode {
    // Threads that begin later are that user's too.
    if rustix::process::geteuid().is_root() {
        let nobody = rustix::process::Uid::from_raw(65534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).expect("root may become anybody");
    }
    let mut spec = spec("tierbox-test/debian:1");
    spec.settings["host"] = json!(format!("unix://{}", std::env::var(SOCKET).expect("a socket is named")));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let Some(error) = runtime.block_on(start(spec)).err() else { return std::process::ExitCode::SUCCESS };
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{:?}: {} {}", error.kind(), error.message(), error.help().unwrap_or_default());
    std::process::ExitCode::FAILURE
}

async fn a_socket_that_is_closed_is_told() -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let io = |error: std::io::Error| error.to_string();
    let dir = tempfile::tempdir().map_err(io)?;
    let socket = dir.path().join("engine.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).map_err(io)?;
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).map_err(io)?;
    // Closed to its owner too, should the tests run as that.
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o000)).map_err(io)?;
    let mut command = again::this_program_under(&[], CLOSED);
    command.env(SOCKET, &socket);
    let told = tokio::task::spawn_blocking(move || command.output()).await.map_err(|error| error.to_string())?.map_err(io)?;
    let said = String::from_utf8_lossy(&told.stdout);
    let is_told = said.starts_with("HostUnable") && said.contains("closed to this user") && said.contains("group");
    ensure(!told.status.success() && is_told, format!("{told:?}"))
}

/// Before the engine is asked, which need not have it.
async fn n1_with_a_kernel_of_its_own_is_refused() -> Result<(), String> {
    for tier in ["T0.H1.N1", "T0.H1.N0"] {
        let mut spec = spec("tierbox-test/debian:1");
        spec.settings["runtime"] = json!("io.containerd.kata.v2");
        (spec.tier, spec.reason) = (tier.parse().map_err(text)?, Some("a test".to_owned()));
        let error = start(spec).await.err().ok_or("it started")?;
        let is_told = error.message().contains("docker.runtime") && error.message().contains("network of its own");
        ensure(error.kind() == ErrorKind::TierRefused && is_told, format!("{error:?}"))?;
    }
    Ok(())
}

async fn a_container_killed_from_outside_is_lost() -> Result<(), String> {
    let environment = start(spec("tierbox-test/debian:1")).await.map_err(text)?;
    let machine = environment.primary();
    let mut handle = machine.spawn(ExecRequest::new(["sleep", "1000"])).await.map_err(text)?;
    let container = remains(environment.id()).pop().ok_or("no container")?;
    docker(&["kill", &container]);
    let ended = handle.wait().await.map_err(text)?;
    ensure(ended.outcome == Outcome::Lost, format!("{ended:?}"))?;
    let error = machine.run(ExecRequest::new(["true"])).await.err();
    ensure(error.as_ref().is_some_and(|error| error.kind() == ErrorKind::Lost), format!("{error:?}"))?;
    ensure(environment.ended(Duration::from_secs(60)).await, "it has not ended")?;
    environment.stop().await.map_err(text)?;
    nothing_left(environment.id())
}

async fn what_bears_no_label_is_left_alone() -> Result<(), String> {
    let environment = start(spec("tierbox-test/debian:1")).await.map_err(text)?;
    let container = remains(environment.id()).pop().ok_or("no container")?;
    // Somebody takes its name.
    docker(&["rename", &container, &format!("{container}-moved")]);
    docker(&["create", "--name", &container, "tierbox-test/debian:1"]);
    let stopped = environment.stop().await;
    let there = docker(&["ps", "-a", "--format", "{{.Names}}"]);
    docker(&["rm", "-f", &container, &format!("{container}-moved")]);
    stopped.map_err(text)?;
    ensure(there.lines().any(|name| name == container), "a container of somebody else's was removed")
}

async fn an_unknown_runtime_is_told() -> Result<(), String> {
    let mut spec = spec("tierbox-test/debian:1");
    spec.settings["runtime"] = json!("runsc");
    let error = start(spec).await.err().ok_or("it started")?;
    ensure(error.kind() == ErrorKind::HostUnable && error.to_string().contains("runtime"), format!("{error:?}"))
}

async fn a_runtime_is_passed_on_and_reported() -> Result<(), String> {
    let mut supervised = spec("tierbox-test/debian:1");
    // The only one that every engine has, by its name; others take the same way.
    supervised.settings["runtime"] = json!("runc");
    let environment = start(supervised).await.map_err(text)?;
    let container = remains(environment.id()).pop().ok_or("no container")?;
    let runtime = docker(&["inspect", "-f", "{{.HostConfig.Runtime}}", &container]);
    let report = environment.report().clone();
    let vsock = sh(&environment.primary(), "perl -e 'socket(my $s, 40, 1, 0) ? print \"open\" : print \"closed: $!\"'").await;
    environment.stop().await.map_err(text)?;
    ensure(runtime == "runc", runtime)?;
    let found = |name: &str| report.mechanisms.iter().find(|mechanism| mechanism.name == name);
    ensure(found("runtime").is_some_and(|found| found.detail == "runc"), format!("{report:?}"))?;
    // It shares this host's kernel, so that the filter stays; what engines filter by themselves has not always closed this family.
    let own = |found: &tierbox::Mechanism| found.applied == tierbox::Applied::Enforced && found.detail.contains("instructions");
    ensure(found("seccomp").is_some_and(own) && report.weakened.is_empty(), format!("{report:?}"))?;
    let vsock = vsock?;
    ensure(vsock.starts_with("closed"), vsock)?;
    // Without the supervisor the engine filters by the same list.
    let mut plain = spec("tierbox-test/debian:1");
    (plain.settings["runtime"], plain.settings["transport"]) = (json!("runc"), json!("plain"));
    let environment = start(plain).await.map_err(text)?;
    let report = environment.report().clone();
    environment.stop().await.map_err(text)?;
    let filter = report.mechanisms.iter().find(|mechanism| mechanism.name == "seccomp");
    let ours = filter.is_some_and(|filter| filter.detail.contains("tierbox's list"));
    ensure(ours && report.weakened.is_empty(), format!("{report:?}"))
}

async fn a_command_that_lacked_memory_is_named_only_if_alone() -> Result<(), String> {
    let mut spec = spec("tierbox-test/debian:1");
    spec.limits.memory = Some(tierbox::Limit::required(64 << 20));
    spec.limits.disk = Some(tierbox::Limit::required(8 << 20));
    let environment = start(spec).await.map_err(text)?;
    let machine = environment.primary();
    let hold = || ExecRequest::shell("head -c 200000000 /dev/zero | tail -c 190000000 >/dev/null || kill -9 $$");
    let memory = Outcome::Killed(tierbox::KillReason::Memory);
    let alone = machine.run(hold()).await.map_err(text)?;
    // One that kills itself is not blamed on memory, though memory ran out before.
    let own = machine.run(ExecRequest::shell("kill -9 $$")).await.map_err(text)?;
    let beside = machine.spawn_detached(ExecRequest::new(["sleep", "1000"])).await.map_err(text)?;
    let accompanied = machine.run(hold()).await.map_err(text)?;
    machine.kill(beside, tierbox::KillReason::Cancelled).await.map_err(text)?;
    machine.wait(beside).await.map_err(text)?;
    let again = machine.run(hold()).await.map_err(text)?;
    environment.stop().await.map_err(text)?;
    ensure(alone.outcome() == memory, format!("alone: {alone:?}"))?;
    ensure(own.outcome() == Outcome::Signaled(9), format!("by itself: {own:?}"))?;
    ensure(accompanied.outcome() == Outcome::Signaled(9), format!("beside another: {accompanied:?}"))?;
    ensure(again.outcome() == memory, format!("alone again: {again:?}"))
}

async fn the_socket_is_never_mounted() -> Result<(), String> {
    let socket = crate::support::engines::address("docker").map_err(|absence| absence.reason)?;
    let socket = std::path::PathBuf::from(socket.trim_start_matches("unix://"));
    // One of any name may be an engine's, and what is no file at all is nobody's to mount.
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let other = dir.path().join("other");
    let _listener = std::os::unix::net::UnixListener::bind(&other).map_err(|error| error.to_string())?;
    for host in [socket.clone(), socket.parent().ok_or("no parent")?.to_owned(), "/".into(), other] {
        let mut spec = spec("tierbox-test/debian:1");
        spec.mounts = vec![tierbox::MountSpec { host: host.clone(), guest: "/mnt/x".to_owned(), writable: false }];
        let error = start(spec).await.err().ok_or(format!("{} was mounted", host.display()))?;
        ensure(error.kind() == ErrorKind::InvalidProfile && error.message().contains("socket"), format!("{error:?}"))?;
    }
    Ok(())
}

async fn mounts_are_read_only_and_reported() -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    crate::world::write(dir.path(), "file", "of the host");
    let mut spec = spec("tierbox-test/debian:1");
    spec.mounts = vec![tierbox::MountSpec { host: dir.path().to_owned(), guest: "/mnt/data".to_owned(), writable: false }];
    let environment = start(spec).await.map_err(text)?;
    let result = environment.primary().run(ExecRequest::shell("echo x > /mnt/data/new").user("root")).await.map_err(text)?;
    ensure(!result.success() && result.stderr.text().contains("Read-only"), format!("{result:?}"))?;
    let reported = environment.report().mounts.join(" ");
    environment.stop().await.map_err(text)?;
    ensure(reported.contains("/mnt/data (ro)"), reported)
}

async fn a_start_that_is_given_up_leaves_nothing() -> Result<(), String> {
    // An image of its own tells its containers from those of other tests.
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    crate::world::write(dir.path(), "Dockerfile", "FROM tierbox-test/debian:1\nLABEL of=given-up\n");
    docker(&["build", "-q", "-t", "tierbox-test/given-up:1", &dir.path().to_string_lossy()]);
    let left = || docker(&["ps", "-aq", "--filter", "ancestor=tierbox-test/given-up:1"]);
    for millis in [0, 20, 60, 120, 200] {
        let given_up = tokio::time::timeout(Duration::from_millis(millis), start(spec("tierbox-test/given-up:1"))).await;
        if let Ok(started) = given_up {
            started.map_err(text)?.stop().await.map_err(text)?;
        }
        // It may not even have been made yet: only after some time does its absence say something.
        let mut absent = 0;
        for _ in 0..200 {
            absent = if left().is_empty() { absent + 1 } else { 0 };
            if absent == 20 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        ensure(left().is_empty(), format!("given up after {millis} ms, it left {}", left()))?;
    }
    docker(&["rmi", "-f", "tierbox-test/given-up:1"]);
    Ok(())
}

async fn what_is_in_force_is_reported() -> Result<(), String> {
    let environment = start(spec("tierbox-test/debian:1")).await.map_err(text)?;
    let report = environment.report().clone();
    let seen = sh(&environment.primary(), "grep -E '^(NoNewPrivs|Seccomp|CapBnd)' /proc/self/status; ls /sys/class/net").await;
    let fill = "head -c 80000000 /dev/zero > /dev/fill 2>/dev/null; stat -c %s /dev/fill; rm -f /dev/fill";
    let filled = environment.primary().run(ExecRequest::shell(fill).user("root")).await;
    environment.stop().await.map_err(text)?;
    // What the engine mounts there is not ours to limit: no more than that, and told.
    let filled: u64 = filled.map_err(text)?.stdout.text().trim().parse().map_err(|error| format!("{error}"))?;
    ensure((60 << 20..=64 << 20).contains(&filled), format!("/dev holds {filled} bytes"))?;
    ensure(report.notes.iter().any(|note| note.contains("/dev (64 MiB)")), format!("{:?}", report.notes))?;
    for name in
        ["network namespace", "pid namespace", "mount namespace", "seccomp", "no_new_privs", "capabilities", "read-only root"]
    {
        let found = report.mechanisms.iter().find(|found| found.name == name);
        ensure(found.is_some_and(|found| found.applied == tierbox::Applied::Enforced), format!("{name}: {found:?}"))?;
    }
    ensure(report.weakened.is_empty(), format!("{:?}", report.weakened))?;
    let seen = seen?;
    ensure(seen.lines().last() == Some("lo"), seen)?;
    let checks = tierbox::docker::DockerBackend::new().doctor().await;
    ensure(!checks.is_empty(), "the doctor says nothing")
}

/// The digests of all images, as the engine itself tells them.
async fn what_it_was_made_of_is_attested() -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let services = "services:\n  default: {image: tierbox-test/debian:1, command: sleep infinity}\n  other: {image: tierbox-test/busybox:1, \
                    command: sleep 1000}\n";
    crate::world::write(dir.path(), "compose.yaml", services);
    let client = Tierbox::builder().state_dir(dir.path().join("state")).user_config(false).build().map_err(text)?;
    let mut spec = with_settings(json!({ "compose": "compose.yaml" }));
    spec.base_dir = dir.path().to_owned();
    (spec.limits.disk, spec.limits.inodes) = (None, None);
    let running = client.start_spec(spec, StartOptions::new().log()).await.map_err(text)?;
    let attested = running.logged_run().map_err(text)?.and_then(|run| run.attestation).ok_or("nothing is attested");
    running.stop().await.map_err(text)?;
    let made_of = attested?.made_of;
    for (machine, image) in [("default", "tierbox-test/debian:1"), ("other", "tierbox-test/busybox:1")] {
        let digest = docker(&["image", "inspect", "--format", "{{.Id}}", image]);
        let told = made_of.get(&format!("image of {machine}"));
        ensure(
            digest.starts_with("sha256:") && told.is_some_and(|told| told == digest.trim()),
            format!("{digest} is not in {made_of:?}"),
        )?;
    }
    let version = docker(&["version", "--format", "{{.Server.Version}}"]);
    ensure(made_of["engine"].contains(version.trim()), format!("{version} is not in {made_of:?}"))
}
