//! `tierbox down` and `tierbox cleanup`.

use serde_json::json;
use tierbox::CleanupOptions;

use crate::args::{CleanupArgs, DownArgs};
use crate::interrupt::Failure;
use crate::{Context, exit, output};

/// The exit status when something could not be removed.
const NOT_REMOVED: u8 = 74;

pub(crate) async fn down(context: &mut Context, args: DownArgs) -> Result<u8, Failure> {
    let mut ended = Vec::new();
    let mut status = 0;
    for sandbox in &args.sandboxes {
        let client = context.client.clone();
        match context.interrupts.guard(client.down(sandbox)).await {
            Ok(report) => ended.push(json!({ "sandbox": sandbox, "removed": report.removed })),
            // One that cannot be ended does not keep the others.
            Err(Failure::Error(error)) if args.sandboxes.len() > 1 => {
                status = exit::of_error(error.kind());
                output::failure(&Failure::Error(error), context.global.json);
            }
            Err(failure) => return Err(failure),
        }
    }
    if context.global.json {
        output::json(&json!({ "ended": ended }));
    }
    Ok(status)
}

pub(crate) async fn cleanup(context: &mut Context, args: CleanupArgs) -> Result<u8, Failure> {
    let path = context.client.state_path()?;
    if args.all && !args.yes && !output::ask(&format!("End every sandbox in {} that no process uses?", path.display()))? {
        return Ok(0);
    }
    let client = context.client.clone();
    let report = context.interrupts.guard(client.cleanup(CleanupOptions { kept: args.kept, all: args.all })).await?;
    let status = if report.failed.is_empty() { 0 } else { NOT_REMOVED };
    if context.global.json {
        output::json(&json!({ "state_dir": path.display().to_string(), "report": report }));
        return Ok(status);
    }
    output::line(format!("state: {}", path.display()));
    let parts = [("removed", &report.removed), ("failed", &report.failed), ("run", &report.manual), ("left", &report.kept)];
    for (what, items) in parts {
        for item in items {
            output::line(crate::neutral::text(&format!("{what}: {item}")));
        }
    }
    if report.removed.is_empty() && report.failed.is_empty() {
        output::line("nothing to remove");
    }
    Ok(status)
}
