//! Processes that will not go, or go for others.

use std::time::Duration;

use tierbox_core::{ExecRequest, GuestPath, KillReason, Leftovers, Limit, NotStartedCause, Outcome, SandboxExt, elf_loader};

use super::{Canary, attacks, needs_the_hosts_kernel};
use crate::attack::{findings, install, nothing_leaked};
use crate::case::{Fail, Verdict, ensure, ensure_eq, skip};
use crate::subject::{Mark, Subject, number, within};

attacks! { "processes":
    e14_double_forks [TreeKill] "Double-forked, setsid children with every descriptor closed die with the timeout.";
    e14_after_killing_the_shim [TreeKill, Isolation] "The same, after the command has killed its own parent.";
    e14_after_killing_the_supervisor [TreeKill, LocalMachine] "If the command can kill its supervisor, nothing of it survives on the host.";
    e15_held_stdout [] "A grandchild that holds stdout does not hold the call.";
    e16_stubborn_processes [TreeKill] "Processes that ignore TERM, or are stopped, die when cancelled.";
    e17_fork_bomb [LimitPids] "A fork bomb ends, and the next exec works.";
    e18_orphans [Files] "Ten thousand orphans are reaped.";
    e19_kill_everything [Isolation] "kill -9 -1 and signals to pid 1 do not end the sandbox.";
    e19_kill_everything_as_root [Isolation, AnyUser] "Nor as root inside.";
    e20_spy_on_pid_1 [Isolation, Files] "pid 1 cannot be traced, read or opened.";
    e20_spy_on_pid_1_as_root [Isolation, Files, AnyUser] "Nor by root inside.";
    e20_spy_on_others [Isolation, Files, AnyUser] "Another user's command cannot be traced, read or opened.";
    e21_ends_that_race [] "When exit and timeout fall together there is exactly one outcome, a thousand times.";
    e23_client_leaves_mid_stream [TreeKill] "A client that leaves in the middle of a stream leaves no process.";
    e24_setuid [Isolation] "A setuid file gives nobody's rights.";
    e24_setuid_of_root [Isolation, AnyUser] "Not even one that root inside made.";
    e25_overwrite_the_runner [Isolation, Files] "The supervisor's own executable cannot be overwritten.";
    e53_loader [ConfinedExec, Files] "A command that is kept to named executables starts no other file by their loader.";
}

/// The loader starts any file that it is told to, whatever may be executed.
async fn e53_loader(s: Subject, _: Canary) -> Verdict {
    s.sh("cp /bin/cat own; chmod 755 own; echo caught > file").await?;
    let shell = s.text("readlink -f /bin/sh").await?;
    let head = s.sandbox.read_bytes(shell.as_str(), 64 << 20).await?;
    let Some(loader) = elf_loader(&head)? else { return skip("the machine's shell has no loader") };
    let loader = String::from_utf8_lossy(&loader).into_owned();
    ensure_eq!(s.text(&format!("{loader} ./own file")).await?, "caught", "the same without being kept to anything");
    let named = [GuestPath::from(shell), GuestPath::from(loader.clone())];
    let starts = ["", "exec ", "--library-path / ", "--preload ./own ", "--argv0 sh "].map(|with| match with {
        "exec " => format!("(exec {loader} ./own file)"),
        with => format!("{loader} {with}./own file"),
    });
    let script = starts.map(|start| format!("{start} </dev/null 2>/dev/null & wait; {start} 2>/dev/null; ")).concat();
    let result = s.run(s.shell(script + "echo end").confine(named)).await?;
    if result.outcome() == (Outcome::NotStarted { cause: NotStartedCause::Unconfined, retryable: false }) {
        return skip("the machine's kernel has no Landlock, or it is turned off");
    }
    ensure_eq!(result.stdout.text(), "end\n", "what it printed");
    Ok(())
}

