//! One run as a page: a file without anything from elsewhere.

mod network;

use std::fmt::Write;

use serde_json::Value;
use tierbox_core::{Decision, is_deceptive};

use crate::attestation::{Affordances, Attestation};
use crate::log::{Record, Standing};
use crate::probe::Verdict;

/// The most operations and decisions that a page shows. The log has them all.
const MOST: usize = 20_000;

const STYLE: &str = "body{font:14px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#1b1f24;background:#fff}\
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;width:100%}\
th,td{text-align:left;padding:.25rem .6rem;border-bottom:1px solid #d8dee4;vertical-align:top}td{overflow-wrap:anywhere}\
code{font-family:ui-monospace,monospace;font-size:.92em}.pass,.ok{color:#116329}.fail,.bad{color:#a40e26;font-weight:600}\
.inconclusive,.by-configuration,.open{color:#7d4e00}.bar{position:relative;height:.8rem;background:#eef1f4;min-width:10rem}\
.bar i{position:absolute;top:0;bottom:0;min-width:2px;background:#4078c0}.bar i.bad{background:#a40e26}\
@media(prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}th,td{border-color:#30363d}.bar{background:#21262d}\
.pass,.ok{color:#3fb950}.fail,.bad{color:#ff7b72}.inconclusive,.by-configuration,.open{color:#d29922}}";

/// Renders a run: its attestation where there is one, its operations, and what its gateway decided.
pub fn page(attestation: Option<&Attestation>, records: &[Record], standing: &Standing, decisions: &[Decision]) -> String {
    let title = attestation.map_or_else(|| "Run".to_owned(), |attestation| format!("Run {}", attestation.environment));
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <title>{0}</title><style>{STYLE}</style></head><body><h1>{0}</h1>",
        escape(&title)
    );
    chain(&mut html, standing);
    if let Some(attestation) = attestation {
        tier(&mut html, attestation);
    }
    timeline(&mut html, records);
    let is_named = attestation.is_some_and(|attestation| attestation.tier.ends_with(".N1"));
    network::section(&mut html, records, decisions, is_named);
    html.push_str("</body></html>\n");
    html
}

/// Text in a page. What sandboxes and people named is shown, never interpreted.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\n' | '\t' => safe.push(char),
            char if is_deceptive(char) => safe.extend(char.escape_unicode()),
            char => safe.push(char),
        }
    }
    safe
}

fn table(html: &mut String, headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    html.push_str("<table><thead><tr>");
    for heading in headings {
        let _ = write!(html, "<th>{heading}</th>");
    }
    html.push_str("</tr></thead><tbody>");
    for row in rows {
        html.push_str("<tr>");
        for cell in row {
            let _ = write!(html, "<td>{cell}</td>");
        }
        html.push_str("</tr>");
    }
    html.push_str("</tbody></table>");
}

fn chain(html: &mut String, standing: &Standing) {
    let (class, says) =
        if standing.is_intact() { ("ok", "the log is as it was written") } else { ("bad", "THE LOG WAS CHANGED") };
    let _ = write!(
        html,
        "<p><span id=\"chain\" class=\"{class}\">{says}</span>: {} lines, last hash <code>{}</code>",
        standing.head.lines, standing.head.hash
    );
    if standing.torn > 0 {
        let _ = write!(html, "; a last line of {} bytes was cut off by a crash", standing.torn);
    }
    html.push_str(if standing.ended {
        "; the environment was ended in order</p>"
    } else {
        "; the environment was not ended in order, or still runs</p>"
    });
    for exec in standing.unfinished.iter().take(MOST) {
        let _ = write!(html, "<p class=\"open\">the end of command <code>{}</code> is not recorded</p>", escape(exec));
    }
    for problem in &standing.problems {
        let place = if problem.line == 0 { "the log".to_owned() } else { format!("line {}", problem.line) };
        let _ = write!(html, "<p class=\"bad\">{place}: {}</p>", escape(&problem.what));
    }
}

