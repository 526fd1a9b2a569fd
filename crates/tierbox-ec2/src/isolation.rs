//! N2, and N1 but for the gateway: whether the network around the instances is closed. Security groups bind neither Amazon's resolver nor its metadata service, and a
//! gateway endpoint of S3 reaches every bucket; so each way is looked at by itself, and what is open is refused by its name.

use aws_sdk_ec2::types::{Filter, IpPermission, SecurityGroup, VpcEndpoint, VpcEndpointType};
use serde_json::{Value, json};
use tierbox_core::{Applied, Error, ErrorKind, Mechanism, Network, Result};

use crate::BACKEND;
use crate::aws::Aws;
use crate::call::{again, shown};
use crate::gateway::{self, Facts};
use crate::place::Tables;
use crate::settings::Settings;
use crate::signed;

const TRIED: &str = "check network";
/// The services that an SSM agent needs.
const SERVICES: [&str; 3] = ["ssm", "ssmmessages", "ec2messages"];

/// What is open.
pub(crate) fn open(what: impl Into<String>, help: &str) -> Error {
    Error::new(ErrorKind::TierRefused, TRIED, what).with_backend(BACKEND).with_help(help)
}

/// Checks all that N2 needs outside of the machines; with a gateway, all that N1 needs.
///
/// # Errors
/// `TierRefused` naming what is open or missing.
pub(crate) async fn check(aws: &Aws, settings: &Settings, bucket: &str, gateway: Option<&Facts>) -> Result<Vec<Mechanism>> {
    let tier = if gateway.is_some() { Network::N1 } else { Network::N2 };
    checked(aws, settings, bucket, gateway).await.map_err(|error| refused(tier, error))
}

/// Names the tier that does not hold.
pub(crate) fn refused(tier: Network, error: Error) -> Error {
    if error.kind() != ErrorKind::TierRefused {
        return error;
    }
    let named = Error::new(ErrorKind::TierRefused, TRIED, format!("{tier} does not hold: {}", error.message()));
    named.with_backend(BACKEND).with_help(error.help().unwrap_or_default())
}

async fn checked(aws: &Aws, settings: &Settings, bucket: &str, gateway: Option<&Facts>) -> Result<Vec<Mechanism>> {
    let vpc = vpc_of(aws, settings).await?;
    if let Some(gateway) = gateway.filter(|gateway| gateway.vpc != vpc) {
        let message = format!("the gateway {} is in {}, the subnets are in {vpc}", gateway.instance, gateway.vpc);
        return Err(open(message, "name the gateway of the same stack (ec2.gateway)"));
    }
    let endpoints = endpoints(aws, &vpc).await?;
    let mechanism = |name: &str, detail: String| Mechanism { name: name.to_owned(), applied: Applied::Enforced, detail };
    let group = group(aws, settings, gateway).await?;
    // Whoever owns the group owns the instances in it.
    let account = group.owner_id.clone().unwrap_or_default();
    let s3 = check_endpoints(aws, &endpoints, bucket, &account)?;
    check_routes(aws, settings, &vpc, s3).await?;
    let s3 = s3.vpc_endpoint_id.clone().unwrap_or_default();
    let group = check_group(aws, &group, &endpoints, gateway).await?;
    let firewall = check_names(aws, &vpc, bucket).await?;
    Ok(vec![
        mechanism(
            "egress rules",
            match gateway {
                None => format!("{group} lets out to the endpoints alone"),
                Some(gateway) => format!("{group} lets out to the endpoints and the gateway's address {} alone", gateway.address),
            },
        ),
        mechanism("endpoint policies", format!("{s3} serves {bucket} alone; those of SSM the account's roles alone")),
        mechanism("DNS firewall", format!("{firewall} answers the endpoints' names alone")),
    ])
}

