//! An account set up, checked, used, and taken down.

use libtest_mimic::Trial;
use serde_json::json;
use tierbox_core::{Check, CheckStatus, ErrorKind, ExecRequest, Network, SandboxExt, Silent};
use tierbox_ec2::{Ec2Backend, Wanted};

use super::world::{Outcome, World, ensure, text, trial};

pub fn all() -> Vec<Trial> {
    vec![
        trial("setup::a_stack_is_set_up_checked_and_taken_down", whole),
        trial("setup::a_teardown_waits_for_what_is_in_its_network", waits),
        trial("setup::an_instance_is_made_beside_it", instance),
        trial("setup::checks_name_what_is_missing", missing),
    ]
}

fn find<'a>(checks: &'a [Check], name: &str) -> Result<&'a Check, String> {
    checks.iter().find(|check| check.name == name).ok_or(format!("nothing checks {name}: {checks:?}"))
}

async fn whole(world: World) -> Outcome {
    let (backend, mut account) = (Ec2Backend::new(), world.server.settings());
    account.as_object_mut().ok_or("no table")?.remove("bucket");
    let wanted = Wanted::new(world.server.key.clone());
    let made = backend.setup(&account, &wanted, &Silent).await.map_err(text)?;
    for name in [
        "credentials",
        "region",
        "SSM",
        "bucket",
        "endpoint ssm",
        "endpoint ssmmessages",
        "endpoint ec2messages",
        "endpoint s3",
        "N2",
    ] {
        let check = find(&made.checks, name)?;
        ensure!(check.status == CheckStatus::Ok, "{check:?}");
    }
    ensure!(
        made.profile.contains("T0.H3.N2") && made.profile.contains(made.stack.output("Bucket").map_err(text)?),
        "{}",
        made.profile
    );
    // Once more changes nothing.
    let again = backend.setup(&account, &wanted, &Silent).await.map_err(text)?;
    ensure!(again.stack.outputs == made.stack.outputs, "{again:?}");
    let out = |key: &str| made.stack.output(key).map(str::to_owned).map_err(text);
    let mut settings = account.clone();
    settings["bucket"] = out("Bucket")?.into();
    settings["subnets"] = json!(out("SubnetIds")?.split(',').collect::<Vec<_>>());
    settings["security-group"] = out("SecurityGroupN2")?.into();
    settings["instance-profile"] = out("InstanceProfile")?.into();
    let spec = world.spec(|spec| {
        spec.tier = "T0.H3.N2".parse().expect("a tier");
        spec.settings = settings;
    });
    let started = world.start(&spec).await.map_err(text)?;
    let refused = backend.teardown(&account, &world.server.key, &Silent).await.err().ok_or("it went under an environment")?;
    ensure!(refused.kind() == ErrorKind::LimitReached, "{refused:?}");
    ensure!(started.environment.primary().run(ExecRequest::new(["true"])).await.map_err(text)?.success(), "it is gone");
    started.environment.stop().await.map_err(text)?;
    world.server.signed("PUT", &format!("/{}/left", out("Bucket")?), "s3", "left behind");
    world
        .until(std::time::Duration::from_secs(20), "the instance is gone", || {
            world.server.instances().values().all(|state| state == "terminated")
        })
        .await?;
    let report = backend.teardown(&account, &world.server.key, &Silent).await.map_err(text)?;
    ensure!(report.failed.is_empty() && report.removed.iter().any(|line| line.contains("stack")), "{report:?}");
    ensure!(report.removed.iter().any(|line| line.contains("1 objects")), "{report:?}");
    let twice = backend.teardown(&account, &world.server.key, &Silent).await.map_err(text)?;
    ensure!(twice.failed.is_empty() && twice.removed.is_empty(), "{twice:?}");
    Ok(())
}

/// What somebody else has in a subnet keeps it, as on AWS: the teardown goes on when it is gone, and then nothing stays.
async fn waits(world: World) -> Outcome {
    let (backend, mut account) = (Ec2Backend::new(), world.server.settings());
    account.as_object_mut().ok_or("no table")?.remove("bucket");
    let made = backend.setup(&account, &Wanted::new(world.server.key.clone()), &Silent).await.map_err(text)?;
    let subnet = made.stack.output("SubnetIds").map_err(text)?.split(',').next().unwrap_or_default();
    let ask = |action: &str| world.server.signed("POST", "/", "ec2", &format!("Action={action}&Version=2016-11-15"));
    let answer = ask(&format!("CreateNetworkInterface&SubnetId={subnet}"));
    let id = answer.split_once("<networkInterfaceId>").and_then(|(_, rest)| rest.split_once('<')).ok_or("no interface")?.0;
    let cloudformation = |action: &str| {
        let body = format!("Action={action}&Version=2010-05-15&StackName={}", world.server.key);
        world.server.signed("POST", "/", "cloudformation", &body)
    };
    let freed = async {
        let refused = || cloudformation("DescribeStacks").contains("DELETE_FAILED");
        world.until(std::time::Duration::from_secs(60), "the deletion fails", refused).await?;
        ask(&format!("DeleteNetworkInterface&NetworkInterfaceId={id}"));
        Ok::<(), String>(())
    };
    let (report, freed) = tokio::join!(backend.teardown(&account, &world.server.key, &Silent), freed);
    freed?;
    let report = report.map_err(text)?;
    ensure!(report.failed.is_empty() && report.removed.iter().any(|line| line.contains("stack")), "{report:?}");
    let vpc = made.stack.output("VpcId").map_err(text)?;
    ensure!(!ask("DescribeVpcs").contains(vpc), "its network is there");
    Ok(())
}