fn tier(html: &mut String, attestation: &Attestation) {
    let verified = match attestation.verdict {
        Verdict::Verified => "<span class=\"pass\">verified</span>",
        Verdict::NotVerified => "<span class=\"inconclusive\">not verified: not every probe passed in every machine</span>",
        Verdict::NothingToProve => "<span class=\"open\">not verified: this tier promises nothing that could be probed</span>",
        Verdict::NotProbed => "<span class=\"open\">not verified: nobody looked</span>",
    };
    let _ = write!(
        html,
        "<h2>Tier</h2><p><strong id=\"tier\">{}</strong> on {} ({}), profile {}, {verified}; tierbox {}, kernel {}</p>",
        escape(&attestation.tier),
        escape(&attestation.backend),
        escape(&attestation.locality),
        escape(&attestation.profile),
        escape(&attestation.tierbox),
        escape(attestation.host.get("kernel").map(String::as_str).unwrap_or_default()),
    );
    for (part, what) in &attestation.made_of {
        let _ = write!(html, "<p>{}: <code>{}</code></p>", escape(part), escape(&what.chars().take(300).collect::<String>()));
    }
    granted(html, &attestation.affordances);
    for weakened in &attestation.weakened {
        let _ = write!(html, "<p class=\"bad\">weakened: {}</p>", escape(weakened));
    }
    let cell = |text: &str| escape(text);
    let class = |word: &str| format!("<span class=\"{0}\">{0}</span>", escape(word));
    let rows = attestation.mechanisms.iter().map(|it| vec![cell(&it.name), cell(&it.applied), cell(&it.detail)]);
    table(html, &["Mechanism", "Applied", "Detail"], rows);
    html.push_str("<h2>Limits</h2>");
    let rows = attestation.limits.iter().map(|it| vec![cell(&it.name), cell(&it.value), cell(&it.by), cell(&it.applied)]);
    table(html, &["Limit", "Value", "By", "Applied"], rows);
    if let Some(found) = &attestation.verification {
        let again = if found.reused { ", reused from an earlier start" } else { "" };
        let _ = write!(html, "<h2>Probes</h2><p>at {} in {} ms{again}</p>", escape(&found.time), found.took_ms);
        for unprobed in &found.unprobed {
            let _ = write!(html, "<p class=\"bad\">not probed: {}: {}</p>", cell(&unprobed.machine), cell(&unprobed.why));
        }
        let rows = found.probes.iter().map(|probe| {
            let status =
                serde_json::to_value(probe.status).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default();
            let control = probe
                .control
                .as_ref()
                .map_or_else(String::new, |control| format!("without {}: {}", control.lifted, control.detail));
            let machine = probe.machine.as_ref().map_or_else(String::new, |machine| format!(" in {machine}"));
            vec![cell(&format!("{}{machine}", probe.id)), class(&status), cell(&probe.rule), cell(&probe.detail), cell(&control)]
        });
        table(html, &["Probe", "Result", "Rule", "Inside", "Control"], rows);
    }
}

fn granted(html: &mut String, granted: &Affordances) {
    let list = |items: &[String]| if items.is_empty() { "none".to_owned() } else { escape(&items.join(", ")) };
    html.push_str("<h2>Granted</h2>");
    let between = if granted.between_machines { "as the backend's files say" } else { "kept apart" };
    let rows = [
        ("The agent executes", escape(&granted.execution)),
        ("Programs", list(&granted.programs)),
        ("Programs by rules", list(&granted.rules)),
        ("Runtimes of code", list(&granted.runtimes)),
        ("Approvals", escape(&granted.approvals)),
        ("Names", list(&granted.network)),
        ("Between machines", between.to_owned()),
        ("Mounts", list(&granted.mounts)),
        ("Files", list(&granted.files)),
        ("User", escape(granted.user.as_deref().unwrap_or("the backend's default"))),
        ("Variables", list(&granted.variables)),
    ];
    table(html, &["What", "Which"], rows.map(|(what, which)| vec![what.to_owned(), which]));
}

/// Where an operation lies in the run, in parts of a hundred.
struct Span {
    from: f64,
    width: f64,
}

