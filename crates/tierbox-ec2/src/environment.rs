//! A running environment.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tierbox_core::{Connection, Decision, Environment, Error, ErrorKind, Report, Result, Sandbox};
use tierbox_guest::plain::PlainSandbox;
use tokio::task::JoinSet;

use crate::aws::{Aws, driven};
use crate::control::{Control, Find};
use crate::gateway::Gateway;
use crate::link::Link;
use crate::memory::{Machine, Memory};
use crate::objects::Objects;
use crate::task::Task;
use crate::{BACKEND, destroy, tags};

/// How often somebody who waits for the end looks.
const LOOK: Duration = Duration::from_secs(1);

/// A machine and the ways into it.
pub(crate) struct Held {
    pub(crate) machine: Machine,
    pub(crate) link: Arc<Link>,
    pub(crate) sandbox: Arc<PlainSandbox>,
}

/// A running environment.
pub(crate) struct Ec2Environment {
    id: String,
    memory: Memory,
    machines: Vec<Held>,
    aws: Arc<Aws>,
    control: Arc<dyn Control>,
    report: Report,
    /// As whom a person's shell runs.
    user: String,
    stopped: AtomicBool,
    /// Renews the machines' lives.
    renewal: Mutex<Option<tokio::task::AbortHandle>>,
    busy: tokio::sync::Mutex<()>,
    gateway: Option<Arc<Gateway>>,
}

impl Ec2Environment {
    pub(crate) fn new(
        id: String,
        memory: Memory,
        machines: Vec<Held>,
        aws: Arc<Aws>,
        control: Arc<dyn Control>,
        report: Report,
        user: String,
    ) -> Self {
        let (stopped, renewal, busy) = (AtomicBool::new(false), Mutex::default(), tokio::sync::Mutex::default());
        Self { id, memory, machines, aws, control, report, user, stopped, renewal, busy, gateway: None }
    }

    /// The same behind a gateway.
    pub(crate) fn with_gateway(mut self, gateway: Option<Gateway>) -> Self {
        self.gateway = gateway.map(Arc::new);
        self
    }

    fn find(&self, machine: &str) -> Result<&Held> {
        self.machines.iter().find(|held| held.machine.name == machine).ok_or_else(|| {
            let names: Vec<&str> = self.machines.iter().map(|held| held.machine.name.as_str()).collect();
            let message = format!("no machine is named {machine:?}; there are {}", names.join(", "));
            Error::new(ErrorKind::NotFound, "find machine", message).with_backend(BACKEND)
        })
    }

    fn instances(&self) -> Vec<String> {
        self.machines.iter().map(|held| held.machine.instance.clone()).collect()
    }

