//! What a profile says of its instances is what EC2 is asked for, by whatever way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use libtest_mimic::Trial;
use serde_json::json;
use tierbox_core::{
    Applied, Backend, Environment, EnvironmentSpec, Error, ErrorKind, ExecRequest, LeaseHandle, SandboxExt, Silent,
};
use tierbox_ec2::{Control, Ec2Backend, Find, Given, Instance, Order};
use tierbox_lease::NewLease;

use super::network;
use super::world::{Outcome, World, ensure, text, trial};
use crate::server::Server;

pub fn all() -> Vec<Trial> {
    vec![
        trial("settings::all_of_a_profile_is_asked_for", every),
        trial("settings::the_image_follows_the_architecture", architecture),
        trial("settings::a_zone_without_capacity_is_passed_over", zones),
        trial("settings::what_is_in_another_network_is_refused", elsewhere),
        trial("settings::an_organisations_own_control_makes_the_instances", control),
        trial("settings::a_control_plane_that_renews_is_asked_to", renewed),
        trial("settings::who_cannot_renew_is_told_at_the_start", not_renewed),
        trial("settings::who_has_the_machine_by_a_group_counts_as_root", grouped),
        trial("settings::an_image_without_cgroups_is_refused_with_advice", no_cgroups),
        trial("settings::an_image_that_closes_nothing_needs_a_role_without_rights", open_image),
    ]
}

/// The usual environment in a stack's subnets.
async fn in_stack(world: &World) -> Result<(BTreeMap<String, String>, EnvironmentSpec), String> {
    let out = network::stack(world).await?;
    let mut spec = network::spec(world, &out);
    spec.tier = "T0.H3.N0".parse().map_err(text)?;
    spec.settings["security-group"] = out["SecurityGroupN0"].clone().into();
    Ok((out, spec))
}

fn only(world: &World) -> Result<String, String> {
    world.server.instances().into_keys().next().ok_or_else(|| "no instance".to_owned())
}

fn between<'a>(text: &'a str, tag: &str) -> Option<&'a str> {
    text.split_once(&format!("<{tag}>"))?.1.split_once(&format!("</{tag}>")).map(|(inner, _)| inner)
}

async fn every(world: World) -> Outcome {
    let (out, mut spec) = in_stack(&world).await?;
    let more = json!({"vpc": out["VpcId"], "instance-types": ["t3.small"], "volume-size": 33, "key-prefix": "own/place",
                      "tags": {"team": "red"}, "outlive-minutes": 7, "ami": "ami-1e749f67"});
    for (key, value) in more.as_object().into_iter().flatten() {
        spec.settings[key] = value.clone();
    }
    let started = world.start(&spec).await.map_err(text)?;
    let id = only(&world)?;
    let told = world.server.instance(&id);
    let first = out["SubnetIds"].split(',').next().unwrap_or_default();
    for wanted in [
        format!("<subnetId>{first}</subnetId>"),
        format!("<groupId>{}</groupId>", out["SecurityGroupN0"]),
        format!("instance-profile/{}</arn>", out["InstanceProfile"]),
        "<instanceType>t3.small</instanceType>".to_owned(),
        "<imageId>ami-1e749f67</imageId>".to_owned(),
        "<key>team</key><value>red</value>".to_owned(),
    ] {
        let plain: String = told.split_whitespace().collect();
        ensure!(plain.contains(&wanted), "{wanted} is missing: {told}");
    }
    let ask = format!("Action=DescribeVolumes&Version=2016-11-15&Filter.1.Name=attachment.instance-id&Filter.1.Value.1={id}");
    let volumes = world.server.signed("POST", "/", "ec2", &ask);
    // The volume's own part comes before that of its attachment.
    let parts: Vec<&str> = volumes.split("<volumeId>").collect();
    let at = parts.iter().position(|part| part.contains(&id)).ok_or("the instance has no volume")?;
    let volume = &parts[at.saturating_sub(1)..=at].concat();
    ensure!(between(volume, "size") == Some("33") && between(volume, "encrypted") == Some("true"), "{volume}");
    let ask = format!(
        "Action=DescribeInstanceAttribute&Version=2016-11-15&InstanceId={id}&Attribute=instanceInitiatedShutdownBehavior"
    );
    let shutdown = world.server.signed("POST", "/", "ec2", &ask);
    ensure!(shutdown.contains("<value>terminate</value>"), "{shutdown}");
    // What cannot be removed now shows where it lies.
    world.server.set(json!({"errors": {"s3:DELETE": 10_000}}));
    started.environment.primary().write_bytes("large", vec![1; 100_000]).await.map_err(text)?;
    let keys = world.server.signed("GET", &format!("/{}?list-type=2", out["Bucket"]), "s3", "");
    ensure!(keys.contains("<Key>own/place/"), "{keys}");
    world.server.set(json!({"errors": {}}));
    started.environment.stop().await.map_err(text)?;
    let keys = world.server.signed("GET", &format!("/{}?list-type=2", out["Bucket"]), "s3", "");
    ensure!(!keys.contains("<Key>"), "{keys}");
    Ok(())
}

