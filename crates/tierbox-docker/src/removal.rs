//! Removes one thing after another by an engine that may be busy, or may answer no more.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use bollard::errors::Error as Said;
use bollard::query_parameters::{ListNetworksOptions, RemoveContainerOptions, RemoveImageOptions, RemoveVolumeOptions};
use tokio::time::Instant;

use crate::destroy::{CONTAINER, NETWORK, VOLUME};
use crate::engine::{Engine, failed, is_absent};
use crate::launch::LABEL;

/// How often something is tried again that the engine is still busy with.
pub const TRIES: u32 = 40;

/// The pause between two tries.
pub const PAUSE: Duration = Duration::from_millis(100);

/// What the engine answers.
pub type Answer<T> = Result<T, Said>;

/// A removal under way. Once a request gets no answer, or time is up, nothing more is asked.
pub struct Removal<'a> {
    /// Who is asked.
    pub engine: &'a Engine,
    /// Whose things are removed.
    pub lease: &'a str,
    until: Instant,
    silent: bool,
}

impl<'a> Removal<'a> {
    /// One that takes no longer than this, however much there is.
    pub fn new(engine: &'a Engine, lease: &'a str, patience: Duration) -> Self {
        Self { engine, lease, until: Instant::now() + patience, silent: false }
    }

    /// Asks, unless there was no answer before.
    ///
    /// # Errors
    /// What the engine says; that it says nothing.
    pub async fn ask<T>(&mut self, asked: impl Future<Output = Answer<T>>) -> Answer<T> {
        if self.silent {
            return Err(Said::RequestTimeoutError);
        }
        let answer = tokio::time::timeout_at(self.until, asked).await.unwrap_or(Err(Said::RequestTimeoutError));
        self.silent = matches!(answer, Err(Said::RequestTimeoutError));
        answer
    }

    /// Removes one thing. True if it was there and the lease's.
    ///
    /// # Errors
    /// What the engine said last.
    pub async fn remove(&mut self, kind: &str, id: &str) -> Result<bool, String> {
        let mut said = String::new();
        for _ in 0..TRIES {
            match self.owner(kind, id).await {
                Ok(Some(owner)) if owner == self.lease => {}
                // Somebody else's of the same name is left alone.
                Ok(_) => return Ok(false),
                Err(error) if is_absent(&error) || names_nothing(&error) => return Ok(false),
                Err(error) => return Err(words(&error)),
            }
            match self.once(kind, id).await {
                Ok(()) => return Ok(true),
                Err(error) if is_absent(&error) => return Ok(true),
                Err(error) if is_busy(&error) => said = words(&error),
                Err(error) => return Err(words(&error)),
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(said)
    }

    /// The lease whose label something bears.
    async fn owner(&mut self, kind: &str, id: &str) -> Answer<Option<String>> {
        let docker = &self.engine.docker;
        let labels = match kind {
            CONTAINER => self.ask(docker.inspect_container(id, None)).await?.config.and_then(|config| config.labels),
            NETWORK => self.ask(docker.inspect_network(id, None)).await?.labels,
            VOLUME => Some(self.ask(docker.inspect_volume(id)).await?.labels),
            _ => self.ask(docker.inspect_image(id)).await?.config.and_then(|config| config.labels),
        };
        Ok(labels.and_then(|mut labels| labels.remove(LABEL)))
    }

    /// Asks once for the removal of something.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn once(&mut self, kind: &str, id: &str) -> Answer<()> {
        let docker = &self.engine.docker;
        match kind {
            CONTAINER => {
                let options = RemoveContainerOptions { force: true, v: true, ..Default::default() };
                self.ask(docker.remove_container(id, Some(options))).await
            }
            NETWORK => self.ask(docker.remove_network(id)).await,
            VOLUME => self.ask(docker.remove_volume(id, Some(RemoveVolumeOptions { force: true }))).await,
            _ => {
                let options = RemoveImageOptions { force: true, ..Default::default() };
                self.ask(docker.remove_image(id, Some(options), None)).await.map(drop)
            }
        }
    }

    /// The lease's networks by number, with their names: engines have several of one name, and remove none of them by it.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn networks(&mut self) -> Answer<Vec<(String, String)>> {
        let options = ListNetworksOptions { filters: Some(labelled(self.lease)) };
        let found = self.ask(self.engine.docker.list_networks(Some(options))).await?;
        Ok(found.into_iter().filter_map(|network| Some((network.id?, network.name.unwrap_or_default()))).collect())
    }
}

/// A filter for what bears the lease's label.
pub fn labelled(lease: &str) -> HashMap<String, Vec<String>> {
    HashMap::from([("label".to_owned(), vec![format!("{LABEL}={lease}")])])
}

/// What an engine said, or that it said nothing.
pub fn words(error: &Said) -> String {
    match error {
        Said::RequestTimeoutError => "the engine gives no answer".to_owned(),
        error => failed("remove", error).message().to_owned(),
    }
}

/// Whether it may go later: removal is already on its way, or something still uses it, which for a network is said by 403.
fn is_busy(error: &Said) -> bool {
    matches!(error, Said::DockerResponseServerError { status_code: 403 | 409 | 500.., .. })
}

/// Whether an image cannot be called so: then there is none.
fn names_nothing(error: &Said) -> bool {
    matches!(error, Said::DockerResponseServerError { message, .. } if message.contains("invalid reference format"))
}
