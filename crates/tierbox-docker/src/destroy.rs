//! Removes what a lease names, and nothing that does not bear its label.

use std::collections::HashMap;
use std::time::Duration;

use bollard::query_parameters::{
    ListContainersOptions, ListImagesOptions, RemoveContainerOptions, RemoveImageOptions, RemoveVolumeOptions,
};
use tierbox_core::{DestroyReport, LeaseRecord, Result};

use crate::engine::{Engine, failed, is_absent, is_settled};
use crate::environment::Memory;
use crate::launch::LABEL;

/// Kinds of resources in a lease.
pub const CONTAINER: &str = "container";
/// See [`CONTAINER`].
pub const NETWORK: &str = "network";
/// See [`CONTAINER`].
pub const VOLUME: &str = "volume";
/// See [`CONTAINER`].
pub const IMAGE: &str = "image";

/// How often something is tried again that the engine is still busy with.
const TRIES: u32 = 40;

/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// How long one waits for what a dead harness asked for, before one looks whether something came into being.
const AFTERMATH: Duration = Duration::from_millis(500);

/// How often at most.
const ROUNDS: u32 = 10;

/// Removes everything that a lease names. What could not be removed is in the report.
///
/// # Errors
/// When the engine cannot be asked.
pub async fn lease(lease: &LeaseRecord) -> Result<DestroyReport> {
    let mut report = DestroyReport::default();
    if lease.resources.is_empty() {
        return Ok(report);
    }
    crate::crash::point("destroy");
    let memory = Memory::of(lease)?;
    let engine = Engine::connect(&memory.socket).await?;
    if !memory.ready && !remove_all(&engine, lease, &mut report).await {
        remove_belated(&engine, lease, &mut report).await;
    } else {
        remove_all(&engine, lease, &mut report).await;
    }
    Ok(report)
}

/// Its owner may have died with a request on the way, which the engine then carries out all the same. On a busy machine one thing
/// comes after another: it is over once a whole round finds nothing more.
async fn remove_belated(engine: &Engine, lease: &LeaseRecord, report: &mut DestroyReport) {
    for _ in 0..ROUNDS {
        tokio::time::sleep(AFTERMATH).await;
        let removed = report.removed.len();
        remove_all(engine, lease, report).await;
        if report.removed.len() == removed {
            break;
        }
    }
}

/// Removes what is there. Whether every container was.
async fn remove_all(engine: &Engine, lease: &LeaseRecord, report: &mut DestroyReport) -> bool {
    *report = DestroyReport { removed: std::mem::take(&mut report.removed), ..DestroyReport::default() };
    let mut complete = true;
    let built = lease.resources_of(IMAGE).next().is_some();
    if built {
        remove_steps(engine, &lease.id, report).await;
    }
    for kind in [CONTAINER, NETWORK, VOLUME, IMAGE] {
        for id in lease.resources_of(kind).rev() {
            let removed = remove(engine, kind, id, &lease.id).await;
            complete &= kind != CONTAINER || matches!(removed, Ok(true));
            match removed {
                Ok(true) => report.removed.push(format!("{kind} {id}")),
                Ok(false) => {}
                Err(why) => {
                    report.failed.push(format!("{kind} {id}: {why}"));
                    report.manual.push(by_hand(engine, kind, id));
                }
            }
        }
    }
    if built {
        remove_layers(engine, &lease.id, report).await;
    }
    complete
}

/// Removes the containers of the steps of a build that was interrupted: the engine named them. Those that somebody else made of an
/// image of the lease's bear its label too, but their image has a name.
async fn remove_steps(engine: &Engine, lease: &str, report: &mut DestroyReport) {
    let options = ListContainersOptions { all: true, filters: Some(labelled(lease)), ..Default::default() };
    // Whoever does not answer here says why when the rest is removed.
    let found = engine.docker.list_containers(Some(options)).await.unwrap_or_default();
    for step in found {
        let (Some(id), Some(image), Some(image_id)) = (step.id, step.image, step.image_id) else { continue };
        let hash = |text: &str| text.strip_prefix("sha256:").unwrap_or(text).to_owned();
        if hash(&image_id).starts_with(&hash(&image)) && once(engine, CONTAINER, &id).await.is_ok() {
            report.removed.push(format!("{CONTAINER} {id}"));
        }
    }
}

