//! Waiting for a machine: it is ready when its SSM agent answers. If it does not, what is known of the machine is told.

use std::time::{Duration, Instant};

use aws_sdk_ec2::types::Filter;
use aws_sdk_ssm::types::InstanceInformationStringFilter;
use tierbox_core::{Error, ErrorKind, Result};

use crate::BACKEND;
use crate::aws::Aws;
use crate::call::{again, jittered, shown};
use crate::control::{Control, Find};
use crate::isolation::serves;

/// How long until the first question, and between two, at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(5));

/// How long agents are waited for: whoever starts an environment gives up after `limits.startup`, and then nobody is told why.
pub(crate) fn patience(startup: Duration) -> Duration {
    startup.mul_f64(0.8)
}

/// Waits until the agents of all these instances answer.
///
/// # Errors
/// `Timeout` or `HostUnable`, with a diagnosis.
pub(crate) async fn wait(aws: &Aws, control: &dyn Control, instances: &[String], limit: Duration) -> Result<()> {
    let begun = Instant::now();
    let mut pause = PAUSES.0;
    loop {
        // The last look is when time is up: whoever gives up after that says why.
        tokio::time::sleep(jittered(pause).min(limit.saturating_sub(begun.elapsed()))).await;
        pause = (pause * 3 / 2).min(PAUSES.1);
        let missing = not_online(aws, instances).await?;
        let Some(first) = missing.first() else { return Ok(()) };
        for instance in control.find(&Find::Ids(missing.clone())).await? {
            if instance.is_ending() {
                let message = format!("{} ended while it started: {}", instance.id, shown(&instance.reason));
                return Err(Error::new(ErrorKind::HostUnable, "start instance", message)
                    .with_backend(BACKEND)
                    .with_context("console", console(aws, &instance.id).await));
            }
        }
        if begun.elapsed() >= limit {
            return Err(diagnose(aws, control, first, limit).await);
        }
    }
}

/// Those whose agent does not answer.
async fn not_online(aws: &Aws, instances: &[String]) -> Result<Vec<String>> {
    let filter = InstanceInformationStringFilter::builder().key("InstanceIds").set_values(Some(instances.to_vec())).build();
    let filter = filter.map_err(|error| Error::new(ErrorKind::Internal, "start instance", error.to_string()))?;
    let (mut online, mut next) = (Vec::new(), None::<String>);
    loop {
        let ask = || {
            let ask = aws.ssm.describe_instance_information().filters(filter.clone()).max_results(50);
            ask.set_next_token(next.clone()).send()
        };
        let page = again("start instance", "ssm:DescribeInstanceInformation", ask).await?;
        for row in page.instance_information_list.unwrap_or_default() {
            if row.ping_status.is_some_and(|status| status.as_str() == "Online") {
                online.extend(row.instance_id);
            }
        }
        next = page.next_token;
        if next.is_none() {
            return Ok(instances.iter().filter(|id| !online.contains(id)).cloned().collect());
        }
    }
}

async fn console(aws: &Aws, instance: &str) -> String {
    let Ok(answer) = aws.ec2.get_console_output().instance_id(instance).send().await else { return String::new() };
    let text = answer.output.unwrap_or_default();
    let text = crate::envelope::unbase64_text(&text).unwrap_or(text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    shown(&lines[lines.len().saturating_sub(6)..].join(" | "))
}

/// Why an agent may not answer.
async fn diagnose(aws: &Aws, control: &dyn Control, instance: &str, limit: Duration) -> Error {
    let mut known = Vec::new();
    let found = control.find(&Find::Ids(vec![instance.to_owned()])).await.unwrap_or_default();
    let state = found.first().map(|found| found.state.clone()).unwrap_or_else(|| "unknown to EC2".to_owned());
    known.push(format!("the instance is {state}"));
    if let Ok(answer) = aws.ec2.describe_instance_status().instance_ids(instance).send().await {
        for status in answer.instance_statuses.unwrap_or_default() {
            let of = |summary: Option<aws_sdk_ec2::types::InstanceStatusSummary>| {
                summary.and_then(|summary| summary.status).map(|status| status.as_str().to_owned()).unwrap_or_default()
            };
            known.push(format!("system check {}, instance check {}", of(status.system_status), of(status.instance_status)));
        }
    }
    known.extend(missing_way(aws, instance).await);
    let message = format!("the SSM agent of {instance} did not answer within {limit:?}: {}", known.join("; "));
    Error::new(ErrorKind::Timeout, "start instance", message)
        .with_backend(BACKEND)
        .with_context("console", console(aws, instance).await)
        .with_help(
            "the image must hold the SSM agent, the role AmazonSSMManagedInstanceCore, and the subnet a way to ssm, ssmmessages and \
             ec2messages (endpoints or the internet). `limits.startup` says how long is waited",
        )
}

/// What the instance lacks to reach SSM, as far as EC2 tells.
async fn missing_way(aws: &Aws, instance: &str) -> Vec<String> {
    let mut found = Vec::new();
    let Ok(answer) = aws.ec2.describe_instances().instance_ids(instance).send().await else { return found };
    let all = answer.reservations.unwrap_or_default().into_iter().flat_map(|each| each.instances.unwrap_or_default());
    for each in all {
        if each.iam_instance_profile.is_none() {
            found.push("it has no instance profile, without which no agent may speak with SSM".to_owned());
        }
        let (Some(vpc), None) = (each.vpc_id, each.public_ip_address) else { continue };
        let filter = Filter::builder().name("vpc-id").values(&vpc).build();
        let Ok(endpoints) = aws.ec2.describe_vpc_endpoints().filters(filter).send().await else { continue };
        let names: Vec<String> =
            endpoints.vpc_endpoints.unwrap_or_default().into_iter().filter(serves).filter_map(|each| each.service_name).collect();
        let missing: Vec<&str> = ["ssm", "ssmmessages", "ec2messages"]
            .into_iter()
            .filter(|service| !names.iter().any(|name| name.ends_with(&format!(".{service}"))))
            .collect();
        if !missing.is_empty() {
            found.push(format!("it has no public address, and {vpc} has no endpoint of {}", missing.join(", ")));
        }
    }
    found
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn there_is_time_to_tell_why_an_agent_does_not_answer() {
        let startup = Duration::from_secs(60);
        // The last look may come late by one pause with its jitter.
        assert!(patience(startup) + PAUSES.1.mul_f64(1.5) < startup);
        assert!(patience(startup) > startup / 2);
    }
}
