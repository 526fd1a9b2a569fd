//! A stack gets more parts while environments run in it, and stays as it was where that fails.

use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::json;
use tierbox_core::{ErrorKind, ExecRequest, SandboxExt, Silent};
use tierbox_ec2::{Ec2Backend, SetUp, Wanted};

use super::named::{page, program, spec_of};
use super::world::{Outcome, World, ensure, text, trial};

pub fn all() -> Vec<Trial> {
    vec![
        trial("updates::parts_come_under_those_who_work", parts),
        trial("updates::what_fails_leaves_the_stack_as_it_was", fails),
        trial("updates::what_people_chose_stays", chosen),
        trial("updates::a_network_of_n0_answers_names_and_is_no_closed_one", open),
    ]
}

/// A stack that was deployed by hand keeps its values: another range of addresses would be another network.
async fn chosen(world: World) -> Outcome {
    let own = [
        ("Cidr", "10.9.0.0/20"),
        ("CidrA", "10.9.0.0/24"),
        ("CidrB", "10.9.1.0/24"),
        ("CidrPublic", "10.9.2.0/24"),
        ("Retention", "7"),
    ];
    let before = super::network::stack_with(&world, &own).await?;
    let made = brought(&world, |_| ()).await.map_err(text)?;
    for (key, value) in own {
        ensure!(made.stack.parameters.get(key).map(String::as_str) == Some(value), "{key}: {:?}", made.stack.parameters);
    }
    ensure!(made.stack.output("VpcId").map_err(text)? == before["VpcId"], "it is another network");
    taken_down(&world).await
}

async fn brought(world: &World, change: impl FnOnce(&mut Wanted)) -> tierbox_core::Result<SetUp> {
    let mut account = world.server.settings();
    account.as_object_mut().expect("a table").remove("bucket");
    let mut wanted = Wanted::new(world.server.key.clone());
    change(&mut wanted);
    Ec2Backend::new().setup(&account, &wanted, &Silent).await
}

/// The settings of an environment without a network in it.
fn closed(world: &World, made: &SetUp) -> Result<tierbox_core::EnvironmentSpec, String> {
    let mut spec = spec_of(world, made, "SecurityGroupN2")?;
    spec.tier = "T0.H3.N2".parse().map_err(text)?;
    Ok(spec)
}

async fn parts(world: World) -> Outcome {
    world.server.set(json!({"require_endpoints": true, "require_instance_profile": true}));
    let plain = brought(&world, |_| ()).await.map_err(text)?;
    for part in ["PublicSubnetId", "GatewayInstance", "SecurityGroupN1"] {
        ensure!(!plain.stack.outputs.contains_key(part), "{part} is there, which nobody wanted: {:?}", plain.stack.outputs);
    }
    let working = world.start(&closed(&world, &plain)?).await.map_err(text)?;
    let sandbox = working.environment.primary();
    sandbox.write_bytes("kept", "before").await.map_err(text)?;
    // Names would be answered to whom they must not be.
    let refused = |error: Option<tierbox_core::Error>| match error {
        Some(error) if error.kind() == ErrorKind::InvalidInput && error.message().contains("is closed") => Ok(()),
        other => Err(format!("the network was opened: {other:?}")),
    };
    refused(brought(&world, |wanted| wanted.internet = true).await.err())?;
    let program = program(&world)?;
    let gated = brought(&world, |wanted| wanted.gateway = Some(program.clone())).await.map_err(text)?;
    ensure!(gated.stack.status == "UPDATE_COMPLETE", "{:?}", gated.stack);
    refused(brought(&world, |wanted| wanted.internet = true).await.err())?;
    let gateway = gated.stack.output("GatewayInstance").map_err(text)?.to_owned();
    for (key, value) in &plain.stack.outputs {
        ensure!(gated.stack.outputs.get(key) == Some(value), "{key} was {value}: {:?}", gated.stack.outputs);
    }
    let again = brought(&world, |wanted| wanted.gateway = Some(program)).await.map_err(text)?;
    ensure!(again.stack.output("GatewayInstance").map_err(text)? == gateway, "the gateway was replaced: {:?}", again.stack);
    // Who worked all the while still does, and the network is as closed as it was.
    ensure!(sandbox.read_bytes("kept", 100).await.map_err(text)? == b"before", "the file is gone");
    let reached = page(sandbox.as_ref(), "--noproxy '*' http://203.0.113.10/").await?;
    ensure!(reached.is_empty(), "N2 gets out: {reached}");
    world.start(&closed(&world, &again)?).await.map_err(text)?.environment.stop().await.map_err(text)?;
    working.environment.stop().await.map_err(text)?;
    taken_down(&world).await
}

