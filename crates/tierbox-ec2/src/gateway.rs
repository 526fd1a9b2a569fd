//! N1: the gateway, one instance of the stack that serves the sandboxes of many environments. Each environment lays a file with what
//! it may reach into it, which names the addresses of its machines; EC2 lets no instance use another's address.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tierbox_core::{Decision, Error, ErrorKind, Result};
use tierbox_egress::{Lodger, PROXY_PORT, Plan, Rules};

use crate::BACKEND;
use crate::aws::{Aws, driven};
use crate::call::{again, shown};
use crate::isolation::open;
use crate::link::Link;
use crate::settings::Settings;

const TRIED: &str = "find gateway";
/// The ports of the gateway.
pub(crate) const TCP: [i32; 4] = [53, 80, 443, PROXY_PORT as i32];
pub(crate) const UDP: [i32; 1] = [53];
/// Where the unit of infra/tierbox.yaml has environments and their logs.
const FILES: &str = "/etc/tierbox-egress/sandboxes";
const LOGS: &str = "/var/log/tierbox-egress";
/// How long a script on the gateway may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How much of a log is read at once.
const PIECE: usize = 4 << 20;

/// Lays an environment's file down, and waits until it is served. What others left long ago goes.
const ENTER: &str = r#"umask 022; PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
[ -d @FILES@ ] || { echo 'failed=it has no tierbox-egress'; exit 0; }
find @FILES@ -name '*.json' -mmin +2880 -delete; find @LOGS@ -name '*.jsonl' -mmin +43200 -delete
cat >@FILES@/.@ID@ <<'END' && mv @FILES@/.@ID@ @FILES@/@ID@.json || { echo 'failed=its files cannot be written'; exit 0; }
@LODGER@
END
n=0; while [ ! -e @LOGS@/@ID@.jsonl ]; do
  n=$((n+1)); [ $n -lt 100 ] || { echo 'failed=its unit tierbox-egress does not take environments in'; exit 0; }
  sleep 0.1 || sleep 1
done
echo done=1
"#;

/// What is known of a gateway's instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) instance: String,
    pub(crate) vpc: String,
    pub(crate) address: Ipv4Addr,
}

/// Finds the gateway that settings name.
///
/// # Errors
/// `TierRefused` where none is named, or it does not run.
pub(crate) async fn find(aws: &Aws, settings: &Settings) -> Result<Facts> {
    let fix = "`tierbox ec2 setup --gateway` makes one; a profile names it by ec2.gateway";
    let Some(id) = &settings.gateway else { return Err(open("no gateway is named", fix)) };
    let found = addresses(aws, std::slice::from_ref(id)).await?.into_iter().next();
    let (state, vpc, address) = found.ok_or_else(|| open(format!("there is no gateway {id} in {}", aws.region), fix))?;
    match address {
        Some(address) if state == "running" => Ok(Facts { instance: id.clone(), vpc, address }),
        _ => Err(open(format!("the gateway {id} is {state}"), "start it, or name another one")),
    }
}

/// State, network and address of instances, in the order in which they were asked for.
async fn addresses(aws: &Aws, ids: &[String]) -> Result<Vec<(String, String, Option<Ipv4Addr>)>> {
    let filter = aws_sdk_ec2::types::Filter::builder().name("instance-id").set_values(Some(ids.to_vec())).build();
    let ask = || aws.ec2.describe_instances().filters(filter.clone()).send();
    let answer = again(TRIED, "ec2:DescribeInstances", ask).await?;
    let all: Vec<_> =
        answer.reservations.unwrap_or_default().into_iter().flat_map(|each| each.instances.unwrap_or_default()).collect();
    let one = |id: &String| {
        let found = all.iter().find(|instance| instance.instance_id.as_ref() == Some(id))?;
        let state = found.state.as_ref().and_then(|state| state.name.as_ref()).map_or("gone", |name| name.as_str());
        let address = found.private_ip_address.as_deref().and_then(|address| address.parse().ok());
        Some((state.to_owned(), found.vpc_id.clone().unwrap_or_default(), address))
    };
    Ok(ids.iter().filter_map(one).collect())
}

fn script(body: &str, id: &str) -> String {
    body.replace("@FILES@", FILES).replace("@LOGS@", LOGS).replace("@ID@", id)
}

/// Removes an environment's file and log from the gateway at the other end of a link.
///
/// # Errors
/// The transport's own.
pub(crate) async fn forget(link: &Arc<Link>, id: &str) -> Result<()> {
    link.script(script("rm -f @FILES@/@ID@.json @LOGS@/@ID@.jsonl\n", id), PATIENCE).await.map(drop)
}

