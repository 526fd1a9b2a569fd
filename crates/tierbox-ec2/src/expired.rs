//! What other state directories left in an account: instances whose tag says that nobody has renewed them.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use aws_sdk_ec2::primitives::{DateTime, DateTimeFormat};
use serde::Serialize;
use tierbox_core::{DestroyReport, Result};

use crate::aws::driven;
use crate::control::{Find, Instance};
use crate::objects::{self, prefix_of};
use crate::settings::Settings;
use crate::stack::OF_STACK;
use crate::{Ec2Backend, tags};

/// Clocks differ: for so long after its time an instance is let be.
const GRACE: Duration = Duration::from_secs(120);

/// Which instances are looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Whose {
    /// Those that nobody renewed.
    Expired,
    /// Those of these environments, whether anybody uses them or not.
    Of(Vec<String>),
    /// All of tierbox's environments in this account and region, whether anybody uses them or not.
    All,
}

/// An instance that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Left {
    /// Its id.
    pub instance: String,
    /// The environment that it belongs to.
    pub environment: String,
    /// Whose it was: host and state directory, in short.
    pub owner: String,
    /// Until when it was wanted.
    pub expires: String,
}

fn is_wanted(instance: &Instance, whose: &Whose, now: SystemTime) -> Option<Left> {
    let tag = |key: &str| instance.tags.get(key).cloned();
    let environment = tag(tags::TASK)?;
    // What was made beside a stack goes with it, and is no environment's.
    if instance.is_ending() || instance.tags.contains_key(OF_STACK) {
        return None;
    }
    let expires = tag(tags::EXPIRES).unwrap_or_default();
    let wanted = match whose {
        Whose::All => true,
        Whose::Of(environments) => environments.contains(&environment),
        Whose::Expired => {
            // Who says no time, or one that cannot be read, is let be.
            let at = DateTime::from_str(&expires, DateTimeFormat::DateTime).ok();
            at.and_then(|at| SystemTime::try_from(at).ok()).is_some_and(|at| at + GRACE < now)
        }
    };
    let owner = tag(tags::OWNER).unwrap_or_default();
    wanted.then(|| Left { instance: instance.id.clone(), environment, owner, expires })
}

impl Ec2Backend {
    /// Finds instances of environments by their tags, whatever state directory began them.
    ///
    /// # Errors
    /// `InvalidProfile`, `Credentials`, `HostUnable`.
    pub async fn left(&self, settings: &serde_json::Value, whose: &Whose) -> Result<Vec<Left>> {
        let aws = self.clients(Settings::from_value(settings)?.filled()?).await?;
        let control = self.control(&aws);
        let found = driven(async move { control.find(&Find::Tagged(tags::TASK.to_owned())).await }).await?;
        let now = SystemTime::now();
        Ok(found.iter().filter_map(|instance| is_wanted(instance, whose, now)).collect())
    }

    /// Ends what was found, and removes its objects. Those that were renewed or ended meanwhile are let be.
    ///
    /// # Errors
    /// As [`left`](Self::left); what could not be removed is in the report.
    pub async fn end(&self, settings: &serde_json::Value, found: &[Left], whose: &Whose) -> Result<DestroyReport> {
        let still: BTreeSet<String> = self.left(settings, whose).await?.into_iter().map(|left| left.instance).collect();
        let settings = Settings::from_value(settings)?.filled()?;
        let aws = self.clients(settings.clone()).await?;
        let control = self.control(&aws);
        let found: Vec<Left> = found.iter().filter(|left| still.contains(&left.instance)).cloned().collect();
        driven(async move {
            let mut report = DestroyReport::default();
            for some in found.chunks(50) {
                let ids: Vec<String> = some.iter().map(|left| left.instance.clone()).collect();
                match control.terminate(&ids).await {
                    Ok(()) => report
                        .removed
                        .extend(some.iter().map(|left| format!("instance {} of {}", left.instance, left.environment))),
                    Err(error) => report.failed.push(format!("{}: {}", ids.join(", "), error.message())),
                }
            }
            let environments: BTreeSet<&String> = found.iter().map(|left| &left.environment).collect();
            for environment in environments {
                let Some(bucket) = &settings.bucket else { continue };
                let prefix = prefix_of(settings.key_prefix.as_deref().unwrap_or("tierbox"), environment);
                match objects::sweep(&aws, bucket, &prefix).await {
                    Ok(0) => {}
                    Ok(count) => report.removed.push(format!("{count} objects below s3://{bucket}/{prefix}")),
                    Err(error) => report.failed.push(format!("objects of {environment}: {}", error.message())),
                }
            }
            Ok(report)
        })
        .await
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    fn instance(tags: &[(&str, &str)]) -> Instance {
        let mut instance = Instance::new("i-1", "running");
        instance.tags = tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        instance
    }

    #[test]
    fn only_what_nobody_renewed_has_expired() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let of = |expires: &str| is_wanted(&instance(&[("tierbox:task", "e"), ("ExpiresAt", expires)]), &Whose::Expired, now);
        assert!(of("2027-01-15T07:50:00Z").is_some());
        for alive in ["2027-01-15T07:59:00Z", "2027-01-15T09:00:00Z", "", "soon"] {
            assert_eq!(of(alive), None, "{alive}");
        }
        assert_eq!(is_wanted(&instance(&[("ExpiresAt", "2020-01-01T00:00:00Z")]), &Whose::All, now), None);
        let kept = instance(&[("tierbox:task", "kept-s"), ("tierbox:stack", "s"), ("ExpiresAt", "2020-01-01T00:00:00Z")]);
        assert_eq!(is_wanted(&kept, &Whose::All, now), None);
        let ours = instance(&[("tierbox:task", "e")]);
        assert!(is_wanted(&ours, &Whose::Of(vec!["e".to_owned()]), now).is_some());
        assert_eq!(is_wanted(&ours, &Whose::Of(vec!["f".to_owned()]), now), None);
    }
}