/// The VPC of all subnets.
async fn vpc_of(aws: &Aws, settings: &Settings) -> Result<String> {
    if settings.subnets.is_empty() {
        return Err(open("no subnet is named, so that nobody knows the network", "write ec2.subnets"));
    }
    let ask = || aws.ec2.describe_subnets().set_subnet_ids(Some(settings.subnets.clone())).send();
    let answer = again(TRIED, "ec2:DescribeSubnets", ask).await?;
    let mut all: Vec<String> = answer.subnets.unwrap_or_default().into_iter().filter_map(|subnet| subnet.vpc_id).collect();
    all.sort();
    all.dedup();
    match all.as_slice() {
        [one] => Ok(one.clone()),
        _ => Err(open("the subnets are in several networks", "name subnets of one VPC")),
    }
}

async fn endpoints(aws: &Aws, vpc: &str) -> Result<Vec<VpcEndpoint>> {
    let filter = Filter::builder().name("vpc-id").values(vpc).build();
    let ask = || aws.ec2.describe_vpc_endpoints().filters(filter.clone()).send();
    let found = again(TRIED, "ec2:DescribeVpcEndpoints", ask).await?.vpc_endpoints.unwrap_or_default();
    Ok(found.into_iter().filter(serves).collect())
}

/// Whether an endpoint is there: one that is made or taken away serves nobody.
pub(crate) fn serves(endpoint: &VpcEndpoint) -> bool {
    endpoint.state.as_ref().is_none_or(|state| state.as_str().eq_ignore_ascii_case("available"))
}

fn service(endpoint: &VpcEndpoint) -> &str {
    endpoint.service_name.as_deref().unwrap_or_default().rsplit('.').next().unwrap_or_default()
}

fn is_gateway(endpoint: &VpcEndpoint) -> bool {
    endpoint.vpc_endpoint_type.as_ref().is_none_or(|kind| *kind == VpcEndpointType::Gateway)
}

/// Checks the endpoints and their policies; returns that of S3.
fn check_endpoints<'a>(aws: &Aws, endpoints: &'a [VpcEndpoint], bucket: &str, account: &str) -> Result<&'a VpcEndpoint> {
    let fix = "infra/tierbox.yaml has endpoints with such policies";
    for endpoint in endpoints {
        let (id, name) = (endpoint.vpc_endpoint_id.clone().unwrap_or_default(), service(endpoint));
        let policy = policy_of(&id, name, endpoint.policy_document.as_deref().unwrap_or("{}"))?;
        match name {
            "s3" => check_bucket_policy(&id, &policy, bucket, account).map_err(|why| open(why, fix))?,
            _ if SERVICES.contains(&name) => check_service_policy(&id, name, &policy, account).map_err(|why| open(why, fix))?,
            // Another service of AWS can take data; a gateway of DynamoDB needs no group.
            _ => {
                return Err(open(
                    format!("{id} is an endpoint of {name}, through which data can leave"),
                    "use a VPC of tierbox's own",
                ));
            }
        }
    }
    if let Some(missing) = SERVICES.into_iter().find(|name| !endpoints.iter().any(|endpoint| service(endpoint) == *name)) {
        return Err(open(format!("there is no endpoint of {missing} in {}", aws.region), fix));
    }
    let s3 = endpoints.iter().find(|endpoint| service(endpoint) == "s3" && is_gateway(endpoint));
    s3.ok_or_else(|| open("there is no gateway endpoint of s3", fix))
}

/// The policy of an endpoint. One that cannot be judged may allow anything.
fn policy_of(id: &str, name: &str, document: &str) -> Result<Value> {
    serde_json::from_str(document).map_err(|_| {
        let start: String = document.chars().take(120).collect();
        open(
            format!("ec2:DescribeVpcEndpoints answered as the policy of {id} ({name}) what is no JSON: {}", shown(&start)),
            "AWS answers in JSON, so what answers here is not AWS: ask whoever runs it, or see `aws ec2 describe-vpc-endpoints`",
        )
    })
}

