//! What is not declared is refused as `Unsupported`, before any side effect.

use std::collections::BTreeSet;
use std::time::Duration;

use tierbox_core::{
    ByteReader, DialTarget, ErrorKind, ExecId, ExecRequest, KillReason, Limit, Limits, PtySize, ReadOptions, Result, SandboxExt,
    Signal, WriteOptions,
};

use crate::case::{Case, Fail, Need, Verdict, ensure, ensure_kind};
use crate::subject::Subject;

/// The case for a capability that is not declared, where there is something to refuse.
pub(super) fn case(need: Need, missing: BTreeSet<Need>) -> Option<Case> {
    if !can_be_refused(need) {
        return None;
    }
    let name = format!("conformance::undeclared::{}", need.name());
    Some(Case::new(name, "What is not declared is Unsupported, before any side effect.", &[], move |subject| {
        let missing = missing.clone();
        async move { refused_or_kept(subject, need, &missing).await }
    }))
}

/// Whether some call asks for it. The others describe what is there.
fn can_be_refused(need: Need) -> bool {
    use Need::{Isolation, LocalMachine, MemoryOutcome, Mounts, StreamingOutput, TreeKill, Usage};
    !matches!(need, Isolation | LocalMachine | MemoryOutcome | Mounts | StreamingOutput | TreeKill | Usage)
}

async fn refused_or_kept(s: Subject, need: Need, missing: &BTreeSet<Need>) -> Verdict {
    if !s.can(need) {
        return refused(&s, need).await;
    }
    // This sandbox declares more than its backend's minimum, and is held to it. Cases that also need another capability
    // beyond the minimum run with the last of those.
    let due = |case: &Case| {
        let beyond: Vec<Need> =
            case.needs.iter().copied().filter(|need| missing.contains(need) && can_be_refused(*need)).collect();
        beyond.last() == Some(&need)
    };
    for case in super::all().into_iter().filter(|case| case.is_met(s.capabilities()) && due(case)) {
        let mut fresh = Subject::new(s.environment.clone(), s.factory.clone()).await?;
        fresh.patience = s.patience;
        match case.run(fresh).await {
            Ok(()) | Err(Fail::Skipped { .. }) => (),
            Err(Fail::Broken(message)) => return Err(Fail::Broken(format!("{}: {message}", case.name))),
        }
    }
    Ok(())
}

async fn refused(s: &Subject, need: Need) -> Verdict {
    match need {
        Need::StreamingStdin => exec(s, |request| request.stdin_stream()).await,
        Need::Pty => exec(s, |request| request.pty(PtySize { rows: 24, cols: 80 })).await,
        Need::IdleTimeout => exec(s, |request| request.idle_timeout(Duration::from_secs(5))).await,
        Need::ConfinedExec => exec(s, |request| request.confine([])).await,
        Need::AnyUser => another_user(s).await,
        Need::Signals => signals(s).await,
        Need::DetachedExec => detached(s).await,
        Need::Files => files(s).await,
        Need::Archives => archives(s).await,
        Need::Dial => ensure_kind(s.sandbox.dial(DialTarget::Tcp(80)).await.map(drop), ErrorKind::Unsupported, "dial"),
        Need::LimitMemory => limit(s, "memory", |limits| super::limits::memory(limits, Limit::required(96 << 20))).await,
        Need::LimitCpu => limit(s, "cpu", |limits| limits.cpu_millis = Some(Limit::required(500))).await,
        Need::LimitPids => limit(s, "pids", |limits| limits.pids = Some(Limit::required(64))).await,
        Need::LimitDisk => limit(s, "disk", |limits| limits.disk = Some(Limit::required(8 << 20))).await,
        Need::LimitInodes => limit(s, "inodes", |limits| limits.inodes = Some(Limit::required(300))).await,
        Need::LimitFileSize => limit(s, "file", |limits| limits.file_size = Some(Limit::required(1 << 20))).await,
        Need::LimitOpenFiles => limit(s, "open", |limits| limits.open_files = Some(Limit::required(77))).await,
        _ => Ok(()),
    }
}

