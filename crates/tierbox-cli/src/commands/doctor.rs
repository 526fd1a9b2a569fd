//! `tierbox doctor`.

use serde_json::json;
use tierbox::{Check, CheckStatus, Error};

use crate::args::DoctorArgs;
use crate::interrupt::Failure;
use crate::{Context, neutral, output};

/// The exit status when no backend can start anything here.
const UNABLE: u8 = 69;

pub(crate) async fn doctor(context: &mut Context, args: DoctorArgs) -> Result<u8, Failure> {
    if args.install {
        return Ok(install(context, args.yes)?);
    }
    let client = context.client.clone();
    let found = context.interrupts.guard(async { Ok(client.doctor().await) }).await?;
    let unable = |checks: &[Check]| checks.iter().any(|check| check.status == CheckStatus::Fail);
    let status = if found.iter().all(|(_, checks)| unable(checks)) { UNABLE } else { 0 };
    let state = context.client.state_path()?;
    if context.global.json {
        let backends: Vec<_> = found
            .iter()
            .map(|(backend, checks)| json!({ "backend": backend, "able": !unable(checks), "checks": checks }))
            .collect();
        output::json(
            &json!({ "version": env!("CARGO_PKG_VERSION"), "state_dir": state.display().to_string(), "backends": backends }),
        );
        return Ok(status);
    }
    for (backend, checks) in &found {
        output::line(format!("{backend}:"));
        checks.iter().for_each(print);
    }
    output::line(format!("state: {}", state.display()));
    Ok(status)
}

pub(crate) fn print(check: &Check) {
    let mark = match check.status {
        CheckStatus::Ok => "ok  ",
        CheckStatus::Warn => "warn",
        CheckStatus::Fail => "FAIL",
    };
    output::line(neutral::text(&format!("  {mark}  {}: {}", check.name, check.detail)));
    for line in check.remedy.lines() {
        output::line(neutral::text(&format!("        -> {line}")));
    }
}

#[cfg(all(feature = "local", target_os = "linux"))]
fn install(context: &Context, yes: bool) -> Result<u8, Error> {
    let files = tierbox::local::install_launcher()?;
    if !context.global.json {
        output::line("These files let plain users of this host start sandboxes:");
        for file in &files {
            let what = format!(
                "  {} (root, mode {:o}, {} bytes): {}",
                file.path.display(),
                file.mode,
                file.contents.len(),
                file.purpose
            );
            output::line(what);
            if let Some(text) = std::str::from_utf8(&file.contents).ok().filter(|text| text.len() < 4096) {
                text.lines().for_each(|line| output::line(format!("    | {line}")));
            }
        }
    }
    if !yes && !output::ask("Write them?")? {
        return Ok(0);
    }
    tierbox::local::write_launcher(&files)?;
    let paths: Vec<_> = files.iter().map(|file| &file.path).collect();
    if context.global.json {
        output::json(&json!({ "written": paths }));
    } else {
        output::line("written; `tierbox doctor` checks it");
    }
    Ok(0)
}

#[cfg(not(all(feature = "local", target_os = "linux")))]
fn install(_: &Context, _: bool) -> Result<u8, Error> {
    Err(Error::unsupported("install launcher", "a launcher for this build on this host"))
}
