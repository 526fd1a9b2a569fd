//! `tierbox code`.

use std::io::{IsTerminal, Read, Write};
use std::path::Path;
use std::time::Duration;

use tierbox::code::{CodeOutcome, CodeTask, TaskEntry, TaskLimits};
use tierbox::{AgentOptions, AgentSandbox, Error, ErrorKind, Result, Running, Tierbox, base64};

use crate::args::{CodeCommand, CodeRunArgs};
use crate::commands::starting;
use crate::interrupt::Failure;
use crate::neutral::{self, Neutralizer};
use crate::{Context, approve, exit, output, table};

/// The most that `code files` reads into memory.
const MOST_BYTES: u64 = 256 << 20;

pub(crate) async fn code(context: &mut Context, command: CodeCommand) -> Result<u8, Failure> {
    let CodeCommand::Run(args) = command else { return look(context, command).await };
    let task = task(&args)?;
    let json = context.global.json;
    if let Some(name) = args.sandbox.clone() {
        let client = context.client.clone();
        let work = async { run(&client.attach(&name).await?, &task, args.as_harness, json).await };
        return context.interrupts.guard(work).await;
    }
    let options = starting::options(context, &args.start);
    let running = starting::start(context, &args.start, options, None).await?;
    let done = context.interrupts.guard(run(&running, &task, args.as_harness, json)).await;
    context.interrupts.guard(running.stop()).await?;
    done
}

async fn run(running: &Running, task: &CodeTask, as_harness: bool, json: bool) -> Result<u8> {
    let outcome = if as_harness {
        tracing::info!(target: "tierbox::op", id = running.id(), "acting as the harness: the tooling tier does not bind");
        running.code()?.run_code(task).await?
    } else {
        agent(running).await?.run_code(task).await?
    };
    if json {
        output::json(&outcome.report());
    } else {
        show(&outcome);
    }
    Ok(exit::of_outcome(outcome.outcome()))
}

async fn agent(running: &Running) -> Result<AgentSandbox> {
    running.for_agent(AgentOptions::new().approver(approve::terminal())).await
}

fn show(outcome: &CodeOutcome) {
    let harmless = |printed: Vec<u8>, is_terminal: bool| {
        if is_terminal { Neutralizer::default().push(&printed) } else { printed }
    };
    output::raw(&harmless(outcome.result.stdout.marked(), std::io::stdout().is_terminal()));
    let _ = std::io::stderr().write_all(&harmless(outcome.result.stderr.marked(), std::io::stderr().is_terminal()));
    if let Some(message) = &outcome.error_message {
        output::remark(message);
    }
    output::remark(&format!("task {} in {}", outcome.task_hash, outcome.working_directory));
    for file in &outcome.files_created {
        output::remark(&format!("file {} ({} bytes)", neutral::line(&file.name_bytes), file.size));
    }
    if let Some(why) = &outcome.files_incomplete {
        output::remark(&format!("not all files are listed: {why}"));
    }
}

/// The task that the command line describes.
fn task(args: &CodeRunArgs) -> Result<CodeTask> {
    let code = match (&args.code, &args.script) {
        (Some(code), _) => code.clone(),
        (None, Some(path)) if path != Path::new("-") => read_text(path)?,
        _ => {
            let mut code = String::new();
            std::io::stdin().lock().read_to_string(&mut code).map_err(|error| Error::io("read code from stdin", error))?;
            code
        }
    };
    let mut task = CodeTask::new(&args.runtime, code).private_dir(!args.no_private_dir);
    task.session.clone_from(&args.session);
    for file in &args.file {
        let name = String::from_utf8(file.guest.clone()).map_err(|_| {
            Error::new(ErrorKind::InvalidInput, "read input file", "the name of an input file is not UTF-8")
                .with_context("path", file.host.display())
                .with_help("write SRC:NAME")
        })?;
        let contents = std::fs::read(&file.host)
            .map_err(|error| Error::io("read input file", error).with_context("path", file.host.display()))?;
        task.files.insert(name, contents);
    }
    task.env = args.start.env.iter().map(|variable| (variable.key.clone(), variable.value.clone())).collect();
    task.limits = TaskLimits { time: args.timeout, cpu: args.cpu_time, memory: args.memory, ..TaskLimits::default() };
    Ok(task)
}

fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|error| {
        Error::io("read code", error)
            .with_context("path", path.display())
            .with_help("give the code itself with -c, or `-` for stdin")
    })
}

async fn look(context: &mut Context, command: CodeCommand) -> Result<u8, Failure> {
    let (client, json) = (context.client.clone(), context.global.json);
    let work = async {
        match command {
            CodeCommand::Run(_) => unreachable!("handled before"),
            CodeCommand::Files { sandbox, task, name } => {
                let running = attached(&client, &sandbox).await?;
                files(&agent(&running).await?, &task, name.as_deref(), json).await
            }
            CodeCommand::Cleanup { sandbox, older_than } => {
                cleanup(&agent(&client.attach(&sandbox).await?).await?, older_than, json).await
            }
            CodeCommand::Status { sandbox } => status(&agent(&attached(&client, &sandbox).await?).await?, json).await,
            CodeCommand::Sessions { sandbox } => sessions(&agent(&attached(&client, &sandbox).await?).await?, json).await,
        }
    };
    context.interrupts.guard(work).await
}