async fn exec(s: &Subject, ask: impl Fn(ExecRequest) -> ExecRequest) -> Verdict {
    ensure_kind(s.sandbox.run(ask(s.shell("touch ran"))).await, ErrorKind::Unsupported, "an exec that asks for it")?;
    ensure!(!s.exists("ran").await?, "the command ran all the same");
    Ok(())
}

async fn another_user(s: &Subject) -> Verdict {
    let own = s.text("id -un").await?;
    let other = if own == "root" { "nobody" } else { "root" };
    exec(s, |request| request.user(other)).await
}

async fn signals(s: &Subject) -> Verdict {
    let mut handle = s.spawn(ExecRequest::new(["sleep", "1000"])).await?;
    ensure_kind(handle.signal(Signal::TERM).await, ErrorKind::Unsupported, "a signal")?;
    handle.kill(KillReason::Cancelled);
    s.outcome(&mut handle).await?;
    Ok(())
}

async fn detached(s: &Subject) -> Verdict {
    let id = ExecId([1; 16]);
    let started = s.sandbox.spawn_detached(s.shell("touch ran")).await;
    ensure_kind(started, ErrorKind::Unsupported, "a detached exec")?;
    ensure!(!s.exists("ran").await?, "the command ran all the same");
    ensure_kind(s.sandbox.execs().await, ErrorKind::Unsupported, "a list of commands")?;
    ensure_kind(s.sandbox.attach(id, 0, 0).await.map(drop), ErrorKind::Unsupported, "attach")?;
    ensure_kind(s.sandbox.signal(id, Signal::TERM).await, ErrorKind::Unsupported, "a signal by id")?;
    ensure_kind(s.sandbox.kill(id, KillReason::Cancelled).await, ErrorKind::Unsupported, "a kill by id")?;
    ensure_kind(s.sandbox.wait(id).await, ErrorKind::Unsupported, "a wait by id")
}

async fn files(s: &Subject) -> Verdict {
    let unsupported = |what: &str, result: Result<()>| ensure_kind(result, ErrorKind::Unsupported, what);
    let empty: ByteReader = Box::new(tokio::io::empty());
    unsupported("write", s.sandbox.write(&s.path("made"), empty, WriteOptions::default()).await)?;
    unsupported("make_dir", s.sandbox.make_dir(&s.path("made")).await)?;
    ensure!(!s.exists("made").await?, "something was made all the same");
    unsupported("read", s.sandbox.read(&s.path("x"), ReadOptions::default()).await.map(drop))?;
    unsupported("stat", s.sandbox.stat(&s.path("x"), true).await.map(drop))?;
    unsupported("list", s.sandbox.list(&s.path("x")).await.map(drop))?;
    unsupported("remove", s.sandbox.remove(&s.path("x"), true).await)
}

async fn archives(s: &Subject) -> Verdict {
    let empty: ByteReader = Box::new(tokio::io::empty());
    ensure_kind(s.sandbox.unpack(&s.path("made"), empty).await, ErrorKind::Unsupported, "unpack")?;
    ensure!(!s.exists("made").await?, "a directory was made all the same");
    ensure_kind(s.sandbox.pack(&s.path("x")).await.map(drop), ErrorKind::Unsupported, "pack")
}

/// A required limit that cannot be enforced refuses the start, by name.
async fn limit(s: &Subject, name: &str, ask: impl Fn(&mut Limits) + Send + Sync) -> Verdict {
    let started = s.factory.start(&|spec| ask(&mut spec.limits)).await;
    if let Ok(environment) = &started {
        environment.stop().await?;
    }
    let named = started.as_ref().is_err_and(|error| error.to_string().contains(name));
    ensure_kind(started.map(drop), ErrorKind::LimitRefused, &format!("a start that requires a limit on {name}"))?;
    ensure!(named, "the refusal does not name {name}");
    Ok(())
}
