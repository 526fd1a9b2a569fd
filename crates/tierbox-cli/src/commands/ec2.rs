//! `tierbox ec2`: an account set up, checked, and taken down; how an instance is.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;
use tierbox::ec2::{Ec2Backend, IDLE_COST, Left, SetUp, Wanted, Whose};
use tierbox::{Check, CheckStatus, Error, ErrorKind, Hold, Progress, Silent, StartOptions};

use crate::args::{Ec2Account, Ec2Command, Ec2Setup};
use crate::commands::doctor;
use crate::interrupt::Failure;
use crate::{Context, neutral, output, progress};

/// The exit status when something is missing.
const UNABLE: u8 = 69;
/// The exit status when something could not be removed.
const NOT_REMOVED: u8 = 74;

pub(crate) async fn ec2(context: &mut Context, command: Ec2Command) -> Result<u8, Failure> {
    match command {
        Ec2Command::Check { profile } => check(context, &profile).await,
        Ec2Command::Setup(args) => setup(context, args).await,
        Ec2Command::Teardown { account, yes } => teardown(context, account, yes).await,
        Ec2Command::Status { profile } => status(context, &profile).await,
        Ec2Command::Cleanup { profile, id, all, yes } => {
            let whose = match (all, id.is_empty()) {
                (true, _) => Whose::All,
                (false, false) => Whose::Of(id),
                (false, true) => Whose::Expired,
            };
            cleanup(context, &profile, &whose, yes).await
        }
    }
}

/// The `[ec2]` table of a profile and its tier, its secrets read.
fn of_profile(context: &Context, name: &str) -> Result<tierbox::EnvironmentSpec, Error> {
    let spec = context.client.load(name, &StartOptions::new())?.spec(context.client.registry(), Hold::Process)?;
    if spec.backend == tierbox::ec2::BACKEND {
        return Ok(spec);
    }
    let message = format!("{name} is a profile of the backend {}", spec.backend);
    Err(Error::new(ErrorKind::InvalidInput, "read profile", message).with_help("name one with backend = \"ec2\""))
}

/// The `[ec2]` table of an account that flags name.
fn of_account(account: &Ec2Account) -> serde_json::Value {
    let given = [("region", &account.region), ("profile", &account.aws_profile), ("endpoint-url", &account.endpoint_url)];
    let pairs = given.into_iter().filter_map(|(key, value)| Some((key.to_owned(), json!(value.as_ref()?))));
    serde_json::Value::Object(pairs.collect())
}

fn able(checks: &[Check]) -> u8 {
    if checks.iter().any(|check| check.status == CheckStatus::Fail) { UNABLE } else { 0 }
}

async fn check(context: &mut Context, name: &str) -> Result<u8, Failure> {
    let spec = of_profile(context, name)?;
    let backend = Ec2Backend::new();
    let checks = context.interrupts.guard(backend.check(&spec.settings, spec.tier.network())).await?;
    match context.global.json {
        true => output::json(&json!({ "profile": name, "checks": checks })),
        false => checks.iter().for_each(doctor::print),
    }
    Ok(able(&checks))
}

pub(crate) async fn auth(context: &mut Context, name: &str) -> Result<u8, Failure> {
    let spec = of_profile(context, name)?;
    let said = context.interrupts.guard(async { Ec2Backend::new().credentials(&spec.settings).await }).await?;
    match context.global.json {
        true => output::json(&json!({ "profile": name, "credentials": said })),
        false => output::line(neutral::text(&said)),
    }
    Ok(0)
}

async fn status(context: &mut Context, name: &str) -> Result<u8, Failure> {
    let spec = of_profile(context, name)?;
    let status = context.interrupts.guard(async { Ec2Backend::new().status(&spec.settings).await }).await?;
    if context.global.json {
        output::json(&status);
        return Ok(0);
    }
    let mib = |bytes: u64| bytes >> 20;
    let [one, five, fifteen] = status.load;
    for text in [
        format!("{} is {}", status.instance, status.state),
        format!("load: {one} {five} {fifteen} on {} processors", status.cpus),
        format!("memory: {} MiB of {} MiB available", mib(status.memory[1]), mib(status.memory[0])),
        format!("disk: {} MiB of {} MiB free", mib(status.disk[1]), mib(status.disk[0])),
        format!("tasks: {}", status.tasks),
    ] {
        output::line(neutral::text(&text));
    }
    Ok(0)
}