fn timeline(html: &mut String, records: &[Record]) {
    // What the gateway decided has a part of its own.
    let records: Vec<&Record> = records.iter().filter(|record| record.value["operation"] != "egress").collect();
    let _ = write!(html, "<h2>Operations</h2><p>{} entries</p>", records.len());
    let time = |value: &Value| value["time"].as_str().and_then(micros);
    let first = records.iter().filter_map(|record| time(&record.value)).min().unwrap_or(0);
    let last = records.iter().filter_map(|record| time(&record.value)).max().unwrap_or(first + 1).max(first + 1);
    let part = |at: u64| (at.saturating_sub(first)) as f64 * 100.0 / (last - first) as f64;
    let rows = records.iter().take(MOST).map(|record| {
        let value = &record.value;
        let end = time(value).unwrap_or(first);
        let start = end.saturating_sub(value["duration_us"].as_u64().unwrap_or(0)).max(first);
        let span = Span { from: part(start), width: part(end) - part(start) };
        row(value, &span)
    });
    table(html, &["#", "Time", "Who", "Operation", "What", "Outcome", "Resources", "When"], rows);
    more(html, records.len());
}

/// Says how many there are beyond those that are shown.
fn more(html: &mut String, all: usize) {
    if all > MOST {
        let _ = write!(html, "<p>{} more are in the log.</p>", all - MOST);
    }
}

fn row(value: &Value, span: &Span) -> Vec<String> {
    let text = |key: &str| escape(value[key].as_str().unwrap_or_default());
    let (outcome, good) = outcome(&value["outcome"]);
    let class = if good { "ok" } else { "bad" };
    vec![
        escape(&value["seq"].to_string()),
        text("time"),
        text("principal"),
        text("operation"),
        format!("<code>{}</code>", escape(&what(value))),
        format!("<span class=\"{class}\">{}</span>", escape(&outcome)),
        escape(&resources(value)),
        format!(
            "<div class=\"bar\"><i class=\"{class}\" style=\"left:{:.2}%;width:{:.2}%\"></i></div>",
            span.from.min(99.0),
            span.width.min(100.0 - span.from.min(99.0))
        ),
    ]
}

fn what(value: &Value) -> String {
    let arguments = &value["arguments"];
    let words = arguments["argv"].as_array().map(|argv| {
        argv.iter().map(|word| word.as_str().map_or_else(|| word.to_string(), str::to_owned)).collect::<Vec<_>>().join(" ")
    });
    let said =
        words.or_else(|| Some(if arguments.is_null() { value["exec"].as_str()?.to_owned() } else { arguments.to_string() }));
    said.unwrap_or_default().chars().take(500).collect()
}

fn outcome(outcome: &Value) -> (String, bool) {
    match outcome["status"].as_str() {
        Some("failed") => (
            format!("{}: {}", outcome["kind"].as_str().unwrap_or_default(), outcome["message"].as_str().unwrap_or_default()),
            false,
        ),
        Some("ended") => {
            let end = &outcome["completed"]["outcome"];
            (end.as_str().map_or_else(|| end.to_string().replace(['{', '}', '"'], ""), str::to_owned), end["exited"] == 0)
        }
        Some("abandoned") => ("given up".to_owned(), false),
        Some(other) => (other.to_owned(), true),
        None => (String::new(), true),
    }
}

fn resources(value: &Value) -> String {
    let mut parts = Vec::new();
    if let Some(micros) = value["duration_us"].as_u64() {
        parts.push(format!("{:.1} ms", micros as f64 / 1000.0));
    }
    let usage = &value["outcome"]["completed"]["usage"];
    if let Some(bytes) = usage["peak_memory"].as_u64() {
        parts.push(format!("{} KiB", bytes / 1024));
    }
    for data in value["data"].as_array().into_iter().flatten() {
        parts.push(format!("{} {} B", data["stream"].as_str().unwrap_or_default(), data["bytes"]));
    }
    parts.join(", ")
}

/// Microseconds since the year 0, for comparison only. Every month counts as 31 days here, which keeps the order.
fn micros(time: &str) -> Option<u64> {
    let number = |from: usize, to: usize| time.get(from..to)?.parse::<u64>().ok();
    let days = (number(0, 4)? * 12 + number(5, 7)?) * 31 + number(8, 10)?;
    let seconds = ((days * 24 + number(11, 13)?) * 60 + number(14, 16)?) * 60 + number(17, 19)?;
    Some(seconds * 1_000_000 + number(20, 26)?)
}

#[cfg(test)]
mod unit {
    use serde_json::json;

    use super::*;
    use crate::log::Head;