/// Removes the images without a name that a build left: of earlier stages, or of one that did not come to its end. Each goes once
/// nothing is made of it any more.
async fn remove_layers(engine: &Engine, lease: &str, report: &mut DestroyReport) {
    let mut failures = Vec::new();
    for _ in 0..TRIES {
        let options = ListImagesOptions { all: true, filters: Some(labelled(lease)), ..Default::default() };
        let found = match engine.docker.list_images(Some(options)).await {
            Ok(found) => found,
            Err(error) => return report.failed.push(format!("images of the build: {}", failed("look", &error).message())),
        };
        let nameless = found.into_iter().filter(|image| image.repo_tags.iter().all(|tag| tag == "<none>:<none>"));
        let layers: Vec<String> = nameless.map(|image| image.id).collect();
        if layers.is_empty() {
            return;
        }
        failures.clear();
        for id in layers {
            match once(engine, IMAGE, &id).await {
                Ok(()) => report.removed.push(format!("{IMAGE} {id}")),
                // It went with one that was made of it.
                Err(error) if is_absent(&error) => {}
                Err(error) => failures.push(format!("{IMAGE} {id}: {}", failed("remove", &error).message())),
            }
        }
        if !failures.is_empty() {
            tokio::time::sleep(PAUSE).await;
        }
    }
    report.failed.append(&mut failures);
}

fn labelled(lease: &str) -> HashMap<String, Vec<String>> {
    HashMap::from([("label".to_owned(), vec![format!("{LABEL}={lease}")])])
}

fn by_hand(engine: &Engine, kind: &str, id: &str) -> String {
    let command = match kind {
        CONTAINER => "rm -f -v",
        NETWORK => "network rm",
        VOLUME => "volume rm",
        _ => "rmi",
    };
    format!("docker -H unix://{} {command} {id}", engine.socket.display())
}

type Answer<T> = Result<T, bollard::errors::Error>;

/// Removes one thing. True if it was there and the lease's.
async fn remove(engine: &Engine, kind: &str, id: &str, lease: &str) -> Result<bool, String> {
    let mut said = String::new();
    for _ in 0..TRIES {
        match owner(engine, kind, id).await {
            Ok(Some(owner)) if owner == lease => {}
            // Somebody else's of the same name is left alone.
            Ok(_) => return Ok(false),
            Err(error) if is_absent(&error) => return Ok(false),
            Err(error) => return Err(failed("look", &error).message().to_owned()),
        }
        match once(engine, kind, id).await {
            Ok(()) => return Ok(true),
            Err(error) if is_absent(&error) => return Ok(true),
            // Removal is already on its way, or something still uses it.
            Err(error) if is_settled(&error) => said = failed("remove", &error).message().to_owned(),
            Err(error) => said = failed("remove", &error).message().to_owned(),
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(said)
}

/// The lease whose label something bears.
async fn owner(engine: &Engine, kind: &str, id: &str) -> Answer<Option<String>> {
    let docker = &engine.docker;
    let labels = match kind {
        CONTAINER => docker.inspect_container(id, None).await?.config.and_then(|config| config.labels),
        NETWORK => docker.inspect_network(id, None).await?.labels,
        VOLUME => Some(docker.inspect_volume(id).await?.labels),
        _ => docker.inspect_image(id).await?.config.and_then(|config| config.labels),
    };
    Ok(labels.and_then(|mut labels| labels.remove(LABEL)))
}

async fn once(engine: &Engine, kind: &str, id: &str) -> Answer<()> {
    let docker = &engine.docker;
    match kind {
        CONTAINER => {
            docker.remove_container(id, Some(RemoveContainerOptions { force: true, v: true, ..Default::default() })).await
        }
        NETWORK => docker.remove_network(id).await,
        VOLUME => docker.remove_volume(id, Some(RemoveVolumeOptions { force: true })).await,
        _ => docker.remove_image(id, Some(RemoveImageOptions { force: true, ..Default::default() }), None).await.map(drop),
    }
}

/// Whether anything of a lease still runs.
pub async fn is_alive(lease: &LeaseRecord) -> bool {
    let Ok(memory) = Memory::of(lease) else { return false };
    let Ok(engine) = Engine::connect(&memory.socket).await else { return false };
    for id in lease.resources_of(CONTAINER) {
        let running = engine.docker.inspect_container(id, None).await.ok().and_then(|found| found.state?.running);
        if running == Some(true) {
            return true;
        }
    }
    false
}
