//! N1 by the gateway of the stack: what is named is reached through it, and nothing else, and what it decided comes back. What is tried
//! at the gateway itself is the network part of the escape corpus, `escape::aws::n1`.

use std::path::PathBuf;
use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::{Value, json};
use tierbox_core::{Decision, EnvironmentSpec, ErrorKind, ExecRequest, Network, Protocol, Sandbox, SandboxExt, Silent, Verdict};
use tierbox_ec2::{Ec2Backend, SetUp};

use crate::server::gateway_program;

use super::world::{Outcome, World, ensure, text, trial};

pub fn all() -> Vec<Trial> {
    vec![
        trial("named::what_is_named_is_reached_by_the_gateway_alone", reached),
        trial("named::environments_share_the_gateway_and_not_their_names", shared),
        trial("named::what_is_open_is_refused_by_name", refused),
    ]
}

/// The gateway's program.
pub(super) fn program(world: &World) -> Result<PathBuf, String> {
    gateway_program(world.state()).map_err(text)
}

/// Sets an account up whose stack has a gateway.
async fn set_up(world: &World) -> Result<SetUp, String> {
    world.server.stack(Some(program(world)?)).await.map_err(text)
}

/// The usual environment in a stack's network, in one of its groups.
pub(super) fn spec_of(world: &World, made: &SetUp, group: &str) -> Result<EnvironmentSpec, String> {
    world.server.spec_in(made, group).map_err(text)
}

fn spec(world: &World, made: &SetUp, allow: &[&str]) -> Result<EnvironmentSpec, String> {
    world.server.named_spec_in(made, allow.iter().map(|&name| name.to_owned()).collect()).map_err(text)
}

/// An environment with N1, in an account that is set up for it.
pub(super) async fn usual_spec(world: &World) -> Result<EnvironmentSpec, String> {
    spec(world, &set_up(world).await?, &["index.test"])
}

pub(super) async fn page(sandbox: &dyn Sandbox, arguments: &str) -> Result<String, String> {
    let script = format!("curl -s -m 10 {arguments}");
    let result = sandbox.run(ExecRequest::shell(&script)).await.map_err(text)?;
    Ok(result.stdout.text().trim().to_owned())
}

fn find<'a>(decisions: &'a [Decision], name: &str, verdict: Verdict) -> Result<&'a Decision, String> {
    let found = decisions.iter().find(|each| each.name == name && each.verdict == verdict);
    found.ok_or(format!("no decision on {name} is {verdict:?}: {decisions:?}"))
}

async fn reached(world: World) -> Outcome {
    let made = set_up(&world).await?;
    let check = made.checks.iter().find(|check| check.name == "N1").ok_or("nothing checks N1")?;
    ensure!(check.status == tierbox_core::CheckStatus::Ok, "{check:?}");
    ensure!(made.profile.contains("T0.H3.N1") && made.profile.contains("gateway = "), "{}", made.profile);
    let started = world.start(&spec(&world, &made, &["index.test", "*.files.test"])?).await.map_err(text)?;
    let sandbox = started.environment.primary();
    // By the proxy that programs find in their variables, and without it: names are the gateway's.
    ensure!(page(sandbox.as_ref(), "http://index.test/").await? == "outside", "a listed name is not reached by the proxy");
    ensure!(page(sandbox.as_ref(), "--noproxy '*' http://a.files.test/").await? == "outside", "nor without one");
    for (what, arguments) in [
        ("a name that is not listed", "http://evil.test/"),
        ("one without the proxy", "--noproxy '*' http://evil.test/"),
        ("an address", "--noproxy '*' http://203.0.113.10/"),
        ("an address by the proxy", "http://203.0.113.10/"),
        ("another port", "http://index.test:8443/"),
        ("metadata by the proxy", "http://169.254.169.254/latest/"),
    ] {
        let answer = page(sandbox.as_ref(), arguments).await?;
        ensure!(!answer.contains("outside"), "{what} was reached: {answer}");
    }
    let asked = "python3 -c 'import socket; print(socket.gethostbyname(\"secret.canary.test\"))'";
    ensure!(!sandbox.run(ExecRequest::shell(asked)).await.map_err(text)?.success(), "another name has an address");
    let gateway = made.stack.output("GatewayInstance").map_err(text)?.to_owned();
    let instance = world.server.instances().into_keys().find(|id| *id != gateway);
    let seen = world.server.of("seen", &instance.ok_or("no instance")?, json!({}));
    let told = seen["seen"].as_array().ok_or("nothing is told")?;
    let outside: Vec<&Value> =
        told.iter().filter(|each| each["what"] == "outside" || each["name"] == "secret.canary.test.").collect();
    ensure!(outside.is_empty(), "the machine itself reached {outside:?}");
    let decisions = started.environment.decisions().await.map_err(text)?;
    ensure!(find(&decisions, "index.test", Verdict::Allowed)?.protocol == Protocol::Http, "{decisions:?}");
    find(&decisions, "evil.test", Verdict::Refused)?;
    find(&decisions, "secret.canary.test", Verdict::Refused)?;
    let report = started.environment.report();
    ensure!(report.notes.iter().any(|note| note.contains("index.test")), "{:?}", report.notes);
    started.environment.stop().await.map_err(text)?;
    // What was decided last is known after the end, and nothing of it stays on the gateway.
    ensure!(started.environment.decisions().await.map_err(text)?.len() >= decisions.len(), "decisions were lost");
    world
        .until(Duration::from_secs(20), "the machine is gone", || {
            world.server.instances().values().filter(|state| *state == "running").count() == 1
        })
        .await?;
    let left = Ec2Backend::new().teardown(&world.server.settings(), &world.server.key, &Silent).await.map_err(text)?;
    ensure!(left.failed.is_empty(), "{left:?}");
    world
        .until(Duration::from_secs(20), "the gateway is gone", || {
            world.server.instances().values().all(|state| state == "terminated")
        })
        .await
}

