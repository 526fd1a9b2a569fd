//! `tierbox ls`.

use std::time::SystemTime;

use serde_json::json;
use tierbox::{Hold, Listed, Standing};

use crate::interrupt::Failure;
use crate::{Context, output, table};

pub(crate) async fn ls(context: &mut Context) -> Result<u8, Failure> {
    let client = context.client.clone();
    let listing = context.interrupts.guard(client.list()).await?;
    if context.global.json {
        let environments: Vec<_> = listing.environments.iter().map(describe).collect();
        let foreign: Vec<_> = listing
            .foreign
            .iter()
            .map(|file| json!({ "path": file.path.display().to_string(), "problem": file.problem }))
            .collect();
        output::json(&json!({ "environments": environments, "foreign": foreign, "waiting": waiting(context)? }));
        return Ok(0);
    }
    let mut rows: Vec<Vec<String>> = listing.environments.iter().map(row).collect();
    rows.extend(waiting(context)?.as_array().into_iter().flatten().map(queued));
    output::line(table::render(&["ID", "NAME", "PROFILE", "TIER", "STATE", "AGE", "ENDS IN"], &rows));
    for file in listing.foreign {
        output::remark(&format!("{} is not a lease of tierbox's: {}", file.path.display(), file.problem));
    }
    Ok(0)
}

/// Who waits for the daemon's admission, as data.
#[cfg(feature = "serve")]
fn waiting(context: &Context) -> tierbox::Result<serde_json::Value> {
    Ok(json!(tierbox_serve::waiting(&context.client.state_path()?)))
}

/// Nobody waits without a daemon.
#[cfg(not(feature = "serve"))]
fn waiting(_: &Context) -> tierbox::Result<serde_json::Value> {
    Ok(json!([]))
}

fn queued(waiting: &serde_json::Value) -> Vec<String> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let since = std::time::Duration::from_secs(waiting["since"].as_u64().unwrap_or_default());
    let text = |key: &str| waiting[key].as_str().unwrap_or_default().to_owned();
    let state = format!("waiting, for {}", text("client"));
    vec![
        "-".to_owned(),
        String::new(),
        text("profile"),
        String::new(),
        state,
        table::span(now.saturating_sub(since)),
        String::new(),
    ]
}

fn row(listed: &Listed) -> Vec<String> {
    let record = &listed.record;
    let ends = end(listed).and_then(|end| end.duration_since(SystemTime::now()).ok());
    vec![
        record.id.clone(),
        record.name.clone().unwrap_or_default(),
        record.profile.clone(),
        record.tier.clone(),
        state(listed).to_owned(),
        table::span(record.age()),
        ends.map(table::span).unwrap_or_default(),
    ]
}

/// When it ends by itself.
fn end(listed: &Listed) -> Option<SystemTime> {
    let hold = match listed.record.hold {
        Hold::Until(end) => Some(end),
        Hold::Process | Hold::Kept => None,
    };
    listed.record.expires.into_iter().chain(hold).min()
}

fn state(listed: &Listed) -> &'static str {
    match (listed.standing, listed.alive) {
        (Standing::Held, _) => "in use",
        (Standing::Until, true) => "up",
        (Standing::Kept, true) => "kept",
        (Standing::Orphaned, _) => "orphaned",
        (Standing::Expired, _) => "expired",
        (Standing::Until | Standing::Kept, false) => "gone",
    }
}

fn describe(listed: &Listed) -> serde_json::Value {
    let record = &listed.record;
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    json!({
        "id": record.id,
        "name": record.name,
        "backend": record.backend,
        "profile": record.profile,
        "tier": record.tier,
        "state": state(listed),
        "alive": listed.alive,
        "created": seconds(record.created),
        "ends": end(listed).map(seconds),
        "owner_pid": record.owner.pid,
    })
}