/// Every subnet's way to S3 is the endpoint: the group lets out to all of S3, and another way would pass its policy by.
async fn check_routes(aws: &Aws, settings: &Settings, vpc: &str, s3: &VpcEndpoint) -> Result<()> {
    let tables = Tables::of(aws, vpc).await?;
    let by_it = |subnet: &&String| {
        let own = tables.of_subnet(subnet).and_then(|table| table.route_table_id.as_ref());
        own.is_some_and(|own| s3.route_table_ids().contains(own))
    };
    match settings.subnets.iter().find(|subnet| !by_it(subnet)) {
        None => Ok(()),
        Some(subnet) => Err(open(
            format!(
                "{subnet} has no route to {}, so that every bucket of S3 is in reach",
                s3.vpc_endpoint_id().unwrap_or_default()
            ),
            "add the subnet's route table to the endpoint, or leave the subnet out of ec2.subnets",
        )),
    }
}

fn statements(policy: &Value) -> Vec<&Value> {
    match &policy["Statement"] {
        Value::Array(all) => all.iter().collect(),
        Value::Null => Vec::new(),
        one => vec![one],
    }
}

fn words(value: &Value) -> Vec<&str> {
    match value {
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
        one => one.as_str().into_iter().collect(),
    }
}

/// Whether a statement holds for one value of a key alone, and which.
fn bound_to<'a>(statement: &'a Value, key: &str) -> Option<&'a str> {
    let conditions = statement["Condition"].as_object()?;
    conditions.iter().find_map(|(operator, keys)| {
        let exact = matches!(operator.as_str(), "StringEquals" | "ArnEquals");
        let found = keys.as_object()?.iter().find(|(name, _)| name.eq_ignore_ascii_case(key))?.1;
        let only = words(found);
        (exact && only.len() == 1 && !only[0].contains('*')).then(|| only[0])
    })
}

/// The account of a role or user.
fn account_of(arn: &str) -> Option<&str> {
    arn.strip_prefix("arn:")?.split(':').nth(3)
}

/// S3's endpoint may reach objects of one bucket, asked for by and belonging to our account.
fn check_bucket_policy(id: &str, policy: &Value, bucket: &str, account: &str) -> std::result::Result<(), String> {
    let allowed: Vec<&Value> = statements(policy).into_iter().filter(|statement| statement["Effect"] == "Allow").collect();
    if allowed.is_empty() {
        return Err(format!("the policy of {id} allows nothing"));
    }
    for statement in allowed {
        let resources = words(&statement["Resource"]);
        let ours = |resource: &&str| {
            resource
                .strip_prefix("arn:")
                .and_then(|rest| rest.split_once(":s3:::"))
                .is_some_and(|(_, path)| path.starts_with(&format!("{bucket}/")))
        };
        if resources.is_empty() || !resources.iter().all(ours) {
            return Err(format!("the policy of {id} (s3) reaches other buckets than {bucket}"));
        }
        if ["aws:PrincipalAccount", "aws:ResourceAccount"].iter().any(|key| bound_to(statement, key) != Some(account)) {
            return Err(format!("the policy of {id} (s3) serves keys of other accounts"));
        }
    }
    Ok(())
}

/// SSM's endpoints may serve one role of ours, or our account.
fn check_service_policy(id: &str, name: &str, policy: &Value, account: &str) -> std::result::Result<(), String> {
    let allowed: Vec<&Value> = statements(policy).into_iter().filter(|statement| statement["Effect"] == "Allow").collect();
    let bound = |statement: &&Value| {
        bound_to(statement, "aws:PrincipalArn").and_then(account_of) == Some(account)
            || bound_to(statement, "aws:PrincipalAccount") == Some(account)
    };
    match allowed.iter().all(bound) && !allowed.is_empty() {
        true => Ok(()),
        false => Err(format!("the policy of {id} ({name}) serves keys of other accounts")),
    }
}

/// Where such a group can be had.
fn group_fix(gateway: Option<&Facts>) -> &'static str {
    match gateway {
        None => "infra/tierbox.yaml has such a group (SecurityGroupN2)",
        Some(_) => "infra/tierbox.yaml has such a group (SecurityGroupN1)",
    }
}

