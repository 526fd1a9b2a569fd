//! What `tierbox ec2` does: sets an account up, checks it, and takes it down again.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_ec2::types::Filter;
use bytes::Bytes;
use tierbox_core::{Check, DestroyReport, Error, ErrorKind, Network, Progress, Result};

use crate::aws::{Aws, driven};
use crate::call::again;
use crate::control::{Control, Find, Order};
use crate::link::Link;
use crate::settings::Settings;
use crate::stack::{self, OF_STACK, Parts, Stack};
use crate::{BACKEND, Ec2Backend, check, image, install, objects, ready, tags};

/// How long an instance may take until its agent answers.
const READY: Duration = Duration::from_secs(10 * 60);
/// What an instance runs at its first boot: the runtimes of code tasks, from whichever packages it has.
const RUNTIMES: &str = "#!/bin/sh\n# tierbox: runtimes of code tasks.\nexport DEBIAN_FRONTEND=noninteractive\n\
if command -v apt-get >/dev/null; then apt-get update -q && apt-get install -q -y python3 nodejs\n\
elif command -v dnf >/dev/null; then dnf install -q -y python3 nodejs; fi\n";

/// What is to be set up.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Wanted {
    /// The stack's name, with which the names of what it makes begin.
    pub stack: String,
    /// A public subnet too, for N0.
    pub internet: bool,
    /// The type of an instance for `attach` profiles, if one is wanted.
    pub instance: Option<String>,
    /// The program `tierbox-egress` for Linux on x86-64, if N1's gateway is wanted. It is installed anew where there is one.
    pub gateway: Option<PathBuf>,
    /// Who resolves names for the gateway, when it is made; by default the template's own value, 1.1.1.1.
    pub gateway_resolver: Option<Ipv4Addr>,
}

impl Wanted {
    /// The network of the profile that is written.
    fn network(&self) -> Network {
        match (&self.gateway, self.internet) {
            (Some(_), _) => Network::N1,
            (None, true) => Network::N0,
            (None, false) => Network::N2,
        }
    }

    /// A stack of this name and nothing else.
    pub fn new(stack: impl Into<String>) -> Self {
        Self { stack: stack.into(), internet: false, instance: None, gateway: None, gateway_resolver: None }
    }
}

/// What was set up.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SetUp {
    /// The stack.
    pub stack: Stack,
    /// The instance for `attach` profiles.
    pub instance: Option<String>,
    /// A profile that uses it.
    pub profile: String,
    /// Its checks.
    pub checks: Vec<Check>,
}

impl Ec2Backend {
    /// Deploys the stack of infra/tierbox.yaml unless it is there, starts an instance where one is wanted, and checks both. What a
    /// failure leaves, [`teardown`](Self::teardown) removes.
    ///
    /// # Errors
    /// `HostUnable` with CloudFormation's own reason; `InvalidProfile`, `Credentials`.
    pub async fn setup(&self, settings: &serde_json::Value, wanted: &Wanted, progress: &dyn Progress) -> Result<SetUp> {
        let mut given = Settings::from_value(settings)?.filled()?;
        let aws = self.clients(given.clone()).await?;
        // The profile that is written leads to where this deploys, whatever the variables of who uses it say.
        (given.region, given.endpoint_url) = (aws.account.region.clone(), aws.account.endpoint.clone());
        let gateway = match &wanted.gateway {
            None => None,
            Some(path) => Some(install::program(path)?),
        };
        let image = if gateway.is_some() { Some(gateway_image(&aws).await?) } else { None };
        let parts = Parts { internet: wanted.internet, gateway: image, resolver: wanted.gateway_resolver };
        let stack = stack::deploy(&aws, &wanted.stack, &parts, progress).await?;
        let name = stack.name.clone();
        self.fill(aws, given, stack, wanted, gateway, progress).await.map_err(|error| costs_on(error, &name))
    }

