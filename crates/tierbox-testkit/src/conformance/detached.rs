//! Commands that outlive their client.

use std::time::Duration;

use tierbox_core::{ErrorKind, ExecId, ExecRequest, ExecState, KillReason, Outcome, Signal};
use tokio::io::AsyncReadExt;

use super::streaming::read_until;
use super::timeouts::scatter;
use crate::case::{Fail, Verdict, ensure, ensure_eq, ensure_kind};
use crate::subject::{Mark, Subject};

cases! { "detached":
    they_are_listed [DetachedExec] "Detached commands are listed with argv and state, running and ended.";
    wait_by_id [DetachedExec] "A detached command can be waited for by id, again and again.";
    output_is_kept [DetachedExec] "Its output is kept and read from the start, also after its end.";
    attach_from_a_cursor [DetachedExec] "Attaching from a byte position gives the bytes from there.";
    attach_follows [DetachedExec] "Attaching to a running command follows it live, for several at once.";
    the_last_mebibyte_is_kept [DetachedExec] "Of much output the last MiB per stream is kept, and the command is not held up.";
    dropping_an_attached_handle_kills_nothing [DetachedExec] "Dropping an attached handle does not kill the command.";
    signal_by_id [DetachedExec] "A signal by id reaches the command.";
    kill_by_id [DetachedExec] "A kill by id takes the whole tree.";
    unknown_ids_are_not_found [DetachedExec] "An unknown id is NotFound for attach, signal, kill and wait.";
    timeouts_hold [DetachedExec] "A detached command's time limit holds without a client.";
    commands_that_never_ran_are_errors [DetachedExec] "A detached command that never ran is an error, not an id.";
    ended_ids_take_no_signal [DetachedExec] "Signal and kill by an id that has ended are NotFound.";
}

fn missing() -> Fail {
    Fail::Broken("a stream of the handle is missing".to_owned())
}

async fn start(s: &Subject, script: impl AsRef<[u8]>) -> Verdict<ExecId> {
    Ok(s.soon("a detached launch", s.sandbox.spawn_detached(s.shell(script))).await??)
}

async fn wait(s: &Subject, id: ExecId) -> Verdict<Outcome> {
    Ok(s.soon("the end of a detached command", s.sandbox.wait(id)).await??.outcome)
}

async fn they_are_listed(s: Subject) -> Verdict {
    let mark = Mark::new();
    let running = start(&s, mark.sleep()).await?;
    let ended = start(&s, "exit 4").await?;
    wait(&s, ended).await?;
    let list = s.sandbox.execs().await?;
    let find = |id| list.iter().find(|info| info.id == id);
    let (Some(running_info), Some(ended_info)) = (find(running), find(ended)) else {
        return Err(Fail::Broken(format!("not all are listed: {list:?}")));
    };
    ensure!(running_info.state == ExecState::Running && running_info.detached, "the running one: {running_info:?}");
    ensure_eq!(running_info.argv.last(), Some(&mark.sleep().into_bytes()), "the running one's last argument");
    ensure!(
        matches!(ended_info.state, ExecState::Ended(done) if done.outcome == Outcome::Exited(4)),
        "the ended one: {ended_info:?}"
    );
    s.sandbox.kill(running, KillReason::Cancelled).await?;
    s.gone(mark).await
}

async fn wait_by_id(s: Subject) -> Verdict {
    let id = start(&s, "sleep 0.2; exit 7").await?;
    for _ in 0..2 {
        ensure_eq!(wait(&s, id).await?, Outcome::Exited(7), "outcome");
    }
    Ok(())
}

async fn output_from(s: &Subject, id: ExecId, stdout: u64, stderr: u64) -> Verdict<(Vec<u8>, Vec<u8>)> {
    let mut handle = s.soon("an attach", s.sandbox.attach(id, stdout, stderr)).await??;
    let (mut out, mut err) = (handle.take_stdout().ok_or_else(missing)?, handle.take_stderr().ok_or_else(missing)?);
    let (mut seen, mut complaint) = (Vec::new(), Vec::new());
    let both = async { tokio::try_join!(out.read_to_end(&mut seen), err.read_to_end(&mut complaint)) };
    s.soon("the end of the output", both).await??;
    Ok((seen, complaint))
}

async fn output_is_kept(s: Subject) -> Verdict {
    let id = start(&s, "echo out; echo err >&2").await?;
    wait(&s, id).await?;
    for _ in 0..2 {
        ensure_eq!(output_from(&s, id, 0, 0).await?, (b"out\n".to_vec(), b"err\n".to_vec()), "the kept output");
    }
    Ok(())
}

