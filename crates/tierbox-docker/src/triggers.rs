//! Base images with triggers (`ONBUILD`): a build runs them before anything that a Dockerfile says, and so before its label.
//!
//! Such a base is copied first, with the label and the triggers that it has: what they make then bears it like all the rest.

use std::collections::BTreeMap;

use bollard::models::{ContainerConfig, ContainerCreateBody};
use bollard::query_parameters::{CommitContainerOptions, RemoveContainerOptions};
use tierbox_core::Result;

use crate::dockerfile;
use crate::engine::{Engine, failed, is_absent};
use crate::launch::{LABEL, labels};
use crate::plan::BuildPlan;

/// Copies the bases that have triggers. Returns the copies by the word that names the base; they have no name, and go with the build's
/// other layers. A base that the engine does not have is fetched by the builder, and its triggers are not seen.
///
/// # Errors
/// What the engine says.
pub async fn labelled(engine: &Engine, plan: &BuildPlan, text: &[u8], lease: &str) -> Result<BTreeMap<Vec<u8>, String>> {
    let mut copies = BTreeMap::new();
    for (word, name) in dockerfile::bases(text, &plan.args) {
        let image = match engine.docker.inspect_image(&name).await {
            Ok(image) => image,
            Err(error) if is_absent(&error) => continue,
            Err(error) => return Err(failed("look for the base image", &error)),
        };
        let triggers = image.config.and_then(|config| config.on_build).unwrap_or_default();
        if let Some(id) = image.id.filter(|_| !triggers.is_empty()) {
            copies.insert(word, copy(engine, &id, &triggers, lease).await?);
        }
    }
    Ok(copies)
}

async fn copy(engine: &Engine, image: &str, triggers: &[String], lease: &str) -> Result<String> {
    // By its number, as the builder's own steps are: whoever cleans up takes it for one.
    let body = ContainerCreateBody {
        image: Some(image.to_owned()),
        cmd: Some(vec!["/".to_owned()]),
        labels: Some(labels(lease)),
        ..ContainerCreateBody::default()
    };
    let wrong = |error: &bollard::errors::Error| failed("label the base image", error);
    let container = engine.docker.create_container(None, body).await.map_err(|error| wrong(&error))?.id;
    let changes = std::iter::once(format!("LABEL {LABEL}={lease}")).chain(triggers.iter().map(|it| format!("ONBUILD {it}")));
    let options = CommitContainerOptions {
        container: Some(container.clone()),
        pause: false,
        changes: Some(changes.collect::<Vec<_>>().join("\n")),
        ..CommitContainerOptions::default()
    };
    let made = engine.docker.commit_container(options, ContainerConfig::default()).await;
    let removal = RemoveContainerOptions { force: true, v: true, ..Default::default() };
    let removed = engine.docker.remove_container(&container, Some(removal)).await;
    let made = made.map_err(|error| wrong(&error))?;
    removed.map_err(|error| wrong(&error))?;
    Ok(made.id)
}
