//! Environments that outlive the process that started them, and are found by others.

use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::json;
use tierbox::{EnvironmentSpec, ErrorKind, ExecRequest, Hold, Outcome, Running, SandboxExt, StartOptions, Tierbox, Verify};

use crate::support::again;
use crate::world::{TESTED_ENGINE, docker, engine, ensure, nothing_left, on_podman, remains, sh, spec, text, trial, write};

/// The role of a process that starts an environment and ends.
pub const STARTER: &str = "starter";

/// The environment's name.
const NAME: &str = "outlives";

pub fn all() -> Vec<Trial> {
    vec![
        trial("detached::others_find_it_use_it_and_end_it", others_find_it_use_it_and_end_it),
        trial("detached::every_machine_and_service_lives_on", every_machine_and_service_lives_on),
        trial("detached::the_gateway_lives_on", the_gateway_lives_on),
        trial("detached::a_killed_gateway_leaves_no_network", a_killed_gateway_leaves_no_network),
        trial("detached::one_that_expired_is_cleaned_up", one_that_expired_is_cleaned_up),
        trial("detached::what_was_not_made_for_it_is_not_attached", what_was_not_made_for_it_is_not_attached),
        trial("detached::one_that_is_gone_is_told", one_that_is_gone_is_told),
        on_podman("detached::others_find_it_use_it_and_end_it", others_find_it_use_it_and_end_it),
        on_podman("detached::the_gateway_lives_on", the_gateway_lives_on),
    ]
}

const PAIR: &str = "
services:
  default: {image: tierbox-test/debian:1}
  web:
    image: tierbox-test/busybox:1
    command: httpd -f -p 8080 -h /etc
    healthcheck: {test: [CMD, wget, -q, -O, /dev/null, 'http://127.0.0.1:8080/passwd'], interval: 1s}
";

fn client(dir: &Path) -> Result<Tierbox, String> {
    Tierbox::builder().state_dir(dir.join("state")).user_config(false).build().map_err(text)
}

fn wanted(dir: &Path, kind: &str) -> EnvironmentSpec {
    let mut spec = spec("tierbox-test/debian:1");
    spec.verify = Some(Verify::Off);
    match kind {
        "pair" => {
            let settings = spec.settings.as_object_mut().expect("a table");
            settings.remove("image");
            settings.insert("compose".to_owned(), json!("compose.yaml"));
            spec.base_dir = dir.to_owned();
        }
        "names" => {
            spec.tier = "T0.H1.N1".parse().expect("a tier");
            spec.network.allow = vec!["allowed.example".to_owned()];
        }
        _ => {}
    }
    spec
}

