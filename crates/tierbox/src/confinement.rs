//! What T1's named programs really are in a machine, and whether its kernel keeps the agent to them.

use std::time::Duration;

use tierbox_core::{
    AgentPolicy, Error, ErrorKind, ExecRequest, FileKind, GuestPath, NotStartedCause, Outcome, ReadOptions, Result, Sandbox,
    SandboxExt, elf_loader,
};
use tokio::io::AsyncReadExt;

/// How many links are followed.
const MOST_LINKS: usize = 16;

/// How much of a program is read to find its loader's name: linkers put it right behind the header.
const HEAD: u64 = 64 << 10;

/// The errno of a program that may not be executed.
const EACCES: i32 = 13;

/// The files that the agent's commands may execute in a machine: the named programs and their loaders.
///
/// # Errors
/// `TierRefused` if the machine cannot keep a command to them; `PolicyDenied` for a program that is something else there.
pub(crate) async fn executables(sandbox: &dyn Sandbox, policy: &AgentPolicy) -> Result<Vec<GuestPath>> {
    let (found, first) = found(sandbox, policy).await?;
    if let Some(program) = first {
        try_out(sandbox, &program).await?;
    }
    Ok(found)
}

/// The same files, without having shown that the machine keeps anybody to them.
///
/// # Errors
/// `PolicyDenied` for a program that is something else there.
#[cfg(target_os = "linux")]
pub(crate) async fn named(sandbox: &dyn Sandbox, policy: &AgentPolicy) -> Result<Vec<GuestPath>> {
    Ok(found(sandbox, policy).await?.0)
}

/// The files, and the first of the named programs that the machine has.
async fn found(sandbox: &dyn Sandbox, policy: &AgentPolicy) -> Result<(Vec<GuestPath>, Option<String>)> {
    let mut found: Vec<GuestPath> = Vec::new();
    let mut add = |path: GuestPath| {
        if !found.contains(&path) {
            found.push(path)
        }
    };
    let mut first = None;
    for program in policy.programs() {
        let Some((real, loader)) = resolve(sandbox, policy, program).await? else { continue };
        first.get_or_insert_with(|| program.to_owned());
        add(real);
        loader.into_iter().for_each(&mut add);
    }
    Ok((found, first))
}

/// A program without its links, and its loader; `None` if the machine does not have it.
async fn resolve(sandbox: &dyn Sandbox, policy: &AgentPolicy, program: &str) -> Result<Option<(GuestPath, Option<GuestPath>)>> {
    let mut path = program.to_owned();
    for _ in 0..MOST_LINKS {
        let meta = match sandbox.stat(&path.as_str().into(), false).await {
            Ok(meta) => meta,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        policy.check_resolved(program, &path)?;
        match (meta.kind, meta.target) {
            (FileKind::File, _) => {
                let loader = loader(sandbox, program, &path).await?;
                return Ok(Some((path.into(), loader)));
            }
            (FileKind::Symlink, Some(target)) => path = follow(&path, &String::from_utf8_lossy(&target)),
            _ => break,
        }
    }
    Err(refused(format!("{program} leads to no program in this machine")))
}

fn follow(link: &str, target: &str) -> String {
    match (target.starts_with('/'), link.rsplit_once('/')) {
        (false, Some((directory, _))) => format!("{directory}/{target}"),
        _ => target.to_owned(),
    }
}

async fn loader(sandbox: &dyn Sandbox, program: &str, path: &str) -> Result<Option<GuestPath>> {
    let options = ReadOptions { length: Some(HEAD), ..ReadOptions::default() };
    let (_, reader) = sandbox.read(&path.into(), options).await?;
    let mut head = Vec::new();
    reader.take(HEAD).read_to_end(&mut head).await.map_err(|error| Error::io("read program", error))?;
    let loader = elf_loader(&head).map_err(|error| {
        refused(format!("{program} cannot be named at T1: {}", error.message()))
            .with_help("a script is run by its interpreter: name programs that are none")
    })?;
    Ok(loader.map(GuestPath::from))
}

/// Has the kernel refuse one of the programs, where nothing may be executed: a positive control of what T1 rests on.
async fn try_out(sandbox: &dyn Sandbox, program: &str) -> Result<()> {
    let request = ExecRequest::new([program]).confine([]).timeout(Duration::from_secs(10)).env_clear();
    let tried = match sandbox.run(request).await {
        Ok(tried) => tried,
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            return Err(refused("this machine is not served by the supervisor"));
        }
        Err(error) => return Err(error),
    };
    match (tried.outcome(), tried.completed.cannot_execute) {
        (Outcome::Exited(126), Some(EACCES)) => Ok(()),
        (Outcome::NotStarted { cause: NotStartedCause::Unconfined, .. }, _) => {
            Err(refused("its kernel has no Landlock, or too old a one"))
        }
        (outcome, _) => Err(refused(format!("a program that may not be executed {outcome}"))),
    }
}

fn refused(why: impl Into<String>) -> Error {
    let message = format!("T1 is refused: the kernel cannot be shown to keep commands to the named programs: {}", why.into());
    Error::new(ErrorKind::TierRefused, "restrict agent", message)
        .with_help("T2 (no execution) needs nothing of the machine; T1 needs Linux 6.2 or later with Landlock turned on")
}
