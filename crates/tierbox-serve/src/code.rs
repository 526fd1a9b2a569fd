//! Code tasks, as the harness or as the agent.

use std::time::Duration;

use tierbox::code::{CodeOutcome, CodeRunner, CodeStatus, CodeTask, SessionInfo, TaskCleanup, TaskFile, TaskLimits};
use tierbox::{AgentSandbox, Error, ErrorKind, Result};

use crate::answer::{self, Answer, BYTES};
use crate::environments::{Busy, invalid, seconds};
use crate::handler::Asked;
use crate::principal::Principal;
use crate::routes::Op;
use crate::{exec, wire};

/// The most that is read of a task's files at once.
const MOST_BYTES: u64 = 256 << 20;

/// Who runs tasks.
enum Coder {
    Harness(CodeRunner),
    Agent(AgentSandbox),
}

impl Coder {
    async fn of(asked: &Asked, environment: &Busy) -> Result<Self> {
        let primary = exec::machine(&asked.principal, environment, None)?;
        match asked.principal {
            Principal::Harness => Ok(Self::Harness(environment.running().code()?)),
            Principal::Agent(_) => Ok(Self::Agent(environment.agent(primary.name()).await?)),
        }
    }

    async fn run(&self, task: &CodeTask) -> Result<CodeOutcome> {
        match self {
            Self::Harness(runner) => runner.run_code(task).await,
            Self::Agent(agent) => agent.run_code(task).await,
        }
    }

    async fn files(&self, task: &str, name: Option<&[u8]>) -> Result<Vec<TaskFile>> {
        match self {
            Self::Harness(runner) => runner.get_files(task, name, MOST_BYTES).await,
            Self::Agent(agent) => agent.get_files(task, name, MOST_BYTES).await,
        }
    }

    async fn cleanup(&self, older_than: Option<Duration>) -> Result<TaskCleanup> {
        match self {
            Self::Harness(runner) => runner.cleanup_tasks(older_than).await,
            Self::Agent(agent) => agent.cleanup_tasks(older_than).await,
        }
    }

    async fn status(&self) -> Result<(CodeStatus, Vec<SessionInfo>)> {
        Ok(match self {
            Self::Harness(runner) => (runner.status().await?, runner.sessions().await?),
            Self::Agent(agent) => (agent.code_status().await?, agent.sessions().await?),
        })
    }
}

/// Does what was asked with code tasks.
pub(crate) async fn code(mut asked: Asked, environment: Busy, op: Op, task: &str) -> Result<Answer> {
    let coder = Coder::of(&asked, &environment).await?;
    match op {
        Op::RunCode => {
            let task = wanted(asked.intake.document().await?)?;
            answer::json(&coder.run(&task).await?.report())
        }
        Op::CodeFiles => {
            let file = |file: &TaskFile| wire::CodeFile {
                name: String::from_utf8_lossy(&file.name).into_owned(),
                size: file.contents.len() as u64,
            };
            let files = coder.files(task, None).await?.iter().map(file).collect();
            answer::json(&wire::CodeFiles { files })
        }
        Op::CodeFile => {
            let name = asked.query.bytes("name").ok_or_else(|| invalid("the query has no `name`"))?;
            let found = coder.files(task, Some(name)).await?.into_iter().next();
            let missing = || Error::new(ErrorKind::NotFound, "read file of task", "the task has no file of that name");
            Ok(answer::bytes(BYTES, found.ok_or_else(missing)?.contents))
        }
        Op::CleanCode => {
            let asked: wire::CleanCode = asked.intake.document().await?;
            let older = asked.older_than.map(|age| seconds("older_than", age)).transpose()?;
            answer::json(&coder.cleanup(older).await?)
        }
        _ => {
            let (status, sessions) = coder.status().await?;
            answer::json(&serde_json::json!({ "status": status, "sessions": sessions }))
        }
    }
}

fn wanted(asked: wire::Code) -> Result<CodeTask> {
    let mut task = CodeTask::new(asked.runtime, asked.code).private_dir(asked.private_dir.unwrap_or(true));
    task.files = asked.files.into_iter().map(|(path, text)| (path, text.into_bytes())).collect();
    task.env = asked.env;
    task.stdin = asked.stdin.map(String::into_bytes);
    task.session = asked.session;
    let limit = |name: &str, value: Option<f64>| value.map(|value| seconds(name, value)).transpose();
    task.limits = TaskLimits {
        time: limit("timeout", asked.timeout)?,
        cpu: limit("cpu_time", asked.cpu_time)?,
        memory: asked.memory,
        file_size: asked.file_size,
        open_files: asked.open_files,
        output: asked.output_limit.map(exec::retained).transpose()?,
    };
    Ok(task)
}
