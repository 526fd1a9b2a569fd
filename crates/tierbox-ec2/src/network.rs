//! A stack's network when the stack goes: its endpoints go first, what else is in it is named, and what CloudFormation left is removed.

use std::time::{Duration, Instant};

use aws_sdk_ec2::types::{Filter, NetworkInterface, VpcEndpoint};
use tierbox_core::{Error, ErrorKind, Result};

use crate::BACKEND;
use crate::aws::Aws;
use crate::call::again;

const TRIED: &str = "remove stack";
/// How long endpoints may take until they and their interfaces are gone, and a network until nothing depends on it.
const GOING: Duration = Duration::from_secs(5 * 60);
/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);
/// CloudFormation's own tag, which nobody else can write.
const BY_STACK: &str = "aws:cloudformation:stack-name";

fn filter(name: impl Into<String>, value: impl Into<String>) -> Filter {
    Filter::builder().name(name).values(value).build()
}

/// Whether EC2 or CloudFormation says that something depends on what is to be removed.
pub(crate) fn is_dependency(said: &str) -> bool {
    ["DependencyViolation", "has dependencies", "dependent object", "currently in use"].iter().any(|words| said.contains(words))
}

/// Removes endpoints of a stack in its network, and waits for their interfaces: subnets and groups stay as long as these are there.
///
/// # Errors
/// `Timeout` with what does not go.
pub(crate) async fn release(aws: &Aws, vpc: &str, stack: &str, known: &[String]) -> Result<()> {
    let (begun, mut interfaces) = (Instant::now(), Vec::new());
    loop {
        let mut there = endpoints(aws, vpc).await?;
        there.retain(|each| is_of_stack(each, stack) || known.iter().any(|id| each.vpc_endpoint_id.as_ref() == Some(id)));
        interfaces.extend(there.iter().flat_map(|each| each.network_interface_ids.clone().unwrap_or_default()));
        let going: Vec<String> =
            there.iter().filter(|each| !is(each, "deleting")).filter_map(|each| each.vpc_endpoint_id.clone()).collect();
        if !going.is_empty() {
            let end = || aws.ec2.delete_vpc_endpoints().set_vpc_endpoint_ids(Some(going.clone())).send();
            again(TRIED, "ec2:DeleteVpcEndpoints", end).await?;
        }
        let mut left: Vec<String> = there.into_iter().filter_map(|each| each.vpc_endpoint_id).collect();
        if left.is_empty() {
            left = self::interfaces(aws, vpc).await?.into_iter().filter_map(|each| each.network_interface_id).collect();
            left.retain(|id| interfaces.contains(id));
        }
        if left.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > GOING {
            let message = format!("in {vpc} the stack's endpoints do not go: {}", left.join(", "));
            return Err(Error::new(ErrorKind::Timeout, TRIED, message)
                .with_backend(BACKEND)
                .with_help("nothing else of the stack was removed: try again later"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn is(endpoint: &VpcEndpoint, state: &str) -> bool {
    endpoint.state.as_ref().is_some_and(|own| own.as_str().eq_ignore_ascii_case(state))
}

fn is_of_stack(endpoint: &VpcEndpoint, stack: &str) -> bool {
    endpoint.tags().iter().any(|tag| tag.key() == Some(BY_STACK) && tag.value() == Some(stack))
}

/// The endpoints of a network that are not gone.
async fn endpoints(aws: &Aws, vpc: &str) -> Result<Vec<VpcEndpoint>> {
    let ask = || aws.ec2.describe_vpc_endpoints().filters(filter("vpc-id", vpc)).send();
    let found = again(TRIED, "ec2:DescribeVpcEndpoints", ask).await?.vpc_endpoints.unwrap_or_default();
    Ok(found.into_iter().filter(|each| !is(each, "deleted")).collect())
}

/// The network interfaces of a network.
async fn interfaces(aws: &Aws, vpc: &str) -> Result<Vec<NetworkInterface>> {
    let ask = || aws.ec2.describe_network_interfaces().filters(filter("vpc-id", vpc)).send();
    Ok(again(TRIED, "ec2:DescribeNetworkInterfaces", ask).await?.network_interfaces.unwrap_or_default())
}

/// What is in a network that keeps it from going, for people: instances, endpoints, interfaces.
pub(crate) async fn contents(aws: &Aws, vpc: &str) -> Result<Vec<String>> {
    let ask = || aws.ec2.describe_instances().filters(filter("vpc-id", vpc)).send();
    let found = again(TRIED, "ec2:DescribeInstances", ask).await?.reservations.unwrap_or_default();
    let instances = found.into_iter().flat_map(|each| each.instances.unwrap_or_default());
    let mut all: Vec<String> = Vec::new();
    for instance in instances {
        let state = instance.state.and_then(|state| state.name).map(|name| name.as_str().to_owned()).unwrap_or_default();
        if state != "terminated" {
            all.push(format!("instance {} ({state})", instance.instance_id.unwrap_or_default()));
        }
    }
    let endpoints = endpoints(aws, vpc).await?;
    all.extend(endpoints.into_iter().filter_map(|each| each.vpc_endpoint_id).map(|id| format!("endpoint {id}")));
    all.extend(interfaces(aws, vpc).await?.iter().map(told));
    Ok(all)
}

/// An interface, whose it is, and what for.
fn told(interface: &NetworkInterface) -> String {
    let whose = interface.attachment().and_then(|attachment| attachment.instance_id()).or(interface.requester_id());
    let about: Vec<&str> = [whose, interface.description()].into_iter().flatten().filter(|text| !text.is_empty()).collect();
    let id = interface.network_interface_id().unwrap_or_default();
    if about.is_empty() { format!("network interface {id}") } else { format!("network interface {id} ({})", about.join(", ")) }
}

/// The networks that CloudFormation made for a stack.
pub(crate) async fn of_stack(aws: &Aws, stack: &str) -> Result<Vec<String>> {
    let ask = || {
        aws.ec2
            .describe_vpcs()
            .filters(filter(format!("tag:{BY_STACK}"), stack))
            .filters(filter("tag:tierbox:stack", stack))
            .send()
    };
    let found = again(TRIED, "ec2:DescribeVpcs", ask).await?.vpcs.unwrap_or_default();
    Ok(found.into_iter().filter_map(|vpc| vpc.vpc_id).collect())
}

/// Removes a network whose stack is gone, with the endpoints, route tables and internet gateway of that stack.
///
/// # Errors
/// `HostUnable` while something else depends on it.
pub(crate) async fn remove(aws: &Aws, vpc: &str, stack: &str) -> Result<()> {
    release(aws, vpc, stack, &[]).await?;
    route_tables(aws, vpc, stack).await?;
    ways_out(aws, vpc, stack).await?;
    let begun = Instant::now();
    loop {
        let end = || aws.ec2.delete_vpc().vpc_id(vpc).send();
        match again(TRIED, "ec2:DeleteVpc", end).await {
            Err(error) if is_dependency(error.message()) && begun.elapsed() < GOING => tokio::time::sleep(LOOK).await,
            // An answer that was lost.
            Err(error) if error.message().contains("InvalidVpcID.NotFound") => return Ok(()),
            done => return done.map(|_| ()),
        }
    }
}

/// Removes the route tables of a stack.
async fn route_tables(aws: &Aws, vpc: &str, stack: &str) -> Result<()> {
    let ask = || {
        let ask = aws.ec2.describe_route_tables().filters(filter("vpc-id", vpc));
        ask.filters(filter(format!("tag:{BY_STACK}"), stack)).send()
    };
    let tables = again(TRIED, "ec2:DescribeRouteTables", ask).await?.route_tables.unwrap_or_default();
    for id in tables.into_iter().filter_map(|table| table.route_table_id) {
        let end = || aws.ec2.delete_route_table().route_table_id(&id).send();
        again(TRIED, "ec2:DeleteRouteTable", end).await?;
    }
    Ok(())
}

/// Removes the internet gateway of a stack.
async fn ways_out(aws: &Aws, vpc: &str, stack: &str) -> Result<()> {
    let ask = || aws.ec2.describe_internet_gateways().filters(filter(format!("tag:{BY_STACK}"), stack)).send();
    let found = again(TRIED, "ec2:DescribeInternetGateways", ask).await?.internet_gateways.unwrap_or_default();
    // One that is attached elsewhere is of another stack that had the same name.
    for gateway in found.iter().filter(|each| each.attachments().iter().all(|one| one.vpc_id() == Some(vpc))) {
        let id = gateway.internet_gateway_id().unwrap_or_default();
        if !gateway.attachments().is_empty() {
            let detach = || aws.ec2.detach_internet_gateway().internet_gateway_id(id).vpc_id(vpc).send();
            again(TRIED, "ec2:DetachInternetGateway", detach).await?;
        }
        let end = || aws.ec2.delete_internet_gateway().internet_gateway_id(id).send();
        again(TRIED, "ec2:DeleteInternetGateway", end).await?;
    }
    Ok(())
}

#[cfg(test)]
mod unit {
    use super::*;
    use aws_sdk_ec2::types::{NetworkInterfaceAttachment, Tag};

    #[test]
    fn what_depends_is_known_by_the_words_of_ec2_and_cloudformation() {
        for said in [
            "DependencyViolation: The vpc vpc-1 has dependencies and cannot be deleted.",
            "Vpc The vpc 'vpc-1' has dependencies and cannot be deleted. (Service: Ec2, Status Code: 400)",
            "N2Group resource sg-1 has a dependent object (Service: Ec2, Status Code: 400)",
        ] {
            assert!(is_dependency(said), "{said}");
        }
        assert!(!is_dependency("Bucket The bucket you tried to delete is not empty"));
    }

    #[test]
    fn an_interface_in_the_way_is_told_with_its_owner() {
        let attachment = NetworkInterfaceAttachment::builder().instance_id("i-1").build();
        let whose = NetworkInterface::builder().network_interface_id("eni-1").attachment(attachment).description("").build();
        assert_eq!(told(&whose), "network interface eni-1 (i-1)");
        let service =
            NetworkInterface::builder().network_interface_id("eni-2").requester_id("amazon-elb").description("ELB x").build();
        assert_eq!(told(&service), "network interface eni-2 (amazon-elb, ELB x)");
        assert_eq!(told(&NetworkInterface::builder().network_interface_id("eni-3").build()), "network interface eni-3");
    }

    #[test]
    fn an_endpoint_is_a_stacks_by_cloudformations_own_tag() {
        let tagged = |key: &str| VpcEndpoint::builder().tags(Tag::builder().key(key).value("s").build()).build();
        assert!(is_of_stack(&tagged(BY_STACK), "s") && !is_of_stack(&tagged(BY_STACK), "t"));
        assert!(!is_of_stack(&tagged("tierbox:stack"), "s"));
    }
}