    /// Puts into a stack what is wanted there, and checks it.
    async fn fill(
        &self,
        aws: Arc<Aws>,
        given: Settings,
        stack: Stack,
        wanted: &Wanted,
        gateway: Option<Bytes>,
        progress: &dyn Progress,
    ) -> Result<SetUp> {
        let control = self.control(&aws);
        let mut made = of_stack(&given, &stack, wanted.network())?;
        if let (Some(program), Some(id)) = (gateway, made.gateway.clone()) {
            install::gateway(&aws, &control, &made, &id, program, progress).await?;
        }
        let instance = match &wanted.instance {
            None => None,
            Some(kind) => Some(instance(&aws, &control, &stack, kind, progress).await?),
        };
        if let Some(id) = &instance {
            made.subnets.clear();
            (made.vpc, made.security_group, made.instance_profile, made.gateway) = (None, None, None, None);
            made.instance_id = Some(id.clone());
        }
        progress.step("checking");
        let network = if instance.is_some() { Network::N0 } else { wanted.network() };
        let checks = check::all(aws.clone(), control, made.clone(), network).await?;
        if let Some(id) = &instance {
            progress.step("running a command");
            command(&aws, &made, id).await?;
        }
        Ok(SetUp { profile: profile(&made, &stack, wanted), stack, instance, checks })
    }

    /// Checks what settings lean on, one by one; with N2 the network too.
    ///
    /// # Errors
    /// `InvalidProfile`. What AWS says is in the checks.
    pub async fn check(&self, settings: &serde_json::Value, network: Network) -> Result<Vec<Check>> {
        let settings = Settings::from_value(settings)?.filled()?;
        let aws = self.clients(settings.clone()).await?;
        let control = self.control(&aws);
        check::all(aws, control, settings, network).await
    }

    /// Where the credentials of settings come from, in words.
    ///
    /// # Errors
    /// `InvalidProfile`.
    pub async fn credentials(&self, settings: &serde_json::Value) -> Result<String> {
        let settings = Settings::from_value(settings)?.filled()?;
        Ok(check::source(self.clients(settings).await?.as_ref()))
    }

    /// Removes a stack, its bucket's objects, and the instance that was made beside it. Nothing is no failure.
    ///
    /// # Errors
    /// `LimitReached` where environments run in its network; `HostUnable`, `Credentials`.
    pub async fn teardown(&self, settings: &serde_json::Value, stack: &str, progress: &dyn Progress) -> Result<DestroyReport> {
        let aws = self.clients(Settings::from_value(settings)?.filled()?).await?;
        let control = self.control(&aws);
        let mut report = stack::remove(&aws, &control, stack, progress).await?;
        if let Some(group) = remove_group(&aws, stack).await? {
            report.removed.push(format!("security group {group}"));
        }
        Ok(report)
    }
}

/// What failed in a stack that is there: it is billed on until somebody removes it.
fn costs_on(error: Error, stack: &str) -> Error {
    let removal = format!("`tierbox ec2 teardown --stack {stack}` removes the stack, which is there and is billed");
    let help = error.help().map_or_else(|| removal.clone(), |help| format!("{help}; {removal}"));
    error.with_help(help)
}

/// The image of N1's gateway.
async fn gateway_image(aws: &Arc<Aws>) -> Result<String> {
    let aws = aws.clone();
    driven(async move { Ok(image::find(&aws, &Settings::default()).await?.id) }).await
}

/// The settings that use a stack.
fn of_stack(given: &Settings, stack: &Stack, network: Network) -> Result<Settings> {
    let (subnets, group) = match network {
        Network::N0 => ("PublicSubnetId", "SecurityGroupN0"),
        Network::N1 => ("SubnetIds", "SecurityGroupN1"),
        _ => ("SubnetIds", "SecurityGroupN2"),
    };
    let subnets = stack.output(subnets)?;
    let gateway = if network == Network::N1 { Some(stack.output("GatewayInstance")?.to_owned()) } else { None };
    Ok(Settings {
        gateway,
        vpc: Some(stack.output("VpcId")?.to_owned()),
        subnets: subnets.split(',').map(str::to_owned).collect(),
        security_group: Some(stack.output(group)?.to_owned()),
        instance_profile: Some(stack.output("InstanceProfile")?.to_owned()),
        bucket: Some(stack.output("Bucket")?.to_owned()),
        ..given.clone()
    })
}

/// A profile, as TOML. Names in it come from AWS, and are words alone.
fn profile(made: &Settings, stack: &Stack, wanted: &Wanted) -> String {
    let attached = made.instance_id.is_some();
    let quote = |text: &str| serde_json::Value::from(text).to_string();
    let base = if attached { "ec2-default" } else { "ec2" };
    let tier = if attached { "T0.H3.N0".to_owned() } else { format!("T0.H3.{}", wanted.network()) };
    let mut text = format!(
        "# Written by `tierbox ec2 setup` for its stack {}.\nextends = \"{base}\"\ntier = \"{tier}\"\n\
         description = \"EC2 by the stack {}\"\n\n[ec2]\n",
        stack.name, stack.name
    );
    let one = [
        ("region", &made.region),
        ("profile", &made.profile),
        ("endpoint-url", &made.endpoint_url),
        ("instance-id", &made.instance_id),
        ("vpc", &made.vpc),
        ("security-group", &made.security_group),
        ("instance-profile", &made.instance_profile),
        ("bucket", &made.bucket),
        ("gateway", &made.gateway),
    ];
    for (key, value) in one {
        if let Some(value) = value {
            text.push_str(&format!("{key} = {}\n", quote(value)));
        }
    }
    if !made.subnets.is_empty() {
        let subnets: Vec<String> = made.subnets.iter().map(|subnet| quote(subnet)).collect();
        text.push_str(&format!("subnets = [{}]\n", subnets.join(", ")));
    }
    text
}

