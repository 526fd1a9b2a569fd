//! Code tasks, as the harness or as the agent.

use std::time::Duration;

use tierbox::code::{
    CodeOutcome, CodeRunner, CodeStatus, CodeTask, SessionInfo, TaskCleanup, TaskEntry, TaskFile, TaskFiles, TaskLimits,
};
use tierbox::{AgentSandbox, Error, ErrorKind, Result};

use crate::answer::{self, Answer, BYTES};
use crate::environments::{invalid, seconds};
use crate::files::AGENT_MOST;
use crate::handler::Asked;
use crate::held::Busy;
use crate::principal::Principal;
use crate::room::Place;
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

    /// With the place that an agent's have in memory.
    async fn files(&self, environment: &Busy, task: &str, name: Option<&[u8]>) -> Result<(Vec<TaskFile>, Option<Place>)> {
        Ok(match self {
            Self::Harness(runner) => (runner.get_files(task, name, MOST_BYTES).await?, None),
            Self::Agent(agent) => {
                let place = environment.room(AGENT_MOST).await;
                (agent.get_files(task, name, AGENT_MOST).await?, Some(place))
            }
        })
    }

    /// Names and sizes alone.
    async fn names(&self, task: &str) -> Result<TaskFiles> {
        match self {
            Self::Harness(runner) => runner.list_files(task).await,
            Self::Agent(agent) => agent.list_task_files(task).await,
        }
    }

    /// The limits that a task cannot change.
    fn check(&self, task: &CodeTask) -> Result<()> {
        match (self, task.limits.output) {
            (Self::Agent(agent), Some(limit)) => exec::refuse_greed(limit.bytes, agent.limits()),
            _ => Ok(()),
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
            coder.check(&task)?;
            let (shared, id) = (&asked.shared, environment.running().id());
            shared.events.task(id, None);
            let ran = coder.run(&task).await;
            shared.events.task(id, Some(ran.as_ref().ok()));
            let outcome = ran?;
            shared.metrics.ended(outcome.outcome(), outcome.result.completed.usage.wall);
            answer::json(&outcome.report())
        }
        Op::CodeFiles => {
            let file =
                |file: &TaskEntry| wire::CodeFile { name: String::from_utf8_lossy(&file.name).into_owned(), size: file.size };
            let found = coder.names(task).await?;
            answer::json(&wire::CodeFiles { files: found.files.iter().map(file).collect(), incomplete: found.incomplete })
        }
        Op::CodeFile => {
            let name = asked.query.bytes("name").ok_or_else(|| invalid("the query has no `name`"))?;
            let (found, place) = coder.files(&environment, task, Some(name)).await?;
            let missing = || Error::new(ErrorKind::NotFound, "read file of task", "the task has no file of that name");
            let contents = found.into_iter().next().ok_or_else(missing)?.contents;
            Ok(match place {
                Some(place) => answer::bytes(BYTES, place.keep(contents)),
                None => answer::bytes(BYTES, contents),
            })
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
