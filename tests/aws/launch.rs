//! What a launch asks for, what it refuses, and what it leaves.

use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::json;
use tierbox_core::{ErrorKind, ExecRequest, LeaseHandle, SandboxExt};
use tierbox_lease::CleanupOptions;

use super::world::{Outcome, World, ensure, text, trial};

pub fn all() -> Vec<Trial> {
    vec![
        trial("launch::what_ends_leaves_nothing", leaves_nothing),
        trial("launch::an_instance_is_asked_for_as_promised", asked_for),
        trial("launch::an_image_of_another_region_is_told", foreign_image),
        trial("launch::no_capacity_goes_on_to_the_next_type", capacity),
        trial("launch::no_capacity_at_all_is_told_and_leaves_nothing", no_capacity),
        trial("launch::an_answer_that_is_lost_makes_no_second_instance", lost_answer),
        trial("launch::several_machines_run_in_one_environment", several),
        trial("slow::launch::an_agent_that_never_answers_is_diagnosed", no_agent),
        trial("slow::launch::a_missing_endpoint_is_named", no_endpoint),
        trial("slow::launch::a_living_harness_renews_its_instances", renewed),
        trial("launch::a_dead_harness_is_cleaned_up", cleanup),
        trial("launch::what_is_not_shown_yet_is_ended_all_the_same", unseen),
        trial("launch::credentials_of_another_account_remove_nothing", other_account),
        trial("launch::a_machine_that_nobody_renews_ends_itself", timer),
        trial("launch::credentials_of_the_role_are_out_of_reach", metadata),
        trial("launch::a_session_is_told_as_a_command_line", connection),
    ]
}

async fn leaves_nothing(world: World) -> Outcome {
    let started = world.usual().await?;
    let sandbox = started.environment.primary();
    sandbox.write_bytes("big", vec![7; 300_000]).await.map_err(text)?;
    let back = sandbox.read_bytes("big", 1 << 20).await.map_err(text)?;
    ensure!(back == vec![7; 300_000], "{} bytes came back", back.len());
    started.environment.stop().await.map_err(text)?;
    ensure!(world.is_clean(), "{:?} {:?}", world.server.instances(), world.server.objects());
    started.environment.stop().await.map_err(text)
}

async fn asked_for(world: World) -> Outcome {
    let spec = world.spec(|spec| spec.settings["tags"] = json!({"team": "red"}));
    let started = world.start(&spec).await.map_err(text)?;
    let id = world.server.instances().into_keys().next().ok_or("no instance")?;
    let told = world.server.instance(&id);
    for wanted in [
        "<httpTokens>required</httpTokens>",
        "<httpPutResponseHopLimit>1</httpPutResponseHopLimit>",
        "<instanceType>t3a.large</instanceType>",
        "<key>team</key>",
        "<key>tierbox:task</key>",
        "<key>ExpiresAt</key>",
        "<key>Name</key>",
    ] {
        ensure!(told.contains(wanted), "{wanted} is missing: {told}");
    }
    ensure!(!told.contains("inspect"), "another tool would take it for its own: {told}");
    let ask = format!("Action=DescribeVolumes&Version=2016-11-15&Filter.1.Name=attachment.instance-id&Filter.1.Value.1={id}");
    let volumes = world.server.signed("POST", "/", "ec2", &ask);
    let volume = volumes.split("<volumeId>").find(|part| part.contains(&id)).ok_or("the instance has no volume")?;
    ensure!(volume.contains("<encrypted>true</encrypted>"), "the volume is not encrypted: {volume}");
    started.environment.stop().await.map_err(text)
}

async fn foreign_image(world: World) -> Outcome {
    let spec = world.spec(|spec| spec.settings["ami"] = "ami-0123456789abcdef0".into());
    let Err(error) = world.start(&spec).await else { return Err("it started".to_owned()) };
    ensure!(error.kind() == ErrorKind::InvalidProfile, "{error:?}");
    ensure!(error.to_string().contains("per region"), "{error}");
    ensure!(world.server.instances().is_empty(), "something was made");
    Ok(())
}

async fn capacity(world: World) -> Outcome {
    world.server.set(json!({"capacity": {"t3a.large": 0}}));
    let spec = world.spec(|spec| spec.settings["instance-types"] = json!(["t3a.large", "t3.large"]));
    let started = world.start(&spec).await.map_err(text)?;
    let id = world.server.instances().into_keys().next().ok_or("no instance")?;
    let told = world.server.instance(&id);
    ensure!(told.contains("<instanceType>t3.large</instanceType>"), "{told}");
    started.environment.stop().await.map_err(text)
}

async fn no_capacity(world: World) -> Outcome {
    world.server.set(json!({"capacity": {"*": 0}}));
    let Err(error) = world.start(&world.spec(|_| ())).await else { return Err("it started".to_owned()) };
    ensure!(error.kind() == ErrorKind::LimitReached && error.is_retryable(), "{error:?}");
    ensure!(error.to_string().contains("t3a.large"), "{error}");
    ensure!(world.is_clean(), "{:?}", world.server.instances());
    Ok(())
}

