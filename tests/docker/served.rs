//! The daemon over environments of several machines, where an agent's token is for those that it names, and over such as cannot be
//! detached, which end by its hand alone.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use serde_json::{Value, json};
use tierbox::{ErrorKind, ExecRequest, Outcome, SandboxExt, StartOptions};

use crate::http::{self, Answer, Daemon, LIMIT};
use crate::support::engines;
use crate::world::{ensure, nothing_left, remains, text, trial, write};

pub fn all() -> Vec<Trial> {
    vec![
        trial("serve::escape::a_token_is_for_its_machines", a_token_is_for_its_machines),
        trial("plain::serve::escape::what_an_agent_runs_does_not_outlive_a_delete", what_an_agent_runs_does_not_outlive_a_delete),
        trial("plain::serve::escape::what_an_agent_runs_does_not_keep_a_lease", what_an_agent_runs_does_not_keep_a_lease),
        trial("plain::serve::a_lifetime_ends_whoever_renews", a_lifetime_ends_whoever_renews),
        trial("plain::a_lifetime_ends_without_a_supervisor", a_lifetime_ends_without_a_supervisor),
    ]
}

const PAIR: &str = "
services:
  default: {image: 'tierbox-test/debian:1', command: sleep infinity}
  db: {image: 'tierbox-test/debian:1', command: sleep infinity}
";

async fn a_token_is_for_its_machines() -> Result<(), String> {
    let daemon = Daemon::start(|_| ()).await;
    let here = daemon.directory.path();
    write(here, "compose.yaml", PAIR);
    let host = engines::address("docker").map_err(|absence| absence.reason)?;
    let settings = format!("[docker]\ncompose = \"compose.yaml\"\nhost = \"{host}\"\npull = \"never\"\n");
    write(here, "pair.toml", &format!("extends = \"docker\"\ntier = \"T0.H1.N2\"\nverify = \"off\"\n{settings}"));
    let profile = here.join("pair.toml").display().to_string();
    let id = daemon.create(json!({ "profile": profile })).await;
    let ask = async |machines: Value, path: &str, body: Value| -> Answer {
        let granted = daemon.json("POST", &format!("/v1/environments/{id}/token"), json!({ "machines": machines })).await.value();
        let bearer = format!("Bearer {}", granted["token"].as_str().unwrap_or_default());
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        daemon.send("POST", &format!("/v1/environments/{id}/{path}"), &headers, body.to_string().as_bytes()).await
    };
    let on = |machine: &str| json!({ "argv": ["/bin/true"], "machine": machine });
    let task = || json!({ "runtime": "sh", "code": ":" });
    for (machines, path, body, status) in [
        (json!([]), "exec", on("default"), 200),
        (json!([]), "code", task(), 200),
        (json!([]), "exec", on("db"), 403),
        (json!([]), "stream", on("db"), 403),
        (json!(["db"]), "exec", on("db"), 200),
        (json!(["db"]), "exec", json!({ "argv": ["/bin/true"] }), 403),
        (json!(["db"]), "code", task(), 403),
        (json!(["default", "db"]), "exec", on("db"), 200),
        (json!(["default", "db"]), "code", task(), 200),
    ] {
        let answer = ask(machines.clone(), path, body).await;
        ensure(answer.status == status, format!("{machines} {path}: {} {}", answer.status, answer.text()))?;
    }
    daemon.finish().await;
    Ok(())
}

/// A profile whose machine has no supervisor, below a directory.
fn plain(directory: &std::path::Path) -> Result<String, String> {
    let host = engines::address("docker").map_err(|absence| absence.reason)?;
    let settings =
        format!("[docker]\nimage = \"tierbox-test/debian:1\"\nhost = \"{host}\"\npull = \"never\"\ntransport = \"plain\"\n");
    write(directory, "plain.toml", &format!("extends = \"docker\"\ntier = \"T0.H1.N2\"\nverify = \"off\"\n{settings}"));
    Ok(directory.join("plain.toml").display().to_string())
}

/// A command without an end, that an agent runs.
async fn endless(daemon: &Daemon, id: &str) -> Answer {
    let path = format!("/v1/environments/{id}");
    let granted = daemon.json("POST", &format!("{path}/token"), json!({})).await.value();
    let bearer = format!("Bearer {}", granted["token"].as_str().unwrap_or_default());
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let command = json!({ "argv": ["/bin/sh", "-c", "touch /workspace/begun; exec sleep infinity"] }).to_string();
    daemon.send("POST", &format!("{path}/exec"), &headers, command.as_bytes()).await
}

