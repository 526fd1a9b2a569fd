//! What a profile leans on in AWS, looked at one by one, each with its fix.

use std::sync::Arc;

use aws_credential_types::provider::ProvideCredentials;
use aws_sdk_ec2::types::Filter;
use tierbox_core::{Check, CheckStatus, Error, Network, Result};

use crate::aws::{Aws, driven};
use crate::call::{again, shown};
use crate::control::{Control, Find};
use crate::settings::Settings;
use crate::{gateway, isolation, place, role};

const TRIED: &str = "check";
/// What an agent must reach.
const SERVICES: [&str; 4] = ["ssm", "ssmmessages", "ec2messages", "s3"];

fn check(name: &str, status: CheckStatus, detail: impl Into<String>, remedy: &str) -> Check {
    let remedy = if status == CheckStatus::Ok { "" } else { remedy };
    Check { name: name.to_owned(), status, detail: shown(&detail.into()), remedy: remedy.to_owned() }
}

/// A check of something that is there or is not.
fn of<T>(name: &str, result: Result<T>, told: impl FnOnce(T) -> String, remedy: &str) -> Check {
    match result {
        Ok(value) => check(name, CheckStatus::Ok, told(value), ""),
        Err(error) => refused(name, &error, remedy),
    }
}

/// A check that failed: the error's own advice goes before the usual one.
fn refused(name: &str, error: &Error, remedy: &str) -> Check {
    check(name, CheckStatus::Fail, error.message(), error.help().unwrap_or(remedy))
}

/// All checks. Those that need what is missing are left out.
pub(crate) async fn all(aws: Arc<Aws>, control: Arc<dyn Control>, settings: Settings, network: Network) -> Result<Vec<Check>> {
    driven(async move {
        let mut checks = vec![credentials(&aws).await];
        if checks[0].status == CheckStatus::Fail {
            return Ok(checks);
        }
        checks.push(region(&aws).await);
        if checks[1].status == CheckStatus::Fail {
            return Ok(checks);
        }
        checks.push(commands(&aws).await);
        checks.extend(bucket(&aws, &settings).await);
        if settings.attaches() {
            checks.push(instance(&aws, control.as_ref(), &settings).await);
            return Ok(checks);
        }
        checks.push(of_role(&aws, &settings).await);
        checks.extend(ways(&aws, &settings).await);
        if network != Network::N0 {
            let bucket = settings.bucket.clone().unwrap_or_default();
            let told =
                |found: Vec<tierbox_core::Mechanism>| found.into_iter().map(|each| each.detail).collect::<Vec<_>>().join("; ");
            let found = match network {
                Network::N1 => gateway::find(&aws, &settings).await.map(Some),
                _ => Ok(None),
            };
            let checked = match found {
                Ok(gateway) => isolation::check(&aws, &settings, &bucket, gateway.as_ref()).await,
                Err(error) => Err(isolation::refused(network, error)),
            };
            checks.push(of(&network.to_string(), checked, told, "infra/tierbox.yaml makes such a network"));
        }
        Ok(checks)
    })
    .await
}

async fn credentials(aws: &Aws) -> Check {
    let fix = "name a profile (ec2.profile, AWS_PROFILE) or keys, or log in: `aws sso login`";
    let Some(provider) = &aws.credentials else { return check("credentials", CheckStatus::Fail, "there are none", fix) };
    match provider.provide_credentials().await {
        Ok(found) => {
            let kind = if found.session_token().is_some() { "temporary keys" } else { "keys" };
            let start: String = found.access_key_id().chars().take(4).collect();
            check("credentials", CheckStatus::Ok, format!("{kind} that begin with {start}, from {}", source(aws)), "")
        }
        Err(error) => check("credentials", CheckStatus::Fail, format!("{}: {}", source(aws), chain_of(&error)), fix),
    }
}