/// An instance for `attach` profiles in the account's default network, into which nothing leads; with the stack's role.
async fn instance(
    aws: &Arc<Aws>,
    control: &Arc<dyn Control>,
    stack: &Stack,
    kind: &str,
    progress: &dyn Progress,
) -> Result<String> {
    if let Some(there) = kept(control, &stack.name).await? {
        return Ok(there);
    }
    progress.step("starting an instance");
    let (client, control, name, kind) = (aws.clone(), control.clone(), stack.name.clone(), kind.to_owned());
    let role = stack.output("InstanceProfile")?.to_owned();
    driven(async move {
        let settings = Settings { instance_types: vec![kind], ..Settings::default() };
        let image = image::find(&client, &settings).await?;
        let group = group(&client, &name).await?;
        let tags = [("Name", format!("tierbox {name}")), (OF_STACK, name.clone()), (tags::TASK, kept_name(&name))];
        let order = Order {
            token: objects::random(12)?,
            image: image.id,
            root_device: image.root_device,
            types: settings.types(),
            subnets: Vec::new(),
            security_group: Some(group),
            instance_profile: Some(role),
            volume_size: image.size,
            tags: tags.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<BTreeMap<_, _>>(),
            user_data: RUNTIMES.to_owned(),
            kept: true,
        };
        let made = control.create(&order).await?;
        ready::wait(&client, control.as_ref(), std::slice::from_ref(&made.id), READY).await?;
        Ok(made.id)
    })
    .await
}

/// What the tag of environments is on the instance beside a stack.
fn kept_name(stack: &str) -> String {
    format!("kept-{stack}")
}

/// The instance beside a stack, if an earlier setup made it.
async fn kept(control: &Arc<dyn Control>, stack: &str) -> Result<Option<String>> {
    let (control, which, own) = (control.clone(), Find::Tag(OF_STACK.to_owned(), stack.to_owned()), kept_name(stack));
    let found = driven(async move { control.find(&which).await }).await?;
    let there = found.into_iter().find(|each| !each.is_ending() && each.tags.get(tags::TASK) == Some(&own));
    match there {
        Some(instance) if instance.state.starts_with("stop") => {
            let message = format!("the instance {} of the stack {stack} is {}", instance.id, instance.state);
            Err(Error::new(ErrorKind::HostUnable, "find instance", message)
                .with_backend(BACKEND)
                .with_help("start it, or end it: another one is then made"))
        }
        other => Ok(other.map(|instance| instance.id)),
    }
}

/// The name of the group beside a stack.
fn group_name(stack: &str) -> String {
    format!("tierbox-{stack}-attach")
}

/// The group of that name, if it is there.
async fn find_group(aws: &Aws, stack: &str) -> Result<Option<String>> {
    let filter = Filter::builder().name("group-name").values(group_name(stack)).build();
    let ask = || aws.ec2.describe_security_groups().filters(filter.clone()).send();
    let found = again("find group", "ec2:DescribeSecurityGroups", ask).await?.security_groups.unwrap_or_default();
    Ok(found.into_iter().find_map(|group| group.group_id))
}

/// A group in the default network that lets nothing in.
async fn group(aws: &Aws, stack: &str) -> Result<String> {
    if let Some(id) = find_group(aws, stack).await? {
        return Ok(id);
    }
    let filter = Filter::builder().name("is-default").values("true").build();
    let ask = || aws.ec2.describe_vpcs().filters(filter.clone()).send();
    let found = again("find network", "ec2:DescribeVpcs", ask).await?.vpcs.unwrap_or_default();
    let vpc = found.into_iter().find_map(|vpc| vpc.vpc_id).ok_or_else(|| {
        Error::new(ErrorKind::HostUnable, "find network", format!("{} has no default network", aws.region))
            .with_backend(BACKEND)
            .with_help("make one (`aws ec2 create-default-vpc`), or name an instance of your own in a profile")
    })?;
    let make = || {
        let make = aws.ec2.create_security_group().group_name(group_name(stack)).vpc_id(&vpc);
        make.description("tierbox: nothing comes in").send()
    };
    let made = again("make group", "ec2:CreateSecurityGroup", make).await?;
    made.group_id.ok_or_else(|| Error::new(ErrorKind::HostUnable, "make group", "EC2 made none").with_backend(BACKEND))
}

