//! The stack of infra/tierbox.yaml in an account and region: deployed, read, removed.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_ec2::types::Filter;
use roxmltree::Document;
use tierbox_core::{DestroyReport, Error, ErrorKind, Progress, Result};

use crate::BACKEND;
use crate::aws::{Aws, driven};
use crate::call::{again, shown};
use crate::control::{Control, Find, Instance};
use crate::settings::invalid;
use crate::signed::{cloudformation, iam};
use crate::{network, objects, tags};

/// The template: `stack` leads to infra/, which is published with this crate.
const TEMPLATE: &str = include_str!("../stack/tierbox.yaml");
/// How long a stack may take, and between two looks.
const LIMIT: Duration = Duration::from_secs(20 * 60);
const FIRST_LOOK: Duration = Duration::from_millis(200);
const LOOK: Duration = Duration::from_secs(2);
/// Between two deletions, where something depended on the network.
const AGAIN: Duration = Duration::from_secs(5);
/// How long instances may take to end, and what depends on the network may take to go.
const ENDING: Duration = Duration::from_secs(5 * 60);
/// The tag of what was made beside a stack, and goes with it.
pub(crate) const OF_STACK: &str = "tierbox:stack";

/// What a stack costs while nothing runs.
pub const IDLE_COST: &str = "Billed while nothing runs: three interface endpoints (ssm, ssmmessages, ec2messages), each by the hour and by zone, so \
six; the DNS Firewall by the domain names it stores; and with N1 the gateway's instance, volume and public address. Not billed by the hour: network, subnets, groups, the gateway endpoint of S3, roles, \
an empty bucket. The prices depend on the region: see Amazon's pages for PrivateLink and Route 53 Resolver DNS Firewall.";

/// A stack that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    /// Its name.
    pub name: String,
    /// CloudFormation's word for its state.
    pub status: String,
    /// What it made, by the names of infra/tierbox.yaml.
    pub outputs: BTreeMap<String, String>,
    /// What it was given, by the names of infra/tierbox.yaml.
    pub parameters: BTreeMap<String, String>,
}

fn failed(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::HostUnable, "deploy stack", message).with_backend(BACKEND)
}

/// The text of an element below another.
fn text_of<'a>(node: roxmltree::Node<'a, '_>, name: &str) -> Option<&'a str> {
    node.descendants().find(|each| each.tag_name().name() == name)?.text()
}

impl Stack {
    /// An output.
    ///
    /// # Errors
    /// `HostUnable` for a stack that is none of ours.
    pub fn output(&self, key: &str) -> Result<&str> {
        let none = || failed(format!("the stack {} has no output {key}: it is none of infra/tierbox.yaml", self.name));
        self.outputs.get(key).map(String::as_str).ok_or_else(none)
    }

    fn read(name: &str, xml: &str) -> Result<Self> {
        let odd = || failed("CloudFormation's answer makes no sense");
        let document = Document::parse(xml).map_err(|_| odd())?;
        let status = text_of(document.root(), "StackStatus").ok_or_else(odd)?.to_owned();
        let pairs = |kind: &str| {
            let (key, value) = (format!("{kind}Key"), format!("{kind}Value"));
            let of = |node: roxmltree::Node<'_, '_>| {
                (node.tag_name().name() == key).then_some(())?;
                let value = text_of(node.parent()?, &value).unwrap_or_default();
                Some((node.text()?.to_owned(), value.to_owned()))
            };
            document.descendants().filter_map(of).collect()
        };
        Ok(Self { name: name.to_owned(), status, outputs: pairs("Output"), parameters: pairs("Parameter") })
    }
}

/// The stack of a name; `None` if there is none.
pub(crate) async fn find(aws: &Arc<Aws>, name: &str) -> Result<Option<Stack>> {
    let (aws, name) = (aws.clone(), name.to_owned());
    driven(async move {
        match cloudformation(&aws, "DescribeStacks", &[("StackName", &name)]).await {
            Ok(xml) => Stack::read(&name, &xml).map(|stack| Some(stack).filter(|stack| stack.status != "DELETE_COMPLETE")),
            Err(error) if error.message().contains("does not exist") => Ok(None),
            Err(error) => Err(error),
        }
    })
    .await
}