async fn architecture(world: World) -> Outcome {
    let of = |types: serde_json::Value| world.spec(|spec| spec.settings["instance-types"] = types);
    let started = world.start(&of(json!(["t4g.small"]))).await.map_err(text)?;
    let told = world.server.instance(&only(&world)?);
    ensure!(told.contains("<imageId>ami-08a311a6aaa3cd94a</imageId>") && told.contains("arm64"), "{told}");
    started.environment.stop().await.map_err(text)?;
    for (what, mut spec) in
        [("several architectures", of(json!(["t4g.small", "t3.small"]))), ("is for", of(json!(["t4g.small"])))]
    {
        if what == "is for" {
            spec.settings["ami"] = "ami-1e749f67".into();
        }
        let error = world.start(&spec).await.err().ok_or(format!("it started: {what}"))?;
        ensure!(error.kind() == ErrorKind::InvalidProfile && error.message().contains(what), "{error:?}");
    }
    ensure!(world.server.instances().len() == 1, "something was made: {:?}", world.server.instances());
    Ok(())
}

async fn zones(world: World) -> Outcome {
    let (out, mut spec) = in_stack(&world).await?;
    world.server.set(json!({"capacity": {"us-east-1a": 0}}));
    spec.settings["machines"] = json!(["one", "two"]);
    let started = world.start(&spec).await.map_err(text)?;
    let second = out["SubnetIds"].split(',').nth(1).ok_or("one subnet")?;
    for id in world.server.instances().keys() {
        let told = world.server.instance(id);
        ensure!(told.contains(&format!("<subnetId>{second}</subnetId>")), "{told}");
    }
    ensure!(world.server.instances().len() == 2, "{:?}", world.server.instances());
    started.environment.stop().await.map_err(text)
}

async fn elsewhere(world: World) -> Outcome {
    let (out, good) = in_stack(&world).await?;
    let default = world.server.signed(
        "POST",
        "/",
        "ec2",
        "Action=DescribeVpcs&Version=2016-11-15&Filter.1.Name=is-default&Filter.1.Value.1=true",
    );
    let other = between(&default, "vpcId").ok_or("no default network")?.to_owned();
    for (vpc, subnets, what) in
        [(other.as_str(), good.settings["subnets"].clone(), "subnet-"), (other.as_str(), json!([]), "sg-")]
    {
        let mut spec = good.clone();
        spec.settings["vpc"] = vpc.into();
        spec.settings["subnets"] = subnets;
        let error = world.start(&spec).await.err().ok_or("it started in another network")?;
        let named = error.message().contains(what) && error.message().contains(&format!("not in {vpc}"));
        ensure!(error.kind() == ErrorKind::InvalidProfile && named, "{error:?}");
    }
    let mut right = good;
    right.settings["vpc"] = out["VpcId"].clone().into();
    world.start(&right).await.map_err(text)?.environment.stop().await.map_err(text)?;
    ensure!(world.server.instances().len() == 1, "something else was made: {:?}", world.server.instances());
    Ok(())
}

/// A control plane of somebody's own: it alone calls EC2, and gives keys for what remains.
struct Plane {
    server: Server,
    made: AtomicUsize,
    ended: AtomicUsize,
    /// How often it was asked for credentials.
    asked: AtomicUsize,
    /// What its images do before anybody else is there, as root.
    first: &'static str,
}

impl Plane {
    fn new(world: &World, first: &'static str) -> Arc<Self> {
        let [made, ended, asked] = [0; 3].map(AtomicUsize::new);
        Arc::new(Self { server: world.server.clone(), made, ended, asked, first })
    }

    /// Starts the usual environment by it.
    async fn start(self: &Arc<Self>, world: &World, spec: &EnvironmentSpec) -> tierbox_core::Result<Box<dyn Environment>> {
        let lease = Arc::new(world.journal.create(NewLease::new("ec2", "ec2", spec.tier.to_string()))?);
        let handle: Arc<dyn LeaseHandle> = lease;
        Ec2Backend::with_control(self.clone()).start(spec, handle, &Silent).await
    }