/// An environment's part in a gateway.
pub(crate) struct Gateway {
    facts: Facts,
    link: Arc<Link>,
    id: String,
    rules: Rules,
    read: Mutex<Read>,
}

/// What was read of the log.
#[derive(Default)]
struct Read {
    until: usize,
    decisions: Vec<Decision>,
}

impl Gateway {
    /// The part of an environment in the gateway at the other end of a link. `id` is a lease's, and so a plain word.
    pub(crate) fn new(facts: Facts, link: Arc<Link>, id: &str, rules: Rules) -> Self {
        Self { facts, link, id: id.to_owned(), rules, read: Mutex::default() }
    }

    fn script(&self, body: &str) -> String {
        script(body, &self.id)
    }

    fn failed(&self, why: &str) -> Error {
        let message = format!("the gateway {}: {}", self.facts.instance, shown(why));
        Error::new(ErrorKind::HostUnable, "use gateway", message)
            .with_backend(BACKEND)
            .with_help("`tierbox ec2 setup --gateway` installs it anew")
    }

    /// Has these instances served, from now on.
    ///
    /// # Errors
    /// `HostUnable` where the gateway does not take them in.
    pub(crate) async fn enter(&self, aws: &Arc<Aws>, instances: &[String], life: Duration) -> Result<()> {
        let (asked, ids) = (aws.clone(), instances.to_vec());
        let found = driven(async move { addresses(&asked, &ids).await }).await?;
        let clients: Vec<Ipv4Addr> = found.into_iter().filter_map(|(_, _, address)| address).collect();
        if clients.len() != instances.len() {
            return Err(self.failed("not all machines have an address that it could know"));
        }
        let allow = self.rules.iter().map(ToString::to_string).collect();
        let lodger = Lodger { sandbox: self.id.clone(), allow, clients, life: life.as_secs() };
        let text = serde_json::to_string(&lodger).map_err(|error| self.failed(&error.to_string()))?;
        let printed = self.link.script(self.script(ENTER).replace("@LODGER@", &text), PATIENCE).await?;
        let said = String::from_utf8_lossy(&printed.stdout).into_owned();
        match said.lines().find_map(|line| line.strip_prefix("failed=")) {
            None if said.contains("done=1") => Ok(()),
            None => Err(self.failed(&format!("its answer makes no sense: {said:?}"))),
            Some(why) => Err(self.failed(why)),
        }
    }

    /// A sign of life.
    ///
    /// # Errors
    /// The transport's own.
    pub(crate) async fn renew(&self) -> Result<()> {
        self.link.script(self.script("[ ! -e @FILES@/@ID@.json ] || touch @FILES@/@ID@.json\n"), PATIENCE).await.map(drop)
    }

    /// Ends the service; what was decided stays to be read.
    ///
    /// # Errors
    /// The transport's own.
    pub(crate) async fn leave(&self) -> Result<()> {
        self.link.script(self.script("rm -f @FILES@/@ID@.json\n"), PATIENCE).await.map(drop)
    }

    /// What was decided so far, oldest first.
    ///
    /// # Errors
    /// `InvalidInput` for a line that is no decision; the transport's own.
    pub(crate) async fn decisions(&self) -> Result<Vec<Decision>> {
        loop {
            let until = self.read.lock().unwrap_or_else(PoisonError::into_inner).until;
            let body = format!("tail -c +{} @LOGS@/@ID@.jsonl 2>/dev/null | head -c {PIECE}\n", until + 1);
            let printed = self.link.script(self.script(&body), PATIENCE).await?;
            let whole = printed.stdout.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
            // Another call may have read the same meanwhile.
            if read.until == until {
                for line in printed.stdout[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                    let decision = serde_json::from_slice(line).map_err(|error| {
                        let message = format!("line {} of the gateway's log is no decision: {error}", read.decisions.len() + 1);
                        Error::new(ErrorKind::InvalidInput, "read egress log", message).with_backend(BACKEND)
                    })?;
                    read.decisions.push(decision);
                }
                read.until += whole;
            }
            if whole == 0 || printed.stdout.len() < PIECE {
                return Ok(read.decisions.clone());
            }
        }
    }

    /// What was read of the log so far.
    pub(crate) fn known(&self) -> Vec<Decision> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).decisions.clone()
    }

    /// The variables that programs inside look at.
    pub(crate) fn variables(&self) -> Vec<(String, String)> {
        Plan::shared(self.facts.address).variables()
    }

    /// What is allowed, for the report.
    pub(crate) fn notes(&self) -> Vec<String> {
        let mut notes = self.rules.notes();
        notes.push(format!("the gateway is {} at {}; other environments use it too", self.facts.instance, self.facts.address));
        notes
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }
}