/// `--internet` makes a network for N0: names are answered, all of S3 is in reach; N2 in it is refused by name, and no gateway comes.
async fn open(world: World) -> Outcome {
    let open = brought(&world, |wanted| wanted.internet = true).await.map_err(text)?;
    let public = open.stack.output("PublicSubnetId").map_err(text)?.to_owned();
    ensure!(open.profile.contains(&public) && open.profile.contains("T0.H3.N0"), "{}", open.profile);
    ensure!(open.checks.iter().all(|check| check.status != tierbox_core::CheckStatus::Fail), "{:?}", open.checks);
    let mut free = spec_of(&world, &open, "SecurityGroupN0")?;
    free.settings["subnets"] = json!([public]);
    let started = world.start(&free).await.map_err(text)?;
    let sandbox = started.environment.primary();
    let named = page(sandbox.as_ref(), "http://index.test/").await?;
    ensure!(named == "outside", "names are not answered: {named}");
    sandbox.write_bytes("large", vec![5; 200_000]).await.map_err(text)?;
    ensure!(sandbox.read_bytes("large", 1 << 20).await.map_err(text)? == vec![5; 200_000], "the file came back changed");
    started.environment.stop().await.map_err(text)?;
    let vpc = open.stack.output("VpcId").map_err(text)?;
    let ask = |action: &str| {
        let body = format!("Action={action}&Version=2016-11-15&Filter.1.Name=vpc-id&Filter.1.Value.1={vpc}");
        world.server.signed("POST", "/", "ec2", &body)
    };
    let endpoint = ask("DescribeVpcEndpoints");
    let endpoint =
        endpoint.split("<vpcEndpointId>").find(|part| part.contains(".s3</serviceName>")).ok_or("no endpoint of s3")?;
    let tables = ask("DescribeRouteTables");
    let table = tables.split("<routeTableId>").find(|part| part.contains("igw-")).and_then(|part| part.split('<').next());
    ensure!(!endpoint.contains(table.ok_or("no table leads out")?), "N0's way to S3 has the policy of N2: {endpoint}");
    world.refuses(&closed(&world, &open)?, "DNS firewall").await?;
    let program = program(&world)?;
    let refused = brought(&world, |wanted| wanted.gateway = Some(program)).await.err().ok_or("names were taken away")?;
    ensure!(refused.kind() == ErrorKind::InvalidInput && refused.message().contains("is N0's"), "{refused:?}");
    taken_down(&world).await
}

async fn fails(world: World) -> Outcome {
    let plain = brought(&world, |_| ()).await.map_err(text)?;
    let working = world.start(&closed(&world, &plain)?).await.map_err(text)?;
    world.server.set(json!({"stack_fails": {"PublicAssociation": 1}}));
    let program = program(&world)?;
    let gated = || brought(&world, |wanted| wanted.gateway = Some(program.clone()));
    let error = gated().await.err().ok_or("it went well")?;
    ensure!(error.kind() == ErrorKind::HostUnable && error.message().contains("PublicAssociation injected"), "{error:?}");
    ensure!(error.help().is_some_and(|help| help.contains("as it was before")), "{error:?}");
    let vpc = plain.stack.output("VpcId").map_err(text)?;
    let ask = format!("Action=DescribeSubnets&Version=2016-11-15&Filter.1.Name=vpc-id&Filter.1.Value.1={vpc}");
    let subnets = world.server.signed("POST", "/", "ec2", &ask).matches("<subnetId>").count();
    ensure!(subnets == 2, "{subnets} subnets are there");
    // It is as it was, and says so; then it is brought on.
    let same = brought(&world, |_| ()).await.map_err(text)?;
    ensure!(same.stack.outputs == plain.stack.outputs, "{:?}", same.stack);
    ensure!(working.environment.primary().run(ExecRequest::new(["true"])).await.map_err(text)?.success(), "it is gone");
    gated().await.map_err(text)?.stack.output("PublicSubnetId").map_err(text)?;
    working.environment.stop().await.map_err(text)?;
    taken_down(&world).await
}

async fn taken_down(world: &World) -> Outcome {
    let ending = || world.server.instances().values().any(|state| state == "shutting-down");
    world.until(Duration::from_secs(20), "the environments are gone", || !ending()).await?;
    let left = Ec2Backend::new().teardown(&world.server.settings(), &world.server.key, &Silent).await.map_err(text)?;
    ensure!(left.failed.is_empty() && left.removed.iter().any(|line| line.contains("stack")), "{left:?}");
    world
        .until(Duration::from_secs(20), "all is gone", || world.server.instances().values().all(|state| state == "terminated"))
        .await
}
