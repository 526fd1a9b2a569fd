//! Verification from inside, with twins that show the probes to work.
//!
//! The engine of the tests lives in a network namespace of its own. Usually it shares that with whoever starts containers, so the
//! harness of most of these tests is started in the engine's. In the others, it stays where it is, as beside an engine in a virtual
//! machine or in a container: then canaries are opened on the engine's own host as well.

use std::path::Path;
use std::process::{ExitCode, Stdio};

use libtest_mimic::Trial;
use tierbox::verify::SABOTAGES;
use tierbox::{Lifted, ShownPath, StartOptions, Tierbox, Verify};

use crate::sabotaged::{Harm, sabotaged};
use crate::support::again;
use crate::world::{daemon, docker, ensure, in_network_of, on_podman, spec, text, trial, with_settings};

/// Machines of several kinds: one that serves another, of another image, and one without any network.
const COMPOSED: &str = "
services:
  default: {image: tierbox-test/debian:1, command: sleep infinity}
  web: {image: tierbox-test/busybox:1, working_dir: /workspace, command: 'httpd -f -p 8080 -h /etc'}
  closed: {image: tierbox-test/debian:1, command: sleep infinity, network_mode: none}
";

/// What stands for a tier where every sabotage is to be caught.
const SABOTAGE: &str = "sabotage";

/// The role of a process that starts an environment and tells what was verified.
pub const PROBED: &str = "probed";

pub fn all() -> Vec<Trial> {
    const TIERS: [&str; 3] = ["T0.H1.N2", "T0.H1.N1", "T0.H1.N0"];
    let alone = TIERS.map(|tier| {
        trial(&format!("verified::every_probe_has_its_control::{tier}"), move || every_probe_has_its_control(tier, false))
    });
    let elsewhere =
        TIERS.map(|tier| trial(&format!("verified::an_engine_elsewhere::{tier}"), move || an_engine_elsewhere(tier, false)));
    let podmans =
        TIERS.map(|tier| on_podman(&format!("verified::an_engine_elsewhere::{tier}"), move || an_engine_elsewhere(tier, false)));
    let several = ["T0.H1.N2", "T0.H1.N1"].map(|tier| {
        trial(&format!("verified::every_machine_is_probed::{tier}"), move || every_probe_has_its_control(tier, true))
    });
    let others = [
        trial("verified::an_engine_elsewhere::several", || an_engine_elsewhere("T0.H1.N2", true)),
        trial("verified::an_engine_elsewhere::plain", a_plain_machine_elsewhere),
        trial("verified::an_engine_elsewhere::is_verified_once", an_engine_elsewhere_is_verified_once),
        trial("verified::an_engine_elsewhere::every_sabotage_of_its_network_is_caught", sabotages_of_its_network),
        trial("verified::every_sabotage_is_caught", every_sabotage_is_caught),
    ];
    alone.into_iter().chain(elsewhere).chain(podmans).chain(several).chain(others).collect()
}

/// Fails unless the engine runs in another network than this process: else nothing is shown by its tests.
fn is_elsewhere() -> Result<(), String> {
    let of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).map_err(|error| error.to_string());
    ensure(of(&daemon())? != of("self")?, "the engine of the tests is in this network")
}

/// The engine is where the tests start it, and the harness where they run.
async fn an_engine_elsewhere(tier: &'static str, composed: bool) -> Result<(), String> {
    is_elsewhere()?;
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    if composed {
        crate::world::write(dir.path(), "compose.yaml", COMPOSED);
    }
    is_verified(dir.path(), tier).await?;
    nothing_left_of(dir.path())
}

async fn a_plain_machine_elsewhere() -> Result<(), String> {
    is_elsewhere()?;
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let client = Tierbox::builder().state_dir(dir.path().join("state")).user_config(false).build().map_err(text)?;
    let mut spec = spec("tierbox-test/debian:1");
    spec.settings["transport"] = "plain".into();
    spec.verify = Some(Verify::Always);
    let running = client.start_spec(spec, StartOptions::new()).await.map_err(text)?;
    let found = running.verification().map(|verified| verified.verification.clone()).ok_or("nothing was verified")?;
    running.stop().await.map_err(text)?;
    ensure(found.verified, format!("{found:#?}"))?;
    nothing_left_of(dir.path())
}

