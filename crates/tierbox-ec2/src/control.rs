//! Who makes and ends instances: EC2 itself, or an organisation's own control plane.

use std::collections::BTreeMap;
use std::time::SystemTime;

use async_trait::async_trait;
use aws_sdk_ec2::types::{
    BlockDeviceMapping, EbsBlockDevice, Filter, HttpTokensState, IamInstanceProfileSpecification, InstanceMetadataEndpointState,
    InstanceMetadataOptionsRequest, InstanceType, ResourceType, ShutdownBehavior, Tag, TagSpecification, VolumeType,
};
use tierbox_core::{Error, ErrorKind, Result};

use crate::BACKEND;
use crate::aws::Aws;
use crate::call::{Fate, Pauses, again, code, fate, told};
use crate::envelope::base64;

/// An instance that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Order {
    /// Makes a creation that is asked for twice one.
    pub token: String,
    /// The image.
    pub image: String,
    /// The image's root device, whose volume is encrypted.
    pub root_device: String,
    /// Types, in the order in which they are tried.
    pub types: Vec<String>,
    /// Subnets, in the order in which they are tried; the account's default one where empty.
    pub subnets: Vec<String>,
    /// The security group; the VPC's default one where `None`.
    pub security_group: Option<String>,
    /// The instance profile, by name.
    pub instance_profile: Option<String>,
    /// The size of the root volume in GiB.
    pub volume_size: Option<u32>,
    /// Tags of instance and volume.
    pub tags: BTreeMap<String, String>,
    /// What the instance runs when it boots.
    pub user_data: String,
    /// It is no environment's: it stops when it shuts down, and is not terminated.
    pub kept: bool,
}

/// An instance that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Instance {
    /// Its id.
    pub id: String,
    /// `pending`, `running`, `shutting-down`, …
    pub state: String,
    /// Why it is in that state, if EC2 says so.
    pub reason: String,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

impl Instance {
    /// An instance as found.
    pub fn new(id: impl Into<String>, state: impl Into<String>) -> Self {
        Self { id: id.into(), state: state.into(), reason: String::new(), tags: BTreeMap::new() }
    }

    /// Whether it is gone, or as good as gone.
    pub fn is_ending(&self) -> bool {
        matches!(self.state.as_str(), "shutting-down" | "terminated")
    }
}

/// Which instances are looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Find {
    /// These, whatever their state.
    Ids(Vec<String>),
    /// All that have a tag of this value.
    Tag(String, String),
    /// All that have a tag of this name.
    Tagged(String),
}

/// Credentials that a control plane gives for the calls that remain: commands and files.
#[derive(Clone, PartialEq, Eq)]
pub struct Given {
    /// The access key.
    pub access_key_id: String,
    /// Its secret.
    pub secret_access_key: String,
    /// The session token.
    pub session_token: Option<String>,
    /// Until when they hold. Shortly before, others are asked for; every quarter of an hour where nothing is said.
    pub expires: Option<SystemTime>,
}

impl std::fmt::Debug for Given {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Given(..)")
    }
}

/// Makes, finds and ends instances. An organisation that lets nobody call EC2 puts its own control plane behind it:
/// [`Ec2Backend::with_control`](crate::Ec2Backend::with_control).
///
/// Every method may be called again after it failed or was lost.
#[async_trait]
pub trait Control: Send + Sync {
    /// Makes an instance, or finds the one that was made for the same [`Order::token`].
    ///
    /// # Errors
    /// `LimitReached` where there is no capacity in any type and subnet; `HostUnable`, `Credentials`.
    async fn create(&self, order: &Order) -> Result<Instance>;

    /// Ends instances. Those that are gone are no error.
    ///
    /// # Errors
    /// `Credentials`, `HostUnable`.
    async fn terminate(&self, ids: &[String]) -> Result<()>;