    fn standing() -> Standing {
        let head = Head { lines: 2, hash: "0".repeat(64) };
        Standing { head, torn: 0, ended: true, unfinished: Vec::new(), references: 0, problems: Vec::new() }
    }

    #[test]
    fn nothing_that_ran_is_interpreted() {
        let hostile = "<script>alert(1)</script>\u{202e}\u{1b}[31m\"'";
        let records = [Record {
            seq: 1,
            value: json!({"seq": 1, "time": "2026-01-02T03:04:05.000006Z", "principal": "agent", "operation": "exec",
                "arguments": {"argv": [hostile]}, "outcome": {"status": "failed", "kind": "io", "message": hostile}}),
        }];
        let page = page(None, &records, &standing(), &[]);
        assert!(!page.contains("<script") && !page.contains('\u{202e}') && !page.contains('\u{1b}'), "{page}");
        assert!(page.contains("&lt;script&gt;") && page.contains("default-src 'none'"));
        assert!(!page.contains("http://") && !page.contains("https://"), "nothing from elsewhere");
    }

    #[test]
    fn a_changed_log_is_said_first() {
        let mut changed = standing();
        changed.problems.push(crate::log::Problem { line: 3, what: "it does not follow".into() });
        let page = page(None, &[], &changed, &[]);
        assert!(page.contains("THE LOG WAS CHANGED") && page.contains("line 3: it does not follow"));
    }

    fn decision(verdict: tierbox_core::Verdict, name: &str) -> Decision {
        let text = json!({"time": 1, "sandbox": "e", "id": 1, "protocol": "tls", "name": name, "address": null, "port": 443,
            "verdict": verdict, "rule": "x", "sent": 0, "received": 0});
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn a_flood_of_refusals_hides_nothing_that_went_out() {
        let refused = |number: usize| decision(tierbox_core::Verdict::Refused, &format!("r{number}.test"));
        let mut decisions: Vec<Decision> = (0..MOST + 5).map(refused).collect();
        decisions.push(decision(tierbox_core::Verdict::Allowed, "index.test"));
        let closing = json!({"operation": "egress", "arguments": {"decisions": decisions.len()}});
        let page = page(None, &[Record { seq: 0, value: closing }], &standing(), &decisions);
        assert!(!page.contains("decided last is not here"));
        let first = page.find("index.test").expect("it is shown");
        assert!(first < page.find("r0.test").unwrap() && page.contains("<p>6 more are in the log.</p>"));
    }

    #[test]
    fn what_is_not_known_is_said() {
        let mut unfinished = standing();
        unfinished.unfinished.push("e-<i>".to_owned());
        let records = [Record {
            seq: 0,
            value: json!({"seq": "<b id=made>", "operation": "egress", "outcome": {"status": "failed", "kind": "io", "message": "gone <b>"}}),
        }];
        let mut full = decision(tierbox_core::Verdict::Refused, "");
        full.rule = Decision::LOG_FULL.to_owned();
        let page = page(None, &records, &unfinished, &[full]);
        assert!(page.contains("the end of command <code>e-&lt;i&gt;</code> is not recorded"), "{page}");
        assert!(page.contains("not all that the gateway decided is known: io: gone &lt;b&gt;"), "{page}");
        assert!(!page.contains("decided last is not here"), "it is said why already");
        assert!(
            super::page(None, &[], &standing(), &[decision(tierbox_core::Verdict::Allowed, "a.test")])
                .contains("decided last is not here")
        );
        assert!(page.contains(&format!("0Z: {}", Decision::LOG_FULL)), "{page}");
    }

    #[test]
    fn a_number_that_somebody_put_in_is_no_part_of_the_page() {
        let value = json!({"seq": "<b id=made>", "operation": "exec"});
        let page = page(None, &[Record { seq: 0, value }], &standing(), &[]);
        assert!(!page.contains("<b id") && page.contains("&lt;b id=made&gt;"), "{page}");
    }

    #[test]
    fn times_keep_their_order() {
        let times = [
            "2025-12-31T23:59:59.999999Z",
            "2026-01-01T00:00:00.000000Z",
            "2026-02-28T00:00:00.000000Z",
            "2026-03-01T00:00:00.000001Z",
        ];
        let micros: Vec<_> = times.iter().map(|time| micros(time).unwrap()).collect();
        assert!(micros.is_sorted());
    }
}
