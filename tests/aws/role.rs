//! An agent that is root has the role of its instance within reach.

use libtest_mimic::Trial;
use serde_json::{Value, json};
use tierbox_core::{ErrorKind, ExecRequest, SandboxExt};

use super::world::{Outcome, World, ensure, text, trial};

pub fn all() -> Vec<Trial> {
    vec![
        trial("role::root_is_refused_where_the_role_grants_more", grants_more),
        trial("role::a_policy_of_the_same_name_is_not_awss_own", same_name),
        trial("role::root_may_be_where_it_grants_nothing_else", grants_nothing),
    ]
}

/// An instance profile whose role has one policy.
pub(super) fn profile(world: &World, policy: &Value) -> String {
    let name = format!("role-{}", world.server.key);
    let trust = r#"{"Version":"2012-10-17","Statement":[]}"#;
    let encoded = |text: &str| -> String { text.bytes().map(|byte| format!("%{byte:02X}")).collect() };
    for body in [
        format!("Action=CreateRole&RoleName={name}&AssumeRolePolicyDocument={}", encoded(trust)),
        format!("Action=PutRolePolicy&RoleName={name}&PolicyName=own&PolicyDocument={}", encoded(&policy.to_string())),
        format!("Action=CreateInstanceProfile&InstanceProfileName={name}"),
        format!("Action=AddRoleToInstanceProfile&InstanceProfileName={name}&RoleName={name}"),
    ] {
        let answer = world.server.signed("POST", "/", "iam", &format!("{body}&Version=2010-05-08"));
        assert!(answer.contains(" 200 "), "{answer}");
    }
    name
}

async fn grants_more(world: World) -> Outcome {
    let policy = json!({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*"}]});
    let name = profile(&world, &policy);
    let spec = world.spec(|spec| {
        spec.settings["instance-profile"] = name.clone().into();
        spec.user = Some("root".to_owned());
    });
    let Err(error) = world.start(&spec).await else { return Err("it started".to_owned()) };
    ensure!(error.kind() == ErrorKind::TierRefused && error.to_string().contains("s3:GetObject"), "{error:?}");
    ensure!(world.server.instances().is_empty(), "an instance was made all the same");
    // Who is not root does not get at the role, whatever it grants.
    let spec = world.spec(|spec| spec.settings["instance-profile"] = name.into());
    let started = world.start(&spec).await.map_err(text)?;
    started.environment.stop().await.map_err(text)
}

async fn grants_nothing(world: World) -> Outcome {
    let policy =
        json!({"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Action": ["ssm:GetParameter"], "Resource": "*"}]});
    let name = profile(&world, &policy);
    let spec = world.spec(|spec| {
        spec.settings["instance-profile"] = name.into();
        spec.user = Some("root".to_owned());
    });
    let started = world.start(&spec).await.map_err(text)?;
    let who = started.environment.primary().run(ExecRequest::new(["id", "-u"])).await.map_err(text)?;
    ensure!(who.stdout.text() == "0\n", "{who:?}");
    let notes = started.environment.report().notes.join("\n");
    ensure!(notes.contains("the agent could call"), "{notes}");
    started.environment.stop().await.map_err(text)
}

/// An account may call a policy of its own as AWS calls the one that is allowed.
async fn same_name(world: World) -> Outcome {
    let none =
        json!({"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Action": ["ssm:GetParameter"], "Resource": "*"}]});
    let name = profile(&world, &none);
    let all = json!({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]});
    let encoded = |text: &str| -> String { text.bytes().map(|byte| format!("%{byte:02X}")).collect() };
    let (path, document) = (format!("/{}/", world.server.key), all.to_string());
    let arn = format!("arn:aws:iam::123456789012:policy{path}AmazonSSMManagedInstanceCore");
    for body in [
        format!(
            "Action=CreatePolicy&PolicyName=AmazonSSMManagedInstanceCore&Path={}&PolicyDocument={}",
            encoded(&path),
            encoded(&document)
        ),
        format!("Action=AttachRolePolicy&RoleName={name}&PolicyArn={}", encoded(&arn)),
    ] {
        let answer = world.server.signed("POST", "/", "iam", &format!("{body}&Version=2010-05-08"));
        ensure!(answer.contains(" 200 "), "{answer}");
    }
    let spec = world.spec(|spec| {
        spec.settings["instance-profile"] = name.into();
        spec.user = Some("root".to_owned());
    });
    world.refuses(&spec, &arn).await?;
    ensure!(world.server.instances().is_empty(), "an instance was made all the same");
    Ok(())
}
