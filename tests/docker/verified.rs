//! Verification from inside, with twins that show the probes to work.
//!
//! The engine of the tests lives in a network namespace of its own. Usually it shares that with whoever starts containers, so the
//! harness of these tests is started in the engine's.

use std::path::Path;
use std::process::{ExitCode, Stdio};

use libtest_mimic::Trial;
use tierbox::{StartOptions, Tierbox, Verify};

use crate::support::again;
use crate::world::{daemon, docker, ensure, in_network_of, spec, text, trial};

/// The role of a process that starts an environment and tells what was verified.
pub const PROBED: &str = "probed";

pub fn all() -> Vec<Trial> {
    ["T0.H1.N2", "T0.H1.N1", "T0.H1.N0"]
        .map(|tier| trial(&format!("verified::every_probe_has_its_control::{tier}"), move || every_probe_has_its_control(tier)))
        .into()
}

/// Starts an environment, and succeeds if everything about it was verified.
pub fn probed() -> ExitCode {
    let (dir, tier) = (std::env::var("PROBED_DIR").expect("a directory"), std::env::var("PROBED_TIER").expect("a tier"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let done = runtime.block_on(async {
        let client = Tierbox::builder().state_dir(Path::new(&dir).join("state")).user_config(false).build().map_err(text)?;
        let mut spec = spec("tierbox-test/debian:1");
        spec.tier = tier.parse().map_err(text)?;
        spec.reason = Some("a test".to_owned());
        spec.network.allow = vec!["allowed.example".to_owned()];
        spec.verify = Some(Verify::Always);
        let running = client.start_spec(spec, StartOptions::new()).await.map_err(text)?;
        let verification = running.verification().map(|verified| verified.verification.clone()).ok_or("nothing was verified")?;
        running.stop().await.map_err(text)?;
        ensure(verification.verified, format!("{:#?}", verification.probes))
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

async fn every_probe_has_its_control(tier: &'static str) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
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