/// What of a stack may be had or not.
#[derive(Debug, Clone, Default)]
pub(crate) struct Parts {
    /// A public subnet.
    pub(crate) internet: bool,
    /// The image of N1's gateway.
    pub(crate) gateway: Option<String>,
    /// Who resolves names for it.
    pub(crate) resolver: Option<Ipv4Addr>,
}

/// The names of the template's parameters.
fn parameters() -> impl Iterator<Item = &'static str> {
    let section = TEMPLATE.split_once("\nParameters:\n").map_or("", |(_, rest)| rest);
    let own = section.lines().take_while(|line| line.is_empty() || line.starts_with(' '));
    own.filter_map(|line| line.strip_prefix("  ")?.strip_suffix(':').filter(|name| !name.starts_with(' ')))
}

/// Deploys the stack; one that is there is brought to this template, and keeps the parts that it has.
pub(crate) async fn deploy(aws: &Arc<Aws>, name: &str, parts: &Parts, progress: &dyn Progress) -> Result<Stack> {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !(2..=25).contains(&name.len()) || !name.bytes().all(legal) || !name.starts_with(|first: char| first.is_ascii_lowercase())
    {
        return Err(invalid(format!("{:?} cannot be the name of a stack", shown(name)))
            .with_help("up to 25 lower-case letters, digits and dashes, a letter first"));
    }
    let before = find(aws, name).await?;
    if let Some(before) = &before {
        stays_as_closed(before, parts)?;
    }
    progress.step(if before.is_none() { "deploying the stack" } else { "updating the stack" });
    let changes = bring(aws, name, before.as_ref(), parts).await?;
    let (begun, mut pause) = (Instant::now(), FIRST_LOOK);
    loop {
        let stack = find(aws, name).await?.ok_or_else(|| failed(format!("the stack {name} is gone")))?;
        match stack.status.as_str() {
            "CREATE_COMPLETE" | "UPDATE_COMPLETE" => return Ok(stack),
            // An earlier update failed, and was undone: it is what this template makes.
            "UPDATE_ROLLBACK_COMPLETE" if !changes => return Ok(stack),
            status if status.ends_with("_IN_PROGRESS") && begun.elapsed() < LIMIT => {}
            status => {
                let error = failed(format!("the stack {name} is {status}: {}", why(aws, name).await));
                return Err(error.with_help(advice(status, name)));
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK);
    }
}

/// A network is N0's or closed, from its creation on: who works in it counts on the one or the other.
fn stays_as_closed(before: &Stack, parts: &Parts) -> Result<()> {
    let (public, gateway) = (before.outputs.contains_key("PublicSubnetId"), before.outputs.contains_key("GatewayInstance"));
    let is_open = public && !gateway;
    let why = match (is_open, parts.internet, parts.gateway.is_some()) {
        (false, true, _) => "is closed: names would be answered to those who work there with N2 or N1",
        (true, _, true) => "is N0's: with a gateway, names would be answered no more to those who work there",
        _ => return Ok(()),
    };
    Err(Error::new(ErrorKind::InvalidInput, "deploy stack", format!("the network of the stack {} {why}", before.name))
        .with_backend(BACKEND)
        .with_help("make another stack with --stack, or tear this one down first"))
}

/// What to do about a stack that was not deployed.
fn advice(status: &str, name: &str) -> String {
    match status {
        "UPDATE_ROLLBACK_COMPLETE" => "it is as it was before, and works: mend the reason and set it up again".to_owned(),
        _ => format!("`tierbox ec2 teardown --stack {name}` removes what was made of it"),
    }
}

/// The template's parameters; of those of a stack that is there, its own values where `None`.
async fn values(aws: &Aws, name: &str, before: Option<&Stack>, parts: &Parts) -> Result<Vec<(&'static str, Option<String>)>> {
    let has = |output: &str| before.is_some_and(|stack| stack.outputs.contains_key(output));
    let internet = parts.internet || parts.gateway.is_some() || has("PublicSubnetId");
    let mut values = vec![("WithInternet", Some(if internet { "yes" } else { "no" }.to_owned()))];
    values.extend(match (has("GatewayInstance"), &parts.gateway) {
        // Another image would replace it under those who use it.
        (true, _) => Some(("GatewayImage", None)),
        (false, Some(image)) => Some(("GatewayImage", Some(image.clone()))),
        (false, None) => None,
    });
    values.extend(resolver(before, parts)?.map(|address| ("GatewayResolver", Some(address.to_string()))));
    if let Some(before) = before {
        // What is not named goes back to the template's own value, and another range of addresses is another network.
        let has = |key: &&str| before.parameters.contains_key(*key) && values.iter().all(|(given, _)| given != key);
        let kept: Vec<_> = parameters().filter(has).map(|key| (key, None)).collect();
        values.extend(kept);
        return Ok(values);
    }
    values.extend([
        ("Prefix", Some(name.to_owned())),
        ("S3PrefixList", Some(prefix_list(aws).await?)),
        ("Zones", Some(two_zones(aws).await?)),
    ]);
    Ok(values)
}

/// The gateway's resolver, if it is to be told.
fn resolver(before: Option<&Stack>, parts: &Parts) -> Result<Option<Ipv4Addr>> {
    let Some(wanted) = parts.resolver else { return Ok(None) };
    match before.filter(|stack| stack.outputs.contains_key("GatewayInstance")) {
        None => Ok(Some(wanted)),
        Some(stack) if stack.parameters.get("GatewayResolver").is_some_and(|own| *own == wanted.to_string()) => Ok(None),
        Some(stack) => {
            let message = format!("the gateway of {} is there, and takes its resolver when it is made", stack.name);
            Err(Error::new(ErrorKind::InvalidInput, "deploy stack", message)
                .with_backend(BACKEND)
                .with_help("tear the stack down first, or make another one with --stack"))
        }
    }
}

/// Asks for the stack as it should be. Returns whether anything changes.
async fn bring(aws: &Arc<Aws>, name: &str, before: Option<&Stack>, parts: &Parts) -> Result<bool> {
    let (aws, name, before, parts) = (aws.clone(), name.to_owned(), before.cloned(), parts.clone());
    driven(async move {
        let values = values(&aws, &name, before.as_ref(), &parts).await?;
        let mut parameters = vec![
            ("StackName".to_owned(), name.clone()),
            // A request that is made again, because its answer was lost, is the same one.
            ("ClientRequestToken".to_owned(), objects::random(12)?),
            ("Capabilities.member.1".to_owned(), "CAPABILITY_NAMED_IAM".to_owned()),
            ("TemplateBody".to_owned(), TEMPLATE.to_owned()),
            ("Tags.member.1.Key".to_owned(), OF_STACK.to_owned()),
            ("Tags.member.1.Value".to_owned(), name.clone()),
        ];
        for (number, (key, value)) in (1..).zip(values) {
            parameters.push((format!("Parameters.member.{number}.ParameterKey"), key.to_owned()));
            parameters.push(match value {
                Some(value) => (format!("Parameters.member.{number}.ParameterValue"), value),
                None => (format!("Parameters.member.{number}.UsePreviousValue"), "true".to_owned()),
            });
        }
        let borrowed: Vec<(&str, &str)> = parameters.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let action = if before.is_some() { "UpdateStack" } else { "CreateStack" };
        match cloudformation(&aws, action, &borrowed).await {
            // An answer that was lost.
            Err(error) if error.message().contains("AlreadyExists") => Ok(true),
            Err(error) if before.is_some() && error.message().contains("No updates are to be performed") => Ok(false),
            done => done.map(|_| true),
        }
    })
    .await
}

/// The region's prefix list of S3.
async fn prefix_list(aws: &Aws) -> Result<String> {
    let name = format!("com.amazonaws.{}.s3", aws.region);
    let filter = Filter::builder().name("prefix-list-name").values(&name).build();
    let ask = || aws.ec2.describe_prefix_lists().filters(filter.clone()).send();
    let answer = again("deploy stack", "ec2:DescribePrefixLists", ask).await?;
    let mut lists = answer.prefix_lists.unwrap_or_default().into_iter();
    let found = lists.find(|list| list.prefix_list_name.as_ref() == Some(&name)).and_then(|list| list.prefix_list_id);
    found.ok_or_else(|| failed(format!("{} has no prefix list of S3", aws.region)))
}

async fn two_zones(aws: &Aws) -> Result<String> {
    let filter = Filter::builder().name("state").values("available").build();
    let ask = || aws.ec2.describe_availability_zones().filters(filter.clone()).send();
    let answer = again("deploy stack", "ec2:DescribeAvailabilityZones", ask).await?;
    let mut zones: Vec<String> =
        answer.availability_zones.unwrap_or_default().into_iter().filter_map(|zone| zone.zone_name).collect();
    zones.sort();
    zones.truncate(2);
    if zones.len() < 2 { Err(failed(format!("{} has no two zones", aws.region))) } else { Ok(zones.join(",")) }
}

/// Why a stack failed: the first of the events of what was asked for last that says so.
async fn why(aws: &Arc<Aws>, name: &str) -> String {
    let (aws, name) = (aws.clone(), name.to_owned());
    let asking = name.clone();
    let asked = driven(async move { cloudformation(&aws, "DescribeStackEvents", &[("StackName", &asking)]).await }).await;
    let Ok(xml) = asked else { return "its events cannot be read".to_owned() };
    let Ok(document) = Document::parse(&xml) else { return "its events make no sense".to_owned() };
    first_failure(&document, &name).map_or_else(|| "no event tells why".to_owned(), |reason| shown(&reason))
}

fn first_failure(events: &Document<'_>, stack: &str) -> Option<String> {
    let statuses = events.descendants().filter(|node| node.tag_name().name() == "ResourceStatus");
    let all = statuses.filter_map(|node| {
        let event = node.parent()?;
        Some((node.text()?, text_of(event, "LogicalResourceId")?, text_of(event, "ResourceStatusReason")))
    });
    // The newest come first: up to where the stack's own work began.
    let begun = |status: &str| matches!(status, "CREATE_IN_PROGRESS" | "UPDATE_IN_PROGRESS" | "DELETE_IN_PROGRESS");
    let own = all.take_while(|(status, resource, _)| !(*resource == stack && begun(status)));
    let failed = own.filter(|(status, ..)| status.ends_with("_FAILED"));
    failed.last().map(|(_, resource, why)| format!("{resource} {}", why.unwrap_or("no reason is given")))
}

/// Removes the stack, and what was made beside it; the bucket is emptied first.
pub(crate) async fn remove(
    aws: &Arc<Aws>,
    control: &Arc<dyn Control>,
    name: &str,
    progress: &dyn Progress,
) -> Result<DestroyReport> {
    let mut report = DestroyReport::default();
    progress.step("ending what was made beside the stack");
    let stack = find(aws, name).await?;
    if let Some(vpc) = stack.as_ref().and_then(|stack| stack.outputs.get("VpcId")) {
        nobody_works_in(aws, vpc).await?;
    }
    own_instances(control, name, &mut report).await?;
    let Some(stack) = stack else {
        left_over(aws, name, None, &mut report).await?;
        return Ok(report);
    };
    if let Some(bucket) = stack.outputs.get("Bucket") {
        progress.step("emptying the bucket");
        let (aws, name) = (aws.clone(), bucket.clone());
        let swept = driven(async move { objects::sweep(&aws, &name, "").await }).await;
        match swept {
            Ok(count) => report.removed.push(format!("{count} objects of {bucket}")),
            Err(error) if error.message().contains("NoSuchBucket") => {}
            Err(error) => return Err(error),
        }
    }
    if let Some(vpc) = stack.outputs.get("VpcId") {
        progress.step("removing the endpoints");
        let (aws, vpc, name) = (aws.clone(), vpc.clone(), name.to_owned());
        driven(async move { network::release(&aws, &vpc, &name, &endpoints(&aws, &name).await?).await }).await?;
    }
    match delete(aws, name, progress).await? {
        Deleted::Stays(why) => {
            let vpc = stack.outputs.get("VpcId").cloned();
            report.failed.push(format!("the stack {name} stays: {why}{}", in_the_way(aws, vpc).await));
            report.manual.push(format!("aws cloudformation delete-stack --region {} --stack-name {name}", aws.region));
            return Ok(report);
        }
        Deleted::Whole => {}
        Deleted::InPart => left_over(aws, name, stack.outputs.get("HarnessPolicyArn").cloned(), &mut report).await?,
    }
    report.removed.push(format!("stack {name}"));
    Ok(report)
}

/// What became of a stack.
enum Deleted {
    Whole,
    /// It is gone, though CloudFormation could not remove all of it.
    InPart,
    /// It is there, and why.
    Stays(String),
}

/// Deletes a stack. What depends on its network and goes by itself, such as an interface of what has just ended, is waited for.
async fn delete(aws: &Arc<Aws>, name: &str, progress: &dyn Progress) -> Result<Deleted> {
    progress.step("removing the stack");
    let begun = Instant::now();
    loop {
        let (asking, named) = (aws.clone(), name.to_owned());
        let asked = driven(async move { cloudformation(&asking, "DeleteStack", &[("StackName", &named)]).await }).await;
        let refused = match asked {
            Ok(_) => None,
            Err(error) if network::is_dependency(error.message()) => Some(error.message().to_owned()),
            Err(error) => return Err(error),
        };
        let why = match (ended(aws, name, begun, refused.is_some()).await?, refused) {
            (None, None) => return Ok(Deleted::Whole),
            (None, Some(_)) => return Ok(Deleted::InPart),
            (Some(_), Some(why)) | (Some(why), None) => why,
        };
        if !network::is_dependency(&why) || begun.elapsed() > ENDING {
            return Ok(Deleted::Stays(why));
        }
        progress.step("waiting for what depends on the network");
        tokio::time::sleep(AGAIN).await;
    }
}

/// Waits until a stack is gone, or is not deleted; returns why not.
async fn ended(aws: &Arc<Aws>, name: &str, begun: Instant, was_refused: bool) -> Result<Option<String>> {
    let mut pause = FIRST_LOOK;
    while let Some(stack) = find(aws, name).await? {
        if stack.status == "DELETE_FAILED" || was_refused || begun.elapsed() > LIMIT {
            return Ok(Some(format!("it is {}: {}", stack.status, why(aws, name).await)));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK);
    }
    Ok(None)
}

/// The endpoints of a stack.
async fn endpoints(aws: &Aws, name: &str) -> Result<Vec<String>> {
    let xml = cloudformation(aws, "DescribeStackResources", &[("StackName", name)]).await?;
    let document = Document::parse(&xml).map_err(|_| failed("CloudFormation's answer makes no sense"))?;
    let kinds = document.descendants().filter(|node| node.text() == Some("AWS::EC2::VPCEndpoint"));
    Ok(kinds.filter_map(|kind| text_of(kind.parent()?, "PhysicalResourceId").map(str::to_owned)).collect())
}

/// What is in a network that stays, for people.
async fn in_the_way(aws: &Arc<Aws>, vpc: Option<String>) -> String {
    let Some(vpc) = vpc else { return String::new() };
    let asking = aws.clone();
    match driven(async move { network::contents(&asking, &vpc).await }).await {
        Ok(all) if all.is_empty() => String::new(),
        Ok(all) => format!("; in its way: {}", all.join(", ")),
        Err(error) => format!("; what is in its way cannot be listed: {}", error.message()),
    }
}

/// Removes what CloudFormation made and left when it took the stack away.
async fn left_over(aws: &Arc<Aws>, name: &str, policy: Option<String>, report: &mut DestroyReport) -> Result<()> {
    if let Some(arn) = policy {
        let asking = aws.clone();
        match driven(async move { iam(&asking, "DeletePolicy", &[("PolicyArn", &arn)]).await.map(|_| arn) }).await {
            Ok(arn) => report.removed.push(format!("policy {arn}")),
            Err(error) if error.message().contains("NoSuchEntity") => {}
            Err(error) => report.failed.push(format!("policy of the stack {name}: {}", error.message())),
        }
    }
    let (asking, named) = (aws.clone(), name.to_owned());
    for vpc in driven(async move { network::of_stack(&asking, &named).await }).await? {
        nobody_works_in(aws, &vpc).await?;
        let (asking, named, own) = (aws.clone(), name.to_owned(), vpc.clone());
        match driven(async move { network::remove(&asking, &own, &named).await }).await {
            Ok(()) => report.removed.push(format!("network {vpc}")),
            Err(error) => {
                let way = in_the_way(aws, Some(vpc.clone())).await;
                report.failed.push(format!("the network {vpc} of the stack {name} stays: {}{way}", error.message()));
                report.manual.push(format!("aws ec2 delete-vpc --region {} --vpc-id {vpc}", aws.region));
            }
        }
    }
    Ok(())
}

/// Refuses where environments run in a network.
async fn nobody_works_in(aws: &Arc<Aws>, vpc: &str) -> Result<()> {
    let (aws, vpc) = (aws.clone(), vpc.to_owned());
    driven(async move {
        let lives = ["pending", "running", "stopping", "stopped"].map(str::to_owned).to_vec();
        let filters = [
            Filter::builder().name("vpc-id").values(&vpc).build(),
            Filter::builder().name("tag-key").values(tags::TASK).build(),
            Filter::builder().name("instance-state-name").set_values(Some(lives)).build(),
        ];
        let (mut ids, mut next) = (Vec::<String>::new(), None::<String>);
        loop {
            let ask = || {
                let ask = aws.ec2.describe_instances().set_filters(Some(filters.to_vec()));
                ask.max_results(500).set_next_token(next.clone()).send()
            };
            let page = again("remove stack", "ec2:DescribeInstances", ask).await?;
            let all = page.reservations.unwrap_or_default().into_iter().flat_map(|each| each.instances.unwrap_or_default());
            let others = all.filter(|each| !each.tags().iter().any(|tag| tag.key() == Some(OF_STACK)));
            ids.extend(others.filter_map(|each| each.instance_id));
            next = page.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                break;
            }
        }
        if ids.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::LimitReached, "remove stack", format!("environments run in {vpc}: {}", ids.join(", ")))
            .with_backend(BACKEND)
            .with_help("end them first: `tierbox ls`, `tierbox down`, `tierbox cleanup`"))
    })
    .await
}

