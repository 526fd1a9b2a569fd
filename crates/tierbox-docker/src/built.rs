//! What a build leaves: containers of its steps, images without a name. And what somebody else made of a lease's images.

use bollard::query_parameters::{ListContainersOptions, ListImagesOptions};
use tierbox_core::{DestroyReport, LeaseRecord};

use crate::destroy::{CONTAINER, IMAGE};
use crate::engine::is_absent;
use crate::removal::{Answer, PAUSE, Removal, TRIES, labelled, words};

/// A container of somebody else's, made of an image of the lease's. It bears the label too, which it has from the image.
pub struct Guest {
    /// Its number and name, for people.
    shown: String,
    /// The number of its image.
    image: String,
}

/// Removes the containers of the steps of a build that was interrupted: the engine named them. All others that the lease does not
/// name are returned.
///
/// # Errors
/// What the engine says.
pub async fn steps(
    removal: &mut Removal<'_>,
    lease: &LeaseRecord,
    building: bool,
    report: &mut DestroyReport,
) -> Answer<Vec<Guest>> {
    let options = ListContainersOptions { all: true, filters: Some(labelled(removal.lease)), ..Default::default() };
    let found = removal.ask(removal.engine.docker.list_containers(Some(options))).await?;
    let mut guests = Vec::new();
    for one in found {
        let name = one.names.into_iter().flatten().next().unwrap_or_default().trim_start_matches('/').to_owned();
        let Some(id) = one.id.filter(|_| lease.resources_of(CONTAINER).all(|own| own != name)) else { continue };
        if building && is_step(removal, &id).await? {
            if removal.once(CONTAINER, &id).await.is_ok() {
                report.removed.push(format!("{CONTAINER} {id}"));
            }
            continue;
        }
        let shown = format!("{name} ({})", id.get(..12).unwrap_or(&id));
        guests.push(Guest { shown, image: hash(&one.image_id.unwrap_or_default()).to_owned() });
    }
    Ok(guests)
}

/// Whether the builder made a container. It names the image by its whole number, as hardly a person does; what an engine's list says is
/// a number too once the image has lost its name.
async fn is_step(removal: &mut Removal<'_>, id: &str) -> Answer<bool> {
    let config = match removal.ask(removal.engine.docker.inspect_container(id, None)).await {
        Ok(found) => found.config,
        Err(error) if is_absent(&error) => return Ok(false),
        Err(error) => return Err(error),
    };
    let made_of = config.and_then(|config| config.image).unwrap_or_default();
    let number = hash(&made_of);
    Ok(number.len() == 64 && number.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Whose container keeps an image from being removed, if any.
///
/// # Errors
/// What the engine says.
pub async fn held(removal: &mut Removal<'_>, guests: &[Guest], image: &str) -> Answer<Option<String>> {
    if guests.is_empty() {
        return Ok(None);
    }
    match removal.ask(removal.engine.docker.inspect_image(image)).await {
        Ok(found) => Ok(holder(guests, &found.id.unwrap_or_default())),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn holder(guests: &[Guest], image: &str) -> Option<String> {
    let guest = guests.iter().find(|guest| guest.image == hash(image))?;
    Some(format!("somebody made the container {} of it, which is not this environment's to remove", guest.shown))
}

fn hash(id: &str) -> &str {
    id.strip_prefix("sha256:").unwrap_or(id)
}

/// Removes the images without a name that a build left: of earlier stages, or of one that did not come to its end. Each goes once
/// nothing is made of it any more.
pub async fn layers(removal: &mut Removal<'_>, guests: &[Guest], report: &mut DestroyReport) {
    let mut failures = Vec::new();
    for _ in 0..TRIES {
        let options = ListImagesOptions { all: true, filters: Some(labelled(removal.lease)), ..Default::default() };
        let found = match removal.ask(removal.engine.docker.list_images(Some(options))).await {
            Ok(found) => found,
            Err(error) => return report.failed.push(format!("images of the build: {}", words(&error))),
        };
        let nameless = found.into_iter().filter(|image| image.repo_tags.iter().all(|tag| tag == "<none>:<none>"));
        let layers: Vec<String> = nameless.map(|image| image.id).collect();
        if layers.is_empty() {
            return;
        }
        if let Some((id, why)) = layers.iter().find_map(|id| Some((id, holder(guests, id)?))) {
            return report.failed.push(format!("{IMAGE} {id}: {why}"));
        }
        failures.clear();
        for id in layers {
            match removal.once(IMAGE, &id).await {
                Ok(()) => report.removed.push(format!("{IMAGE} {id}")),
                // It went with one that was made of it.
                Err(error) if is_absent(&error) => {}
                Err(error) => failures.push(format!("{IMAGE} {id}: {}", words(&error))),
            }
        }
        if !failures.is_empty() {
            tokio::time::sleep(PAUSE).await;
        }
    }
    report.failed.append(&mut failures);
}