async fn instance(world: World) -> Outcome {
    let (backend, mut account) = (Ec2Backend::new(), world.server.settings());
    account.as_object_mut().ok_or("no table")?.remove("bucket");
    let mut wanted = Wanted::new(world.server.key.clone());
    wanted.instance = Some("t3.small".to_owned());
    let made = backend.setup(&account, &wanted, &Silent).await.map_err(text)?;
    let id = made.instance.clone().ok_or("there is no instance")?;
    ensure!(find(&made.checks, "instance")?.status == CheckStatus::Ok, "{:?}", made.checks);
    ensure!(made.profile.contains("ec2-default") && made.profile.contains(&id), "{}", made.profile);
    let told = world.server.instance(&id);
    ensure!(
        told.contains("<httpTokens>required</httpTokens>") && told.contains("<instanceType>t3.small</instanceType>"),
        "{told}"
    );
    // No packages are in reach there, so that what it installs is only seen to be asked for.
    let ask = format!("Action=DescribeInstanceAttribute&Version=2016-11-15&InstanceId={id}&Attribute=userData");
    let data = world.server.signed("POST", "/", "ec2", &ask);
    let data = data.split_once("<value>").and_then(|(_, rest)| rest.split_once("</value>")).ok_or("no user data")?.0;
    let data = String::from_utf8_lossy(&crate::server::decoded(data.trim())).into_owned();
    ensure!(data.starts_with("#!/bin/sh") && data.contains("install -q -y python3 nodejs"), "{data}");
    let name = format!("tierbox-{}-attach", world.server.key);
    let ask = format!("Action=DescribeSecurityGroups&Version=2016-11-15&Filter.1.Name=group-name&Filter.1.Value.1={name}");
    let groups = world.server.signed("POST", "/", "ec2", &ask);
    let group = groups.split("<groupName>").find(|part| part.starts_with(&name)).ok_or("no group")?;
    let inbound =
        group.split("<ipPermissions>").nth(1).and_then(|rest| rest.split("</ipPermissions>").next()).unwrap_or_default();
    ensure!(!inbound.contains("<item>"), "something comes in: {inbound}");
    let again = backend.setup(&account, &wanted, &Silent).await.map_err(text)?;
    ensure!(again.instance.as_ref() == Some(&id), "a second one was made: {:?}", again.instance);
    let spec = world.spec(|spec| {
        spec.settings = account.clone();
        spec.settings["instance-id"] = id.clone().into();
    });
    let started = world.start(&spec).await.map_err(text)?;
    ensure!(started.environment.primary().run(ExecRequest::new(["true"])).await.map_err(text)?.success(), "no command runs");
    started.environment.stop().await.map_err(text)?;
    let report = backend.teardown(&account, &world.server.key, &Silent).await.map_err(text)?;
    ensure!(report.failed.is_empty() && report.removed.iter().any(|line| line.contains(&id)), "{report:?}");
    ensure!(world.server.instances().get(&id).map(String::as_str) == Some("terminated"), "{:?}", world.server.instances());
    Ok(())
}

async fn missing(world: World) -> Outcome {
    let backend = Ec2Backend::new();
    let mut settings = world.server.settings();
    settings["bucket"] = format!("{}-missing", world.server.key).into();
    let checks = backend.check(&settings, Network::N0).await.map_err(text)?;
    let bucket = find(&checks, "bucket")?;
    ensure!(bucket.status == CheckStatus::Fail && !bucket.remedy.is_empty(), "{bucket:?}");
    ensure!(find(&checks, "role")?.status == CheckStatus::Warn, "{checks:?}");
    settings["bucket"] = world.server.bucket().into();
    settings["instance-id"] = "i-0123456789abcdef0".into();
    let checks = backend.check(&settings, Network::N0).await.map_err(text)?;
    let instance = find(&checks, "instance")?;
    ensure!(instance.status == CheckStatus::Fail && instance.detail.contains("not there"), "{instance:?}");
    ensure!(find(&checks, "bucket")?.status == CheckStatus::Ok, "{checks:?}");
    Ok(())
}