/// Ends the instances that were made beside a stack.
async fn own_instances(control: &Arc<dyn Control>, name: &str, report: &mut DestroyReport) -> Result<()> {
    let (begun, mut pause) = (Instant::now(), FIRST_LOOK);
    loop {
        let (control, which) = (control.clone(), Find::Tag(OF_STACK.to_owned(), name.to_owned()));
        let living: Vec<Instance> = driven(async move {
            let found = control.find(&which).await?;
            let ids: Vec<String> = found.iter().filter(|each| !each.is_ending()).map(|each| each.id.clone()).collect();
            if !ids.is_empty() {
                control.terminate(&ids).await?;
            }
            Ok(found.into_iter().filter(|each| each.state != "terminated").collect())
        })
        .await?;
        report.removed.extend(living.iter().filter(|each| !each.is_ending()).map(|each| format!("instance {}", each.id)));
        if living.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > ENDING {
            return Err(failed(format!("{} does not end", living[0].id)));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK);
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_stack_is_read_from_what_cloudformation_says() {
        let xml = "<R xmlns=\"x\"><Stacks><member><StackStatus>CREATE_COMPLETE</StackStatus><Outputs><member><OutputKey>Bucket</OutputKey>\
                   <OutputValue>b</OutputValue></member><member><OutputKey>VpcId</OutputKey><OutputValue>vpc-1</OutputValue></member>\
                   </Outputs></member></Stacks></R>";
        let stack = Stack::read("s", xml).unwrap();
        assert_eq!((stack.output("Bucket").unwrap(), stack.output("VpcId").unwrap()), ("b", "vpc-1"));
        assert!(stack.output("SubnetIds").is_err() && Stack::read("s", "<R/>").is_err());
    }

    #[test]
    fn the_templates_own_parameters_are_known() {
        let all: Vec<&str> = parameters().collect();
        for name in ["S3PrefixList", "Prefix", "Cidr", "Retention", "GatewayResolver"] {
            assert!(all.contains(&name), "{all:?}");
        }
        assert!(!all.contains(&"Type") && !all.contains(&"GatewayNeedsInternet") && !all.contains(&"Vpc"), "{all:?}");
    }

    #[test]
    fn a_gateways_resolver_is_chosen_when_it_is_made() {
        let parts = Parts { resolver: Some(Ipv4Addr::new(9, 9, 9, 9)), ..Parts::default() };
        let mut stack = Stack {
            name: "s".to_owned(),
            status: "CREATE_COMPLETE".to_owned(),
            outputs: BTreeMap::new(),
            parameters: [("GatewayResolver".to_owned(), "1.1.1.1".to_owned())].into(),
        };
        assert_eq!(resolver(Some(&stack), &parts).unwrap(), parts.resolver);
        stack.outputs.insert("GatewayInstance".to_owned(), "i-1".to_owned());
        assert_eq!(resolver(Some(&stack), &parts).unwrap_err().kind(), ErrorKind::InvalidInput);
        stack.parameters.insert("GatewayResolver".to_owned(), "9.9.9.9".to_owned());
        assert_eq!(resolver(Some(&stack), &parts).unwrap(), None);
        assert_eq!(resolver(Some(&stack), &Parts::default()).unwrap(), None);
    }

    #[test]
    fn the_reason_is_of_what_was_asked_for_last() {
        let event = |status: &str, resource: &str, why: &str| {
            format!(
                "<member><LogicalResourceId>{resource}</LogicalResourceId><ResourceStatus>{status}</ResourceStatus>\
                 <ResourceStatusReason>{why}</ResourceStatusReason></member>"
            )
        };
        let first = event("UPDATE_FAILED", "A", "old") + &event("UPDATE_IN_PROGRESS", "s", "");
        let last = [("UPDATE_FAILED", "C", "cancelled"), ("CREATE_FAILED", "B", "no capacity"), ("UPDATE_IN_PROGRESS", "s", "")];
        let last: String = last.iter().map(|(status, resource, why)| event(status, resource, why)).collect();
        let reason = |events: &str| first_failure(&Document::parse(&format!("<R>{events}</R>")).unwrap(), "s");
        assert_eq!(reason(&(last.clone() + &first)).as_deref(), Some("B no capacity"));
        assert_eq!(reason(&first).as_deref(), Some("A old"));
        assert_eq!(reason(&(event("UPDATE_IN_PROGRESS", "s", "") + &first)), None);
    }

    #[test]
    fn a_network_is_closed_or_not_from_its_creation_on() {
        let of = |outputs: &[&str]| Stack {
            name: "s".to_owned(),
            status: "CREATE_COMPLETE".to_owned(),
            outputs: outputs.iter().map(|key| ((*key).to_owned(), "x".to_owned())).collect(),
            parameters: BTreeMap::new(),
        };
        let (closed, open) = (of(&[]), of(&["PublicSubnetId"]));
        let gated = of(&["PublicSubnetId", "GatewayInstance"]);
        let internet = Parts { internet: true, ..Parts::default() };
        let gateway = Parts { gateway: Some("ami-1".to_owned()), ..Parts::default() };
        for (before, parts) in [(&closed, &internet), (&gated, &internet), (&open, &gateway)] {
            let refused = stays_as_closed(before, parts).unwrap_err();
            assert!(refused.kind() == ErrorKind::InvalidInput && refused.help().is_some_and(|help| help.contains("--stack")));
        }
        for (before, parts) in [(&open, &internet), (&closed, &gateway), (&gated, &gateway)] {
            assert!(stays_as_closed(before, parts).is_ok(), "{before:?} {parts:?}");
            assert!(stays_as_closed(before, &Parts::default()).is_ok());
        }
    }

    /// What the crate's sources call by the clients of the SDK, by the names of the API.
    fn calls_of(source: &str) -> Vec<String> {
        let own = source.split("#[cfg(test)]").next().unwrap_or_default();
        let tight: String = own.split_whitespace().collect();
        let mut calls = Vec::new();
        for service in ["ec2", "ssm", "s3"] {
            for rest in tight.split(&format!(".{service}.")).skip(1) {
                let name = rest.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').next().unwrap_or_default();
                // Names of hosts have such parts too.
                if rest[name.len()..].starts_with('(') && name != "clone" {
                    let action: String = name.split('_').map(|word| word[..1].to_uppercase() + &word[1..]).collect();
                    calls.push(format!("{service}:{action}"));
                }
            }
        }
        calls
    }

    /// The right that a call of S3 takes, where it is not of the same name.
    fn right(call: &str) -> &str {
        match call {
            "s3:ListObjectsV2" => "s3:ListBucket",
            "s3:DeleteObjects" => "s3:DeleteObject",
            "s3:HeadObject" => "s3:GetObject",
            "s3:CreateMultipartUpload" | "s3:UploadPart" | "s3:CompleteMultipartUpload" => "s3:PutObject",
            "s3:ListMultipartUploads" => "s3:ListBucketMultipartUploads",
            other => other,
        }
    }

    #[test]
    fn the_harness_policy_has_all_that_is_called_outside_of_setup() {
        let policy = TEMPLATE.split_once("  HarnessPolicy:").unwrap().1.split_once("\n  # --- N1").unwrap().0;
        let granted: Vec<&str> = policy
            .split(|letter: char| !letter.is_ascii_alphanumeric() && letter != ':')
            .filter(|word| word.contains(':'))
            .collect();
        let mut called: Vec<String> = [
            "iam:GetInstanceProfile",
            "iam:GetRolePolicy",
            "iam:ListAttachedRolePolicies",
            "iam:ListRolePolicies",
            "iam:PassRole",
            "route53resolver:GetFirewallConfig",
            "route53resolver:ListFirewallDomains",
            "route53resolver:ListFirewallRuleGroupAssociations",
            "route53resolver:ListFirewallRules",
            "ssm:StartSession",
            "sts:GetCallerIdentity",
        ]
        .map(str::to_owned)
        .to_vec();
        for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap() {
            let path = entry.unwrap().path();
            if !["setup.rs", "stack.rs", "network.rs", "install.rs"].iter().any(|own| path.ends_with(own)) {
                called.extend(calls_of(&std::fs::read_to_string(&path).unwrap()));
            }
        }
        for known in ["ec2:RunInstances", "ssm:SendCommand", "s3:PutObject"] {
            assert!(called.iter().any(|call| call == known), "{known} is not among {called:?}");
        }
        let missing: Vec<&String> = called.iter().filter(|call| !granted.contains(&right(call))).collect();
        assert!(missing.is_empty(), "the template's harness policy does not grant {missing:?}");
    }

    #[test]
    fn the_template_fits_into_a_call() {
        assert!(TEMPLATE.len() < 51_200 && TEMPLATE.contains("Outputs:"));
    }
}