/// An error and what caused it: the SDK's own words are of the outermost alone.
fn chain_of(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Where credentials come from, as far as settings say.
pub(crate) fn source(aws: &Aws) -> String {
    match (&aws.account.profile, &aws.account.key) {
        (Some(profile), _) => format!("the profile {profile} of AWS's own files"),
        (None, Some(_)) => "the keys that the profile or its variables name".to_owned(),
        (None, None) => chain(&|name| std::env::var(name).is_ok_and(|value| !value.is_empty())),
    }
}

/// What AWS's usual chain comes to first.
fn chain(is_set: &dyn Fn(&str) -> bool) -> String {
    match (is_set("AWS_ACCESS_KEY_ID") && is_set("AWS_SECRET_ACCESS_KEY"), is_set("AWS_PROFILE")) {
        (true, true) => "AWS's usual chain: the keys in AWS_ACCESS_KEY_ID, which go before AWS_PROFILE".to_owned(),
        (true, false) => "AWS's usual chain: the keys in AWS_ACCESS_KEY_ID".to_owned(),
        (false, true) => "AWS's usual chain: the profile that AWS_PROFILE names".to_owned(),
        (false, false) => "AWS's usual chain (files, roles)".to_owned(),
    }
}

async fn region(aws: &Aws) -> Check {
    let ask = || aws.ec2.describe_availability_zones().send();
    let asked = again(TRIED, "ec2:DescribeAvailabilityZones", ask).await;
    let told = |answer: aws_sdk_ec2::operation::describe_availability_zones::DescribeAvailabilityZonesOutput| {
        format!("{}, with {} zones", aws.region, answer.availability_zones().len())
    };
    of("region", asked, told, "check ec2.region, and that these credentials may call EC2: infra/tierbox.yaml has a policy")
}

async fn commands(aws: &Aws) -> Check {
    let ask = || aws.ssm.describe_instance_information().max_results(5).send();
    let asked = again(TRIED, "ssm:DescribeInstanceInformation", ask).await;
    of("SSM", asked, |_| "answers".to_owned(), "these credentials need ssm:DescribeInstanceInformation and ssm:SendCommand")
}

async fn bucket(aws: &Aws, settings: &Settings) -> Option<Check> {
    let Some(bucket) = &settings.bucket else {
        let fix = "write ec2.bucket: without it no secret reaches a command";
        let status = if settings.attaches() { CheckStatus::Warn } else { CheckStatus::Fail };
        return Some(check("bucket", status, "none is named", fix));
    };
    let ask = || aws.s3.list_objects_v2().bucket(bucket).max_keys(1).send();
    let asked = again(TRIED, "s3:ListObjectsV2", ask).await;
    Some(of("bucket", asked, |_| bucket.clone(), "make it, or correct ec2.bucket; these credentials need s3:ListBucket"))
}

async fn of_role(aws: &Aws, settings: &Settings) -> Check {
    let fix = "the role of the instances needs the policy AmazonSSMManagedInstanceCore and nothing else (infra/tierbox.yaml)";
    match role::check(aws, settings.instance_profile.as_ref()).await {
        Ok(role::Role::None) => check("role", CheckStatus::Warn, "the instances have none: SSM must know them otherwise", fix),
        Ok(role @ role::Role::Unread(_)) => {
            check("role", CheckStatus::Warn, role.told(), "these credentials need iam:GetInstanceProfile")
        }
        Ok(role::Role::Grants(actions)) if actions.is_empty() => check("role", CheckStatus::Fail, "it grants nothing", fix),
        Ok(role::Role::Grants(actions)) => {
            check("role", CheckStatus::Ok, format!("SSM's core alone, {} actions", actions.len()), "")
        }
        Err(error) => refused("role", &error, fix),
    }
}

/// The ways of the instances to what their agents need.
async fn ways(aws: &Aws, settings: &Settings) -> Vec<Check> {
    let found = match network(aws, settings).await {
        Ok(Some(found)) => found,
        Ok(None) => return Vec::new(),
        Err(error) => {
            return vec![check("network", CheckStatus::Fail, error.message(), "check ec2.subnets and ec2.vpc")];
        }
    };
    let way = |service: &str| {
        let name = format!("endpoint {service}");
        match (found.endpoints.iter().any(|each| each.ends_with(&format!(".{service}"))), found.has_internet) {
            (true, _) => check(&name, CheckStatus::Ok, format!("in {}", found.vpc), ""),
            (false, true) => check(&name, CheckStatus::Ok, format!("none in {}, but its subnets have a way out", found.vpc), ""),
            (false, false) => check(
                &name,
                CheckStatus::Fail,
                format!("{} has no endpoint of {service}, and its subnets have no way out", found.vpc),
                "make the endpoint (infra/tierbox.yaml has it), or give the subnets a way out",
            ),
        }
    };
    SERVICES.into_iter().map(way).collect()
}

struct Around {
    vpc: String,
    endpoints: Vec<String>,
    has_internet: bool,
}

/// What is around the subnets; `None` where none is named.
async fn network(aws: &Aws, settings: &Settings) -> Result<Option<Around>> {
    if settings.subnets.is_empty() {
        return Ok(None);
    }
    place::check(aws, settings).await?;
    let ask = || aws.ec2.describe_subnets().set_subnet_ids(Some(settings.subnets.clone())).send();
    let subnets = again(TRIED, "ec2:DescribeSubnets", ask).await?.subnets.unwrap_or_default();
    let vpc = subnets.into_iter().find_map(|subnet| subnet.vpc_id).unwrap_or_default();
    let of_vpc = Filter::builder().name("vpc-id").values(&vpc).build();
    let ask = || aws.ec2.describe_vpc_endpoints().filters(of_vpc.clone()).send();
    let endpoints = again(TRIED, "ec2:DescribeVpcEndpoints", ask).await?.vpc_endpoints.unwrap_or_default();
    let tables = place::Tables::of(aws, &vpc).await?;
    let leads_out = |table: &aws_sdk_ec2::types::RouteTable| {
        table.routes().iter().any(|route| route.destination_cidr_block() == Some("0.0.0.0/0"))
    };
    let has_internet = settings.subnets.iter().all(|subnet| tables.of_subnet(subnet).is_some_and(leads_out));
    let endpoints = endpoints.into_iter().filter(isolation::serves).filter_map(|endpoint| endpoint.service_name).collect();
    Ok(Some(Around { vpc, endpoints, has_internet }))
}

/// The instance of an attach profile: it runs, and its agent answers.
async fn instance(aws: &Aws, control: &dyn Control, settings: &Settings) -> Check {
    let Some(id) = settings.instance_id.clone() else {
        return check("instance", CheckStatus::Fail, "none is named", "write ec2.instance-id, or set EC2_INSTANCE_ID");
    };
    let look = async {
        let found = control.find(&Find::Ids(vec![id.clone()])).await?;
        let state = found.first().map_or("not there", |found| found.state.as_str()).to_owned();
        let filter = aws_sdk_ssm::types::InstanceInformationStringFilter::builder().key("InstanceIds").values(&id).build();
        let filter = filter.map_err(|error| Error::new(tierbox_core::ErrorKind::Internal, TRIED, error.to_string()))?;
        let ask = || aws.ssm.describe_instance_information().filters(filter.clone()).send();
        let known = again(TRIED, "ssm:DescribeInstanceInformation", ask).await?.instance_information_list.unwrap_or_default();
        let agent = known.first().and_then(|row| row.ping_status.as_ref()).map_or("unknown to SSM", |status| status.as_str());
        Ok::<_, Error>((state, agent.to_owned()))
    };
    let fix = "it must run, with an SSM agent, a role with AmazonSSMManagedInstanceCore, and a way to SSM";
    match look.await {
        Ok((state, agent)) if state == "running" && agent == "Online" => {
            check("instance", CheckStatus::Ok, format!("{id} runs, its agent answers"), "")
        }
        Ok((state, agent)) => check("instance", CheckStatus::Fail, format!("{id} is {state}, its agent {agent}"), fix),
        Err(error) => check("instance", CheckStatus::Fail, error.message(), fix),
    }
}
