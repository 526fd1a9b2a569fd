//! Verification from inside, with twins that show the probes to work.
//!
//! The engine of the tests lives in a network namespace of its own. Usually it shares that with whoever starts containers, so the
//! harness of these tests is started in the engine's.

use std::path::Path;
use std::process::{ExitCode, Stdio};

use libtest_mimic::Trial;
use tierbox::{StartOptions, Tierbox, Verify};

use crate::support::again;
use crate::world::{daemon, docker, ensure, in_network_of, spec, text, trial, with_settings};

/// Machines of several kinds: one that serves another, of another image, and one without any network.
const COMPOSED: &str = "
services:
  default: {image: tierbox-test/debian:1, command: sleep infinity}
  web: {image: tierbox-test/busybox:1, working_dir: /workspace, command: 'httpd -f -p 8080 -h /etc'}
  closed: {image: tierbox-test/debian:1, command: sleep infinity, network_mode: none}
";

/// The role of a process that starts an environment and tells what was verified.
pub const PROBED: &str = "probed";

pub fn all() -> Vec<Trial> {
    let alone = ["T0.H1.N2", "T0.H1.N1", "T0.H1.N0"].map(|tier| {
        trial(&format!("verified::every_probe_has_its_control::{tier}"), move || every_probe_has_its_control(tier, false))
    });
    let several = ["T0.H1.N2", "T0.H1.N1"].map(|tier| {
        trial(&format!("verified::every_machine_is_probed::{tier}"), move || every_probe_has_its_control(tier, true))
    });
    alone.into_iter().chain(several).collect()
}

/// Starts an environment, and succeeds if everything about it was verified.
pub fn probed() -> ExitCode {
    let (dir, tier) = (std::env::var("PROBED_DIR").expect("a directory"), std::env::var("PROBED_TIER").expect("a tier"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let done = runtime.block_on(async {
        let client = Tierbox::builder().state_dir(Path::new(&dir).join("state")).user_config(false).build().map_err(text)?;
        let composed = Path::new(&dir).join("compose.yaml").exists();
        let mut spec =
            if composed { with_settings(serde_json::json!({"compose": "compose.yaml"})) } else { spec("tierbox-test/debian:1") };
        if composed {
            spec.base_dir = Path::new(&dir).to_owned();
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
        Ok::<(), String>(())
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

async fn every_probe_has_its_control(tier: &'static str, composed: bool) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    if composed {
        crate::world::write(dir.path(), "compose.yaml", COMPOSED);
    }
    let daemon = daemon();
    // A way to the outside, which leads nowhere: without one there is no route that a machine could lack.
    in_network_of(
        &daemon,
        &[
            "sh",
            "-c",
            "ip link add tbway type bridge 2>/dev/null; ip link set tbway up; ip addr replace 198.18.77.2/30 dev tbway; ip route replace default via 198.18.77.1",
        ],
    );
    let mut command = again::this_program_under(&["nsenter", "-t", &daemon, "-n"], PROBED);
    command.env("PROBED_DIR", dir.path()).env("PROBED_TIER", tier).stdout(Stdio::null()).stderr(Stdio::piped());
    let output = tokio::task::spawn_blocking(move || command.output()).await.map_err(|error| error.to_string())?;
    let output = output.map_err(|error| error.to_string())?;
    ensure(output.status.success(), String::from_utf8_lossy(&output.stderr))?;
    let left: Vec<_> = std::fs::read_dir(dir.path().join("state/leases")).into_iter().flatten().flatten().collect();
    ensure(left.is_empty(), format!("{left:?}"))?;
    let twins = docker(&["ps", "-a", "--format", "{{.Names}}"]);
    ensure(!twins.contains("tierbox-twin"), twins)
}