    /// Finds instances, all pages of them.
    ///
    /// # Errors
    /// `Credentials`, `HostUnable`.
    async fn find(&self, which: &Find) -> Result<Vec<Instance>>;

    /// Lets instances live until then: whoever cleans up goes by the tag `ExpiresAt`. Says whether it did; by default it did not, and
    /// tierbox then writes the tag itself, which takes the right `ec2:CreateTags`. A start asks once, and is refused where that fails
    /// for the lack of a right; then it is asked every third of `outlive-minutes`. Those that are gone are no error.
    ///
    /// # Errors
    /// `Credentials`, `HostUnable`.
    async fn renew(&self, ids: &[String], until: SystemTime) -> Result<bool> {
        let _ = (ids, until);
        Ok(false)
    }

    /// Credentials for commands and files, instead of those of this process. None by default. They are asked for again before they end.
    ///
    /// # Errors
    /// Its own.
    async fn credentials(&self) -> Result<Option<Given>> {
        Ok(None)
    }
}

#[async_trait]
impl Control for Aws {
    async fn create(&self, order: &Order) -> Result<Instance> {
        let subnets: Vec<Option<&String>> =
            if order.subnets.is_empty() { vec![None] } else { order.subnets.iter().map(Some).collect() };
        let mut full = Vec::new();
        for kind in &order.types {
            for subnet in &subnets {
                match self.create_in(order, kind, *subnet).await? {
                    Some(instance) => return Ok(instance),
                    None => full.push(format!("{kind} in {}", subnet.map_or("the default subnet", String::as_str))),
                }
            }
        }
        let message = format!("EC2 has no capacity for {}", full.join(", "));
        Err(Error::new(ErrorKind::LimitReached, "start instance", message)
            .with_backend(BACKEND)
            .with_help("name more types (ec2.instance-types) or subnets of other zones (ec2.subnets), or try later")
            .retryable())
    }