async fn setup(context: &mut Context, args: Ec2Setup) -> Result<u8, Failure> {
    let path = args.output.clone().unwrap_or_else(|| PathBuf::from(format!("ec2-{}.toml", args.account.stack)));
    if path.exists() {
        return Err(taken(&path).into());
    }
    let question = format!("Deploy the stack {} into your account? {IDLE_COST}", args.account.stack);
    if !args.yes && !output::ask(&question)? {
        return Ok(0);
    }
    let mut wanted = Wanted::new(&args.account.stack);
    wanted.internet = args.internet;
    wanted.instance = args.instance.then_some(args.r#type);
    wanted.gateway_resolver = args.gateway_resolver;
    if args.gateway {
        wanted.gateway = Some(args.gateway_program.map_or_else(tierbox::ec2::gateway_program, Ok)?);
    }
    let (backend, settings) = (Ec2Backend::new(), of_account(&args.account));
    let shown = progress::for_terminal(&context.global);
    let steps: &dyn Progress = shown.as_deref().unwrap_or(&Silent);
    let made = context.interrupts.guard(backend.setup(&settings, &wanted, steps)).await?;
    drop(shown);
    write(&path, &made.profile)?;
    report(context, &made, &path);
    Ok(able(&made.checks))
}

fn report(context: &Context, made: &SetUp, path: &Path) {
    if context.global.json {
        return output::json(&json!({
            "stack": made.stack.name, "outputs": made.stack.outputs, "instance": made.instance,
            "profile": path.display().to_string(), "checks": made.checks, "idle_cost": IDLE_COST,
        }));
    }
    output::line(format!("stack: {}", made.stack.name));
    if let Some(id) = &made.instance {
        output::line(neutral::text(&format!("instance: {id}, billed until `tierbox ec2 teardown`; a command ran there")));
    }
    made.checks.iter().for_each(doctor::print);
    output::line(format!("profile: {}", path.display()));
    output::line(IDLE_COST);
}

fn taken(path: &Path) -> Error {
    Error::new(ErrorKind::AlreadyExists, "write profile", format!("{} is there already", path.display()))
        .with_help("name another file with --output")
}

/// Writes a profile, unless there is one.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), Error> {
    let file = std::fs::OpenOptions::new().write(true).create_new(true).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => taken(path),
        _ => Error::io("write profile", error).with_context("path", path.display().to_string()),
    })
}

async fn cleanup(context: &mut Context, name: &str, whose: &Whose, yes: bool) -> Result<u8, Failure> {
    let spec = of_profile(context, name)?;
    let backend = Ec2Backend::new();
    let found = context.interrupts.guard(backend.left(&spec.settings, whose)).await?;
    if !context.global.json {
        found.iter().for_each(|left| output::line(neutral::text(&told(left))));
    }
    if found.is_empty() || (!yes && !output::ask(&format!("End these {} instances and remove their objects?", found.len()))?) {
        return Ok(removed(context, &tierbox::DestroyReport::default()));
    }
    let report = context.interrupts.guard(backend.end(&spec.settings, &found, whose)).await?;
    Ok(removed(context, &report))
}

fn told(left: &Left) -> String {
    format!("{} of {}, begun by {}, wanted until {}", left.instance, left.environment, left.owner, left.expires)
}

/// Writes a profile for each environment of a file.
pub(crate) fn import(context: &Context, file: &Path, directory: &Path) -> Result<u8, Error> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Error::io("read configuration", error).with_context("path", file.display().to_string()))?;
    let all = tierbox::ec2::import(&text)?;
    let paths: Vec<PathBuf> = all.iter().map(|each| directory.join(format!("{}.toml", each.name))).collect();
    // None is written where one cannot be.
    if let Some(path) = paths.iter().find(|path| path.exists()) {
        return Err(taken(path));
    }
    for (each, path) in all.iter().zip(&paths) {
        write(path, &each.text)?;
    }
    if context.global.json {
        let written: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        output::json(&json!({ "written": written }));
        return Ok(0);
    }
    for (each, path) in all.iter().zip(&paths) {
        let keys = if each.needs_keys { ", which takes its keys from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" } else { "" };
        output::line(neutral::text(&format!("{}{keys}", path.display())));
    }
    Ok(0)
}

async fn teardown(context: &mut Context, account: Ec2Account, yes: bool) -> Result<u8, Failure> {
    let question = format!("Remove the stack {}, its bucket with all objects, and its instance?", account.stack);
    if !yes && !output::ask(&question)? {
        return Ok(0);
    }
    let (backend, settings) = (Ec2Backend::new(), of_account(&account));
    let shown = progress::for_terminal(&context.global);
    let steps: &dyn Progress = shown.as_deref().unwrap_or(&Silent);
    let report = context.interrupts.guard(backend.teardown(&settings, &account.stack, steps)).await?;
    drop(shown);
    Ok(removed(context, &report))
}

/// Tells what was removed; returns the exit status.
fn removed(context: &Context, report: &tierbox::DestroyReport) -> u8 {
    let status = if report.failed.is_empty() { 0 } else { NOT_REMOVED };
    if context.global.json {
        output::json(report);
        return status;
    }
    for (what, items) in [("removed", &report.removed), ("failed", &report.failed), ("run", &report.manual)] {
        items.iter().for_each(|item| output::line(neutral::text(&format!("{what}: {item}"))));
    }
    if report.removed.is_empty() && report.failed.is_empty() {
        output::line("nothing to remove");
    }
    status
}