/// The security group that settings name.
async fn group(aws: &Aws, settings: &Settings, gateway: Option<&Facts>) -> Result<SecurityGroup> {
    let Some(group) = &settings.security_group else {
        return Err(open("no security group is named, and the default one lets everything out", "write ec2.security-group"));
    };
    let ask = || aws.ec2.describe_security_groups().group_ids(group).send();
    let found = again(TRIED, "ec2:DescribeSecurityGroups", ask).await?.security_groups.unwrap_or_default().into_iter().next();
    found.ok_or_else(|| open(format!("there is no security group {group}"), group_fix(gateway)))
}

/// The group lets out to the endpoints' groups and to S3's prefix list, by HTTPS, and nowhere else.
async fn check_group(aws: &Aws, group: &SecurityGroup, endpoints: &[VpcEndpoint], gateway: Option<&Facts>) -> Result<String> {
    let (id, rules) = (group.group_id().unwrap_or_default(), group.ip_permissions_egress());
    let theirs: Vec<String> = endpoints
        .iter()
        .filter(|endpoint| !is_gateway(endpoint))
        .flat_map(|endpoint| endpoint.groups.clone().unwrap_or_default())
        .filter_map(|group| group.group_id)
        .collect();
    let list = prefix_list(aws).await?;
    match rules.iter().find_map(|rule| leads_out(rule, &theirs, &list, gateway)) {
        Some(way) => Err(open(format!("{id} lets out to {way}"), group_fix(gateway))),
        None => Ok(id.to_owned()),
    }
}

/// Where a rule leads that is neither an endpoint nor the gateway. EC2 shows as one what has the same protocol and ports.
fn leads_out(rule: &IpPermission, groups: &[String], list: &str, gateway: Option<&Facts>) -> Option<String> {
    let https = rule.ip_protocol.as_deref() == Some("tcp") && rule.from_port == Some(443) && rule.to_port == Some(443);
    let mut ways: Vec<String> = rule.ip_ranges.iter().flatten().filter_map(|range| range.cidr_ip.clone()).collect();
    ways.extend(rule.ipv6_ranges.iter().flatten().filter_map(|range| range.cidr_ipv6.clone()));
    // A rule that leads to this host itself leads nowhere.
    ways.retain(|way| way != "127.0.0.1/32" && !gateway.is_some_and(|gateway| leads_to(rule, way, gateway)));
    let pairs = || rule.user_id_group_pairs.iter().flatten().filter_map(|pair| pair.group_id.clone());
    let lists = || rule.prefix_list_ids.iter().flatten().filter_map(|list| list.prefix_list_id.clone());
    ways.extend(pairs().filter(|group| !https || !groups.contains(group)));
    ways.extend(lists().filter(|id| !https || id != list));
    ways.into_iter().next()
}

/// Whether what a rule names is the gateway's own address, and its ports are ports of the gateway.
fn leads_to(rule: &IpPermission, way: &str, gateway: &Facts) -> bool {
    let ports: &[i32] = match rule.ip_protocol.as_deref() {
        Some("tcp") => &gateway::TCP,
        Some("udp") => &gateway::UDP,
        _ => &[],
    };
    let is_its = rule.from_port == rule.to_port && rule.from_port.is_some_and(|port| ports.contains(&port));
    is_its && way == format!("{}/32", gateway.address)
}

/// The region's prefix list of S3.
async fn prefix_list(aws: &Aws) -> Result<String> {
    let name = format!("com.amazonaws.{}.s3", aws.region);
    let filter = Filter::builder().name("prefix-list-name").values(&name).build();
    let ask = || aws.ec2.describe_prefix_lists().filters(filter.clone()).send();
    let answer = again(TRIED, "ec2:DescribePrefixLists", ask).await?;
    let list = answer.prefix_lists.unwrap_or_default().into_iter().find(|list| list.prefix_list_name.as_deref() == Some(&name));
    Ok(list.and_then(|list| list.prefix_list_id).unwrap_or_default())
}