/// What the starter does: it starts an environment that is kept, leaves a command behind in it, and ends.
pub fn starter() -> ExitCode {
    let (dir, kind) = (std::env::var("DETACHED_DIR").expect("a directory"), std::env::var("DETACHED_KIND").expect("a kind"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let done = runtime.block_on(async {
        let running = client(Path::new(&dir))?
            .start_spec(wanted(Path::new(&dir), &kind), StartOptions::new().name(NAME).hold(Hold::Kept))
            .await
            .map_err(text)?;
        let left = ExecRequest::shell("echo left > /workspace/file; exec sleep 1000");
        running.sandbox().spawn_detached(left).await.map_err(text)?;
        Ok::<_, String>(())
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "{why}");
            ExitCode::FAILURE
        }
    }
}

/// An environment that another process, which has ended, has started.
async fn left(dir: &Path, kind: &str) -> Result<(Tierbox, Running), String> {
    write(dir, "compose.yaml", PAIR);
    let mut command = again::this_program_under(&[], STARTER);
    command.env("DETACHED_DIR", dir).env("DETACHED_KIND", kind).env(TESTED_ENGINE, engine()).stdout(Stdio::null());
    let status = tokio::task::spawn_blocking(move || command.status()).await.map_err(|error| error.to_string())?;
    ensure(status.as_ref().is_ok_and(std::process::ExitStatus::success), format!("the starter: {status:?}"))?;
    let client = client(dir)?;
    let running = client.attach(NAME).await.map_err(text)?;
    Ok((client, running))
}

fn world() -> Result<tempfile::TempDir, String> {
    tempfile::tempdir().map_err(|error| error.to_string())
}

async fn others_find_it_use_it_and_end_it() -> Result<(), String> {
    let dir = world()?;
    let (client, running) = left(dir.path(), "one").await?;
    let id = running.id().to_owned();
    let machine = running.sandbox();
    ensure(sh(&machine, "cat /workspace/file").await? == "left", "another machine was found")?;
    ensure(machine.capabilities().memory_outcome, "its capabilities are forgotten")?;
    let execs = machine.execs().await.map_err(text)?;
    let detached = execs.iter().find(|exec| exec.detached).ok_or("the command that was left behind is gone")?.id;
    machine.write_bytes("/workspace/more", vec![b'x'; 3 << 20]).await.map_err(text)?;
    ensure(machine.read_bytes("/workspace/more", 4 << 20).await.map_err(text)?.len() == 3 << 20, "another length")?;
    // A second client at the same time, whose going ends nothing.
    let second = client.attach(&id).await.map_err(text)?;
    ensure(sh(&second.sandbox(), "echo two").await? == "two", "the second client")?;
    drop(second);
    ensure(sh(&machine, "echo still").await? == "still", "the first client")?;
    let waiting = tokio::spawn({
        let machine = machine.clone();
        async move { machine.wait(detached).await }
    });
    let listed = client.list_one(NAME).await.map_err(text)?;
    ensure(listed.alive, "it is not listed as alive")?;
    let report = client.down(NAME).await.map_err(text)?;
    ensure(report.failed.is_empty() && !report.removed.is_empty(), format!("{report:?}"))?;
    let ended = waiting.await.map_err(|error| error.to_string())?;
    let lost = match &ended {
        Ok(ended) => ended.outcome == Outcome::Lost,
        Err(error) => error.kind() == ErrorKind::Lost,
    };
    ensure(lost, format!("{ended:?}"))?;
    nothing_left(&id)
}

async fn every_machine_and_service_lives_on() -> Result<(), String> {
    let dir = world()?;
    let (client, running) = left(dir.path(), "pair").await?;
    let id = running.id().to_owned();
    ensure(running.machines().len() == 2, "another number of machines")?;
    let fetch = "exec 3<>/dev/tcp/web/8080 && printf 'GET /passwd HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3";
    let fetched = running.sandbox().run(ExecRequest::new(["/bin/bash", "-c", fetch])).await.map_err(text)?;
    ensure(fetched.stdout.text().contains("app:x:4242"), format!("{fetched:?}"))?;
    running.stop().await.map_err(text)?;
    nothing_left(&id)?;
    ensure(client.list_one(NAME).await.is_err(), "its lease is still there")
}

async fn the_gateway_lives_on() -> Result<(), String> {
    let dir = world()?;
    let (_client, running) = left(dir.path(), "names").await?;
    let id = running.id().to_owned();
    let machine = running.sandbox();
    ensure(sh(&machine, "getent hosts allowed.example").await?.starts_with("127.98.18.1 "), "the allowed name is not known")?;
    let other = machine.run(ExecRequest::shell("getent hosts other.example")).await.map_err(text)?;
    ensure(!other.success(), "another name is known")?;
    let decisions = running.decisions().await.map_err(text)?;
    ensure(decisions.iter().any(|decision| decision.name == "other.example"), format!("{decisions:?}"))?;
    ensure(gateways(&id).len() == 1, "no gateway serves it")?;
    running.stop().await.map_err(text)?;
    // It ends with the machine.
    for _ in 0..1200 {
        if gateways(&id).is_empty() {
            return nothing_left(&id);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(format!("its gateway still runs: {:?}", gateways(&id)))
}

/// Without it there is nobody on the sockets: nothing is known and nothing is reached, and the machine lives on.
async fn a_killed_gateway_leaves_no_network() -> Result<(), String> {
    let dir = world()?;
    let (_client, running) = left(dir.path(), "names").await?;
    let id = running.id().to_owned();
    let machine = running.sandbox();
    ensure(sh(&machine, "getent hosts allowed.example").await?.starts_with("127.98.18.1 "), "the allowed name is not known")?;
    for gateway in gateways(&id) {
        let pid = gateway.trim_start_matches("/proc/").to_owned();
        let killed = std::process::Command::new("kill").args(["-9", &pid]).status().map_err(|error| error.to_string())?;
        ensure(killed.success(), "it was not killed")?;
    }
    for _ in 0..200 {
        if gateways(&id).is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let known = machine.run(ExecRequest::shell("timeout 20 getent hosts allowed.example")).await.map_err(text)?;
    ensure(!known.success(), format!("a name is known without a gateway: {known:?}"))?;
    for port in [53, 80, 443, 3128] {
        let reach = format!("timeout 3 /bin/bash -c 'exec 3<>/dev/tcp/127.98.18.1/{port}'");
        let reached = machine.run(ExecRequest::shell(reach)).await.map_err(text)?;
        ensure(!reached.success(), format!("somebody listens on {port}"))?;
    }
    ensure(sh(&machine, "ls /sys/class/net").await? == "lo", "there is another network")?;
    running.stop().await.map_err(text)?;
    nothing_left(&id)
}

/// Gateways that hold the log of an environment open.
fn gateways(id: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let holds = |process: &Path| {
        let files = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        files.filter_map(|file| std::fs::read_link(file.path()).ok()).any(|file| file.to_string_lossy().contains(id))
    };
    let is_gateway = |process: &Path| {
        std::fs::read(process.join("cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains("tierbox-egress-gateway"))
    };
    let found = processes.map(|process| process.path()).filter(|process| is_gateway(process) && holds(process));
    found.map(|process| process.display().to_string()).collect()
}

async fn one_that_expired_is_cleaned_up() -> Result<(), String> {
    let dir = world()?;
    let client = client(dir.path())?;
    let until = Hold::Until(std::time::SystemTime::now() + Duration::from_secs(3600));
    let kept = client.start_spec(wanted(dir.path(), "one"), StartOptions::new().name("kept").hold(until)).await.map_err(text)?;
    let past = Hold::Until(std::time::SystemTime::now());
    let over = client.start_spec(wanted(dir.path(), "one"), StartOptions::new().name("over").hold(past)).await.map_err(text)?;
    let (kept_id, over_id) = (kept.id().to_owned(), over.id().to_owned());
    drop((kept, over));
    let report = client.cleanup(Default::default()).await.map_err(text)?;
    let living = client.attach("kept").await.map_err(text)?;
    let said = sh(&living.sandbox(), "echo lives").await;
    living.stop().await.map_err(text)?;
    ensure(said? == "lives", "one that was to be kept is gone")?;
    ensure(report.failed.is_empty(), format!("{report:?}"))?;
    nothing_left(&over_id)?;
    nothing_left(&kept_id)
}

async fn what_was_not_made_for_it_is_not_attached() -> Result<(), String> {
    let dir = world()?;
    let client = client(dir.path())?;
    let running = client.start_spec(wanted(dir.path(), "one"), StartOptions::new()).await.map_err(text)?;
    let attached = client.attach(running.id()).await.err().map(|error| error.kind());
    running.stop().await.map_err(text)?;
    ensure(attached == Some(ErrorKind::Unsupported), format!("{attached:?}"))
}

async fn one_that_is_gone_is_told() -> Result<(), String> {
    let dir = world()?;
    let (client, running) = left(dir.path(), "one").await?;
    let id = running.id().to_owned();
    drop(running);
    let container = remains(&id).pop().ok_or("no container")?;
    docker(&["kill", &container]);
    let attached = client.attach(NAME).await.err().map(|error| error.kind());
    ensure(attached == Some(ErrorKind::NotFound), format!("{attached:?}"))?;
    ensure(!client.list_one(NAME).await.map_err(text)?.alive, "it is listed as alive")?;
    client.down(NAME).await.map_err(text)?;
    nothing_left(&id)
}
