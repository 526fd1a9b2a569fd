//! Environments: what lasts, what is separate, and what is left.

use std::time::Duration;

use tierbox_core::{ErrorKind, ExecRequest, Outcome, ReadOptions, SandboxExt};

use super::timeouts::scatter;
use crate::case::{Verdict, ensure, ensure_eq, ensure_kind};
use crate::subject::{Mark, Subject};

cases! { "lifecycle":
    files_last [] "Files last from one exec to the next.";
    processes_last [] "Background processes last from one exec to the next.";
    stop_is_idempotent [] "stop may be called again.";
    stopped_machines_are_lost [] "After stop every operation fails as Lost, at once.";
    running_commands_are_lost [] "A command whose machine goes away is Lost.";
    nothing_is_left_alive [LocalMachine] "After stop no process of the environment is alive on the host, setsid or not.";
    files_are_separate [Isolation] "Two environments do not see each other's files.";
    processes_are_separate [Isolation] "Two environments do not see each other's processes.";
    ids_differ [] "Every environment has an id of its own.";
    report_matches_the_profile [] "The report states the profile's tier and backend, and what is really enforced.";
    machines_have_names [] "A machine is found by its name; an unknown name is NotFound and lists what there is.";
    connection_is_told [] "A person is told how to get a shell; an unknown machine is NotFound.";
    ended_tells_the_end [] "ended is false while the environment lives and true after stop.";
    a_dozen_start_at_once [] "Environments can be started at the same time.";
    unknown_settings_are_refused [] "A setting that the backend does not know is InvalidProfile, and nothing starts.";
}

async fn files_last(s: Subject) -> Verdict {
    s.sh("echo 1 > file; mkdir dir").await?;
    s.sh("echo 2 >> file; touch dir/x").await?;
    ensure_eq!(s.text("cat file; ls dir").await?, "1\n2\nx", "what the third command sees");
    Ok(())
}

async fn processes_last(s: Subject) -> Verdict {
    let mark = Mark::new();
    s.sh(format!("{} >/dev/null 2>&1 &", mark.sleep())).await?;
    for _ in 0..3 {
        s.sh("true").await?;
        ensure!(s.alive(mark).await?, "a background process is gone");
    }
    Ok(())
}

async fn stop_is_idempotent(s: Subject) -> Verdict {
    let own = s.another(&|_| ()).await?;
    own.stop().await?;
    own.stop().await?;
    own.stop().await
}

async fn stopped_machines_are_lost(s: Subject) -> Verdict {
    let own = s.another(&|_| ()).await?;
    own.write("file", "x").await.or_else(|fail| if own.capabilities().files { Err(fail) } else { Ok(()) })?;
    own.stop().await?;
    let exec = own.soon("the refusal", own.sandbox.run(ExecRequest::new(["/bin/true"]))).await?;
    match exec {
        Ok(result) => ensure_eq!(result.outcome(), Outcome::Lost, "outcome"),
        Err(error) => ensure_eq!(error.kind(), ErrorKind::Lost, "the error"),
    }
    if own.capabilities().files {
        let read = own.soon("the refusal", own.sandbox.read(&own.path("file"), ReadOptions::default())).await?;
        ensure_kind(read.map(drop), ErrorKind::Lost, "a read")?;
    }
    Ok(())
}

async fn running_commands_are_lost(s: Subject) -> Verdict {
    let own = s.another(&|_| ()).await?;
    let mut handle = own.spawn(ExecRequest::new(["sleep", "1000"])).await?;
    own.stop().await?;
    ensure_eq!(own.outcome(&mut handle).await?, Outcome::Lost, "outcome");
    Ok(())
}

async fn nothing_is_left_alive(s: Subject) -> Verdict {
    let mark = Mark::new();
    let own = s.another(&|_| ()).await?;
    own.sh(scatter(mark)).await?;
    let _running = own.spawn(ExecRequest::shell(mark.sleep())).await?;
    own.until(own.patience, "the processes show on the host", || async { Ok(mark.is_on_host()) }).await?;
    own.stop().await?;
    ensure!(!mark.is_on_host(), "a process of the environment is alive on the host after stop");
    Ok(())
}

async fn files_are_separate(s: Subject) -> Verdict {
    let own = s.another(&|_| ()).await?;
    let name = format!("/tmp/tierbox-{}", crate::subject::number());
    own.sh(format!("echo theirs > {name}; echo theirs > \"$HOME/mine\"; echo theirs > /dev/shm/mine")).await?;
    let seen = s.text(format!("cat {name} \"$HOME/mine\" /dev/shm/mine 2>/dev/null; :")).await?;
    ensure_eq!(seen, "", "what another environment's command wrote");
    own.stop().await
}

