//! Images: found, fetched or built, and what they say of themselves.

use std::time::Duration;

use bollard::models::{HealthConfig, ImageConfig};
use bollard::query_parameters::CreateImageOptions;
use futures_util::StreamExt;
use tierbox_core::{Error, ErrorKind, Progress, Result};

use crate::BACKEND;
use crate::engine::{self, Engine, failed};
use crate::plan::{Health, ImagePlan, WORKSPACE};
use crate::settings::Pull;

/// An image that the engine has.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// What the engine knows it by.
    pub id: String,
    /// `KEY=value` texts.
    pub env: Vec<String>,
    /// The user of its command, if not root.
    pub user: Option<String>,
    /// Where its command starts, if not in the root directory.
    pub workdir: Option<String>,
    /// Its entrypoint.
    pub entrypoint: Vec<String>,
    /// Its command.
    pub command: Vec<String>,
    /// Directories for which the engine makes volumes.
    pub volumes: Vec<String>,
    /// Its own health check.
    pub health: Option<Health>,
}

impl Image {
    fn from(id: String, config: ImageConfig) -> Self {
        let some = |text: Option<String>| text.filter(|text| !text.is_empty());
        Self {
            id,
            env: config.env.unwrap_or_default(),
            user: some(config.user).filter(|user| !crate::plan::is_root(user)),
            workdir: some(config.working_dir).filter(|dir| dir.starts_with('/') && dir != "/"),
            entrypoint: config.entrypoint.unwrap_or_default(),
            command: config.cmd.unwrap_or_default(),
            volumes: config.volumes.unwrap_or_default(),
            health: config.healthcheck.and_then(|check| health(check, config.shell)),
        }
    }

    /// The working directory: the profile's, the image's, or an area of the machine's own.
    pub fn workdir(&self, profile: Option<&str>) -> String {
        profile.or(self.workdir.as_deref()).unwrap_or(WORKSPACE).to_owned()
    }
}

/// An image's health check, with what engines take where it says nothing. `CMD-SHELL` means the image's own shell.
fn health(check: HealthConfig, shell: Option<Vec<String>>) -> Option<Health> {
    let words = check.test?;
    let test = match words.split_first()? {
        (first, rest) if first == "CMD" && !rest.is_empty() => rest.to_vec(),
        (first, [script]) if first == "CMD-SHELL" => {
            let shell = shell.filter(|shell| !shell.is_empty());
            let mut test = shell.unwrap_or_else(|| ["/bin/sh", "-c"].map(str::to_owned).to_vec());
            test.push(script.clone());
            test
        }
        _ => return None,
    };
    let time = |nanos: Option<i64>| u64::try_from(nanos.unwrap_or(0)).ok().filter(|nanos| *nanos > 0).map(Duration::from_nanos);
    let usual = Duration::from_secs(30);
    Some(Health {
        test: Some(test),
        interval: time(check.interval).unwrap_or(usual),
        timeout: time(check.timeout).unwrap_or(usual),
        retries: u32::try_from(check.retries.unwrap_or(0)).ok().filter(|retries| *retries > 0).unwrap_or(3),
        start_period: time(check.start_period).unwrap_or_default(),
    })
}

/// Makes sure that the engine has an image. `built` is the name of one that was built for this environment.
///
/// # Errors
/// `NotFound` if there is none and none may be or can be fetched; what the engine says.
pub async fn ensure(engine: &Engine, plan: &ImagePlan, built: &str, progress: &dyn Progress) -> Result<Image> {
    let (name, pull) = match plan {
        ImagePlan::Named(name, pull) => (name.as_str(), *pull),
        ImagePlan::Built(_) => (built, Pull::Never),
    };
    match engine.docker.inspect_image(name).await {
        Ok(found) => return Ok(Image::from(found.id.unwrap_or_else(|| name.to_owned()), found.config.unwrap_or_default())),
        Err(error) if !engine::is_absent(&error) => return Err(failed("look for the image", &error)),
        Err(_) if pull == Pull::Never => return Err(missing(name, "docker.pull is \"never\"")),
        Err(_) => {}
    }
    progress.step(&format!("fetching the image {name}"));
    fetch(engine, name).await?;
    let found = engine.docker.inspect_image(name).await.map_err(|error| failed("look for the image", &error))?;
    Ok(Image::from(found.id.unwrap_or_else(|| name.to_owned()), found.config.unwrap_or_default()))
}

fn missing(name: &str, why: &str) -> Error {
    Error::new(ErrorKind::NotFound, "look for the image", format!("the engine has no image {name}, and {why}"))
        .with_backend(BACKEND)
        .with_help(format!("run `docker pull {name}`, or build or import it under that name"))
}

async fn fetch(engine: &Engine, name: &str) -> Result<()> {
    // Without a tag the engine would fetch every tag there is.
    let tagged = name.contains('@') || name.rsplit('/').next().is_some_and(|last| last.contains(':'));
    let name = if tagged { name.to_owned() } else { format!("{name}:latest") };
    let options = CreateImageOptions { from_image: Some(name.clone()), ..CreateImageOptions::default() };
    let mut steps = engine.docker.create_image(Some(options), None, None);
    while let Some(step) = steps.next().await {
        let why = match step {
            Ok(step) => step.error_detail.and_then(|detail| detail.message),
            Err(error) => Some(failed("fetch the image", &error).message().to_owned()),
        };
        if let Some(why) = why {
            return Err(missing(&name, &format!("it could not be fetched: {}", engine::bounded(&why))));
        }
    }
    Ok(())
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn an_images_check_is_read_as_engines_do() {
        let words = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        let of = |test: &[&str]| HealthConfig { test: words(test), ..HealthConfig::default() };
        assert_eq!(health(of(&["CMD", "a", "b"]), None).unwrap().test, words(&["a", "b"]));
        assert_eq!(health(of(&["CMD-SHELL", "a b"]), None).unwrap().test, words(&["/bin/sh", "-c", "a b"]));
        assert_eq!(health(of(&["CMD-SHELL", "a b"]), words(&["/x", "-e"])).unwrap().test, words(&["/x", "-e", "a b"]));
        for none in [&["NONE"][..], &[], &["CMD"]] {
            assert_eq!(health(of(none), None), None);
        }
        let check = HealthConfig { interval: Some(2_000_000_000), retries: Some(-1), timeout: Some(0), ..of(&["CMD", "a"]) };
        let found = health(check, None).unwrap();
        assert_eq!((found.interval.as_secs(), found.timeout.as_secs(), found.retries), (2, 30, 3));
    }
}
