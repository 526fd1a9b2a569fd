//! What the tools do.

use std::time::Duration;

use serde_json::{Value, json};
use tierbox::code::{CodeTask, TaskLimits};
use tierbox::{
    AgentSandbox, Captured, Error, ErrorKind, ExecRequest, FileKind, GuestPath, OnExceed, OutputLimit, Result, Tooling, base64,
};

use crate::arguments::{self, Cleanup, Exec, GetFiles, ListDirectory, Nothing, ReadFile, RunCode, WriteFile};

/// Bytes of each output stream that a model gets to see: both ends of what there is.
const MOST_OUTPUT: u64 = 64 << 10;
/// Bytes of a file that a model gets to see unless it asks for more.
pub(crate) const MOST_READ: u64 = 256 << 10;
/// Bytes of files that are ever sent in one answer.
const MOST_FILES: u64 = 8 << 20;
/// Items of a list that a model gets to see.
const MOST_LISTED: usize = 1000;

/// Calls a tool. `None` if there is no such tool.
pub(crate) async fn call(agent: &AgentSandbox, tool: &str, arguments: Value) -> Option<Result<Value>> {
    Some(match tool {
        "run_code" => run_code(agent, arguments).await,
        "exec" => exec(agent, arguments).await,
        "get_files" => get_files(agent, arguments).await,
        "cleanup" => cleanup(agent, arguments).await,
        "read_file" => read_file(agent, arguments).await,
        "write_file" => write_file(agent, arguments).await,
        "list_directory" => list_directory(agent, arguments).await,
        "status" => status(agent, arguments).await,
        _ => return None,
    })
}

fn output_limit() -> OutputLimit {
    OutputLimit { bytes: MOST_OUTPUT, on_exceed: OnExceed::Truncate }
}

fn seconds(number: Option<f64>) -> Result<Option<Duration>> {
    let read = |seconds: f64| {
        Duration::try_from_secs_f64(seconds)
            .map_err(|_| Error::new(ErrorKind::InvalidInput, "read arguments", format!("{seconds} is not a number of seconds")))
    };
    number.map(read).transpose()
}

async fn run_code(agent: &AgentSandbox, arguments: Value) -> Result<Value> {
    let asked: RunCode = arguments::read("run_code", arguments)?;
    let mut task = CodeTask::new(asked.runtime, asked.code).private_dir(asked.private_dir.unwrap_or(true));
    task.session = asked.session;
    task.stdin = asked.stdin.map(String::into_bytes);
    task.env = asked.env.unwrap_or_default();
    for (name, contents) in asked.files.unwrap_or_default() {
        task.files.insert(name, contents.into_bytes()?);
    }
    task.limits = TaskLimits {
        time: seconds(asked.timeout_seconds)?,
        cpu: seconds(asked.cpu_seconds)?,
        memory: asked.memory_bytes,
        output: Some(output_limit()),
        ..TaskLimits::default()
    };
    let mut report = agent.run_code(&task).await?.report();
    // Nothing that a model could read.
    (report.stdout_base64, report.stderr_base64) = (None, None);
    let mut shown = value(&report)?;
    cut(&mut shown, "files_created", "list the task's directory, or parts of it");
    Ok(shown)
}

fn value(document: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(document).map_err(|error| Error::new(ErrorKind::Internal, "write answer", error.to_string()))
}

/// Shortens a list to what a model can make use of, and says so: `left_out` counts the rest, `note` tells how to see it.
fn cut(shown: &mut Value, list: &str, how: &str) {
    let Some(items) = shown[list].as_array_mut().filter(|items| items.len() > MOST_LISTED) else { return };
    let (all, left_out) = (items.len(), items.len() - MOST_LISTED);
    items.truncate(MOST_LISTED);
    let earlier = shown["note"].as_str().map_or_else(String::new, |note| format!("{note}; "));
    shown["left_out"] = json!(shown["left_out"].as_u64().unwrap_or(0) + left_out as u64);
    shown["note"] = json!(format!("{earlier}{list} shows {MOST_LISTED} of {all}: {how}"));
}

async fn exec(agent: &AgentSandbox, arguments: Value) -> Result<Value> {
    let asked: Exec = arguments::read("exec", arguments)?;
    let mut request = ExecRequest::new(asked.argv).kill_leftovers();
    request.cwd = asked.cwd.map(GuestPath::from);
    request.env = asked.env.unwrap_or_default().into_iter().map(|(key, value)| (key.into_bytes(), value.into_bytes())).collect();
    request.timeout = seconds(asked.timeout_seconds)?;
    request.output_limit = Some(output_limit());
    if let Some(stdin) = asked.stdin {
        request = request.stdin_bytes(stdin);
    }
    let result = agent.run(request).await?;
    let stream = |captured: &Captured| captured.text();
    Ok(json!({
        "success": result.success(),
        "outcome": result.outcome(),
        "ended": result.outcome().to_string(),
        "exit_code": result.outcome().shell_status(),
        "stdout": stream(&result.stdout),
        "stderr": stream(&result.stderr),
        "stdout_truncated": result.stdout.truncated(),
        "stderr_truncated": result.stderr.truncated(),
        "execution_time": result.completed.usage.wall.as_secs_f64(),
    }))
}

