//! N2 in the network of the stack in infra/, and what is refused where a part of it is open.

use std::collections::BTreeMap;
use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::{Value, json};
use tierbox_core::{EnvironmentSpec, ExecRequest, SandboxExt};

use super::world::{Outcome, World, ensure, text, trial};

pub fn all() -> Vec<Trial> {
    vec![trial("network::the_stack_closes_the_network", closed), trial("network::what_is_open_is_refused_by_name", refused)]
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// Deploys infra/tierbox.yaml; returns its outputs.
pub(super) async fn stack(world: &World) -> Result<BTreeMap<String, String>, String> {
    stack_with(world, &[]).await
}

/// The same with other parameters, as people deploy it by hand.
pub(super) async fn stack_with(world: &World, more: &[(&str, &str)]) -> Result<BTreeMap<String, String>, String> {
    let name = world.server.key.clone();
    let lists = world.server.signed("POST", "/", "ec2", "Action=DescribePrefixLists&Version=2016-11-15");
    let list = lists
        .split("<item>")
        .find(|item| item.contains("com.amazonaws.us-east-1.s3<"))
        .and_then(|item| item.split_once("<prefixListId>")?.1.split_once('<'))
        .map(|(id, _)| id.to_owned())
        .ok_or("no prefix list of S3")?;
    let template = include_str!("../../infra/tierbox.yaml");
    let mut body = format!(
        "Action=CreateStack&Version=2010-05-15&StackName={name}&Capabilities.member.1=CAPABILITY_NAMED_IAM&TemplateBody={}",
        encoded(template)
    );
    let parameters = [("Prefix", name.as_str()), ("S3PrefixList", &list), ("Zones", "us-east-1a,us-east-1b")];
    for (number, (key, value)) in (1..).zip(parameters.iter().chain(more)) {
        let value = encoded(value);
        body.push_str(&format!(
            "&Parameters.member.{number}.ParameterKey={key}&Parameters.member.{number}.ParameterValue={value}"
        ));
    }
    let made = world.server.signed("POST", "/", "cloudformation", &body);
    ensure!(made.contains(" 200 "), "{made}");
    let mut told = String::new();
    world
        .until(Duration::from_secs(60), "the stack is deployed", || {
            let ask = format!("Action=DescribeStacks&Version=2010-05-15&StackName={name}");
            told = world.server.signed("POST", "/", "cloudformation", &ask);
            told.contains("CREATE_COMPLETE")
        })
        .await?;
    let pair = |part: &str| {
        let (key, rest) = part.split_once("</OutputKey>")?;
        let value = rest.split_once("<OutputValue>")?.1.split_once("</OutputValue>")?.0;
        Some((key.to_owned(), value.to_owned()))
    };
    Ok(told.split("<OutputKey>").skip(1).filter_map(pair).collect())
}

pub(super) fn spec(world: &World, out: &BTreeMap<String, String>) -> EnvironmentSpec {
    world.spec(|spec| {
        spec.tier = "T0.H3.N2".parse().expect("a tier");
        spec.settings["bucket"] = out["Bucket"].clone().into();
        spec.settings["subnets"] = json!(out["SubnetIds"].split(',').collect::<Vec<_>>());
        spec.settings["security-group"] = out["SecurityGroupN2"].clone().into();
        spec.settings["instance-profile"] = out["InstanceProfile"].clone().into();
    })
}

/// An environment with N2, in a stack of its own.
pub async fn closed_spec(world: &World) -> Result<EnvironmentSpec, String> {
    let out = stack(world).await?;
    world.server.set(json!({"require_endpoints": true, "require_instance_profile": true}));
    Ok(spec(world, &out))
}

async fn closed(world: World) -> Outcome {
    let started = world.start(&closed_spec(&world).await?).await.map_err(text)?;
    let sandbox = started.environment.primary();
    for (what, script) in [
        ("an address outside", "curl -s -m 3 -o /dev/null http://203.0.113.10/"),
        ("a name", "python3 -c 'import socket; socket.gethostbyname(\"secret.canary.test\")'"),
        ("the metadata service", "curl -s -m 3 -o /dev/null http://169.254.169.254/"),
    ] {
        let tried = sandbox.run(ExecRequest::shell(script)).await.map_err(text)?;
        ensure!(!tried.success(), "{what} was reached: {tried:?}");
    }
    // The control: what must pass does, by the bucket's endpoint.
    sandbox.write_bytes("large", vec![5; 200_000]).await.map_err(text)?;
    let back = sandbox.read_bytes("large", 1 << 20).await.map_err(text)?;
    ensure!(back == vec![5; 200_000], "{} bytes came back", back.len());
    let mechanisms = format!("{:?}", started.environment.report().mechanisms);
    for name in ["egress rules", "endpoint policies", "DNS firewall", "metadata closed"] {
        ensure!(mechanisms.contains(name), "{name} is not in the report: {mechanisms}");
    }
    started.environment.stop().await.map_err(text)
}

async fn refused(world: World) -> Outcome {
    let out = stack(&world).await?;
    let good = spec(&world, &out);
    let change = |key: &str, value: Value| {
        let mut changed = good.clone();
        changed.settings[key] = value;
        changed
    };
    let as_root = EnvironmentSpec { user: Some("root".to_owned()), ..good.clone() };
    for (what, spec) in [
        ("lets out to 0.0.0.0/0", change("security-group", out["SecurityGroupN0"].clone().into())),
        ("no security group", change("security-group", Value::Null)),
        ("no subnet", change("subnets", json!([]))),
        ("other buckets", change("bucket", world.server.bucket().into())),
        ("root", as_root),
    ] {
        world.refuses(&spec, what).await?;
    }
    endpoints(&world, &out, &good).await?;
    routes(&world, &good).await?;
    // Without the firewall a query carries data.
    let delete = |action: &str, body: Value| world.server.json("route53resolver", &format!("Route53Resolver.{action}"), &body);
    let fails = |how: &str| delete("UpdateFirewallConfig", json!({"ResourceId": out["VpcId"], "FirewallFailOpen": how}));
    fails("ENABLED");
    world.refuses(&good, "when it fails").await?;
    fails("DISABLED");
    untrusted(&world, &out, &good).await?;
    let bound = delete("ListFirewallRuleGroupAssociations", json!({"VpcId": out["VpcId"]}));
    let id = bound["FirewallRuleGroupAssociations"][0]["Id"].as_str().ok_or("no association")?.to_owned();
    delete("DisassociateFirewallRuleGroup", json!({"FirewallRuleGroupAssociationId": id}));
    world.refuses(&good, "DNS firewall").await?;
    let ask = |body: String| world.server.signed("POST", "/", "ec2", &format!("{body}&Version=2016-11-15"));
    let told = ask(format!("Action=DescribeVpcEndpoints&Filter.1.Name=vpc-id&Filter.1.Value.1={}", out["VpcId"]));
    let id = id_of(&told, "ssmmessages").ok_or("no endpoint of ssmmessages")?;
    ask(format!("Action=DeleteVpcEndpoints&VpcEndpointId.1={id}"));
    world.refuses(&good, "no endpoint of ssmmessages").await?;
    ensure!(world.server.instances().is_empty(), "something was made: {:?}", world.server.instances());
    Ok(())
}

/// A rule that inspects what the bucket's name leads to blocks that: no file would come, and nothing would say why.
async fn untrusted(world: &World, out: &BTreeMap<String, String>, good: &EnvironmentSpec) -> Outcome {
    let ask = |action: &str, body: Value| world.server.json("route53resolver", &format!("Route53Resolver.{action}"), &body);
    let group = &out["FirewallRuleGroupId"];
    let told = ask("ListFirewallRules", json!({"FirewallRuleGroupId": group}));
    let rules = told["FirewallRules"].as_array().ok_or("no rules")?;
    let rule = rules.iter().find(|rule| rule["Action"] == "ALLOW").ok_or(format!("no rule allows: {told}"))?;
    ensure!(rule["FirewallDomainRedirectionAction"] == "TRUST_REDIRECTION_DOMAIN", "{rule}");
    let list = &rule["FirewallDomainListId"];
    let with = |how: &str| {
        ask("DeleteFirewallRule", json!({"FirewallRuleGroupId": group, "FirewallDomainListId": list}));
        let body = json!({"FirewallRuleGroupId": group, "FirewallDomainListId": list, "Priority": 1, "Action": "ALLOW",
                          "Name": "endpoints", "CreatorRequestId": how, "FirewallDomainRedirectionAction": how});
        ask("CreateFirewallRule", body)
    };
    with("INSPECT_REDIRECTION_DOMAIN");
    world.refuses(good, "s3-r-w.us-east-1.amazonaws.com").await?;
    let checks = tierbox_ec2::Ec2Backend::new().check(&good.settings, good.tier.network()).await.map_err(text)?;
    let told = checks.iter().find(|check| check.name == "N2").ok_or("N2 is not checked")?;
    ensure!(told.status == tierbox_core::CheckStatus::Fail && told.detail.contains("s3-r-w"), "{told:?}");
    with("TRUST_REDIRECTION_DOMAIN");
    Ok(())
}

/// The group lets out to all of S3: a subnet whose way there is not the endpoint is told.
async fn routes(world: &World, good: &EnvironmentSpec) -> Outcome {
    let ask = |body: String| world.server.signed("POST", "/", "ec2", &format!("{body}&Version=2016-11-15"));
    let subnet = good.settings["subnets"][1].as_str().ok_or("one subnet")?;
    let told = ask(format!("Action=DescribeRouteTables&Filter.1.Name=association.subnet-id&Filter.1.Value.1={subnet}"));
    let after = |element: &str| {
        let items = told.split("<item>").filter(|item| element != "routeTableAssociationId" || item.contains(subnet));
        items.filter_map(|item| item.split_once(&format!("<{element}>"))?.1.split_once('<')).map(|(id, _)| id.to_owned()).next()
    };
    let (table, association) =
        (after("routeTableId").ok_or("no table")?, after("routeTableAssociationId").ok_or(format!("no association: {told}"))?);
    ask(format!("Action=DisassociateRouteTable&AssociationId={association}"));
    world.refuses(good, subnet).await?;
    let back = ask(format!("Action=AssociateRouteTable&RouteTableId={table}&SubnetId={subnet}"));
    ensure!(back.contains(" 200 "), "{back}");
    Ok(())
}

/// The value of the element after another's, in an answer.
pub(super) fn id_of<'a>(told: &'a str, service: &str) -> Option<&'a str> {
    let item = told.split("<vpcEndpointId>").find(|part| part.contains(&format!(".{service}</serviceName>")))?;
    item.split_once('<').map(|(id, _)| id)
}

