//! What the role of the instances may do: where the agent can become root, that is what the agent may do.

use serde_json::Value;
use tierbox_core::{Error, ErrorKind, Result};

use crate::BACKEND;
use crate::aws::Aws;
use crate::call::shown;
use crate::signed::{iam, is_denied};

/// The one policy that an instance's role may have, which is AWS's own: an account may have another of that name.
const CORE: &str = "AmazonSSMManagedInstanceCore";

/// What that policy allows, as AWS publishes it.
const CORE_ALLOWS: &[&str] = &[
    "ssm:DescribeAssociation",
    "ssm:GetDeployablePatchSnapshotForInstance",
    "ssm:GetDocument",
    "ssm:DescribeDocument",
    "ssm:GetManifest",
    "ssm:GetParameter",
    "ssm:GetParameters",
    "ssm:ListAssociations",
    "ssm:ListInstanceAssociations",
    "ssm:PutInventory",
    "ssm:PutComplianceItems",
    "ssm:PutConfigurePackageResult",
    "ssm:UpdateAssociationStatus",
    "ssm:UpdateInstanceAssociationStatus",
    "ssm:UpdateInstanceInformation",
    "ssmmessages:CreateControlChannel",
    "ssmmessages:CreateDataChannel",
    "ssmmessages:OpenControlChannel",
    "ssmmessages:OpenDataChannel",
    "ec2messages:AcknowledgeMessage",
    "ec2messages:DeleteMessage",
    "ec2messages:FailMessage",
    "ec2messages:GetEndpoint",
    "ec2messages:GetMessages",
    "ec2messages:SendReply",
];

/// What is known of the role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    /// There is none.
    None,
    /// It grants this and nothing else.
    Grants(Vec<String>),
    /// It could not be read, and why.
    Unread(String),
}

impl Role {
    /// For people.
    pub(crate) fn told(&self) -> String {
        match self {
            Self::None => "the instance has no role".to_owned(),
            Self::Grants(actions) => format!("with the instance's role the agent could call {}", actions.join(", ")),
            Self::Unread(why) => format!("what the agent could call with the instance's role is not known: {why}"),
        }
    }
}

/// Reads the role of an instance profile.
///
/// # Errors
/// `TierRefused` if it grants more than SSM's core.
pub(crate) async fn check(aws: &Aws, profile: Option<&String>) -> Result<Role> {
    let Some(profile) = profile else { return Ok(Role::None) };
    match read(aws, profile).await {
        Err(error) if is_denied(&error) => Ok(Role::Unread(error.message().to_owned())),
        other => other,
    }
}

async fn read(aws: &Aws, profile: &str) -> Result<Role> {
    let answer = iam(aws, "GetInstanceProfile", &[("InstanceProfileName", profile)]).await?;
    let Some(role) = texts(&answer, "RoleName")?.into_iter().next() else { return Ok(Role::None) };
    let attached = listed(aws, "ListAttachedRolePolicies", &role, "PolicyArn").await?;
    if let Some(more) = attached.iter().find(|arn| !is_core(arn)) {
        return Err(too_much(&role, &format!("the policy {more}")));
    }
    let mut denied = Vec::new();
    for name in listed(aws, "ListRolePolicies", &role, "member").await? {
        let answer = iam(aws, "GetRolePolicy", &[("RoleName", &role), ("PolicyName", &name)]).await?;
        let document = texts(&answer, "PolicyDocument")?.into_iter().next().unwrap_or_default();
        let policy = readable(&document).ok_or_else(|| unreadable(&role, &name, &document))?;
        denied.extend(denials(&policy).map_err(|granted| too_much(&role, &format!("{granted}, by its policy {name}")))?);
    }
    let core = if attached.is_empty() { [].as_slice() } else { CORE_ALLOWS };
    Ok(Role::Grants(
        core.iter().filter(|action| !denied.iter().any(|one| one == *action)).map(|&action| action.to_owned()).collect(),
    ))
}

/// Whether that is AWS's own policy, in whichever partition.
fn is_core(arn: &str) -> bool {
    let words: Vec<&str> = arn.split(':').collect();
    matches!(words.as_slice(), ["arn", _, "iam", "", "aws", policy] if *policy == format!("policy/{CORE}"))
}

/// The texts of an element in all pages of a list of a role's.
async fn listed(aws: &Aws, action: &str, role: &str, element: &str) -> Result<Vec<String>> {
    let (mut all, mut marker) = (Vec::new(), None::<String>);
    loop {
        let mut parameters = vec![("RoleName", role)];
        parameters.extend(marker.as_deref().map(|marker| ("Marker", marker)));
        let page = iam(aws, action, &parameters).await?;
        all.extend(texts(&page, element)?);
        marker = texts(&page, "Marker")?.into_iter().next();
        if marker.is_none() {
            return Ok(all);
        }
    }
}

