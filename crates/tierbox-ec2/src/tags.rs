//! The tags of instances: whose they are, and until when.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use aws_sdk_ec2::primitives::{DateTime, DateTimeFormat};
use aws_sdk_ec2::types::Tag;
use tierbox_core::{Error, Result};

use crate::BACKEND;
use crate::aws::Aws;
use crate::call::again;
use crate::control::{Control, is_not_found};

/// The environment that an instance belongs to; policies of AWS ask for it.
pub(crate) const TASK: &str = "tierbox:task";
/// The machine's name in its environment.
pub(crate) const MACHINE: &str = "tierbox:machine";
/// The state directory of the harness.
pub(crate) const OWNER: &str = "tierbox:owner";
/// Until when it is wanted, unless that is renewed.
pub(crate) const EXPIRES: &str = "ExpiresAt";

/// A moment as the tag has it.
pub(crate) fn moment(at: SystemTime) -> String {
    let seconds = DateTime::from_secs(DateTime::from(at).secs());
    seconds.fmt(DateTimeFormat::DateTime).unwrap_or_default()
}

/// The tags of a machine.
pub(crate) fn of(
    extra: &BTreeMap<String, String>,
    profile: &str,
    environment: &str,
    machine: &str,
    owner: &str,
    life: Duration,
) -> BTreeMap<String, String> {
    let own = [
        ("Name", format!("tierbox {environment} {machine}")),
        (TASK, environment.to_owned()),
        (MACHINE, machine.to_owned()),
        ("tierbox:profile", profile.chars().take(200).collect()),
        (OWNER, owner.to_owned()),
        (EXPIRES, moment(SystemTime::now() + life)),
    ];
    extra.clone().into_iter().chain(own.map(|(key, value)| (key.to_owned(), value))).collect()
}

/// Lets machines live until then: by the control plane if it does that, else by the tag.
///
/// # Errors
/// What refuses it, with what then happens.
pub(crate) async fn renew(aws: &Aws, control: &dyn Control, instances: &[String], until: SystemTime) -> Result<()> {
    let renewed = async { if control.renew(instances, until).await? { Ok(()) } else { by_tag(aws, instances, until).await } };
    renewed.await.map_err(|error| {
        let message = format!("the tag {EXPIRES} of {} cannot be renewed: {}", instances.join(", "), error.message());
        let error = Error::new(error.kind(), "renew instances", message).with_backend(BACKEND);
        error.with_help(
            "grant ec2:CreateTags on them (infra/tierbox.yaml does), or let the control plane renew them (Control::renew): once the \
             tag is past, `tierbox ec2 cleanup` of any host ends what runs there",
        )
    })
}

/// Renews the tag of when machines are not wanted any more.
async fn by_tag(aws: &Aws, instances: &[String], until: SystemTime) -> Result<()> {
    match tag(aws, instances, until).await {
        // One that is gone spoils the call for the others.
        Err(error) if is_not_found(&error) && instances.len() > 1 => {
            for instance in instances {
                match tag(aws, std::slice::from_ref(instance), until).await {
                    Err(error) if !is_not_found(&error) => return Err(error),
                    _ => {}
                }
            }
            Ok(())
        }
        done => done,
    }
}

async fn tag(aws: &Aws, instances: &[String], until: SystemTime) -> Result<()> {
    let tag = Tag::builder().key(EXPIRES).value(moment(until)).build();
    let renew = || aws.ec2.create_tags().set_resources(Some(instances.to_vec())).tags(tag.clone()).send();
    again("renew instances", "ec2:CreateTags", renew).await.map(drop)
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn moments_are_written_as_aws_does() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        assert_eq!(moment(at), "2027-01-15T08:00:00Z");
    }

    #[test]
    fn other_tools_do_not_find_our_machines() {
        let tags = of(&BTreeMap::new(), "ec2", "id", "main", "owner", Duration::from_secs(60));
        assert!(!tags.keys().any(|key| key.starts_with("inspect")), "{tags:?}");
        assert_eq!(tags[TASK], "id");
    }
}