async fn lost_answer(world: World) -> Outcome {
    world.server.set(json!({"errors_after": {"ec2:RunInstances": 1, "SendCommand": 2}, "errors": {"ec2:RunInstances": 1}}));
    let started = world.usual().await?;
    ensure!(world.server.instances().len() == 1, "{:?}", world.server.instances());
    world.server.set(json!({"errors_after": {"SendCommand": 3}}));
    let sandbox = started.environment.primary();
    sandbox.run(ExecRequest::shell("echo once >> ran")).await.map_err(text)?;
    let ran = sandbox.read_bytes("ran", 1000).await.map_err(text)?;
    ensure!(ran == b"once\n"[..], "a command ran more than once: {ran:?}");
    started.environment.stop().await.map_err(text)?;
    ensure!(world.is_clean(), "{:?}", world.server.instances());
    Ok(())
}

async fn several(world: World) -> Outcome {
    let spec = world.spec(|spec| spec.settings["machines"] = json!(["attacker", "victim"]));
    let started = world.start(&spec).await.map_err(text)?;
    let machines = started.environment.machines();
    let names: Vec<&str> = machines.iter().map(|machine| machine.name()).collect();
    ensure!(names == ["attacker", "victim"], "{names:?}");
    let mut hosts = Vec::new();
    for machine in &machines {
        hosts.push(machine.run(ExecRequest::new(["hostname"])).await.map_err(text)?.stdout.text());
    }
    ensure!(hosts[0] != hosts[1] && hosts[0].starts_with("i-"), "{hosts:?}");
    started.environment.stop().await.map_err(text)?;
    ensure!(world.is_clean(), "{:?}", world.server.instances());
    Ok(())
}

async fn no_agent(world: World) -> Outcome {
    world.server.set(json!({"require_instance_profile": true}));
    let Err(error) = world.start(&world.spec(|_| ())).await else { return Err("it started".to_owned()) };
    ensure!(error.kind() == ErrorKind::Timeout, "{error:?}");
    let told = error.to_string();
    ensure!(told.contains("no instance profile") && told.contains("the instance is running"), "{told}");
    ensure!(world.is_clean(), "{:?}", world.server.instances());
    Ok(())
}

async fn no_endpoint(world: World) -> Outcome {
    let out = super::network::stack(&world).await?;
    let mut spec = super::network::spec(&world, &out);
    spec.tier = "T0.H3.N0".parse().map_err(text)?;
    spec.settings["security-group"] = out["SecurityGroupN0"].clone().into();
    world.server.set(json!({"require_endpoints": true}));
    let ask = |body: String| world.server.signed("POST", "/", "ec2", &format!("{body}&Version=2016-11-15"));
    let told = ask(format!("Action=DescribeVpcEndpoints&Filter.1.Name=vpc-id&Filter.1.Value.1={}", out["VpcId"]));
    let id = super::network::id_of(&told, "ssmmessages").ok_or("no endpoint of ssmmessages")?;
    ask(format!("Action=DeleteVpcEndpoints&VpcEndpointId.1={id}"));
    let error = world.start(&spec).await.err().ok_or("it started")?;
    let told = error.to_string();
    ensure!(error.kind() == ErrorKind::Timeout && told.contains("has no endpoint of ssmmessages"), "{error:?}");
    world.until(Duration::from_secs(20), "nothing is left", || world.is_clean()).await
}

fn expires(world: &World) -> Result<String, String> {
    let id = world.server.instances().into_keys().next().ok_or("no instance")?;
    let told = world.server.instance(&id);
    let tag = told.split("<item>").find(|item| item.contains("<key>ExpiresAt</key>")).ok_or("no ExpiresAt")?;
    let value = tag.split_once("<value>").and_then(|(_, rest)| rest.split_once("</value>")).ok_or("no value")?;
    Ok(value.0.to_owned())
}

/// At a third of its life, so that it outlives nobody by more than that life.
async fn renewed(world: World) -> Outcome {
    let started = world.start(&world.spec(|spec| spec.settings["outlive-minutes"] = 2.into())).await.map_err(text)?;
    // The first tag counts the boot in, so that the next one may be earlier.
    let mut last = expires(&world)?;
    for renewal in 0..4 {
        let renewed = || expires(&world).is_ok_and(|now| if renewal == 0 { now != last } else { now > last });
        world.until(Duration::from_secs(80), "the tag is renewed", renewed).await?;
        last = expires(&world)?;
    }
    // Past its first life, it still lives.
    let done = started.environment.primary().run(ExecRequest::new(["true"])).await.map_err(text)?;
    ensure!(done.success(), "{done:?}");
    started.environment.stop().await.map_err(text)
}

