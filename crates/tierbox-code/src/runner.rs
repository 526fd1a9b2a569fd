//! Runs tasks in one sandbox.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tierbox_core::{
    CodeSettings, Error, ErrorKind, ExecRequest, ExecResult, KillReason, Outcome, Result, Runtime, Sandbox, SandboxExt,
};

use crate::files::{self, HASHED_FIRST, HASHED_LATER, Listing};
use crate::hash::{is_hash, short, task_hash};
use crate::script::{self, Answer, Script, unclear};
use crate::task::{CodeOutcome, CodeStatus, CodeTask, CreatedFile, RuntimeStatus, SessionInfo, TaskCleanup, TaskFile, TaskFiles};

/// Input files of one task.
const MOST_FILES: usize = 1000;
/// Bytes of code and input files of one task.
const MOST_INPUT: usize = 64 << 20;
/// Bytes of a session's name.
const LONGEST_SESSION: usize = 200;
/// The highest limits that can be asked for: beyond them machines count wrong.
const MOST_BYTES: u64 = 1 << 50;
const MOST_OPEN: u64 = 1 << 30;
const MOST_SECONDS: u64 = 366 * 86400;

/// Runs code tasks in one sandbox. Cheap to clone.
///
/// It acts as the harness does: whether an agent may use it is decided by whoever holds it.
#[derive(Clone)]
pub struct CodeRunner {
    sandbox: Arc<dyn Sandbox>,
    settings: Arc<CodeSettings>,
}

impl CodeRunner {
    /// A runner that does nothing by itself.
    ///
    /// # Errors
    /// As [`CodeSettings::validate`].
    pub fn new(sandbox: Arc<dyn Sandbox>, settings: CodeSettings) -> Result<Self> {
        settings.validate()?;
        Ok(Self { sandbox, settings: Arc::new(settings) })
    }

    /// A runner, after tasks that expired were removed.
    ///
    /// # Errors
    /// As [`new`](Self::new) and [`cleanup_tasks`](Self::cleanup_tasks).
    pub async fn attach(sandbox: Arc<dyn Sandbox>, settings: CodeSettings) -> Result<Self> {
        let runner = Self::new(sandbox, settings)?;
        runner.cleanup_tasks(None).await?;
        Ok(runner)
    }

    /// The settings.
    pub fn settings(&self) -> &CodeSettings {
        &self.settings
    }

    /// Runs a piece of code to its end. Three commands in the machine: one prepares, one is the program, one looks at what
    /// it left. What the program leaves running is killed with its end.
    ///
    /// A program that fails, is killed or gets lost is an outcome, not an error. Dropping the future kills it.
    ///
    /// # Errors
    /// `InvalidInput` for a task that makes no sense, `PolicyDenied` for a runtime that the profile does not have, both
    /// before any side effect; `NotFound` if the machine has no program for the runtime; `NoSpace`, `PermissionDenied` if
    /// the task's directory cannot be made; as [`Sandbox::spawn`].
    pub async fn run_code(&self, task: &CodeTask) -> Result<CodeOutcome> {
        let (runtime, time) = self.check(task)?;
        let place = Place::of(task);
        let prepared = self.prepare(task, runtime, &place).await?;
        let result = self.sandbox.run(self.request(task, runtime, &prepared, time)).await?;
        let error_message = explain(&result, time);
        tracing::debug!(target: "tierbox::op", task = place.hash, outcome = %result.outcome(), "code task");
        let mut outcome = CodeOutcome {
            task_hash: place.hash.clone(),
            result,
            working_directory: prepared.directory.clone(),
            files_created: Vec::new(),
            files_incomplete: None,
            error_message,
        };
        if task.private_dir {
            match self.left(&place, &prepared.before).await {
                Ok((files, incomplete)) => (outcome.files_created, outcome.files_incomplete) = (files, incomplete),
                // What came of the program stands, whatever became of the machine meanwhile.
                Err(error) => outcome.files_incomplete = Some(error.message().to_owned()),
            }
        }
        Ok(outcome)
    }

