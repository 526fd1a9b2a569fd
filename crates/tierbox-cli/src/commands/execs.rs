//! `tierbox ps`, `logs` and `kill`.

use serde_json::json;
use tierbox::{Error, ErrorKind, ExecId, ExecInfo, ExecState, KillReason, OnExceed, OutputLimit, Result, Running};

use crate::args::{KillArgs, LogsArgs, PsArgs};
use crate::interrupt::Failure;
use crate::{Context, exit, neutral, output, session, table};

/// So much of an id is shown.
const SHORT: usize = 12;

pub(crate) async fn ps(context: &mut Context, args: PsArgs) -> Result<u8, Failure> {
    let client = context.client.clone();
    let work = async { client.attach(&args.sandbox).await?.sandbox().execs().await };
    let execs = context.interrupts.guard(work).await?;
    if context.global.json {
        output::json(&execs.iter().map(describe).collect::<Vec<_>>());
        return Ok(0);
    }
    let rows: Vec<Vec<String>> = execs.iter().map(row).collect();
    output::line(table::render(&["EXEC", "PID", "STATE", "AGE", "COMMAND"], &rows));
    Ok(0)
}

pub(crate) async fn logs(context: &mut Context, args: LogsArgs) -> Result<u8, Failure> {
    let client = context.client.clone();
    let as_json = context.global.json;
    let work = async {
        let running = client.attach(&args.sandbox).await?;
        let exec = find(&running, &args.exec).await?;
        let sandbox = running.sandbox();
        let mut handle = sandbox.attach(exec.id, 0, 0).await?;
        let to_its_end = args.follow || matches!(exec.state, ExecState::Ended(_));
        if as_json {
            let about = json!({ "id": running.id(), "exec": exec.id.to_string() });
            if !to_its_end {
                output::json(&session::retained(handle.as_mut(), about).await);
                return Ok(0);
            }
            let limit = OutputLimit { bytes: sandbox.limits().output, on_exceed: OnExceed::Truncate };
            let status = session::collected(handle.as_mut(), limit, about).await?;
            return Ok(if args.follow { status } else { 0 });
        }
        if to_its_end {
            let completed = session::watch(handle.as_mut()).await?;
            return Ok(completed.filter(|_| args.follow).as_ref().map_or(0, session::conclude));
        }
        session::print_retained(handle.as_mut()).await;
        Ok(0)
    };
    context.interrupts.guard(work).await
}

pub(crate) async fn kill(context: &mut Context, args: KillArgs) -> Result<u8, Failure> {
    let client = context.client.clone();
    let work = async {
        let running = client.attach(&args.sandbox).await?;
        let id = find(&running, &args.exec).await?.id;
        match args.signal {
            Some(signal) => running.sandbox().signal(id, signal).await,
            None => running.sandbox().kill(id, KillReason::Cancelled).await,
        }
    };
    context.interrupts.guard(work).await?;
    if context.global.json {
        output::json(&json!({ "killed": args.exec }));
    }
    Ok(0)
}

/// The one command whose id begins so.
async fn find(running: &Running, beginning: &str) -> Result<ExecInfo> {
    let execs = running.sandbox().execs().await?;
    let matches = |id: ExecId| !beginning.is_empty() && id.to_string().starts_with(&beginning.to_ascii_lowercase());
    let mut found = execs.into_iter().filter(|exec| matches(exec.id));
    match (found.next(), found.next()) {
        (Some(exec), None) => Ok(exec),
        (None, _) => Err(Error::new(ErrorKind::NotFound, "find command", format!("no command's id begins with {beginning:?}"))
            .with_help(format!("`tierbox ps {}` lists them", running.id()))),
        (Some(_), Some(_)) => {
            Err(Error::new(ErrorKind::InvalidInput, "find command", format!("several ids begin with {beginning:?}"))
                .with_help("write more of the id"))
        }
    }
}

fn row(exec: &ExecInfo) -> Vec<String> {
    let argv: Vec<String> = exec.argv.iter().map(|arg| neutral::line(arg)).collect();
    let state = match &exec.state {
        ExecState::Running if exec.detached => "running (detached)".to_owned(),
        ExecState::Running => "running".to_owned(),
        ExecState::Ended(completed) => completed.outcome.to_string(),
    };
    vec![
        exec.id.to_string()[..SHORT].to_owned(),
        exec.pid.map(|pid| pid.to_string()).unwrap_or_default(),
        state,
        table::span(exec.age),
        argv.join(" "),
    ]
}

fn describe(exec: &ExecInfo) -> serde_json::Value {
    let (state, outcome) = match &exec.state {
        ExecState::Running => ("running", None),
        ExecState::Ended(completed) => ("ended", Some((completed.outcome, exit::of_outcome(completed.outcome)))),
    };
    json!({
        "exec": exec.id.to_string(),
        "argv": exec.argv.iter().map(|arg| String::from_utf8_lossy(arg)).collect::<Vec<_>>(),
        "pid": exec.pid,
        "detached": exec.detached,
        "age_seconds": exec.age.as_secs_f64(),
        "state": state,
        "outcome": outcome.map(|(outcome, _)| outcome),
        "status": outcome.map(|(_, status)| status),
    })
}