    /// Runs a script on a machine, as its agent does.
    async fn run_first(&self, id: &str) {
        let ask = |action: &str, body: serde_json::Value| self.server.json("ssm", &format!("AmazonSSM.{action}"), &body);
        let send = || {
            let parameters = json!({"commands": [self.first]});
            ask("SendCommand", json!({"DocumentName": "AWS-RunShellScript", "InstanceIds": [id], "Parameters": parameters}))
        };
        let mut sent = send();
        while sent["Command"]["CommandId"].is_null() {
            tokio::time::sleep(Duration::from_millis(50)).await;
            sent = send();
        }
        let which = json!({"CommandId": sent["Command"]["CommandId"], "InstanceId": id});
        while ask("GetCommandInvocation", which.clone())["Status"] != "Success" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn ask(&self, body: &str) -> String {
        self.server.signed("POST", "/", "ec2", &format!("{body}&Version=2016-11-15"))
    }
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[async_trait]
impl Control for Plane {
    async fn create(&self, order: &Order) -> tierbox_core::Result<Instance> {
        let mut body = format!(
            "Action=RunInstances&MinCount=1&MaxCount=1&ImageId={}&InstanceType={}&ClientToken={}",
            order.image, order.types[0], order.token
        );
        for (number, (key, value)) in (1..).zip(&order.tags) {
            body.push_str("&TagSpecification.1.ResourceType=instance");
            body.push_str(&format!("&TagSpecification.1.Tag.{number}.Key={}", encoded(key)));
            body.push_str(&format!("&TagSpecification.1.Tag.{number}.Value={}", encoded(value)));
        }
        if let Some(profile) = &order.instance_profile {
            body.push_str(&format!("&IamInstanceProfile.Name={profile}"));
        }
        let told = self.ask(&body);
        self.made.fetch_add(1, Ordering::SeqCst);
        let id = between(&told, "instanceId").unwrap_or_default();
        if !self.first.is_empty() {
            self.run_first(id).await;
        }
        Ok(Instance::new(id, "pending"))
    }

    async fn terminate(&self, ids: &[String]) -> tierbox_core::Result<()> {
        for id in ids {
            self.ask(&format!("Action=TerminateInstances&InstanceId.1={id}"));
            self.ended.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }

    async fn find(&self, which: &Find) -> tierbox_core::Result<Vec<Instance>> {
        let ids = match which {
            Find::Ids(ids) => ids.clone(),
            _ => self.server.instances().into_keys().collect(),
        };
        let states = self.server.instances();
        Ok(ids.into_iter().filter_map(|id| Some(Instance::new(id.clone(), states.get(&id)?.clone()))).collect())
    }

    async fn credentials(&self) -> tierbox_core::Result<Option<Given>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let secret_access_key = "nobody checks it".to_owned();
        let expires = Some(SystemTime::now() + Duration::from_secs(2));
        Ok(Some(Given { access_key_id: self.server.key.clone(), secret_access_key, session_token: None, expires }))
    }
}

async fn control(world: World) -> Outcome {
    let plane = Plane::new(&world, "");
    let spec = world.spec(|spec| {
        // Whoever runs this has no keys.
        for key in ["access-key-id", "secret-access-key"] {
            spec.settings.as_object_mut().expect("a table").remove(key);
        }
    });
    let environment = plane.start(&world, &spec).await.map_err(text)?;
    // It gives its instances no user data, and they end by themselves all the same.
    let until = environment.primary().run(ExecRequest::shell("cat /run/tierbox/until").user("root")).await.map_err(text)?;
    ensure!(until.success(), "{until:?}");
    let notes = environment.report().notes.join("\n");
    ensure!(!notes.contains("timer does not run"), "{notes}");
    let done = environment.primary().run(ExecRequest::shell("echo $X").env("X", "by its keys")).await.map_err(text)?;
    ensure!(done.stdout.text() == "by its keys\n", "{done:?}");
    // Credentials that end are followed by others, in an environment that goes on.
    let before = plane.asked.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(environment.primary().run(ExecRequest::new(["true"])).await.map_err(text)?.success(), "no command runs any more");
    ensure!(plane.asked.load(Ordering::SeqCst) > before, "its old credentials were used on");
    environment.stop().await.map_err(text)?;
    let counts = (plane.made.load(Ordering::SeqCst), plane.ended.load(Ordering::SeqCst));
    ensure!(counts.0 == 1 && counts.1 >= 1, "made and ended: {counts:?}");
    ensure!(world.is_clean(), "{:?} {:?}", world.server.instances(), world.server.objects());
    Ok(())
}

/// The same control plane, with a say of its own in how long instances live.
struct Renewing {
    plane: Arc<Plane>,
    may: bool,
    asked: AtomicUsize,
}

#[async_trait]
impl Control for Renewing {
    async fn create(&self, order: &Order) -> tierbox_core::Result<Instance> {
        self.plane.create(order).await
    }

    async fn terminate(&self, ids: &[String]) -> tierbox_core::Result<()> {
        self.plane.terminate(ids).await
    }

    async fn find(&self, which: &Find) -> tierbox_core::Result<Vec<Instance>> {
        self.plane.find(which).await
    }

    async fn renew(&self, ids: &[String], until: SystemTime) -> tierbox_core::Result<bool> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        assert!(ids.len() == 1 && until > SystemTime::now() + Duration::from_secs(60), "{ids:?} {until:?}");
        if self.may { Ok(true) } else { Err(Error::new(ErrorKind::Credentials, "renew", "the control plane forbids it")) }
    }

    async fn credentials(&self) -> tierbox_core::Result<Option<Given>> {
        self.plane.credentials().await
    }
}

impl Renewing {
    async fn start(self: &Arc<Self>, world: &World) -> tierbox_core::Result<Box<dyn Environment>> {
        let lease = Arc::new(world.journal.create(NewLease::new("ec2", "ec2", "T0.H3.N0"))?);
        Ec2Backend::with_control(self.clone()).start(&world.spec(|_| ()), lease, &Silent).await
    }
}

async fn renewed(world: World) -> Outcome {
    let control = Arc::new(Renewing { plane: Plane::new(&world, ""), may: true, asked: AtomicUsize::new(0) });
    let environment = control.start(&world).await.map_err(text)?;
    ensure!(control.asked.load(Ordering::SeqCst) >= 1, "it was not asked");
    ensure!(!world.server.calls().contains_key("ec2:CreateTags"), "tags were written all the same: {:?}", world.server.calls());
    environment.stop().await.map_err(text)?;
    // One that does not renew leaves it to tierbox.
    let plain = Plane::new(&world, "");
    let environment = plain.start(&world, &world.spec(|_| ())).await.map_err(text)?;
    ensure!(world.server.calls().contains_key("ec2:CreateTags"), "nobody renews: {:?}", world.server.calls());
    environment.stop().await.map_err(text)
}

/// Who finds out later loses an environment that lives.
async fn not_renewed(world: World) -> Outcome {
    let control = Arc::new(Renewing { plane: Plane::new(&world, ""), may: false, asked: AtomicUsize::new(0) });
    let error = control.start(&world).await.err().ok_or("it started, and would be ended by others")?;
    let told = error.message().contains("ExpiresAt") && error.message().contains("forbids it");
    ensure!(error.kind() == ErrorKind::Credentials && told, "{error:?}");
    ensure!(error.help().is_some_and(|help| help.contains("ec2:CreateTags")), "{error:?}");
    world.until(Duration::from_secs(20), "nothing is left", || world.is_clean()).await
}

async fn grouped(world: World) -> Outcome {
    let plane = Plane::new(&world, "groupadd docker; useradd -m -G docker agent");
    let spec = world.spec(|spec| spec.user = Some("agent".to_owned()));
    let environment = plane.start(&world, &spec).await.map_err(text)?;
    let report = environment.report();
    let door = report.mechanisms.iter().find(|each| each.name == "metadata closed").ok_or("nothing tells of metadata")?;
    ensure!(door.applied == Applied::Absent && door.detail.contains("become root"), "{door:?}");
    ensure!(report.notes.iter().any(|note| note.contains("no role")), "the role was not looked at: {:?}", report.notes);
    environment.stop().await.map_err(text)
}

async fn no_cgroups(world: World) -> Outcome {
    let plane = Plane::new(&world, "mount -t tmpfs none /sys/fs/cgroup && mount -o remount,ro /sys/fs/cgroup");
    let error = plane.start(&world, &world.spec(|_| ())).await.err().ok_or("it started, and nothing would end its commands")?;
    ensure!(
        error.kind() == ErrorKind::HostUnable && error.message().contains("cgroup") && error.message().contains("i-"),
        "{error:?}"
    );
    ensure!(error.help().is_some_and(|help| help.contains("/sys/fs/cgroup") && help.contains("Ubuntu")), "{error:?}");
    world.until(Duration::from_secs(20), "nothing is left", || world.is_clean()).await
}

/// Whoever finds the metadata service open has the role, root or not.
async fn open_image(world: World) -> Outcome {
    let plane = Plane::new(
        &world,
        "for name in nft iptables iptables-nft iptables-legacy ip; do rm -f /usr/sbin/$name /usr/bin/$name; done",
    );
    let grants = json!({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*"}]});
    let name = super::role::profile(&world, &grants);
    let spec = world.spec(|spec| spec.settings["instance-profile"] = name.into());
    let error = plane.start(&world, &spec).await.err().ok_or("it started, and its agent has the role")?;
    ensure!(error.kind() == ErrorKind::TierRefused && error.to_string().contains("s3:GetObject"), "{error:?}");
    world.until(Duration::from_secs(20), "nothing is left", || world.is_clean()).await?;
    // The control: where the role grants nothing, the report says that it is open.
    let environment = plane.start(&world, &world.spec(|_| ())).await.map_err(text)?;
    let told = format!("{:?}", environment.report().mechanisms);
    ensure!(told.contains("it answers the user"), "{told}");
    environment.stop().await.map_err(text)
}