    /// The files of a task (of its session, if it has one), or one of them. One command in the machine.
    ///
    /// # Errors
    /// `NotFound` for a task or file that is not there; `TooLarge` if all take more than `max` bytes, or are more than are listed.
    pub async fn get_files(&self, task_hash: &str, name: Option<&[u8]>, max: u64) -> Result<Vec<TaskFile>> {
        if let Some(name) = name {
            check_name("get files", name)?;
        }
        let most = max.saturating_add(script::ANSWER);
        let mut answer =
            self.ask_for_files("get files", task_hash, if name.is_some() { "one" } else { "all" }, name, most).await?;
        if let Some((kind, why)) = answer.incomplete.take() {
            return Err(Error::new(kind, answer.operation, why).with_help(files::ONE_BY_ONE));
        }
        files::read_contents(&mut answer, max)
    }

    /// The names and sizes of a task's files (of its session's, if it has one), without what they hold. One command in the machine.
    ///
    /// # Errors
    /// `NotFound` for a task that is not there.
    pub async fn list_files(&self, task_hash: &str) -> Result<TaskFiles> {
        let mut answer = self.ask_for_files("list files", task_hash, "list", None, script::ANSWER).await?;
        Ok(Listing::read(&mut answer).into_files())
    }

    /// What stands behind the first word of the answer is not looked at yet, nor whether it is whole.
    async fn ask_for_files(
        &self,
        operation: &'static str,
        task_hash: &str,
        what: &str,
        name: Option<&[u8]>,
        most: u64,
    ) -> Result<Answer> {
        if !is_hash(task_hash) {
            return Err(invalid(operation, "a task's name is 16 hex digits"));
        }
        let mut args = vec![self.base(), task_hash.into(), what.into()];
        args.extend(name.map(<[u8]>::to_vec));
        let mut answer = Script::new(operation, script::FILES, args).at_most(most).try_run(self.sandbox.as_ref()).await?;
        let missing = |message: &str| Err(Error::new(ErrorKind::NotFound, operation, message).with_context("task", task_hash));
        match answer.head(Answer::text)?.as_str() {
            "files" => Ok(answer),
            "no-file" => missing("the task has no such file"),
            "no-directory" => missing("the task ran without a directory of its own, so that it has no files"),
            "unreadable" => Err(Error::new(ErrorKind::PermissionDenied, operation, "the task left the file unreadable")),
            "no-base" | "no-task" => {
                Err(Error::new(ErrorKind::NotFound, operation, format!("there is no task {task_hash} here"))
                    .with_help("tasks are removed when they expire, and with their sandbox"))
            }
            _ => Err(unclear(operation)),
        }
    }

    /// Removes tasks whose last run is at least this long ago (the profile's expiry where `None`, everything at zero), and
    /// sessions that were idle as long. Never the directory that holds them. One command in the machine.
    ///
    /// # Errors
    /// As [`Sandbox::spawn`]; what could not be removed is in the report.
    pub async fn cleanup_tasks(&self, older_than: Option<Duration>) -> Result<TaskCleanup> {
        const OPERATION: &str = "clean up tasks";
        let age = older_than.unwrap_or_else(|| self.expiry());
        let args = vec![self.base(), decimal(age.as_secs())];
        let mut answer = Script::new(OPERATION, script::CLEANUP, args).run(self.sandbox.as_ref()).await?;
        let mut report = TaskCleanup::default();
        if answer.text()? != "done" {
            return Err(unclear(OPERATION));
        }
        while let Some(kind) = answer.next().map(<[u8]>::to_vec) {
            let name = answer.text()?;
            match kind.as_slice() {
                b"tasks" => report.tasks.push(name),
                b"sessions" => report.sessions.push(name),
                b"failed" => report.failed.push(name),
                _ => return Err(unclear(OPERATION)),
            }
        }
        Ok(report)
    }