async fn remove_group(aws: &Arc<Aws>, stack: &str) -> Result<Option<String>> {
    let (aws, stack) = (aws.clone(), stack.to_owned());
    driven(async move {
        let Some(id) = find_group(&aws, &stack).await? else { return Ok(None) };
        let remove = || aws.ec2.delete_security_group().group_id(&id).send();
        again("remove group", "ec2:DeleteSecurityGroup", remove).await?;
        Ok(Some(id))
    })
    .await
}

/// Runs a command on an instance, which shows that commands get there.
async fn command(aws: &Arc<Aws>, settings: &Settings, id: &str) -> Result<()> {
    let prefix = objects::prefix_of(settings.key_prefix.as_deref().unwrap_or("tierbox"), "setup");
    let bucket = settings.bucket.as_ref().map(|bucket| objects::Objects::at(aws.clone(), bucket, &prefix));
    let link = Arc::new(Link::new(aws.clone(), id, bucket));
    let printed = link.script("echo it works\n".to_owned(), Duration::from_secs(60)).await?;
    if printed.stdout == b"it works\n" {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Protocol, "run command", format!("{id} does not answer a command")).with_backend(BACKEND))
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn what_fails_in_a_stack_says_how_to_remove_it() {
        let error = || Error::new(ErrorKind::HostUnable, "install gateway", "it does not start");
        let told = costs_on(error().with_help("look there"), "s").help().map(str::to_owned);
        assert!(told.is_some_and(|help| help.starts_with("look there; ") && help.contains("teardown --stack s")));
        assert!(costs_on(error(), "s").help().is_some_and(|help| help.starts_with("`tierbox ec2 teardown")));
    }

    /// The test server's machines reach no packages: that the script asks for both is seen here, that it is an instance's user data by
    /// `aws::setup::`.
    #[test]
    fn an_instance_installs_both_runtimes_by_whichever_packages_it_has() {
        use std::os::unix::fs::PermissionsExt;
        for manager in ["apt-get", "dnf"] {
            let directory = tempfile::tempdir().unwrap();
            let log = directory.path().join("log");
            let tool = directory.path().join(manager);
            std::fs::write(&tool, format!("#!/bin/sh\necho \"$0 $*\" >>{}\n", log.display())).unwrap();
            std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
            let ran = std::process::Command::new("/bin/sh").arg("-c").arg(RUNTIMES).env("PATH", directory.path()).status();
            assert!(ran.unwrap().success(), "{manager}");
            let did = std::fs::read_to_string(&log).unwrap();
            assert!(did.lines().any(|line| line.ends_with("install -q -y python3 nodejs")), "{manager}: {did}");
        }
    }

    #[test]
    fn a_profile_is_written_for_what_was_made() {
        let outputs = [
            ("VpcId", "vpc-1"),
            ("SubnetIds", "subnet-1,subnet-2"),
            ("SecurityGroupN2", "sg-2"),
            ("InstanceProfile", "p"),
            ("Bucket", "b"),
        ];
        let outputs = outputs.map(|(key, value)| (key.to_owned(), value.to_owned())).into_iter().collect();
        let stack = Stack { name: "s".to_owned(), status: "CREATE_COMPLETE".to_owned(), outputs, parameters: BTreeMap::new() };
        let given =
            Settings { region: Some("eu-west-2".to_owned()), access_key_id: Some("AKIA".to_owned()), ..Settings::default() };
        let made = of_stack(&given, &stack, Network::N2).unwrap();
        let text = profile(&made, &stack, &Wanted::new("s"));
        assert!(text.contains("tier = \"T0.H3.N2\"") && text.contains("subnets = [\"subnet-1\", \"subnet-2\"]"), "{text}");
        assert!(text.contains("security-group = \"sg-2\"") && !text.contains("AKIA"), "{text}");
        assert!(of_stack(&given, &stack, Network::N0).is_err() && of_stack(&given, &stack, Network::N1).is_err());
    }
}