/// The resolver answers the endpoints' names alone, and refuses where the firewall fails.
async fn check_names(aws: &Aws, vpc: &str, bucket: &str) -> Result<String> {
    let fix = "infra/tierbox.yaml has such a rule group of Route 53 Resolver DNS Firewall";
    let config = signed::resolver(aws, "GetFirewallConfig", &json!({"ResourceId": vpc})).await?;
    if config["FirewallConfig"]["FirewallFailOpen"] != "DISABLED" {
        return Err(open(
            format!("the DNS firewall of {vpc} lets all names through when it fails"),
            "set its fail-open mode to disabled",
        ));
    }
    let listed = "FirewallRuleGroupAssociations";
    let mut groups = pages(aws, "ListFirewallRuleGroupAssociations", json!({"VpcId": vpc}), listed).await?;
    groups.retain(|group| group["VpcId"] == vpc);
    groups.sort_by_key(|group| group["Priority"].as_i64());
    let mut answered = Answered::default();
    for group in &groups {
        let id = group["FirewallRuleGroupId"].as_str().unwrap_or_default();
        if group["Status"].as_str().is_some_and(|status| status != "COMPLETE") {
            return Err(open(format!("the DNS firewall {id} of {vpc} is {}", group["Status"]), "wait until it is COMPLETE"));
        }
        let mut rules = pages(aws, "ListFirewallRules", json!({"FirewallRuleGroupId": id}), "FirewallRules").await?;
        rules.sort_by_key(|rule| rule["Priority"].as_i64());
        for rule in rules {
            let domains = match &rule["FirewallDomainListId"] {
                Value::Null => None,
                list => Some(pages(aws, "ListFirewallDomains", json!({"FirewallDomainListId": list}), "Domains").await?),
            };
            answered.by(&rule, domains.as_deref(), &aws.region, bucket);
            match judge(&rule, domains.as_deref(), &aws.region, bucket) {
                Judged::BlocksAll => return answered.check(id, &aws.region, bucket).map(|()| id.to_owned()),
                Judged::Harmless => {}
                Judged::Answers(name) => {
                    return Err(open(format!("the DNS firewall {id} answers {name}, and a query carries data"), fix));
                }
            }
        }
    }
    Err(open(format!("no DNS firewall of {vpc} blocks all other names, and a query carries data"), fix))
}

/// Which of the bucket's names are answered, by all rules before the one that blocks: without them no file comes, and nobody says why.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answered {
    /// The bucket's own.
    bucket: bool,
    /// What that one leads to, since its rule trusts it or another rule names it.
    target: bool,
}

impl Answered {
    fn by(&mut self, rule: &Value, domains: Option<&[Value]>, region: &str, bucket: &str) {
        if rule["Action"] == "BLOCK" {
            return;
        }
        let names = || domains.unwrap_or_default().iter().filter_map(Value::as_str).map(|name| name.trim_end_matches('.'));
        let own = names().any(|name| name == format!("{bucket}.s3.{region}.amazonaws.com"));
        self.bucket |= own;
        self.target |= own && rule["FirewallDomainRedirectionAction"] == "TRUST_REDIRECTION_DOMAIN";
        self.target |= names().any(|name| name == target_of_buckets(region));
    }

    fn check(&self, id: &str, region: &str, bucket: &str) -> Result<()> {
        if !self.bucket {
            let message =
                format!("the DNS firewall {id} blocks {bucket}.s3.{region}.amazonaws.com, so that no file comes or goes");
            return Err(open(message, "add the name to the list that its rule allows; infra/tierbox.yaml has such a list"));
        }
        if !self.target {
            let target = target_of_buckets(region);
            let message = format!(
                "the DNS firewall {id} blocks {target}, to which the name of {bucket} leads, so that no file comes or goes"
            );
            return Err(open(
                message,
                "let its rule trust where names lead (TRUST_REDIRECTION_DOMAIN), or allow that name too; `tierbox ec2 setup` \
                 brings a stack of infra/tierbox.yaml to it",
            ));
        }
        Ok(())
    }
}

/// What names of buckets lead to.
fn target_of_buckets(region: &str) -> String {
    format!("s3-r-w.{region}.amazonaws.com")
}