/// A sandbox that is up, without the tasks that expired.
async fn attached(client: &Tierbox, name: &str) -> Result<Running> {
    let running = client.attach(name).await?;
    if let Err(error) = running.code()?.cleanup_tasks(None).await {
        output::remark(&format!("expired tasks could not be removed: {}", error.message()));
    }
    Ok(running)
}

async fn files(agent: &AgentSandbox, task: &str, name: Option<&str>, json: bool) -> Result<u8> {
    match name {
        Some(name) => contents(agent, task, name, json).await,
        None => names(agent, task, json).await,
    }
}

async fn names(agent: &AgentSandbox, task: &str, json: bool) -> Result<u8> {
    let found = agent.list_task_files(task).await?;
    if json {
        let shown = |file: &TaskEntry| serde_json::json!({ "name": String::from_utf8_lossy(&file.name), "size": file.size });
        output::json(&found.files.iter().map(shown).collect::<Vec<_>>());
    } else {
        let row = |file: &TaskEntry| vec![neutral::line(&file.name), file.size.to_string()];
        output::line(table::render(&["NAME", "BYTES"], &found.files.iter().map(row).collect::<Vec<_>>()));
    }
    if let Some(why) = found.incomplete {
        output::remark(&format!("not all files are listed: {why}"));
    }
    Ok(0)
}

async fn contents(agent: &AgentSandbox, task: &str, name: &str, json: bool) -> Result<u8> {
    let files = agent.get_files(task, Some(name.as_bytes()), MOST_BYTES).await?;
    if json {
        let shown = files.iter().map(|file| {
            let (text, base64) = (std::str::from_utf8(&file.contents).ok(), base64::unless_text(&file.contents));
            serde_json::json!({ "name": String::from_utf8_lossy(&file.name), "size": file.contents.len(), "text": text, "base64": base64 })
        });
        output::json(&shown.collect::<Vec<_>>());
        return Ok(0);
    }
    match files.first() {
        Some(file) if std::io::stdout().is_terminal() => output::raw(&Neutralizer::default().push(&file.contents)),
        Some(file) => output::raw(&file.contents),
        None => {}
    }
    Ok(0)
}

async fn cleanup(agent: &AgentSandbox, older_than: Option<Duration>, json: bool) -> Result<u8> {
    let report = agent.cleanup_tasks(older_than).await?;
    if json {
        output::json(&report);
    } else {
        report.tasks.iter().for_each(|task| output::line(format!("removed task {task}")));
        report.sessions.iter().for_each(|session| output::line(format!("removed session {}", neutral::line(session.as_bytes()))));
        if report == Default::default() {
            output::line("nothing to remove");
        }
    }
    if report.failed.is_empty() {
        return Ok(0);
    }
    let message = format!("could not remove {}", report.failed.join(", "));
    Err(Error::new(ErrorKind::Io, "clean up tasks", message))
}

async fn status(agent: &AgentSandbox, json: bool) -> Result<u8> {
    let status = agent.code_status().await?;
    if json {
        output::json(&status);
        return Ok(0);
    }
    let free = status.free_bytes.map_or("unknown".to_owned(), |bytes| format!("{} MiB", bytes >> 20));
    output::line(format!("directory  {}", neutral::line(status.base_dir.as_bytes())));
    output::line(format!("tasks      {}, sessions {}", status.tasks, status.sessions));
    output::line(format!("disk       {} KiB used, {free} free", status.used_bytes >> 10));
    output::line(format!("expiry     {}", table::span(Duration::from_secs(status.expiry_seconds))));
    for runtime in status.runtimes {
        let program = runtime.program.map_or("not in this sandbox".to_owned(), |program| neutral::line(program.as_bytes()));
        output::line(format!("runtime    {}: {program}", runtime.name));
    }
    Ok(0)
}

async fn sessions(agent: &AgentSandbox, json: bool) -> Result<u8> {
    let sessions = agent.sessions().await?;
    if json {
        output::json(&sessions);
        return Ok(0);
    }
    let row = |session: &tierbox::code::SessionInfo| {
        // The sandbox's own words.
        let (name, directory) = (neutral::line(session.name.as_bytes()), neutral::line(session.directory.as_bytes()));
        vec![name, table::span(Duration::from_secs(session.idle_seconds)), directory]
    };
    output::line(table::render(&["SESSION", "IDLE", "DIRECTORY"], &sessions.iter().map(row).collect::<Vec<_>>()));
    Ok(0)
}
