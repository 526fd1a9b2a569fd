//! `tierbox verify`.

use serde_json::json;
use tierbox::verify::{ProbeStatus, Verdict, Verification};
use tierbox::{StartOptions, Verify};

use crate::interrupt::Failure;
use crate::{Context, output, table};

/// The exit status when not every probe passed, or there was none.
const NOT_VERIFIED: u8 = 1;

pub(crate) async fn verify(context: &mut Context, profile: &str) -> Result<u8, Failure> {
    let client = context.client.clone();
    let mut spec = client.resolve(profile, &StartOptions::new())?;
    // The probes are carried out below, where all that they find is shown.
    spec.verify = Some(Verify::Off);
    let running = context.interrupts.guard(client.start_spec(spec, StartOptions::new())).await?;
    let found = context.interrupts.guard(running.verify()).await;
    let tier = running.report().tier;
    context.interrupts.guard(running.stop()).await?;
    let found = found?;
    if context.global.json {
        output::json(&json!({ "profile": profile, "tier": tier.to_string(), "verification": found }));
    } else {
        show(&found);
        output::line(conclusion(&found, &tier.to_string()));
    }
    Ok(if found.verified { 0 } else { NOT_VERIFIED })
}

fn word(status: ProbeStatus) -> &'static str {
    match status {
        ProbeStatus::Pass => "pass",
        ProbeStatus::Fail => "FAIL",
        ProbeStatus::Inconclusive => "inconclusive",
        ProbeStatus::ByConfiguration => "by-configuration",
    }
}

fn show(found: &Verification) {
    let rows: Vec<Vec<String>> = found
        .probes
        .iter()
        .map(|probe| {
            let control = probe.control.as_ref().map_or_else(
                || "-".to_owned(),
                |control| format!("{} without {}", if control.found { "found" } else { "not found" }, control.lifted),
            );
            let place = probe.machine.as_ref().map_or_else(String::new, |machine| format!(" in {machine}"));
            vec![format!("{}{place}", probe.id), word(probe.status).to_owned(), probe.rule.clone(), control]
        })
        .collect();
    output::line(table::render(&["PROBE", "RESULT", "RULE", "CONTROL"], &rows));
    for probe in found.probes.iter().filter(|probe| probe.status != ProbeStatus::Pass) {
        let place = probe.machine.as_ref().map_or_else(String::new, |machine| format!(" in {machine}"));
        output::line(crate::neutral::text(&format!("{}{place}: {}", probe.id, probe.detail)));
    }
    for unprobed in &found.unprobed {
        output::line(crate::neutral::text(&format!("{} was not probed: {}", unprobed.machine, unprobed.why)));
    }
}

fn conclusion(found: &Verification, tier: &str) -> String {
    let count = found.probes.len();
    match found.verdict {
        Verdict::NothingToProve => format!("{tier} is not verified: it promises nothing that could be probed"),
        Verdict::Verified if found.machines.len() > 1 => {
            format!("{tier} is verified: {count} probes in {} machines in {} ms", found.machines.len(), found.took_ms)
        }
        Verdict::Verified => format!("{tier} is verified: {count} probes in {} ms", found.took_ms),
        Verdict::NotVerified | Verdict::NotProbed => format!("{tier} is not verified"),
    }
}
