//! Verification over the way of scripts. The test server's machines share this host's kernel, so that what shows a kernel of its own
//! must fail there: they are the sabotage of a container that claims to be a virtual machine. Everything else must hold.

use std::sync::Arc;

use libtest_mimic::Trial;
use tierbox::verify::{ProbeResult, ProbeStatus, Verdict};
use tierbox::{StartOptions, Tierbox, Verify};
use tierbox_core::ErrorKind;
use tierbox_ec2::Ec2Backend;

use super::world::{Outcome, World, ensure, text, trial};

/// What only a kernel of its own can show.
const KERNEL: [&str; 2] = ["h.kernel.boot", "h.kernel.namespaces"];

pub fn all() -> Vec<Trial> {
    vec![
        trial("verified::a_container_that_claims_to_be_a_machine_is_refused", refused),
        trial("verified::every_probe_says_what_is_true::T0.H3.N0", |world| probed(world, "T0.H3.N0")),
        trial("verified::every_probe_says_what_is_true::T0.H3.N1", |world| probed(world, "T0.H3.N1")),
        trial("verified::every_probe_says_what_is_true::T0.H3.N2", |world| probed(world, "T0.H3.N2")),
    ]
}

fn client(world: &World) -> Result<Tierbox, String> {
    let mut registry = tierbox::Registry::empty();
    registry.register(Arc::new(Ec2Backend::new()));
    Tierbox::builder().state_dir(world.state().join("client")).registry(registry).build().map_err(text)
}

/// By default, since it is remote.
async fn refused(world: World) -> Outcome {
    let spec = world.spec(|_| ());
    ensure!(spec.verify.is_none(), "the default is not tried");
    let Err(error) = client(&world)?.start_spec(spec, StartOptions::new()).await else { return Err("it is used".to_owned()) };
    ensure!(error.kind() == ErrorKind::TierRefused, "{error}");
    for probe in KERNEL {
        ensure!(error.message().contains(&format!("{probe} (")), "{probe} did not catch it: {error}");
    }
    ensure!(error.message().matches(" (").count() >= KERNEL.len(), "{error}");
    world.until(std::time::Duration::from_secs(20), "nothing is left", || world.is_clean()).await
}

async fn probed(world: World, tier: &'static str) -> Outcome {
    let mut spec = match tier {
        "T0.H3.N1" => super::named::usual_spec(&world).await?,
        "T0.H3.N2" => super::network::closed_spec(&world).await?,
        _ => world.spec(|_| ()),
    };
    spec.verify = Some(Verify::Off);
    let running = client(&world)?.start_spec(spec, StartOptions::new()).await.map_err(text)?;
    let found = running.verify().await.map_err(text)?;
    let failed: Vec<&ProbeResult> = found.failed().collect();
    let names: Vec<&str> = failed.iter().map(|probe| probe.id.as_str()).collect();
    ensure!(names.len() == KERNEL.len() && KERNEL.iter().all(|probe| names.contains(probe)), "{failed:#?}");
    ensure!(found.verdict == Verdict::NotVerified && !found.verified, "{found:?}");
    // No twin can be made of an instance, which is said; nothing is left open.
    for probe in &found.probes {
        let open = probe.status == ProbeStatus::Inconclusive;
        ensure!(!open, "{probe:?}");
    }
    let has = |id: &str| found.probes.iter().any(|probe| probe.id == id);
    ensure!(has("h.kernel.engine") && has("n.metadata"), "{found:?}");
    let passes = |id: &str| found.probes.iter().any(|probe| probe.id == id && probe.status == ProbeStatus::Pass);
    ensure!(tier != "T0.H3.N1" || (passes("n.names") && has("n.unlisted")), "{found:?}");
    ensure!(tier != "T0.H3.N2" || (has("n.routes") && has("n.dns")), "{found:?}");
    ensure!(found.took_ms < 60_000, "it took {} ms", found.took_ms);
    println!("verification of {tier}: {} ms, {} probes", found.took_ms, found.probes.len());
    running.stop().await.map_err(text)
}