    async fn terminate(&self, ids: &[String]) -> Result<()> {
        for some in ids.chunks(50) {
            let end = || self.ec2.terminate_instances().set_instance_ids(Some(some.to_vec())).send();
            match again("end instances", "ec2:TerminateInstances", end).await {
                Ok(_) => {}
                // One that is long gone spoils the whole call.
                Err(error) if is_not_found(&error) && some.len() > 1 => {
                    for id in some {
                        self.terminate(std::slice::from_ref(id)).await?;
                    }
                }
                Err(error) if is_not_found(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn find(&self, which: &Find) -> Result<Vec<Instance>> {
        let filter = match which {
            Find::Ids(ids) => Filter::builder().name("instance-id").set_values(Some(ids.clone())),
            Find::Tag(key, value) => Filter::builder().name(format!("tag:{key}")).values(value),
            Find::Tagged(key) => Filter::builder().name("tag-key").values(key),
        };
        let filter = filter.build();
        let (mut found, mut next) = (Vec::new(), None::<String>);
        loop {
            let ask =
                || self.ec2.describe_instances().filters(filter.clone()).max_results(500).set_next_token(next.clone()).send();
            let page = again("find instances", "ec2:DescribeInstances", ask).await?;
            let instances = page.reservations.unwrap_or_default().into_iter().flat_map(|each| each.instances.unwrap_or_default());
            found.extend(instances.filter_map(of_ec2));
            next = page.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(found);
            }
        }
    }
}

/// Whether an error says that there is no such instance.
pub(crate) fn is_not_found(error: &Error) -> bool {
    error.message().contains("InvalidInstanceID.NotFound")
}

fn of_ec2(instance: aws_sdk_ec2::types::Instance) -> Option<Instance> {
    let state = instance.state.and_then(|state| state.name).map(|name| name.as_str().to_owned()).unwrap_or_default();
    let told = instance.state_reason.and_then(|reason| reason.message).or(instance.state_transition_reason);
    let tags = instance.tags.unwrap_or_default().into_iter();
    Some(Instance {
        id: instance.instance_id?,
        state,
        reason: told.unwrap_or_default(),
        tags: tags.filter_map(|tag| Some((tag.key?, tag.value.unwrap_or_default()))).collect(),
    })
}

impl Aws {
    /// Makes an instance of one type in one subnet; `None` where there is no capacity.
    async fn create_in(&self, order: &Order, kind: &str, subnet: Option<&String>) -> Result<Option<Instance>> {
        const CALL: &str = "ec2:RunInstances";
        let mut pauses = Pauses::new();
        loop {
            let error = match self.request(order, kind, subnet).send().await {
                Ok(answer) => {
                    let made = answer.instances.unwrap_or_default().into_iter().next().and_then(of_ec2);
                    return made.map(Some).ok_or_else(|| {
                        Error::new(ErrorKind::HostUnable, "start instance", format!("{CALL} made nothing")).with_backend(BACKEND)
                    });
                }
                Err(error) => error,
            };
            match code(&error) {
                "InsufficientInstanceCapacity" | "Unsupported" | "InsufficientFreeAddressesInSubnet" => return Ok(None),
                "InvalidAMIID.NotFound" | "InvalidAMIID.Malformed" => return Err(no_image(&order.image, &self.region)),
                _ => {}
            }
            match pauses.next() {
                Some(pause) if fate(&error) != Fate::Refused => tokio::time::sleep(pause).await,
                _ => return Err(told("start instance", CALL, &error)),
            }
        }
    }

    fn request(
        &self,
        order: &Order,
        kind: &str,
        subnet: Option<&String>,
    ) -> aws_sdk_ec2::operation::run_instances::builders::RunInstancesFluentBuilder {
        let tags: Vec<Tag> = order.tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect();
        let tagged = |what| TagSpecification::builder().resource_type(what).set_tags(Some(tags.clone())).build();
        let metadata = InstanceMetadataOptionsRequest::builder()
            .http_tokens(HttpTokensState::Required)
            .http_put_response_hop_limit(1)
            .http_endpoint(InstanceMetadataEndpointState::Enabled)
            .build();
        let volume = EbsBlockDevice::builder()
            .encrypted(true)
            .delete_on_termination(true)
            .volume_type(VolumeType::Gp3)
            .set_volume_size(order.volume_size.and_then(|size| i32::try_from(size).ok()))
            .build();
        let profile = |name: &String| IamInstanceProfileSpecification::builder().name(name).build();
        // The token is of one order in one place: the same with other parameters would be refused.
        let token = format!("{}-{}", order.token, &short_hash(&format!("{kind} {subnet:?}")));
        self.ec2
            .run_instances()
            .client_token(token)
            .image_id(&order.image)
            .instance_type(InstanceType::from(kind))
            .min_count(1)
            .max_count(1)
            .set_subnet_id(subnet.cloned())
            .set_security_group_ids(order.security_group.clone().map(|group| vec![group]))
            .set_iam_instance_profile(order.instance_profile.as_ref().map(profile))
            .instance_initiated_shutdown_behavior(if order.kept { ShutdownBehavior::Stop } else { ShutdownBehavior::Terminate })
            .metadata_options(metadata)
            .block_device_mappings(BlockDeviceMapping::builder().device_name(&order.root_device).ebs(volume).build())
            .tag_specifications(tagged(ResourceType::Instance))
            .tag_specifications(tagged(ResourceType::Volume))
            .user_data(base64(order.user_data.as_bytes()))
    }
}

/// Eight hexadecimal digits of a hash.
pub(crate) fn short_hash(text: &str) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(text).iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// There is no such image in this region.
pub(crate) fn no_image(image: &str, region: &str) -> Error {
    let message = format!("there is no image {} in {region}", crate::call::shown(image));
    Error::new(ErrorKind::InvalidProfile, "find image", message)
        .with_backend(BACKEND)
        .with_help("ids of images are per region: the same image has another id in each. Leave ec2.ami out for Ubuntu 24.04")
}