/// Children that are nobody's: another session, adopted, without any descriptor.
fn hidden(mark: Mark) -> String {
    let sleep = mark.sleep();
    format!("(setsid sh -c '({sleep} <&- >&- 2>&- &) ; exec {sleep} <&- >&- 2>&-' <&- >&- 2>&- &); ({sleep} <&- >&- 2>&- &) ")
}

async fn e14_double_forks(s: Subject, _: Canary) -> Verdict {
    timed(&s, "").await
}

async fn e14_after_killing_the_shim(s: Subject, _: Canary) -> Verdict {
    let own = s.another(&|_| ()).await?;
    timed(&own, "kill -9 $PPID 2>/dev/null; ").await?;
    ensure_eq!(own.text("echo works").await?, "works", "the next command");
    own.stop().await
}

async fn timed(s: &Subject, first: &str) -> Verdict {
    for order in [[first, ""], ["", first]] {
        let mark = Mark::new();
        let script = format!("{}{}; sleep 0.2; {}sleep 1000", order[0], hidden(mark), order[1]);
        let result = s.run(ExecRequest::shell(script).timeout(Duration::from_millis(400))).await?;
        ensure!(
            !matches!(result.outcome(), Outcome::Exited(0) | Outcome::NotStarted { .. }),
            "the command ended as {}",
            result.outcome()
        );
        s.gone(mark).await?;
    }
    Ok(())
}

async fn e14_after_killing_the_supervisor(s: Subject, _: Canary) -> Verdict {
    let own = s.another(&|_| ()).await?;
    let mark = Mark::new();
    // It strikes when all of its processes were seen.
    let wait = "until [ -e seen ]; do sleep 0.01; done";
    let script = format!("{}; {wait}; kill -9 $PPID; p=$(ps -o ppid= -p $PPID); kill -9 $p; sleep 1000", hidden(mark));
    let mut handle = own.spawn(own.shell(script)).await?;
    own.until(own.patience, "the processes run", || async { Ok(mark.is_on_host()) }).await?;
    own.write("seen", "").await?;
    // Where it reaches nobody, it is ended as any other.
    let _ = tokio::time::timeout(Duration::from_secs(1), handle.wait()).await;
    handle.kill(KillReason::Cancelled);
    own.outcome(&mut handle).await?;
    own.stop().await?;
    own.until(own.patience, "nothing survives on the host", || async { Ok(!mark.is_on_host()) }).await
}

async fn e15_held_stdout(s: Subject, _: Canary) -> Verdict {
    let mark = Mark::new();
    let result = s.run(ExecRequest::shell(format!("(setsid {} &); echo said", mark.sleep()))).await?;
    ensure_eq!((result.outcome(), result.stdout.bytes()), (Outcome::Exited(0), b"said\n".to_vec()), "outcome and output");
    Ok(())
}

async fn e16_stubborn_processes(s: Subject, _: Canary) -> Verdict {
    let mark = Mark::new();
    let script = format!(
        "trap '' TERM INT HUP QUIT USR1 USR2; {} & kill -STOP $!; {}; while :; do sleep 1; done",
        mark.sleep(),
        hidden(mark)
    );
    let mut handle = s.spawn(ExecRequest::shell(script)).await?;
    s.until(s.patience, "the processes run", || s.alive(mark)).await?;
    handle.kill(KillReason::Cancelled);
    ensure_eq!(s.outcome(&mut handle).await?, Outcome::Killed(KillReason::Cancelled), "outcome");
    s.gone(mark).await
}