    /// The sessions whose directories exist. One command in the machine.
    ///
    /// # Errors
    /// As [`Sandbox::spawn`].
    pub async fn sessions(&self) -> Result<Vec<SessionInfo>> {
        const OPERATION: &str = "list sessions";
        let mut answer = Script::new(OPERATION, script::SESSIONS, vec![self.base()]).run(self.sandbox.as_ref()).await?;
        if answer.text()? != "sessions" {
            return Err(unclear(OPERATION));
        }
        let mut sessions = Vec::new();
        while let Some(name) = answer.next().map(|name| String::from_utf8_lossy(name).into_owned()) {
            sessions.push(SessionInfo { name, directory: answer.text()?, idle_seconds: answer.number()? });
        }
        sessions.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(sessions)
    }

    /// How code tasks stand. One command in the machine.
    ///
    /// # Errors
    /// As [`Sandbox::spawn`].
    pub async fn status(&self) -> Result<CodeStatus> {
        const OPERATION: &str = "ask for status";
        let mut args = vec![self.base()];
        for runtime in &self.settings.runtimes {
            args.push(decimal(runtime.programs.len() as u64));
            args.extend(runtime.programs.iter().map(|program| program.clone().into_bytes()));
        }
        let mut answer = Script::new(OPERATION, script::STATUS, args).run(self.sandbox.as_ref()).await?;
        if answer.text()? != "status" {
            return Err(unclear(OPERATION));
        }
        let (tasks, sessions, used) = (answer.number()?, answer.number()?, answer.number()?);
        let free = answer.text()?.parse::<u64>().ok();
        let base_dir = answer.text()?;
        let mut runtimes = Vec::new();
        for runtime in &self.settings.runtimes {
            let program = answer.text()?;
            runtimes.push(RuntimeStatus { name: runtime.name.clone(), program: (!program.is_empty()).then_some(program) });
        }
        Ok(CodeStatus {
            base_dir,
            tasks,
            sessions,
            used_bytes: used.saturating_mul(1024),
            free_bytes: free.map(|kib| kib.saturating_mul(1024)),
            expiry_seconds: self.expiry().as_secs(),
            runtimes,
        })
    }

    fn base(&self) -> Vec<u8> {
        self.settings.base_dir.clone().into_bytes()
    }

    /// A task that may still run must not expire.
    fn expiry(&self) -> Duration {
        let longest = [self.settings.time, self.settings.max_time, self.sandbox.limits().exec];
        let longest = longest.into_iter().flatten().max().unwrap_or_default();
        self.settings.expiry.max(longest + Duration::from_secs(60))
    }

    /// The longest that a task may take, with time left to look at what it made before that expires.
    fn longest(&self) -> Duration {
        let expiry = self.expiry();
        expiry - (expiry / 2).min(Duration::from_secs(60))
    }

    fn check(&self, task: &CodeTask) -> Result<(&Runtime, Option<Duration>)> {
        const OPERATION: &str = "run code";
        let runtime = self.settings.runtime(&task.runtime).ok_or_else(|| {
            let names: Vec<&str> = self.settings.runtimes.iter().map(|runtime| runtime.name.as_str()).collect();
            let asked: String = task.runtime.chars().take(60).collect();
            Error::new(ErrorKind::PolicyDenied, OPERATION, format!("the profile has no runtime {asked:?}"))
                .with_help(format!("use one of {}", names.join(", ")))
        })?;
        if task.files.len() > MOST_FILES {
            return Err(invalid(OPERATION, format!("a task takes at most {MOST_FILES} input files")));
        }
        let total: usize = task.files.values().map(Vec::len).sum::<usize>() + task.code.len();
        if total > MOST_INPUT {
            let message = format!("code and input files take {total} bytes, more than {MOST_INPUT}");
            return Err(invalid(OPERATION, message).with_help("upload what is larger before the task"));
        }
        task.files.keys().try_for_each(|name| check_name(OPERATION, name.as_bytes()))?;
        check_names(OPERATION, task)?;
        self.check_limits(OPERATION, task)?;
        if let Some(session) = &task.session {
            let plain = !session.is_empty() && session.len() <= LONGEST_SESSION && !session.contains('\0');
            if !plain {
                return Err(invalid(OPERATION, format!("a session's name has 1 to {LONGEST_SESSION} bytes and no NUL")));
            }
            if !task.private_dir {
                return Err(invalid(OPERATION, "a session is a directory, and this task is to have none"));
            }
        }
        // Arguments, variables and the time are checked here, before anything is made inside.
        let time = self.time(task)?;
        self.request(task, runtime, &Prepared::default(), time).validate()?;
        Ok((runtime, time))
    }