async fn has_begun(daemon: &Daemon, id: &str) -> Result<(), String> {
    let path = format!("/v1/environments/{id}/stat?path=%2Fworkspace%2Fbegun");
    let begun = Instant::now();
    while daemon.get(&path).await.status != 200 {
        ensure(begun.elapsed() < LIMIT, "the command does not begin")?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn is_gone(id: &str) -> Result<(), String> {
    let begun = Instant::now();
    while !remains(id).is_empty() {
        ensure(begun.elapsed() < LIMIT, format!("{:?} is still there", remains(id)))?;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

async fn is_given_back(daemon: &Daemon) -> Result<(), String> {
    let (begun, none) = (Instant::now(), "tierbox_admitted{backend=\"docker\"} ");
    loop {
        let metrics = daemon.get("/metrics").await.text();
        let taken = metrics.lines().find_map(|line| line.strip_prefix(none)).unwrap_or("0").to_owned();
        if taken == "0" {
            return Ok(());
        }
        ensure(begun.elapsed() < LIMIT, format!("{taken} are still counted"))?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whatever was answered, the command did not end by itself.
fn is_lost(answer: &Answer) -> Result<(), String> {
    ensure(answer.status != 200 || answer.head_and_bytes().0["outcome"] == "lost", answer.text())
}

/// What an agent runs in an environment ends with it, whatever ends it.
async fn ends_with_its_environment(
    mut body: Value,
    end: impl AsyncFnOnce(&Daemon, &str) -> Result<(), String>,
) -> Result<(), String> {
    let daemon = Daemon::start(|_| ()).await;
    body["profile"] = plain(daemon.directory.path())?.into();
    let id = daemon.create(body).await;
    let ended = async {
        has_begun(&daemon, &id).await?;
        end(&daemon, &id).await?;
        is_given_back(&daemon).await
    };
    let (answer, ended) = tokio::join!(endless(&daemon, &id), ended);
    ended?;
    is_lost(&answer)?;
    daemon.finish().await;
    Ok(())
}

async fn what_an_agent_runs_does_not_outlive_a_delete() -> Result<(), String> {
    let delete = async |daemon: &Daemon, id: &str| {
        let answer = daemon.json("DELETE", &format!("/v1/environments/{id}"), Value::Null).await;
        ensure(answer.status == 200, answer.text())?;
        nothing_left(id)
    };
    ends_with_its_environment(json!({}), delete).await
}

async fn what_an_agent_runs_does_not_keep_a_lease() -> Result<(), String> {
    ends_with_its_environment(json!({ "ttl": 5 }), async |_, id| is_gone(id).await).await
}

async fn a_lifetime_ends_whoever_renews() -> Result<(), String> {
    let daemon = Daemon::start(|_| ()).await;
    let id = daemon.create(json!({ "profile": plain(daemon.directory.path())?, "lifetime": 15 })).await;
    let (path, begun) = (format!("/v1/environments/{id}/renew"), Instant::now());
    let renewed = async {
        while !remains(&id).is_empty() {
            daemon.json("POST", &path, json!({ "ttl": 600 })).await;
            ensure(begun.elapsed() < LIMIT, "it outlives its lifetime")?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        is_given_back(&daemon).await
    };
    let work = json!({ "argv": ["sleep", "infinity"] });
    let exec = format!("/v1/environments/{id}/exec");
    let (answer, renewed) = tokio::join!(daemon.json("POST", &exec, work), renewed);
    renewed?;
    is_lost(&answer)?;
    daemon.finish().await;
    Ok(())
}

/// In a harness that has no daemon, and whose process lives on.
async fn a_lifetime_ends_without_a_supervisor() -> Result<(), String> {
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let client = http::client(&directory);
    let options = StartOptions::new().lifetime(Duration::from_secs(5));
    let running = client.start_with(plain(directory.path())?.as_str(), options).await.map_err(text)?;
    let ended = running.run(ExecRequest::new(["sleep", "infinity"])).await;
    let lost = match &ended {
        Ok(ended) => ended.outcome() == Outcome::Lost,
        Err(error) => [ErrorKind::Lost, ErrorKind::Expired].contains(&error.kind()),
    };
    ensure(lost, format!("{ended:?}"))?;
    is_gone(running.id()).await?;
    let late = running.run(ExecRequest::new(["true"])).await.map_err(|error| error.kind());
    ensure(late.as_ref().is_err_and(|kind| *kind == ErrorKind::Expired), format!("{late:?}"))?;
    running.stop().await.map_err(text)
}