async fn e17_fork_bomb(s: Subject, _: Canary) -> Verdict {
    let own = s.another(&|spec| spec.limits.pids = Some(Limit::required(200))).await?;
    let mut request = ExecRequest::shell("b() { b | b & }; b 2>/dev/null; sleep 1000").timeout(Duration::from_millis(700));
    request.leftovers = Leftovers::Kill;
    let bomb = own.run(request).await?;
    ensure!(!bomb.success(), "the fork bomb ended well: {bomb:?}");
    own.until(own.patience, "the next command works", || async {
        Ok(own.run(ExecRequest::shell("echo works")).await?.success())
    })
    .await?;
    let count = || async { Ok::<u32, Fail>(own.text("ls -d /proc/[0-9]* | wc -l").await?.parse().unwrap_or(u32::MAX)) };
    own.until(own.patience, "the bomb's processes are gone", || async { Ok(count().await? < 20) }).await?;
    own.stop().await
}

async fn e18_orphans(s: Subject, _: Canary) -> Verdict {
    let own = s.another(&|_| ()).await?;
    let program = install(&own).await?;
    // Under a name of their own: without a pid namespace everybody's dead are seen.
    let name = format!("o{}", number() % 1_000_000_000);
    own.sh(format!("ln {program} {name}")).await?;
    // An emulated processor takes milliseconds for each.
    let limit = s.scaled(Duration::from_secs(60));
    let made = own.sandbox.run(own.shell(format!("exec ./{name} orphans 10000")));
    let result = within(limit, "ten thousand orphans", made).await??;
    ensure_eq!(result.stdout.bytes(), b"made 10000\n".to_vec(), "what was made");
    let zombies = || async { own.text(format!("cat /proc/[0-9]*/stat 2>/dev/null | grep -c '({name}) Z '; :")).await };
    own.until(own.patience, "every orphan is reaped", || async { Ok(zombies().await? == "0") }).await?;
    own.stop().await
}

async fn e19_kill_everything(s: Subject, _: Canary) -> Verdict {
    kill_everything(&s, None).await
}

async fn e19_kill_everything_as_root(s: Subject, _: Canary) -> Verdict {
    needs_the_hosts_kernel(&s)?;
    kill_everything(&s, Some("root")).await
}

async fn kill_everything(s: &Subject, user: Option<&str>) -> Verdict {
    let own = s.another(&|_| ()).await?;
    own.sh("echo kept > file").await?;
    for script in [
        "kill -9 1",
        "kill -TERM 1; kill -INT 1; kill -HUP 1; kill -SEGV 1; kill -ABRT 1; kill -USR1 1",
        "kill -STOP 1",
        "kill -9 -1",
        "kill -STOP -1",
    ] {
        let mut request = ExecRequest::shell(format!("{script}; exit 0")).timeout(Duration::from_secs(2));
        request.user = user.map(str::to_owned);
        let _ = own.run(request).await?;
        ensure_eq!(own.text("cat file").await?, "kept", "the next command after {script}");
        // A file worker may have been killed with the rest: one more call at most, and it serves again.
        let _ = own.sandbox.read_bytes(own.path("file"), 100).await;
        ensure_eq!(own.read("file").await?, b"kept\n".to_vec(), "the file after {script}");
    }
    own.stop().await
}

async fn e20_spy_on_pid_1(s: Subject, _: Canary) -> Verdict {
    nothing_leaked(&findings(&s, |request| request, &["pid1"]).await?)
}

async fn e20_spy_on_pid_1_as_root(s: Subject, _: Canary) -> Verdict {
    needs_the_hosts_kernel(&s)?;
    nothing_leaked(&findings(&s, |request| request.user("root"), &["pid1"]).await?)
}

async fn e20_spy_on_others(s: Subject, _: Canary) -> Verdict {
    let mark = Mark::new();
    let note = format!("/tmp/tierbox-pid-{}", number());
    let script = format!("echo $$ > {note}; chmod 644 {note}; exec {}", mark.sleep());
    let mut handle = s.spawn(ExecRequest::shell(script).user("root")).await?;
    s.until(s.patience, "root's command runs", || s.alive(mark)).await?;
    let pid = s.text(format!("cat {note}")).await?;
    ensure!(pid.parse::<u32>().is_ok(), "root's command told no number, so nothing was tried: {pid:?}");
    let verdict = nothing_leaked(&findings(&s, |request| request, &["other", pid.trim()]).await?);
    handle.kill(KillReason::Cancelled);
    s.outcome(&mut handle).await?;
    verdict
}

