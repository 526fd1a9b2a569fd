//! The daemon over environments of several machines: an agent's token is for those that it names.

use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::http::{Answer, Daemon};
use crate::support::engines;
use crate::world::{ensure, trial, write};

pub fn all() -> Vec<Trial> {
    vec![trial("serve::escape::a_token_is_for_its_machines", a_token_is_for_its_machines)]
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