/// What was shown there counts for later starts.
async fn an_engine_elsewhere_is_verified_once() -> Result<(), String> {
    is_elsewhere()?;
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let client = Tierbox::builder().state_dir(dir.path().join("state")).user_config(false).build().map_err(text)?;
    let mut seen = Vec::new();
    for _ in 0..2 {
        let mut spec = spec("tierbox-test/debian:1");
        spec.verify = Some(Verify::Once);
        let running = client.start_spec(spec, StartOptions::new()).await.map_err(text)?;
        let verified = running.verification().ok_or("nothing was verified")?;
        seen.push((verified.verification.verified, verified.reused));
        running.stop().await.map_err(text)?;
    }
    ensure(seen == [(true, false), (true, true)], format!("{seen:?}"))
}

async fn sabotages_of_its_network() -> Result<(), String> {
    is_elsewhere()?;
    has_a_way_outside(&daemon());
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let done = caught(dir.path(), &["network", "outside"]).await?;
    ensure(done == ["network", "outside"], format!("only {done:?} were carried out"))
}

/// The sabotages that are done to a container of an engine, each of which must be caught by the probes that the list names.
async fn caught(dir: &Path, named: &[&str]) -> Result<Vec<&'static str>, String> {
    let shared = dir.join("shared");
    std::fs::create_dir_all(&shared).map_err(|error| error.to_string())?;
    let socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).map_err(|error| error.to_string())?;
    let mount = |host: &Path, guest: &str| Lifted::Mounts(vec![ShownPath { host: host.to_owned(), guest: guest.to_owned() }]);
    let possible = tierbox::verify::probe_names().map_err(text)?;
    let mut done = Vec::new();
    for sabotage in SABOTAGES.iter().filter(|sabotage| named.is_empty() || named.contains(&sabotage.name)) {
        let lifted = match sabotage.name {
            "network" => Lifted::Network,
            "outside" => Lifted::Outside,
            "ipc" => Lifted::Ipc,
            "uts" => Lifted::Uts,
            "capabilities" => Lifted::Capabilities,
            "no-new-privs" => Lifted::NoNewPrivs,
            "seccomp" => Lifted::Seccomp,
            "socket" => mount(&dir.join("socket"), "/run/docker.sock"),
            "bind" => mount(&shared, "/mnt/of-nobody"),
            "isolation" => Lifted::Isolation,
            _ => continue,
        };
        let state = tempfile::tempdir().map_err(|error| error.to_string())?;
        let client = sabotaged("docker", &state, Harm::Lifted(lifted));
        let mut spec = spec("tierbox-test/debian:1");
        spec.verify = Some(Verify::Always);
        let error = match client.start_spec(spec, StartOptions::new()).await {
            Err(error) => error,
            Ok(running) => {
                running.stop().await.map_err(text)?;
                return Err(format!("{} was not caught", sabotage.name));
            }
        };
        ensure(error.kind() == tierbox::ErrorKind::TierRefused, format!("{}: {error}", sabotage.name))?;
        for probe in sabotage.caught_by.iter().filter(|probe| possible.contains(*probe)) {
            ensure(error.message().contains(&format!("{probe} (")), format!("{probe} did not catch {}: {error}", sabotage.name))?;
        }
        done.push(sabotage.name);
    }
    drop(socket);
    Ok(done)
}

/// Every sabotage, and one in a machine beside an honest one.
async fn all_caught(dir: &Path) -> Result<(), String> {
    let done = caught(dir, &[]).await?;
    // In a machine beside an honest one.
    let state = tempfile::tempdir().map_err(|error| error.to_string())?;
    let mut spec = spec("tierbox-test/debian:1");
    spec.verify = Some(Verify::Always);
    let client = sabotaged("docker", &state, Harm::Beside(Lifted::Capabilities));
    let error =
        client.start_spec(spec, StartOptions::new()).await.err().ok_or("a machine beside the primary one was not caught")?;
    ensure(error.message().contains("h.capabilities (in "), error.to_string())?;
    ensure(done.len() == 10, format!("only {done:?} were carried out"))
}