    /// Gives the machines a sign of life now and then, for as long as this process lives.
    pub(crate) fn keep_alive(&self, life: Duration) {
        let links: Vec<Arc<Link>> = self.machines.iter().map(|held| held.link.clone()).collect();
        let (instances, gateway) = (self.instances(), self.gateway.clone());
        let (aws, control) = (self.aws.clone(), self.control.clone());
        let Ok(driver) = tierbox_guest::driver::handle() else { return };
        let task = driver.spawn(async move {
            loop {
                tokio::time::sleep(life / 3).await;
                sign_of_life(&aws, &control, &links, &instances, life).await;
                if let Some(Err(error)) = match &gateway {
                    Some(gateway) => Some(gateway.renew().await),
                    None => None,
                } {
                    tracing::warn!(target: "tierbox::ec2", "the gateway is not renewed: {}", error.message());
                }
            }
        });
        *self.renewal.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.abort_handle());
    }

    /// Gives its task on an instance of others a sign of life now and then, for as long as this process lives.
    pub(crate) fn keep_task(&self, task: Task, every: Duration) {
        let links: Vec<Arc<Link>> = self.machines.iter().map(|held| held.link.clone()).collect();
        let Ok(driver) = tierbox_guest::driver::handle() else { return };
        let running = driver.spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                for link in &links {
                    if let Err(error) = link.script(task.renew(), Duration::from_secs(30)).await {
                        tracing::warn!(target: "tierbox::ec2", instance = link.instance(), "not renewed: {}", error.message());
                    }
                }
            }
        });
        *self.renewal.lock().unwrap_or_else(PoisonError::into_inner) = Some(running.abort_handle());
    }

    /// Ends the gateway's service, and reads what it decided to the end.
    async fn leave_gateway(&self) {
        let Some(gateway) = &self.gateway else { return };
        let last = async {
            gateway.leave().await?;
            gateway.decisions().await
        };
        if let Err(error) = last.await {
            tracing::warn!(target: "tierbox::ec2", "the gateway's last decisions are not known: {}", error.message());
        }
    }

    fn stop_renewal(&self) {
        if let Some(task) = self.renewal.lock().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

/// Renews the tag and the machines' own timers, all at once: a machine that does not answer must not cost the others theirs.
async fn sign_of_life(aws: &Arc<Aws>, control: &Arc<dyn Control>, links: &[Arc<Link>], instances: &[String], life: Duration) {
    let mut signs = JoinSet::new();
    let (aws, control, all) = (aws.clone(), control.clone(), instances.to_vec());
    signs.spawn(async move {
        if let Err(error) = tags::renew(&aws, control.as_ref(), &all, SystemTime::now() + life).await {
            tracing::error!(target: "tierbox::ec2", "{}; {}", error.message(), error.help().unwrap_or_default());
        }
    });
    for link in links {
        signs.spawn(renew(link.clone()));
    }
    // The next sign is not late for one that has no answer.
    let _ = tokio::time::timeout(life / 3, async { while signs.join_next().await.is_some() {} }).await;
    signs.detach_all();
}

/// Renews a machine's own timer: every envelope does.
async fn renew(link: Arc<Link>) {
    if let Err(error) = link.script(":\n".to_owned(), Duration::from_secs(30)).await {
        tracing::warn!(target: "tierbox::ec2", instance = link.instance(), "not renewed: {}", error.message());
    }
}

#[async_trait]
impl Environment for Ec2Environment {
    fn id(&self) -> &str {
        &self.id
    }

    fn machines(&self) -> Vec<Arc<dyn Sandbox>> {
        self.machines.iter().map(|held| held.sandbox.clone() as Arc<dyn Sandbox>).collect()
    }

    fn report(&self) -> &Report {
        &self.report
    }

    fn connection(&self, machine: &str) -> Result<Connection> {
        let held = self.find(machine)?;
        Ok(connection(&self.aws, self.memory.account.profile.as_deref(), &held.machine.instance, &self.user))
    }

    async fn stop(&self) -> Result<()> {
        let _alone = self.busy.lock().await;
        if self.stopped.load(Ordering::Acquire) {
            return Ok(());
        }
        self.stop_renewal();
        for held in &self.machines {
            held.sandbox.close();
            held.link.close();
        }
        self.leave_gateway().await;
        let (aws, control, memory, id) = (self.aws.clone(), self.control.clone(), self.memory.clone(), self.id.clone());
        let objects: Vec<Objects> = self.machines.iter().filter_map(|held| held.link.objects().cloned()).collect();
        let report = driven(async move {
            for objects in objects {
                objects.settled().await;
            }
            Ok(destroy::environment(&aws, control.as_ref(), &memory, &id).await)
        })
        .await?;
        if !report.failed.is_empty() {
            return Err(Error::new(ErrorKind::Io, "stop environment", format!("could not remove {}", report.failed.join("; ")))
                .with_backend(BACKEND)
                .with_help(format!("run `tierbox down {}` again, or `tierbox cleanup`", self.id)));
        }
        self.stopped.store(true, Ordering::Release);
        Ok(())
    }

    async fn decisions(&self) -> Result<Vec<Decision>> {
        match &self.gateway {
            None => Ok(Vec::new()),
            Some(gateway) if self.stopped.load(Ordering::Acquire) => Ok(gateway.known()),
            Some(gateway) => gateway.decisions().await,
        }
    }

    async fn detach(&self) -> Result<()> {
        Err(Error::unsupported("detach", "environments that outlive their process").with_backend(BACKEND))
    }

    async fn ended(&self, limit: Duration) -> bool {
        let over = async {
            loop {
                if self.stopped.load(Ordering::Acquire) {
                    return;
                }
                let (control, ids) = (self.control.clone(), self.instances());
                let found = driven(async move { control.find(&Find::Ids(ids[..1].to_vec())).await }).await;
                if found.is_ok_and(|found| found.iter().all(|instance| instance.is_ending()) && !found.is_empty()) {
                    return;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(limit, over).await.is_ok()
    }
}

impl Drop for Ec2Environment {
    fn drop(&mut self) {
        self.stop_renewal();
    }
}

/// The command that gives a person a shell.
fn connection(aws: &Aws, profile: Option<&str>, instance: &str, user: &str) -> Connection {
    let mut argv: Vec<String> = ["aws", "ssm", "start-session", "--region"].map(str::to_owned).to_vec();
    argv.push(aws.region.clone());
    if let Some(profile) = profile {
        argv.extend(["--profile".to_owned(), profile.to_owned()]);
    }
    argv.extend(["--target".to_owned(), instance.to_owned()]);
    argv.extend(["--document-name".to_owned(), "AWS-StartInteractiveCommand".to_owned()]);
    argv.extend(["--parameters".to_owned(), format!("{{\"command\":[\"sudo -i -u {user}\"]}}")]);
    let note = "needs the AWS command line and its session-manager-plugin on this host".to_owned();
    Connection { argv, needs: vec!["session-manager-plugin".to_owned()], note }
}