async fn e21_ends_that_race(s: Subject, _: Canary) -> Verdict {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let s = s.clone();
        tasks.spawn(async move {
            let mut seen = [0, 0];
            for _ in 0..125 {
                let mut handle = s.spawn(ExecRequest::new(["sleep", "0.008"]).timeout(Duration::from_millis(10))).await?;
                let first = s.outcome(&mut handle).await?;
                match first {
                    Outcome::Exited(0) => seen[0] += 1,
                    Outcome::Killed(KillReason::Timeout) => seen[1] += 1,
                    other => return Err(Fail::Broken(format!("a command that exits or times out ended as {other}"))),
                }
                ensure_eq!(s.outcome(&mut handle).await?, first, "the outcome, asked again");
            }
            Ok(seen)
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.map_err(|error| Fail::Broken(error.to_string()))??;
    }
    Ok(())
}

async fn e23_client_leaves_mid_stream(s: Subject, _: Canary) -> Verdict {
    use tokio::io::AsyncReadExt;
    let mark = Mark::new();
    // Where output comes at the end alone, the machine holds it meanwhile, and not without end.
    let live = s.can(crate::case::Need::StreamingOutput);
    let prints = if live { "yes" } else { "while echo y; do sleep 0.05; done" };
    let mut handle = s.spawn(ExecRequest::shell(format!("{}; {} & {prints}", hidden(mark), mark.sleep()))).await?;
    let mut stdout = handle.take_stdout().ok_or_else(|| Fail::Broken("stdout is missing".into()))?;
    if live {
        s.soon("output", stdout.read_exact(&mut [0; 100_000])).await??;
    }
    s.until(s.patience, "the processes run", || s.alive(mark)).await?;
    // The stream stays open for a moment: a command that a closed pipe ends has ended by itself, and may leave what it likes.
    drop(handle);
    s.gone(mark).await?;
    drop(stdout);
    Ok(())
}

async fn e24_setuid(s: Subject, _: Canary) -> Verdict {
    let script = "cp /usr/bin/id tool; chmod 6755 tool; ./tool -u; id -u";
    let ids = s.text(script).await?;
    let mut lines = ids.lines();
    ensure_eq!(lines.next(), lines.next(), "the ids by a setuid copy and by the plain program");
    // The machine's own setuid programs run, but as whoever calls them.
    let su = s.run(ExecRequest::new(["su", "root", "-c", "id -u"])).await?;
    ensure!(su.stdout.bytes() != b"0\n", "su made the agent root");
    Ok(())
}

async fn e24_setuid_of_root(s: Subject, _: Canary) -> Verdict {
    needs_the_hosts_kernel(&s)?;
    let name = format!("/tmp/tierbox-setuid-{}", crate::subject::number());
    let made = s
        .run(ExecRequest::shell(format!("cp /usr/bin/id {name}; chown root:root {name}; chmod 6755 {name}")).user("root"))
        .await?;
    ensure!(made.success(), "root could not make the file: {made:?}");
    ensure!(s.text(format!("{name} -u")).await? != "0", "a setuid file of root's made the agent root");
    Ok(())
}

async fn e25_overwrite_the_runner(s: Subject, _: Canary) -> Verdict {
    let own = s.another(&|_| ()).await?;
    for target in ["/proc/1/exe", "/proc/self/exe", "/usr/bin/env"] {
        let result = own.run(ExecRequest::shell(format!("cat /bin/true > {target}"))).await?;
        ensure!(!result.success(), "{target} was overwritten");
        ensure!(own.sandbox.write_bytes(target, "x").await.is_err(), "{target} was overwritten by a file operation");
    }
    ensure_eq!(own.text("echo works").await?, "works", "the next command");
    own.stop().await
}