fn too_much(role: &str, what: &str) -> Error {
    let message = format!("the agent can use the instance's role {role}, which has {what}");
    Error::new(ErrorKind::TierRefused, "check role", message)
        .with_backend(BACKEND)
        .with_help(format!("leave the role {CORE} alone (files go by presigned addresses), or run as a user without rights in an image with nftables, iptables or iproute2"))
}

/// A policy, which comes escaped.
fn readable(document: &str) -> Option<Value> {
    serde_json::from_str(&unescaped(document)).ok()
}

/// A policy that cannot be judged may grant anything.
fn unreadable(role: &str, policy: &str, document: &str) -> Error {
    let document: String = unescaped(document).chars().take(120).collect();
    let message = format!(
        "what the instance's role {role} grants is not known: iam:GetRolePolicy answered for its policy {policy} what is no JSON: {}",
        shown(&document)
    );
    Error::new(ErrorKind::TierRefused, "check role", message)
        .with_backend(BACKEND)
        .with_help("AWS answers in JSON, so what answers here is not AWS: ask whoever runs it, or see `aws iam get-role-policy`")
}

/// The actions that a policy denies wholly; what it grants, if it grants anything.
fn denials(policy: &Value) -> std::result::Result<Vec<String>, String> {
    let mut denied = Vec::new();
    for statement in list(&policy["Statement"]) {
        if statement["Effect"] != "Deny" {
            let what: Vec<String> =
                list(&statement["Action"]).into_iter().filter_map(|one| one.as_str().map(str::to_owned)).collect();
            return Err(if what.is_empty() { "a statement that allows".to_owned() } else { what.join(", ") });
        }
        if statement.get("Condition").is_none() && statement["Resource"] == "*" {
            denied.extend(list(&statement["Action"]).into_iter().filter_map(|one| one.as_str().map(str::to_owned)));
        }
    }
    Ok(denied)
}

/// One or several.
fn list(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(all) => all.iter().collect(),
        Value::Null => Vec::new(),
        one => vec![one],
    }
}

/// The texts of all elements of a name.
fn texts(xml: &str, name: &str) -> Result<Vec<String>> {
    let document = roxmltree::Document::parse(xml).map_err(|error| {
        Error::new(ErrorKind::HostUnable, "check role", format!("IAM's answer: {error}")).with_backend(BACKEND)
    })?;
    let named = document.descendants().filter(|node| node.tag_name().name() == name);
    Ok(named.filter_map(|node| node.text()).map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned).collect())
}

/// What percent signs stand for.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok()).and_then(|two| u8::from_str_radix(two, 16).ok());
        match (first, code) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            (byte, _) => {
                bytes.push(*byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod unit {
    use super::*;

    fn denials(document: &str) -> std::result::Result<Vec<String>, String> {
        super::denials(&readable(document).unwrap())
    }

    #[test]
    fn a_policy_that_is_no_json_is_shown_as_it_was_answered() {
        let answered = "{'Version': '2012-10-17', 'Statement': []}";
        assert_eq!(readable(answered), None);
        let told = unreadable("r", "p", answered);
        assert!(told.message().contains("iam:GetRolePolicy") && told.message().contains(answered), "{told}");
        assert!(told.kind() == ErrorKind::TierRefused && told.help().is_some(), "{told}");
    }

    #[test]
    fn what_grants_is_told_and_what_denies_is_taken_off() {
        let denies = r#"{"Statement": {"Effect": "Deny", "Action": ["ssm:GetParameter"], "Resource": "*"}}"#;
        assert_eq!(denials(denies), Ok(vec!["ssm:GetParameter".to_owned()]));
        let some = r#"{"Statement": [{"Effect": "Deny", "Action": "s3:*", "Resource": "arn:aws:s3:::x"}]}"#;
        assert_eq!(denials(some), Ok(Vec::new()));
        let grants = r#"{"Statement": [{"Effect": "Deny", "Action": "a:b", "Resource": "*"}, {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}"#;
        assert_eq!(denials(grants), Err("s3:*".to_owned()));
        assert!(denials(r#"{"Statement": [{"Effect": "Allow", "NotAction": "iam:*", "Resource": "*"}]}"#).is_err());
        assert_eq!(readable("hello"), None);
    }

    #[test]
    fn only_awss_own_policy_is_the_core() {
        assert!(is_core("arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore"));
        assert!(is_core("arn:aws-cn:iam::aws:policy/AmazonSSMManagedInstanceCore"));
        for other in [
            "arn:aws:iam::123456789012:policy/AmazonSSMManagedInstanceCore",
            "arn:aws:iam::aws:policy/AdministratorAccess",
            "arn:aws:iam::aws:policy/own/AmazonSSMManagedInstanceCore",
            "AmazonSSMManagedInstanceCore",
        ] {
            assert!(!is_core(other), "{other}");
        }
    }

    #[test]
    fn documents_come_escaped() {
        assert_eq!(unescaped("%7B%22a%22%3A%201%7D%"), "{\"a\": 1}%");
    }
}
