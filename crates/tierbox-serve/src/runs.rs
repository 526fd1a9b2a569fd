//! What is known and recorded of an environment: verification, attestation, operation log, decisions of its gateway.

use serde_json::Value;
use tierbox::verify::Attestation;
use tierbox::{Decision, Error, ErrorKind, Result, Run};

use crate::answer::{self, Answer, EVENTS};
use crate::handler::Asked;
use crate::routes::Op;
use crate::server::Shared;

/// Does what was asked of an environment's record.
pub(crate) async fn record(asked: Asked, op: Op, environment: &str) -> Result<Answer> {
    let shared = asked.shared.clone();
    match op {
        Op::Verify => answer::json(&shared.find(environment).await?.running().verify().await?),
        Op::Attestation => answer::json(&found(&shared, environment).await?),
        Op::Decisions => {
            let mut text = Vec::new();
            for decision in decisions(&shared, environment).await? {
                text.extend(answer::line(&decision)?);
                text.push(b'\n');
            }
            Ok(answer::bytes(EVENTS, text))
        }
        _ => {
            let (after, run) = (asked.query.number("after")?, log(&shared, environment).await?);
            let failed = |error: tokio::task::JoinError| Error::new(ErrorKind::Internal, "read log", error.to_string());
            tokio::task::spawn_blocking(move || lines(&run, after)).await.map_err(failed)?
        }
    }
}

async fn found(shared: &std::sync::Arc<Shared>, environment: &str) -> Result<Attestation> {
    let known = match shared.find(environment).await {
        Ok(found) => found.running().attestation(),
        Err(error) if error.kind() == ErrorKind::NotFound => past(shared, environment, error)?.attestation,
        Err(error) => return Err(error),
    };
    known.ok_or_else(|| {
        let message = "another process started it, kept no log of it, and could not note its profile, which has secrets in it";
        Error::new(ErrorKind::NotFound, "find attestation", message).with_help("start it with `log` to have its attestation kept")
    })
}

async fn decisions(shared: &std::sync::Arc<Shared>, environment: &str) -> Result<Vec<Decision>> {
    match shared.find(environment).await {
        Ok(found) => found.running().decisions().await,
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(past(shared, environment, error)?.decisions),
        Err(error) => Err(error),
    }
}

async fn log(shared: &std::sync::Arc<Shared>, environment: &str) -> Result<Run> {
    match shared.find(environment).await {
        Ok(found) => found.running().logged_run()?.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "find log", "the environment is not logged").with_help("start it with `log`")
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => past(shared, environment, error),
        Err(error) => Err(error),
    }
}

/// The record of an environment that is gone, by its id.
fn past(shared: &Shared, environment: &str, unknown: Error) -> Result<Run> {
    // A path is none of a client's business.
    if environment.contains('/') {
        return Err(unknown);
    }
    shared.client.run(environment).map_err(|_| unknown)
}

fn lines(run: &Run, after: Option<u64>) -> Result<Answer> {
    let mut text = Vec::new();
    for record in tierbox::verify::log::read(&run.directory)? {
        if after.is_none_or(|after| record.seq > after) {
            text.extend(answer::line::<Value>(&record.value)?);
            text.push(b'\n');
        }
    }
    Ok(answer::bytes(EVENTS, text))
}