async fn cleanup(world: World) -> Outcome {
    let started = world.usual().await?;
    let id = started.lease.id().to_owned();
    // Its owner dies: the lock is free, and nothing was undone.
    std::mem::forget(started.environment);
    drop(started.lease);
    let report = tierbox_lease::cleanup(&world.journal, &world.registry(), CleanupOptions::default()).await.map_err(text)?;
    ensure!(report.failed.is_empty() && report.removed.iter().any(|line| line.contains(&id)), "{report:?}");
    ensure!(world.is_clean(), "{:?}", world.server.instances());
    let again = tierbox_lease::cleanup(&world.journal, &world.registry(), CleanupOptions::default()).await.map_err(text)?;
    ensure!(again.failed.is_empty() && again.removed.is_empty(), "{again:?}");
    Ok(())
}

/// EC2 says of what it has just made that there is no such instance, as it does of what is long gone.
async fn unseen(world: World) -> Outcome {
    let started = world.usual().await?;
    let id = started.lease.id().to_owned();
    std::mem::forget(started.environment);
    drop(started.lease);
    world.server.set(json!({"ec2_visible_s": 100_000.0}));
    let (server, back) = (world.server.clone(), Duration::from_secs(2));
    let shown = std::thread::spawn(move || {
        std::thread::sleep(back);
        server.set(json!({"ec2_visible_s": 0.0}));
    });
    let report = tierbox_lease::cleanup(&world.journal, &world.registry(), CleanupOptions::default()).await.map_err(text)?;
    shown.join().map_err(|_| "the thread panicked")?;
    ensure!(report.failed.is_empty() && report.removed.iter().any(|line| line.contains(&id)), "{report:?}");
    world.until(Duration::from_secs(20), "it is gone", || world.is_clean()).await
}

/// To another account all of an environment looks as if it were gone: its lease must stay.
async fn other_account(world: World) -> Outcome {
    let started = world.usual().await?;
    let lease = started.lease.clone();
    let mut data = world.journal.list().map_err(text)?.entries[0].record.data.clone();
    ensure!(data["owner"] == "123456789012", "the lease does not tell the account: {data}");
    data["owner"] = "999999999999".into();
    lease.set_data(data.clone()).map_err(text)?;
    std::mem::forget(started.environment);
    drop((lease, started.lease));
    let report = tierbox_lease::cleanup(&world.journal, &world.registry(), CleanupOptions::default()).await.map_err(text)?;
    ensure!(format!("{report:?}").contains("999999999999") && !report.failed.is_empty(), "{report:?}");
    ensure!(world.journal.list().map_err(text)?.entries.len() == 1, "the lease is gone");
    for id in world.server.instances().keys() {
        world.server.signed("POST", "/", "ec2", &format!("Action=TerminateInstances&Version=2016-11-15&InstanceId.1={id}"));
    }
    Ok(())
}

async fn timer(world: World) -> Outcome {
    let started = world.usual().await?;
    let sandbox = started.environment.primary();
    // As root, as the agent could: the timer is told that the time is over. More than once, since whatever else is sent renews it.
    let over = "(for i in 1 2 3 4 5 6 7 8; do echo 1 > /run/tierbox/until; sleep 1; done) >/dev/null 2>&1 &";
    let over = ExecRequest::shell(over).user("root");
    let told = sandbox.run(over).await.map_err(text)?;
    ensure!(told.success(), "{told:?}");
    world
        .until(Duration::from_secs(30), "the machine ended itself", || {
            world.server.instances().values().all(|state| state == "terminated")
        })
        .await?;
    started.environment.stop().await.map_err(text)?;
    ensure!(world.is_clean(), "{:?}", world.server.instances());
    Ok(())
}

async fn metadata(world: World) -> Outcome {
    let started = world.usual().await?;
    let sandbox = started.environment.primary();
    let ask = "curl -s -m 3 -o /dev/null -w %{http_code} -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' \
               http://169.254.169.254/latest/api/token";
    let agent = sandbox.run(ExecRequest::shell(ask)).await.map_err(text)?;
    ensure!(!agent.success() && agent.stdout.text() == "000", "the agent got a token: {agent:?}");
    // The control: root's SSM agent needs it.
    let root = sandbox.run(ExecRequest::shell(ask).user("root")).await.map_err(text)?;
    ensure!(root.stdout.text() == "200", "the metadata service answers nobody, so nothing was shown: {root:?}");
    let shown = format!("{:?}", started.environment.report().mechanisms);
    ensure!(shown.contains("metadata closed") && shown.contains("nftables"), "{shown}");
    started.environment.stop().await.map_err(text)
}

async fn connection(world: World) -> Outcome {
    let started = world.usual().await?;
    let connection = started.environment.connection("main").map_err(text)?;
    let id = world.server.instances().into_keys().next().ok_or("no instance")?;
    let told = connection.argv.join(" ");
    ensure!(told.starts_with("aws ssm start-session --region us-east-1 --target ") && told.contains(&id), "{told}");
    ensure!(told.contains("sudo -i -u tierbox"), "{told}");
    started.environment.stop().await.map_err(text)
}