    /// A limit that no machine can count up to would come out as another one there.
    fn check_limits(&self, operation: &'static str, task: &CodeTask) -> Result<()> {
        let (limits, settings) = (&task.limits, &self.settings);
        for (name, limit, least, most) in [
            ("cpu time", limits.cpu.map(|cpu| cpu.as_secs()), 0, MOST_SECONDS),
            ("memory", limits.memory.or(settings.memory), 1, MOST_BYTES),
            ("file size", limits.file_size.or(settings.file_size), 0, MOST_BYTES),
            ("open files", limits.open_files.or(settings.open_files), 1, MOST_OPEN),
        ] {
            if limit.is_some_and(|limit| !(least..=most).contains(&limit)) {
                return Err(invalid(operation, format!("the limit on {name} is not between {least} and {most}"))
                    .with_help("leave a limit out to have what the profile and the machine say"));
            }
        }
        Ok(())
    }

    fn time(&self, task: &CodeTask) -> Result<Option<Duration>> {
        let time = task.limits.time.or(self.settings.time);
        let longest = self.longest();
        match (time, self.settings.max_time) {
            (Some(time), Some(most)) if time > most => {
                let message = format!("a task may take {} s, and {} s were asked for", most.as_secs_f64(), time.as_secs_f64());
                Err(invalid("run code", message))
            }
            (Some(time), _) if time > longest => {
                let asked = time.as_secs_f64();
                let message =
                    format!("a task may take {} s before it expires, and {asked} s were asked for", longest.as_secs_f64());
                Err(invalid("run code", message).with_help("set code.max-time, or a longer code.expiry"))
            }
            (None, most) => Ok(Some([most, self.sandbox.limits().exec].into_iter().flatten().min().unwrap_or(longest))),
            (time, _) => Ok(time),
        }
    }

    async fn prepare(&self, task: &CodeTask, runtime: &Runtime, place: &Place) -> Result<Prepared> {
        const OPERATION: &str = "run code";
        let mut args = vec![
            self.base(),
            place.hash.clone().into_bytes(),
            place.directory.clone().into_bytes(),
            task.session.clone().unwrap_or_default().into_bytes(),
            place.session_hash.clone().unwrap_or_default().into_bytes(),
            place.code_file(runtime).into_bytes(),
            decimal(self.expiry().as_secs()),
            decimal(HASHED_FIRST),
            decimal(HASHED_LATER),
            decimal(runtime.programs.len() as u64),
        ];
        args.extend(runtime.programs.iter().map(|program| program.clone().into_bytes()));
        args.push(decimal(task.code.len() as u64));
        let mut input = task.code.clone().into_bytes();
        for (name, contents) in &task.files {
            args.push(name.clone().into_bytes());
            args.push(decimal(contents.len() as u64));
            input.extend_from_slice(contents);
        }
        let mut answer = Script::new(OPERATION, script::PREPARE, args).stdin(input).try_run(self.sandbox.as_ref()).await?;
        let ready = answer.head(Answer::text)?;
        self.refusal(&ready, runtime)?;
        let (program, directory) = (answer.head(Answer::text)?, answer.head(Answer::text)?);
        let (code_file, state) = (answer.head(Answer::text)?, answer.head(Answer::text)?);
        // What earlier code left is listed last: whatever it did to that, this task can run.
        let before = if state == "fresh" { Listing::of_inputs(task) } else { Listing::read(&mut answer) };
        Ok(Prepared { program, directory, code_file, before })
    }

