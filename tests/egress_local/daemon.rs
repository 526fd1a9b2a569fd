//! What a gateway decided, asked of the daemon: here, because the gateway of what outlives a process is a program of its own.

use libtest_mimic::{Failed, Trial};
use serde_json::{Value, json};

use crate::http::{Answer, Daemon};
use crate::support;

const NAME: &str = "conformance::what_a_gateway_decided_is_told_by_the_daemon";

/// Every trial.
pub fn all() -> Vec<Trial> {
    vec![Trial::test(NAME, told)]
}

fn told() -> Result<(), Failed> {
    if let Some(absence) = support::containers_absent() {
        return Ok(support::skip("local-container", NAME, &absence)?);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let daemon = Daemon::start(|_| ()).await;
        let id = daemon.create(json!({ "profile": "local-web", "log": true })).await;
        let path = format!("/v1/environments/{id}/decisions");
        daemon.shell(&id, "getent hosts other.test").await;
        let living = refused(&daemon.get(&path).await);
        assert!(living > 0, "a query for a name that is not allowed is not told");
        daemon.json("DELETE", &format!("/v1/environments/{id}"), Value::Null).await;
        assert_eq!(refused(&daemon.get(&path).await), living, "after the end");
        daemon.finish().await;
    });
    Ok(())
}

/// How many queries for the name were refused.
fn refused(answer: &Answer) -> usize {
    let lines = answer.text();
    let decisions = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("a decision a line"));
    decisions.filter(|one| one["name"] == "other.test" && one["verdict"] == "refused").count()
}