/// A policy that serves others too, and an egress rule too many: each is told by its name.
async fn endpoints(world: &World, out: &BTreeMap<String, String>, good: &EnvironmentSpec) -> Outcome {
    let ask = |body: String| world.server.signed("POST", "/", "ec2", &format!("{body}&Version=2016-11-15"));
    let told = ask(format!("Action=DescribeVpcEndpoints&Filter.1.Name=vpc-id&Filter.1.Value.1={}", out["VpcId"]));
    for service in ["s3", "ssm"] {
        let id = id_of(&told, service).ok_or(format!("no endpoint of {service}: {told}"))?;
        let item = told.split("<vpcEndpointId>").find(|part| part.starts_with(id)).unwrap_or_default();
        let before = item.split_once("<policyDocument>").and_then(|(_, rest)| rest.split_once("</policyDocument>"));
        let before = before.ok_or("no policy")?.0.replace("&quot;", "\"").replace("&#34;", "\"").replace("&amp;", "&");
        let all = json!({"Statement": [{"Effect": "Allow", "Principal": "*", "Action": "*", "Resource": "*"}]}).to_string();
        let modify =
            |policy: &str| ask(format!("Action=ModifyVpcEndpoint&VpcEndpointId={id}&PolicyDocument={}", encoded(policy)));
        let done = modify(&all);
        ensure!(done.contains(" 200 "), "{done}");
        world.refuses(good, id).await?;
        modify(&before);
    }
    let group = &out["SecurityGroupN2"];
    let rule = |action: &str| {
        ask(format!(
            "Action={action}SecurityGroupEgress&GroupId={group}&IpPermissions.1.IpProtocol=udp&IpPermissions.1.FromPort=123\
             &IpPermissions.1.ToPort=123&IpPermissions.1.IpRanges.1.CidrIp=203.0.113.0%2F24"
        ))
    };
    let done = rule("Authorize");
    ensure!(done.contains(" 200 "), "{done}");
    world.refuses(good, "203.0.113.0/24").await?;
    rule("Revoke");
    // All is as it was: the control.
    world.server.set(json!({"capacity": {"*": 0}}));
    let error = world.start(good).await.err().ok_or("it started without capacity")?;
    world.server.set(json!({"capacity": {}}));
    ensure!(error.kind() == tierbox_core::ErrorKind::LimitReached, "{error:?}");
    Ok(())
}