async fn every_sabotage_is_caught() -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    in_the_engines_network(dir.path(), SABOTAGE).await
}

/// Starts an environment, and succeeds if everything about it was verified.
pub fn probed() -> ExitCode {
    let (dir, tier) = (std::env::var("PROBED_DIR").expect("a directory"), std::env::var("PROBED_TIER").expect("a tier"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    if tier == SABOTAGE {
        return ended(runtime.block_on(all_caught(Path::new(&dir))));
    }
    ended(runtime.block_on(is_verified(Path::new(&dir), &tier)))
}

/// Starts an environment of a tier, of the compose file that is there or of one machine, and fails unless all of it is verified.
async fn is_verified(dir: &Path, tier: &str) -> Result<(), String> {
    let client = Tierbox::builder().state_dir(dir.join("state")).user_config(false).build().map_err(text)?;
    let composed = dir.join("compose.yaml").exists();
    let mut spec =
        if composed { with_settings(serde_json::json!({"compose": "compose.yaml"})) } else { spec("tierbox-test/debian:1") };
    if composed {
        spec.base_dir = dir.to_owned();
        (spec.limits.disk, spec.limits.inodes) = (None, None);
    }
    spec.tier = tier.parse().map_err(text)?;
    spec.reason = Some("a test".to_owned());
    spec.network.allow = vec!["allowed.example".to_owned()];
    spec.verify = Some(Verify::Always);
    let running = client.start_spec(spec, StartOptions::new()).await.map_err(text)?;
    let verification = running.verification().map(|verified| verified.verification.clone()).ok_or("nothing was verified")?;
    running.stop().await.map_err(text)?;
    ensure(verification.verified, format!("{verification:#?}"))?;
    let machines: &[&str] = if composed { &["default", "web", "closed"] } else { &["default"] };
    ensure(verification.machines == machines, format!("{:?} were probed", verification.machines))?;
    for machine in machines.iter().filter(|_| composed) {
        let its = |id: &str| verification.probes.iter().any(|it| it.id == id && it.machine.as_deref() == Some(*machine));
        ensure(its("h.seccomp") && its("n.tcp") && its("h.marker"), format!("{machine} was not probed for all"))?;
    }
    Ok(())
}

fn ended(done: Result<(), String>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "{why}");
            ExitCode::FAILURE
        }
    }
}

async fn every_probe_has_its_control(tier: &'static str, composed: bool) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    if composed {
        crate::world::write(dir.path(), "compose.yaml", COMPOSED);
    }
    in_the_engines_network(dir.path(), tier).await
}

/// Gives the engine's host a way to the outside, which leads nowhere: without one there is no route that a machine could lack.
fn has_a_way_outside(daemon: &str) {
    in_network_of(
        daemon,
        &[
            "sh",
            "-c",
            "ip link add tbway type bridge 2>/dev/null; ip link set tbway up; ip addr replace 198.18.77.2/30 dev tbway; ip route replace default via 198.18.77.1",
        ],
    );
}

/// Has a process start what is asked for beside the engine.
async fn in_the_engines_network(dir: &Path, what: &str) -> Result<(), String> {
    let daemon = daemon();
    has_a_way_outside(&daemon);
    let mut command = again::this_program_under(&["nsenter", "-t", &daemon, "-n"], PROBED);
    command.env("PROBED_DIR", dir).env("PROBED_TIER", what).stdout(Stdio::null()).stderr(Stdio::piped());
    let output = tokio::task::spawn_blocking(move || command.output()).await.map_err(|error| error.to_string())?;
    let output = output.map_err(|error| error.to_string())?;
    ensure(output.status.success(), String::from_utf8_lossy(&output.stderr))?;
    nothing_left_of(dir)
}

/// Fails if leases or twins are left.
fn nothing_left_of(dir: &Path) -> Result<(), String> {
    let left: Vec<_> = std::fs::read_dir(dir.join("state/leases")).into_iter().flatten().flatten().collect();
    ensure(left.is_empty(), format!("{left:?}"))?;
    let twins = docker(&["ps", "-a", "--format", "{{.Names}}"]);
    ensure(!twins.contains("tierbox-twin"), twins)
}