/// What a rule of the DNS firewall does to names.
#[derive(Debug, PartialEq, Eq)]
enum Judged {
    /// All that come to it are blocked.
    BlocksAll,
    /// It blocks some, or answers what the machines need.
    Harmless,
    /// It answers these.
    Answers(String),
}

/// Judges a rule by its list of names; some rules have none, and go by what Amazon takes for an attack.
fn judge(rule: &Value, domains: Option<&[Value]>, region: &str, bucket: &str) -> Judged {
    let blocks = rule["Action"] == "BLOCK";
    let Some(domains) = domains else {
        return if blocks { Judged::Harmless } else { Judged::Answers("what no list names".to_owned()) };
    };
    let mut names = domains.iter().filter_map(Value::as_str).map(|name| name.trim_end_matches('.'));
    if blocks {
        // Of one type alone, those of the others come through.
        let of_all_types = rule["Qtype"].as_str().is_none_or(str::is_empty);
        return if of_all_types && names.any(|name| name == "*") { Judged::BlocksAll } else { Judged::Harmless };
    }
    names.find(|name| !is_ours(name, region, bucket)).map_or(Judged::Harmless, |name| Judged::Answers(name.to_owned()))
}

/// All pages of a list.
async fn pages(aws: &Aws, action: &str, mut body: Value, key: &str) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    loop {
        let mut page = signed::resolver(aws, action, &body).await?;
        all.extend(page[key].as_array().cloned().unwrap_or_default());
        match page["NextToken"].take() {
            Value::Null => return Ok(all),
            next => body["NextToken"] = next,
        }
    }
}

/// The name of an endpoint that the machines need.
fn is_ours(name: &str, region: &str, bucket: &str) -> bool {
    let suffix = format!(".{region}.amazonaws.com");
    match name.strip_suffix(&suffix) {
        Some(head) => SERVICES.contains(&head) || head == "s3" || head == "s3-r-w" || head == format!("{bucket}.s3"),
        None => false,
    }
}

#[cfg(test)]
mod unit {
    use super::*;
    use aws_sdk_ec2::types::{IpRange, PrefixListId, UserIdGroupPair};

    fn rule(protocol: &str, port: i32) -> aws_sdk_ec2::types::builders::IpPermissionBuilder {
        IpPermission::builder().ip_protocol(protocol).from_port(port).to_port(port)
    }

    #[test]
    fn a_policy_that_is_no_json_is_shown_as_it_was_answered() {
        assert_eq!(policy_of("vpce-1", "s3", "{\"Statement\": []}").unwrap()["Statement"], json!([]));
        let told = policy_of("vpce-1", "s3", "{'Statement': []}").unwrap_err();
        assert_eq!(told.kind(), ErrorKind::TierRefused);
        for part in ["ec2:DescribeVpcEndpoints", "vpce-1", "{'Statement': []}"] {
            assert!(told.message().contains(part), "{told}");
        }
    }

    #[test]
    fn only_https_to_the_endpoints_leads_nowhere() {
        let groups = ["sg-endpoints".to_owned()];
        let pair = |id: &str| UserIdGroupPair::builder().group_id(id).build();
        let list = |id: &str| PrefixListId::builder().prefix_list_id(id).build();
        let way = |rule: aws_sdk_ec2::types::builders::IpPermissionBuilder| leads_out(&rule.build(), &groups, "pl-s3", None);
        assert_eq!(way(rule("tcp", 443).user_id_group_pairs(pair("sg-endpoints"))), None);
        assert_eq!(way(rule("tcp", 443).prefix_list_ids(list("pl-s3"))), None);
        for open in [
            rule("tcp", 443).ip_ranges(IpRange::builder().cidr_ip("0.0.0.0/0").build()),
            rule("tcp", 443).user_id_group_pairs(pair("sg-other")),
            rule("tcp", 22).user_id_group_pairs(pair("sg-endpoints")),
            rule("-1", 443).user_id_group_pairs(pair("sg-endpoints")),
            rule("tcp", 443).prefix_list_ids(list("pl-dynamodb")),
        ] {
            assert!(way(open.clone()).is_some(), "{open:?}");
        }
    }

