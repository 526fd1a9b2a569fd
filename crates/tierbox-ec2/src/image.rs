//! Which image: the profile's, or Canonical's newest Ubuntu for the instance type's architecture.

use aws_sdk_ec2::types::{ArchitectureType, InstanceType};
use tierbox_core::{Error, ErrorKind, Result};

use crate::BACKEND;
use crate::aws::Aws;
use crate::call::{again, code, told};
use crate::control::no_image;
use crate::settings::{Settings, invalid};

/// An image that fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) id: String,
    /// The name of its root device.
    pub(crate) root_device: String,
    /// The size of its root volume in GiB, if it tells one.
    pub(crate) size: Option<u32>,
}

/// An architecture as Canonical spells it.
fn architecture(types: &[ArchitectureType]) -> Option<&'static str> {
    if types.contains(&ArchitectureType::X8664) {
        return Some("amd64");
    }
    types.contains(&ArchitectureType::Arm64).then_some("arm64")
}

/// Finds the image for the settings.
pub(crate) async fn find(aws: &Aws, settings: &Settings) -> Result<Image> {
    let wanted = of_types(aws, &settings.types()).await?;
    let id = match &settings.ami {
        Some(id) => id.clone(),
        None => newest(aws, wanted).await?,
    };
    describe(aws, &id, wanted).await
}

/// The architecture that all the types have.
async fn of_types(aws: &Aws, types: &[String]) -> Result<&'static str> {
    let named: Vec<InstanceType> = types.iter().map(|kind| InstanceType::from(kind.as_str())).collect();
    let ask = || aws.ec2.describe_instance_types().set_instance_types(Some(named.clone())).send();
    let answer = again("find instance type", "ec2:DescribeInstanceTypes", ask).await.map_err(|error| {
        if error.message().contains("InvalidInstanceType") {
            return invalid(format!("one of the instance types {} does not exist in {}", types.join(", "), aws.region))
                .with_help("see `aws ec2 describe-instance-type-offerings` for those of the region");
        }
        error
    })?;
    let mut found = Vec::new();
    for kind in answer.instance_types.unwrap_or_default() {
        let supported = kind.processor_info.and_then(|info| info.supported_architectures).unwrap_or_default();
        found.extend(architecture(&supported));
    }
    match found.first() {
        Some(first) if found.iter().all(|each| each == first) => Ok(first),
        Some(_) => {
            Err(invalid(format!("the instance types {} are of several architectures, and one image fits one", types.join(", "))))
        }
        None => Err(invalid(format!("{} tells no architecture that is known here", types.join(", ")))),
    }
}

async fn newest(aws: &Aws, architecture: &str) -> Result<String> {
    let name = format!("/aws/service/canonical/ubuntu/server/24.04/stable/current/{architecture}/hvm/ebs-gp3/ami-id");
    let ask = || aws.ssm.get_parameter().name(&name).send();
    let answer = again("find image", "ssm:GetParameter", ask).await?;
    let value = answer.parameter.and_then(|parameter| parameter.value);
    value.ok_or_else(|| Error::new(ErrorKind::HostUnable, "find image", format!("{name} has no value")).with_backend(BACKEND))
}

async fn describe(aws: &Aws, id: &str, wanted: &str) -> Result<Image> {
    let mut pauses = crate::call::Pauses::new();
    let answer = loop {
        match aws.ec2.describe_images().image_ids(id).send().await {
            Ok(answer) => break answer,
            Err(error) if code(&error).starts_with("InvalidAMIID") => return Err(no_image(id, &aws.region)),
            Err(error) => match pauses.next() {
                Some(pause) if crate::call::fate(&error) != crate::call::Fate::Refused => tokio::time::sleep(pause).await,
                _ => return Err(told("find image", "ec2:DescribeImages", &error)),
            },
        }
    };
    let image = answer.images.unwrap_or_default().into_iter().next().ok_or_else(|| no_image(id, &aws.region))?;
    let own = match image.architecture.as_ref().map(|own| own.as_str()) {
        Some("x86_64") => "amd64",
        Some(other) => other,
        None => wanted,
    };
    if own != wanted {
        return Err(invalid(format!("the image {id} is for {own}, and the instance type for {wanted}"))
            .with_help("name an image of that architecture, or leave ec2.ami out"));
    }
    let root_device = image.root_device_name.unwrap_or_else(|| "/dev/sda1".to_owned());
    let volumes = image.block_device_mappings.unwrap_or_default();
    let root = volumes.into_iter().find(|volume| volume.device_name.as_deref() == Some(root_device.as_str()));
    let size = root.and_then(|volume| volume.ebs?.volume_size).and_then(|size| u32::try_from(size).ok());
    Ok(Image { id: id.to_owned(), root_device, size })
}