async fn processes_are_separate(s: Subject) -> Verdict {
    let mark = Mark::new();
    let own = s.another(&|_| ()).await?;
    own.sh(format!("{} >/dev/null 2>&1 &", mark.sleep())).await?;
    ensure!(own.alive(mark).await?, "the process does not show in its own environment");
    ensure!(!s.alive(mark).await?, "the process shows in another environment");
    own.stop().await
}

async fn ids_differ(s: Subject) -> Verdict {
    let own = s.another(&|_| ()).await?;
    ensure!(own.environment.id() != s.environment.id(), "both have the id {}", s.environment.id());
    ensure!(!own.environment.id().is_empty(), "the id is empty");
    own.stop().await
}

async fn report_matches_the_profile(s: Subject) -> Verdict {
    let own = s.another(&|spec| spec.reason = Some("a case".into())).await?;
    let report = own.environment.report();
    let capabilities = own.capabilities();
    ensure_eq!(report.tier.host(), capabilities.host, "host isolation in the report");
    ensure!(
        capabilities.networks.contains(&report.tier.network()),
        "the report's network level {} is not declared",
        report.tier.network()
    );
    ensure_eq!(report.kill_domain, capabilities.kill_domain, "kill domain in the report");
    ensure_eq!(report.locality, capabilities.locality, "locality in the report");
    ensure_eq!(report.reason.as_deref(), Some("a case"), "the reason in the report");
    ensure!(!report.backend.is_empty() && report.summary().contains(&report.backend), "the summary is {:?}", report.summary());
    if capabilities.host > tierbox_core::HostIsolation::H0 {
        ensure!(!report.mechanisms.is_empty(), "no mechanism is named");
    }
    own.stop().await
}

async fn machines_have_names(s: Subject) -> Verdict {
    let name = s.sandbox.name().to_owned();
    ensure_eq!(s.environment.machine(&name)?.name(), name.as_str(), "the machine by its name");
    ensure_eq!(s.environment.primary().name(), name.as_str(), "the primary machine");
    let unknown = s.environment.machine("no-such-machine").map(drop);
    ensure!(unknown.as_ref().is_err_and(|error| error.to_string().contains(&name)), "the error does not list {name}");
    ensure_kind(unknown, ErrorKind::NotFound, "an unknown machine")
}

async fn connection_is_told(s: Subject) -> Verdict {
    let connection = s.environment.connection(s.sandbox.name())?;
    ensure!(!connection.argv.is_empty() || !connection.note.is_empty(), "neither a command nor a note is told");
    ensure_kind(s.environment.connection("no-such-machine"), ErrorKind::NotFound, "an unknown machine")
}

async fn ended_tells_the_end(s: Subject) -> Verdict {
    let own = s.another(&|_| ()).await?;
    ensure!(!own.environment.ended(Duration::from_millis(50)).await, "it has ended while it lives");
    own.stop().await?;
    ensure!(own.soon("the answer", own.environment.ended(Duration::from_secs(5))).await?, "it has not ended after stop");
    Ok(())
}

async fn a_dozen_start_at_once(s: Subject) -> Verdict {
    let count = if s.can(crate::case::Need::LocalMachine) { 12 } else { 2 };
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..count {
        let s = s.clone();
        tasks.spawn(async move {
            let own = s.another(&|_| ()).await?;
            own.sh(format!("echo {number} > file")).await?;
            let seen = own.text("cat file").await?;
            ensure_eq!(seen, number.to_string(), "the file");
            own.stop().await
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.map_err(|error| crate::case::Fail::Broken(error.to_string()))??;
    }
    Ok(())
}

async fn unknown_settings_are_refused(s: Subject) -> Verdict {
    let started = s
        .factory
        .start(&|spec| match spec.settings.as_object_mut() {
            Some(table) => drop(table.insert("no-such-setting".into(), true.into())),
            None => spec.settings = serde_json::json!({ "no-such-setting": true }),
        })
        .await;
    if let Ok(environment) = &started {
        environment.stop().await?;
    }
    ensure!(
        started.as_ref().is_err_and(|error| error.to_string().contains("no-such-setting")),
        "the error does not name the setting"
    );
    ensure_kind(started.map(drop), ErrorKind::InvalidProfile, "a start with an unknown setting")
}