async fn attach_from_a_cursor(s: Subject) -> Verdict {
    let id = start(&s, "printf 0123456789; printf abcdef >&2").await?;
    wait(&s, id).await?;
    ensure_eq!(output_from(&s, id, 4, 6).await?, (b"456789".to_vec(), Vec::new()), "output from 4 and 6");
    Ok(())
}

async fn attach_follows(s: Subject) -> Verdict {
    let id = start(&s, "echo one; while ! test -e go; do sleep 0.02; done; echo two; exit 3").await?;
    let mut followers = Vec::new();
    for _ in 0..2 {
        let mut handle = s.soon("an attach", s.sandbox.attach(id, 0, 0)).await??;
        let mut out = handle.take_stdout().ok_or_else(missing)?;
        read_until(&s, &mut out, "one").await?;
        followers.push((handle, out));
    }
    s.sh("touch go").await?;
    for (mut handle, mut out) in followers {
        read_until(&s, &mut out, "two").await?;
        ensure_eq!(s.outcome(&mut handle).await?, Outcome::Exited(3), "outcome");
    }
    Ok(())
}

async fn the_last_mebibyte_is_kept(s: Subject) -> Verdict {
    let id = start(&s, "head -c 5000000 /dev/zero; printf end").await?;
    ensure_eq!(wait(&s, id).await?, Outcome::Exited(0), "outcome");
    let (out, _) = output_from(&s, id, 0, 0).await?;
    ensure!(out.ends_with(b"\0end"), "the last bytes are missing");
    ensure!((512 << 10..=1 << 20).contains(&out.len()), "{} bytes are kept", out.len());
    Ok(())
}

async fn dropping_an_attached_handle_kills_nothing(s: Subject) -> Verdict {
    let mark = Mark::new();
    let id = start(&s, mark.sleep()).await?;
    drop(s.sandbox.attach(id, 0, 0).await?);
    tokio::time::sleep(Duration::from_millis(200)).await;
    ensure!(s.alive(mark).await?, "the command died");
    s.sandbox.kill(id, KillReason::Cancelled).await?;
    Ok(())
}

async fn signal_by_id(s: Subject) -> Verdict {
    let id = start(&s, "trap 'exit 12' TERM; touch ready; while :; do sleep 0.02; done").await?;
    s.until(s.patience, "the command is ready", || s.exists("ready")).await?;
    s.sandbox.signal(id, Signal::TERM).await?;
    ensure_eq!(wait(&s, id).await?, Outcome::Exited(12), "outcome");
    Ok(())
}

async fn kill_by_id(s: Subject) -> Verdict {
    let mark = Mark::new();
    let id = start(&s, format!("{} sleep 1000", scatter(mark))).await?;
    s.until(s.patience, "the children run", || s.alive(mark)).await?;
    s.sandbox.kill(id, KillReason::Cancelled).await?;
    ensure_eq!(wait(&s, id).await?, Outcome::Killed(KillReason::Cancelled), "outcome");
    s.gone(mark).await
}

async fn unknown_ids_are_not_found(s: Subject) -> Verdict {
    let id = ExecId([0x5a; 16]);
    ensure_kind(s.sandbox.attach(id, 0, 0).await.map(drop), ErrorKind::NotFound, "attach")?;
    ensure_kind(s.sandbox.signal(id, Signal::TERM).await, ErrorKind::NotFound, "signal")?;
    ensure_kind(s.sandbox.kill(id, KillReason::Cancelled).await, ErrorKind::NotFound, "kill")?;
    let waited = s.soon("the refusal to wait", s.sandbox.wait(id)).await?;
    ensure_kind(waited, ErrorKind::NotFound, "wait")
}

async fn timeouts_hold(s: Subject) -> Verdict {
    let request = ExecRequest::new(["sleep", "1000"]).timeout(Duration::from_millis(250));
    let id = s.sandbox.spawn_detached(request).await?;
    ensure_eq!(wait(&s, id).await?, Outcome::Killed(KillReason::Timeout), "outcome");
    Ok(())
}

async fn commands_that_never_ran_are_errors(s: Subject) -> Verdict {
    let request = ExecRequest::new(["/bin/true"]).cwd(s.path("missing"));
    let started = s.soon("the refusal", s.sandbox.spawn_detached(request)).await?;
    ensure!(started.is_err(), "a detached command in a missing directory got an id");
    Ok(())
}

async fn ended_ids_take_no_signal(s: Subject) -> Verdict {
    let id = start(&s, "exit 0").await?;
    wait(&s, id).await?;
    ensure_kind(s.sandbox.signal(id, Signal::TERM).await, ErrorKind::NotFound, "signal")?;
    ensure_kind(s.sandbox.kill(id, KillReason::Cancelled).await, ErrorKind::NotFound, "kill")
}