    #[test]
    fn only_the_gateways_own_ports_are_let_through() {
        let gateway = Facts { instance: "i-1".to_owned(), vpc: "vpc-1".to_owned(), address: "10.117.2.10".parse().unwrap() };
        let to = |cidr: &str| IpRange::builder().cidr_ip(cidr).build();
        let pair = |id: &str| UserIdGroupPair::builder().group_id(id).build();
        let groups = ["sg-endpoints".to_owned()];
        let way = |rule: aws_sdk_ec2::types::builders::IpPermissionBuilder, gateway| {
            leads_out(&rule.build(), &groups, "pl-s3", gateway)
        };
        let good = "10.117.2.10/32";
        for closed in [
            rule("tcp", 3128).ip_ranges(to(good)),
            rule("udp", 53).ip_ranges(to(good)),
            rule("tcp", 443).ip_ranges(to(good)).user_id_group_pairs(pair("sg-endpoints")),
        ] {
            assert_eq!(way(closed.clone(), Some(&gateway)), None, "{closed:?}");
            assert!(way(closed, None).is_some(), "without a gateway it is another address");
        }
        for open in [
            rule("tcp", 22).ip_ranges(to(good)),
            rule("udp", 3128).ip_ranges(to(good)),
            rule("-1", 3128).ip_ranges(to(good)),
            rule("tcp", 3128).to_port(4000).ip_ranges(to(good)),
            rule("tcp", 3128).ip_ranges(to("10.117.2.0/24")),
            rule("tcp", 3128).ip_ranges(to(good)).ip_ranges(to("10.117.2.11/32")),
            rule("tcp", 3128).ip_ranges(to(good)).user_id_group_pairs(pair("sg-endpoints")),
            rule("tcp", 443).ip_ranges(to(good)).user_id_group_pairs(pair("sg-other")),
        ] {
            assert!(way(open.clone(), Some(&gateway)).is_some(), "{open:?}");
        }
    }

    #[test]
    fn policies_that_reach_further_are_told() {
        let good = json!({"Statement": [{"Effect": "Allow", "Resource": "arn:aws:s3:::ours/*",
            "Condition": {"StringEquals": {"aws:PrincipalAccount": "1", "aws:ResourceAccount": "1"}}}]});
        assert_eq!(check_bucket_policy("e", &good, "ours", "1"), Ok(()));
        assert!(check_bucket_policy("e", &good, "ours", "2").is_err(), "another account's keys");
        for (pointer, value) in [
            ("/Statement/0/Resource", json!("*")),
            ("/Statement/0/Resource", json!(["arn:aws:s3:::ours/*", "arn:aws:s3:::others/*"])),
            ("/Statement/0/Resource", json!("arn:aws:s3:::ours*")),
            ("/Statement/0/Condition", json!({})),
            ("/Statement/0/Condition", json!({"StringLike": {"aws:PrincipalAccount": "*", "aws:ResourceAccount": "*"}})),
            ("/Statement/0/Condition", json!({"StringEquals": {"aws:PrincipalAccount": "1"}})),
        ] {
            let mut bad = good.clone();
            *bad.pointer_mut(pointer).unwrap() = value;
            assert!(check_bucket_policy("e", &bad, "ours", "1").is_err(), "{bad}");
        }
        let service = |condition: Value| {
            let policy = json!({"Statement": [{"Effect": "Allow", "Action": "*", "Condition": condition}]});
            check_service_policy("e", "ssm", &policy, "1").is_ok()
        };
        assert!(service(json!({"ArnEquals": {"aws:PrincipalArn": "arn:aws:iam::1:role/r"}})));
        assert!(service(json!({"StringEquals": {"aws:PrincipalAccount": "1"}})));
        for bad in [
            json!({}),
            json!({"ArnEquals": {"aws:PrincipalArn": "arn:aws:iam::2:role/r"}}),
            json!({"StringEquals": {"aws:PrincipalAccount": "2"}}),
            json!({"StringEquals": {"aws:PrincipalAccount": ["1", "2"]}}),
            json!({"StringEqualsIfExists": {"aws:PrincipalAccount": "1"}}),
        ] {
            assert!(!service(bad.clone()), "{bad}");
        }
    }

