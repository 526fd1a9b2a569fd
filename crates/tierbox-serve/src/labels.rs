//! What a daemon notes in a lease, so that the next one knows whose an environment is and what it takes.

use std::collections::BTreeMap;
use std::time::Duration;

use tierbox::Result;

use crate::environments::{invalid, seconds};
use crate::turns::Client;

/// The name of the environment's client.
pub(crate) const CLIENT: &str = "serve.client";
/// By which token or user that client came.
const OWNER: &str = "serve.owner";
/// How long the client wanted the lease to last, in seconds.
const TTL: &str = "serve.ttl";
/// Labels with this beginning are the daemon's own.
pub(crate) const OWN: &str = "serve.";

/// A client's own labels.
///
/// # Errors
/// `InvalidInput` for too many or too long ones, or one of the daemon's.
pub(crate) fn checked(asked: BTreeMap<String, String>) -> Result<BTreeMap<String, String>> {
    if asked.keys().any(|key| key.starts_with(OWN)) {
        return Err(invalid("labels that begin with `serve.` are the daemon's own"));
    }
    if asked.len() > 32 || asked.iter().any(|(key, value)| key.len() > 64 || value.len() > 1024) {
        return Err(invalid("there are more than 32 labels, or one is longer than 1024 bytes"));
    }
    Ok(asked)
}

/// The labels of an environment of this client.
pub(crate) fn of(client: &Client, ttl: Duration) -> [(String, String); 3] {
    [(CLIENT, client.name.clone()), (OWNER, client.owner.clone()), (TTL, ttl.as_secs_f64().to_string())]
        .map(|(key, value)| (key.to_owned(), value))
}

/// Whether an environment is this client's. A name is anybody's own word: who came by another token is another client.
pub(crate) fn is_of(labels: &BTreeMap<String, String>, client: &Client) -> bool {
    labels.get(CLIENT) == Some(&client.name) && labels.get(OWNER) == Some(&client.owner)
}

/// How long its client wanted the lease to last.
pub(crate) fn ttl(labels: &BTreeMap<String, String>) -> Option<Duration> {
    seconds("ttl", labels.get(TTL)?.parse().ok()?).ok()
}
