//! What the gateway of a run decided.

use std::fmt::Write;

use tierbox_core::{Decision, Verdict};

use super::{MOST, escape, more, outcome, table};
use crate::log::Record;

/// The part of the page; none without a gateway. `is_named` is whether the environment was to have one.
pub(super) fn section(html: &mut String, records: &[Record], decisions: &[Decision], is_named: bool) {
    let unknown: Vec<String> = records
        .iter()
        .filter(|record| record.value["operation"] == "egress" && record.value["outcome"]["status"] == "failed")
        .map(|record| outcome(&record.value["outcome"]).0)
        .collect();
    if decisions.is_empty() && unknown.is_empty() && !is_named {
        return;
    }
    html.push_str("<h2>Network</h2>");
    let is_closed = |record: &Record| record.value["operation"] == "egress" && record.value["arguments"]["decisions"].is_u64();
    if unknown.is_empty() && !records.iter().any(is_closed) {
        html.push_str(
            "<p class=\"open\">what the gateway decided last is not here: the environment runs, or its end was cut off</p>",
        );
    }
    for why in unknown {
        let _ = write!(html, "<p class=\"bad\">not all that the gateway decided is known: {}</p>", escape(&why));
    }
    for full in decisions.iter().filter(|decision| decision.is_log_full()) {
        let _ = write!(html, "<p class=\"bad\">{}: {}</p>", crate::clock::text(full.time), escape(&full.rule));
    }
    // What went out counts most: a flood of refusals must not hide it.
    let went_out = |decision: &&Decision| matches!(decision.verdict, Verdict::Allowed | Verdict::Ended);
    let (first, rest): (Vec<&Decision>, Vec<&Decision>) = match decisions.len() > MOST {
        true => decisions.iter().partition(went_out),
        false => (decisions.iter().collect(), Vec::new()),
    };
    let rows = first.into_iter().chain(rest).take(MOST).map(row);
    table(html, &["Time", "Machine", "Name", "Address", "Port", "Verdict", "Rule", "Bytes sent / received"], rows);
    more(html, decisions.len());
}

fn row(decision: &Decision) -> Vec<String> {
    let word = serde_json::to_value(decision.verdict).ok().and_then(|word| word.as_str().map(str::to_owned));
    let class = if matches!(decision.verdict, Verdict::Allowed | Verdict::Ended) { "ok" } else { "bad" };
    vec![
        crate::clock::text(decision.time),
        escape(decision.machine.as_deref().unwrap_or_default()),
        escape(&decision.name),
        decision.address.map_or_else(String::new, |address| address.to_string()),
        decision.port.to_string(),
        format!("<span class=\"{class}\">{}</span>", word.unwrap_or_default()),
        format!("{}{}", escape(&decision.rule), if decision.verification { " (verification asked)" } else { "" }),
        format!("{} / {}", decision.sent, decision.received),
    ]
}