    fn refusal(&self, answer: &str, runtime: &Runtime) -> Result<()> {
        let base = &self.settings.base_dir;
        let error = |kind, message: String| Err(Error::new(kind, "run code", message));
        match answer {
            "ready" => Ok(()),
            "no-runtime" => {
                let message = format!("this sandbox has no program for the runtime {}", runtime.name);
                let looked_for = format!("looked for {} in its PATH; the status says what there is", runtime.programs.join(", "));
                error(ErrorKind::NotFound, message).map_err(|error| error.with_help(looked_for))
            }
            "no-base" => error(ErrorKind::PermissionDenied, format!("the directory of tasks, {base}, cannot be made or used"))
                .map_err(|error| error.with_help("set code.base-dir to a directory that the sandbox's user can write to")),
            "no-space" => error(ErrorKind::NoSpace, format!("the task's files cannot be written below {base}")),
            "is-file" => error(ErrorKind::AlreadyExists, "a file stands where an input file needs a directory".to_owned()),
            "is-directory" => error(ErrorKind::IsADirectory, "an input file has the name of a directory".to_owned()),
            _ => Err(unclear("run code")),
        }
    }

    fn request(&self, task: &CodeTask, runtime: &Runtime, prepared: &Prepared, time: Option<Duration>) -> ExecRequest {
        let settings = &self.settings;
        let limits = [
            task.limits.cpu.map(|cpu| cpu.as_secs().max(1)),
            task.limits.memory.or(settings.memory).map(|bytes| bytes.div_ceil(1024)),
            task.limits.file_size.or(settings.file_size).map(|bytes| bytes.div_ceil(512)),
            task.limits.open_files.or(settings.open_files),
        ];
        let mut argv: Vec<Vec<u8>> = Vec::new();
        if limits.iter().any(Option::is_some) {
            argv.extend(["/bin/sh", "-c", script::LIMITS, "sh"].map(|arg| arg.as_bytes().to_vec()));
            argv.extend(limits.map(|limit| limit.map(decimal).unwrap_or_default()));
        }
        // What is not known yet is checked as if it were there.
        let known = |text: &str| if text.is_empty() { b"/".to_vec() } else { text.as_bytes().to_vec() };
        argv.push(known(&prepared.program));
        argv.extend(runtime.args.iter().map(|arg| arg.clone().into_bytes()));
        argv.push(known(&prepared.code_file));
        let mut request = ExecRequest::new(argv).cwd(known(&prepared.directory)).kill_leftovers();
        request.env = task.env.iter().map(|(key, value)| (key.clone().into_bytes(), value.clone().into_bytes())).collect();
        request.timeout = time;
        request.output_limit = task.limits.output;
        match &task.stdin {
            Some(stdin) => request.stdin_bytes(stdin.clone()),
            None => request,
        }
    }

    async fn left(&self, place: &Place, before: &Listing) -> Result<(Vec<CreatedFile>, Option<String>)> {
        const OPERATION: &str = "list files of the task";
        let session = place.session_hash.clone().unwrap_or_default();
        let mut args = vec![self.base(), place.hash.clone().into(), place.directory.clone().into(), session.into()];
        args.extend([decimal(HASHED_FIRST), decimal(HASHED_LATER)]);
        let mut answer = Script::new(OPERATION, script::AFTER, args).try_run(self.sandbox.as_ref()).await?;
        match answer.head(Answer::text)?.as_str() {
            "files" => Ok(Listing::read(&mut answer).changed_since(before)),
            "no-base" | "no-directory" => Ok((Vec::new(), Some("the task removed its own directory".to_owned()))),
            _ => Err(unclear(OPERATION)),
        }
    }
}