/// Contents as a model reads them.
fn contents(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!({ "text": text }),
        Err(_) => json!({ "base64": base64::encode(bytes) }),
    }
}

async fn get_files(agent: &AgentSandbox, arguments: Value) -> Result<Value> {
    let asked: GetFiles = arguments::read("get_files", arguments)?;
    let files = match agent.get_files(&asked.task_hash, asked.name.as_deref().map(str::as_bytes), MOST_FILES).await {
        // Whoever is to ask for one by its name has to know the names.
        Err(error) if error.kind() == ErrorKind::TooLarge && asked.name.is_none() => {
            return file_names(agent, &asked.task_hash).await;
        }
        files => files?,
    };
    let shown = files.iter().map(|file| {
        let mut shown = contents(&file.contents);
        shown["name"] = json!(String::from_utf8_lossy(&file.name));
        shown["size"] = json!(file.contents.len());
        shown
    });
    let mut shown = json!({ "files": shown.collect::<Vec<_>>() });
    cut(&mut shown, "files", "ask for one by its name");
    Ok(shown)
}

async fn file_names(agent: &AgentSandbox, task: &str) -> Result<Value> {
    let found = agent.list_task_files(task).await?;
    let shown = found.files.iter().map(|file| json!({ "name": String::from_utf8_lossy(&file.name), "size": file.size }));
    let mut note = "together they are too large to show what they hold: ask for one by its name".to_owned();
    if let Some(why) = &found.incomplete {
        note.push_str(&format!("; {why}"));
    }
    let mut shown = json!({ "files": shown.collect::<Vec<_>>(), "note": note });
    cut(&mut shown, "files", "ask for one by its name");
    Ok(shown)
}

async fn cleanup(agent: &AgentSandbox, arguments: Value) -> Result<Value> {
    let asked: Cleanup = arguments::read("cleanup", arguments)?;
    let report = agent.cleanup_tasks(seconds(asked.older_than_hours.map(|hours| hours * 3600.0))?).await?;
    let mut shown = json!({ "removed_tasks": report.tasks, "removed_sessions": report.sessions, "failed": report.failed });
    ["removed_tasks", "removed_sessions", "failed"].iter().for_each(|list| cut(&mut shown, list, "the rest was treated alike"));
    Ok(shown)
}

async fn read_file(agent: &AgentSandbox, arguments: Value) -> Result<Value> {
    let asked: ReadFile = arguments::read("read_file", arguments)?;
    let most = asked.max_bytes.unwrap_or(MOST_READ).min(MOST_FILES);
    let bytes = agent.read_bytes(asked.path.as_str(), most).await.map_err(|error| match error.kind() {
        ErrorKind::TooLarge => {
            error.with_help(format!("ask for more with max_bytes (at most {MOST_FILES}), or use a program that prints a part"))
        }
        _ => error,
    })?;
    let mut shown = contents(&bytes);
    shown["size"] = json!(bytes.len());
    Ok(shown)
}

async fn write_file(agent: &AgentSandbox, arguments: Value) -> Result<Value> {
    let asked: WriteFile = arguments::read("write_file", arguments)?;
    let bytes = asked.contents.into_bytes()?;
    let size = bytes.len();
    agent.write_bytes(asked.path.as_str(), bytes).await?;
    Ok(json!({ "written": asked.path, "size": size }))
}

async fn list_directory(agent: &AgentSandbox, arguments: Value) -> Result<Value> {
    let asked: ListDirectory = arguments::read("list_directory", arguments)?;
    let entries = agent.list(&asked.path.as_str().into()).await?;
    let kind = |kind: FileKind| match kind {
        FileKind::File => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "link",
        FileKind::Other => "other",
    };
    let shown = entries.iter().map(
        |entry| json!({ "name": String::from_utf8_lossy(&entry.name), "kind": kind(entry.meta.kind), "size": entry.meta.size }),
    );
    let mut shown = json!({ "entries": shown.collect::<Vec<_>>(), "left_out": 0 });
    cut(&mut shown, "entries", "list a directory below it, or have a program print a part");
    Ok(shown)
}

async fn status(agent: &AgentSandbox, arguments: Value) -> Result<Value> {
    let _: Nothing = arguments::read("status", arguments)?;
    let tooling = agent.tooling();
    let mut status = json!({ "tooling": tooling.to_string(), "meaning": tooling.meaning() });
    if tooling == Tooling::T0 {
        status["code"] = value(&agent.code_status().await?)?;
        status["sessions"] = value(&agent.sessions().await?)?;
        cut(&mut status, "sessions", "clean up those that are idle");
    } else {
        status["programs"] = json!(agent.policy().programs());
    }
    Ok(status)
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_long_list_is_cut_and_says_so() {
        let mut shown = json!({ "a": vec![0; MOST_LISTED], "b": vec![0; MOST_LISTED + 5], "c": vec![0; MOST_LISTED + 2] });
        cut(&mut shown, "a", "how");
        assert!(shown.get("note").is_none() && shown.get("left_out").is_none());
        cut(&mut shown, "b", "ask");
        cut(&mut shown, "c", "look");
        assert_eq!((shown["b"].as_array().unwrap().len(), shown["left_out"].as_u64()), (MOST_LISTED, Some(7)));
        assert_eq!(shown["note"], "b shows 1000 of 1005: ask; c shows 1000 of 1002: look");
    }
}