    #[test]
    fn rules_of_the_firewall_that_let_names_through_are_told() {
        let judged = |rule: Value, domains: Option<Value>| {
            let domains = domains.map(|all| all.as_array().cloned().unwrap_or_default());
            judge(&rule, domains.as_deref(), "eu-west-2", "b")
        };
        let (all, ours) = (json!(["*."]), json!(["ssm.eu-west-2.amazonaws.com."]));
        assert_eq!(judged(json!({"Action": "BLOCK"}), Some(all.clone())), Judged::BlocksAll);
        assert_eq!(judged(json!({"Action": "BLOCK", "Qtype": "A"}), Some(all.clone())), Judged::Harmless, "TXT comes through");
        assert_eq!(judged(json!({"Action": "BLOCK"}), Some(json!(["evil.example."]))), Judged::Harmless);
        assert_eq!(judged(json!({"Action": "ALLOW"}), Some(ours)), Judged::Harmless);
        for action in ["ALLOW", "ALERT"] {
            assert_eq!(judged(json!({"Action": action}), Some(all.clone())), Judged::Answers("*".to_owned()));
        }
        assert!(matches!(judged(json!({"Action": "ALERT", "DnsThreatProtection": "DGA"}), None), Judged::Answers(_)));
        assert_eq!(judged(json!({"Action": "BLOCK", "DnsThreatProtection": "DGA"}), None), Judged::Harmless);
    }

    #[test]
    fn a_firewall_that_lets_no_file_through_is_told() {
        let own = json!(["b.s3.eu-west-2.amazonaws.com."]);
        let with = json!(["b.s3.eu-west-2.amazonaws.com.", "s3-r-w.eu-west-2.amazonaws.com."]);
        let trusts = json!({"Action": "ALLOW", "FirewallDomainRedirectionAction": "TRUST_REDIRECTION_DOMAIN"});
        let checked = |rules: &[(&Value, &Value)]| {
            let mut answered = Answered::default();
            for (rule, domains) in rules {
                answered.by(rule, domains.as_array().map(Vec::as_slice), "eu-west-2", "b");
            }
            answered.check("rslvr-frg-1", "eu-west-2", "b").map_err(|error| error.message().to_owned())
        };
        let (inspects, target) = (json!({"Action": "ALLOW"}), json!(["s3-r-w.eu-west-2.amazonaws.com."]));
        for good in [&[(&trusts, &own)][..], &[(&inspects, &with)], &[(&inspects, &own), (&inspects, &target)]] {
            assert_eq!(checked(good), Ok(()), "{good:?}");
        }
        assert!(checked(&[(&inspects, &own)]).is_err_and(|why| why.contains("s3-r-w.eu-west-2.amazonaws.com")));
        // It is the bucket's own rule that must trust.
        let other = json!(["ssm.eu-west-2.amazonaws.com."]);
        assert!(checked(&[(&trusts, &other), (&inspects, &own)]).is_err_and(|why| why.contains("s3-r-w")));
        assert!(checked(&[(&trusts, &other)]).is_err_and(|why| why.contains("blocks b.s3.eu-west-2")));
        assert!(checked(&[(&json!({"Action": "BLOCK"}), &with)]).is_err());
    }

    #[test]
    fn names_of_others_carry_data() {
        assert!(
            is_ours("ssm.eu-west-2.amazonaws.com", "eu-west-2", "b") && is_ours("b.s3.eu-west-2.amazonaws.com", "eu-west-2", "b")
        );
        assert!(is_ours("s3-r-w.eu-west-2.amazonaws.com", "eu-west-2", "b"));
        for other in ["*", "*.amazonaws.com", "evil.example", "other.s3.eu-west-2.amazonaws.com", "*.s3.eu-west-2.amazonaws.com"]
        {
            assert!(!is_ours(other, "eu-west-2", "b"), "{other}");
        }
    }
}