async fn shared(world: World) -> Outcome {
    let made = set_up(&world).await?;
    let (one, other) = (spec(&world, &made, &["one.test"])?, spec(&world, &made, &["other.test"])?);
    let (one, other) = tokio::join!(world.start(&one), world.start(&other));
    let (one, other) = (one.map_err(text)?, other.map_err(text)?);
    for (environment, own, others) in [(&one.environment, "one", "other"), (&other.environment, "other", "one")] {
        let sandbox = environment.primary();
        ensure!(page(sandbox.as_ref(), &format!("http://{own}.test/")).await? == "outside", "{own} does not reach its own name");
        ensure!(
            !page(sandbox.as_ref(), &format!("http://{others}.test/")).await?.contains("outside"),
            "{own} reaches {others}'s name"
        );
        let decisions = environment.decisions().await.map_err(text)?;
        ensure!(decisions.iter().all(|decision| decision.sandbox == environment.id()), "decisions of another: {decisions:?}");
        find(&decisions, &format!("{others}.test"), Verdict::Refused)?;
    }
    // The end of one is not the end of the other.
    one.environment.stop().await.map_err(text)?;
    let sandbox = other.environment.primary();
    ensure!(page(sandbox.as_ref(), "http://other.test/").await? == "outside", "the other was cut off");
    other.environment.stop().await.map_err(text)?;
    Ok(())
}

async fn refused(world: World) -> Outcome {
    let made = set_up(&world).await?;
    let good = spec(&world, &made, &["index.test"])?;
    let out = |key: &str| made.stack.output(key).map(str::to_owned).map_err(text);
    let change = |key: &str, value: Value| {
        let mut changed = good.clone();
        changed.settings[key] = value;
        changed
    };
    let as_root = EnvironmentSpec { user: Some("root".to_owned()), ..good.clone() };
    for (what, spec) in [
        ("lets out to 0.0.0.0/0", change("security-group", out("SecurityGroupN0")?.into())),
        ("there is no gateway", change("gateway", "i-0123456789abcdef0".into())),
        ("root", as_root),
    ] {
        world.refuses(&spec, what).await?;
    }
    let Err(error) = world.start(&change("gateway", Value::Null)).await else {
        return Err("it started without a gateway".to_owned());
    };
    ensure!(error.kind() == ErrorKind::InvalidProfile, "{error}");
    // The sabotage: one more rule, which reaches another port of the gateway, or another machine's address.
    let group = out("SecurityGroupN1")?;
    for (what, port, cidr) in [("10.117.2.10/32", 22, "10.117.2.10/32"), ("203.0.113.0/24", 443, "203.0.113.0/24")] {
        let rule = |action: &str| {
            let body = format!(
                "Action={action}SecurityGroupEgress&Version=2016-11-15&GroupId={group}&IpPermissions.1.IpProtocol=tcp\
                 &IpPermissions.1.FromPort={port}&IpPermissions.1.ToPort={port}&IpPermissions.1.IpRanges.1.CidrIp={}",
                cidr.replace('/', "%2F")
            );
            world.server.signed("POST", "/", "ec2", &body)
        };
        let made = rule("Authorize");
        ensure!(made.contains(" 200 "), "{made}");
        let error = world.refuses(&good, what).await?;
        ensure!(error.to_string().contains("N1 does not hold"), "{error}");
        rule("Revoke");
    }
    ensure!(world.server.instances().len() == 1, "something was made: {:?}", world.server.instances());
    let checks = Ec2Backend::new().check(&good.settings, Network::N1).await.map_err(text)?;
    ensure!(checks.iter().any(|check| check.name == "N1" && check.status == tierbox_core::CheckStatus::Ok), "{checks:?}");
    Ok(())
}