impl fmt::Debug for CodeRunner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CodeRunner").field("sandbox", &self.sandbox.name()).field("settings", &self.settings).finish()
    }
}

/// Where a task runs.
struct Place {
    hash: String,
    /// Below the base, or `.` for the sandbox's working directory.
    directory: String,
    session_hash: Option<String>,
}

impl Place {
    fn of(task: &CodeTask) -> Self {
        let hash = task_hash(task, SystemTime::now());
        let session_hash = task.session.as_ref().map(|name| short(name.as_bytes()));
        let directory = match (&session_hash, task.private_dir) {
            (_, false) => ".".to_owned(),
            (Some(session), true) => format!("s-{session}"),
            (None, true) => hash.clone(),
        };
        Self { hash, directory, session_hash }
    }

    fn code_file(&self, runtime: &Runtime) -> String {
        let dot = if runtime.extension.is_empty() { "" } else { "." };
        format!(".task-{}{dot}{}", self.hash, runtime.extension)
    }
}

/// What the machine said of a task's place.
#[derive(Default)]
struct Prepared {
    program: String,
    directory: String,
    code_file: String,
    before: Listing,
}

/// A path below the task's directory.
fn check_name(operation: &'static str, name: &[u8]) -> Result<()> {
    let shown = || name.escape_ascii().to_string().chars().take(80).collect::<String>();
    let part = |part: &[u8]| !part.is_empty() && part != b".." && part != b"." && part.len() <= 255;
    if name.is_empty() || name.len() > 1024 || name.contains(&0) || !name.split(|byte| *byte == b'/').all(part) {
        let message = format!("\"{}\" is not the name of a file below the task's directory", shown());
        return Err(invalid(operation, message).with_help("use a relative path without `..`"));
    }
    Ok(())
}

/// No file can be in another one.
fn check_names(operation: &'static str, task: &CodeTask) -> Result<()> {
    let above = |name: &str| name.match_indices('/').any(|(end, _)| task.files.contains_key(&name[..end]));
    match task.files.keys().find(|name| above(name)) {
        Some(name) => {
            let shown: String = name.escape_debug().take(80).collect();
            Err(invalid(operation, format!("\"{shown}\" is below another input file")).with_help("give one of them another name"))
        }
        None => Ok(()),
    }
}

fn invalid(operation: &'static str, message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, operation, message)
}

fn decimal(number: u64) -> Vec<u8> {
    number.to_string().into_bytes()
}

/// Why a program did not succeed, in words.
fn explain(result: &ExecResult, time: Option<Duration>) -> Option<String> {
    Some(match result.outcome() {
        Outcome::Exited(0) => return None,
        Outcome::Exited(code) => format!("the program exited with status {code}"),
        Outcome::Signaled(signal) => format!("the program was ended by signal {signal}"),
        Outcome::Killed(KillReason::Timeout) => match time {
            Some(time) => format!("the program was killed: it took longer than {} s", time.as_secs_f64()),
            None => "the program was killed: its time was up".to_owned(),
        },
        Outcome::Killed(KillReason::Lifetime) => "the program was killed: the sandbox's lifetime is over".to_owned(),
        Outcome::Killed(KillReason::Idle) => "the program was killed: it was silent too long".to_owned(),
        Outcome::Killed(KillReason::OutputLimit) => "the program was killed: it printed more than it may".to_owned(),
        Outcome::Killed(KillReason::Memory) => "the program was killed: the sandbox ran out of memory".to_owned(),
        Outcome::Killed(KillReason::Cancelled) => "the program was killed: the call was cancelled".to_owned(),
        Outcome::NotStarted { cause, .. } => format!("the program never ran ({cause:?})"),
        Outcome::Lost => "the machine went away; the program may have run".to_owned(),
    })
}
