//! The backend: start, find again, remove.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tierbox_core::{
    Backend, Capabilities, Check, DestroyReport, Environment, EnvironmentSpec, Error, ErrorKind, HostIsolation, KillDomain,
    LeaseHandle, LeaseRecord, Locality, Network, Progress, Result,
};
use tierbox_guest::plain;

use crate::aws::{Account, Aws, driven};
use crate::control::{Control, Find};
use crate::memory::Memory;
use crate::settings::Settings;
use crate::start::{Start, plan};
use crate::task::Status;
use crate::{BACKEND, attach, crash, destroy, doctor, signed, tags};

/// The backend `ec2`: instances of EC2 without inbound access.
#[derive(Clone, Default)]
pub struct Ec2Backend {
    control: Option<Arc<dyn Control>>,
    /// Clients with credentials of the control plane.
    made: Arc<Mutex<HashMap<Account, Arc<Aws>>>>,
}

impl std::fmt::Debug for Ec2Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ec2Backend").field("own_control", &self.control.is_some()).finish()
    }
}

impl Ec2Backend {
    /// The backend over EC2's own API.
    pub fn new() -> Self {
        Self::default()
    }

    /// The backend over an organisation's control plane, which makes, finds and ends the instances.
    pub fn with_control(control: Arc<dyn Control>) -> Self {
        Self { control: Some(control), made: Arc::default() }
    }

    /// Who makes instances.
    pub(crate) fn control(&self, aws: &Arc<Aws>) -> Arc<dyn Control> {
        self.control.clone().unwrap_or_else(|| aws.clone())
    }

    /// The clients for settings, with the credentials of the control plane where it gives some.
    pub(crate) async fn clients(&self, settings: Settings) -> Result<Arc<Aws>> {
        match &self.control {
            Some(control) if control.credentials().await?.is_some() => self.clients_by(control, settings).await,
            _ => driven(async move { Aws::of(&settings).await }).await,
        }
    }

    async fn clients_by(&self, control: &Arc<dyn Control>, settings: Settings) -> Result<Arc<Aws>> {
        let account = Account { region: settings.region, endpoint: settings.endpoint_url, profile: None, key: None };
        if let Some(known) = self.made.lock().unwrap_or_else(PoisonError::into_inner).get(&account) {
            return Ok(known.clone());
        }
        let (control, own) = (control.clone(), account.clone());
        let made = Arc::new(driven(async move { Aws::by(control, own).await }).await?);
        Ok(self.made.lock().unwrap_or_else(PoisonError::into_inner).entry(account).or_insert(made).clone())
    }

    /// The clients of an environment that a lease names.
    async fn clients_of(&self, memory: &Memory) -> Result<Arc<Aws>> {
        let account = memory.account.clone();
        match &self.control {
            Some(_) => {
                let settings = Settings { region: account.region, endpoint_url: account.endpoint, ..Settings::default() };
                self.clients(settings).await
            }
            None => driven(async move { Aws::again(&account).await }).await,
        }
    }
}

impl Ec2Backend {
    /// How the instance of an `attach` profile is: its load, memory, disk and tasks.
    ///
    /// # Errors
    /// `InvalidProfile` for settings of another mode; `HostUnable` where there is no such instance, or it does not run.
    pub async fn status(&self, settings: &serde_json::Value) -> Result<Status> {
        let settings = Settings::from_value(settings)?.filled()?;
        let aws = self.clients(settings.clone()).await?;
        attach::status(aws, &settings).await
    }
}

/// Refuses to remove by credentials of another account, to which all of an environment looks as if it were gone.
async fn is_ours(aws: &Arc<Aws>, memory: &Memory) -> Result<()> {
    let Some(owner) = &memory.owner else { return Ok(()) };
    match signed::account(aws).await {
        Some(own) if own != *owner => {
            let message = format!("it is in the account {owner}, and the credentials at hand are of {own}");
            Err(Error::new(ErrorKind::Credentials, "remove environment", message)
                .with_backend(BACKEND)
                .with_help("set the credentials that it was started with (AWS_PROFILE, or AWS's other variables)"))
        }
        _ => Ok(()),
    }
}

/// What machines can do, before any is there.
pub(crate) fn capabilities(networks: Vec<Network>) -> Capabilities {
    Capabilities {
        kill_domain: KillDomain::Cgroup,
        streaming_output: true,
        multi_machine: true,
        ..plain::capabilities(HostIsolation::H3, networks, Locality::Remote)
    }
}

#[async_trait]
impl Backend for Ec2Backend {
    fn name(&self) -> &'static str {
        BACKEND
    }

    fn settings_schema(&self) -> serde_json::Value {
        Settings::schema()
    }

    fn validate(&self, spec: &EnvironmentSpec) -> Result<()> {
        plan(spec)?;
        spec.check_values()
    }

    fn capabilities(&self, spec: &EnvironmentSpec) -> Result<Capabilities> {
        let attaches = plan(spec)?.settings.attaches();
        Ok(if attaches { attach::attached() } else { capabilities(vec![Network::N0, Network::N1, Network::N2]) })
    }

    async fn start(
        &self,
        spec: &EnvironmentSpec,
        lease: Arc<dyn LeaseHandle>,
        progress: &dyn Progress,
    ) -> Result<Box<dyn Environment>> {
        let plan = plan(spec)?;
        let aws = self.clients(plan.settings.clone()).await?;
        let control = self.control(&aws);
        let lease = &lease;
        Ok(Box::new(Start { spec, plan, aws, control, lease, progress }.run().await?))
    }

    async fn attach(&self, _lease: &LeaseRecord) -> Result<Box<dyn Environment>> {
        Err(Error::unsupported("attach", "environments that outlive their process").with_backend(BACKEND))
    }

    async fn is_alive(&self, lease: &LeaseRecord) -> bool {
        let Some(memory) = Memory::of(lease) else { return false };
        let Ok(aws) = self.clients_of(&memory).await else { return true };
        let (control, id) = (self.control(&aws), lease.id.clone());
        let which = match &memory.task {
            Some(_) => Find::Ids(memory.machines.iter().map(|machine| machine.instance.clone()).collect()),
            None => Find::Tag(tags::TASK.to_owned(), id),
        };
        let found = driven(async move { control.find(&which).await }).await;
        // Who cannot ask does not know.
        found.map_or(true, |found| found.iter().any(|instance| !instance.is_ending()))
    }

    async fn destroy(&self, lease: &LeaseRecord) -> Result<DestroyReport> {
        crash::point("destroy");
        // The lease is written before anything is begun.
        let Some(memory) = Memory::of(lease) else { return Ok(DestroyReport::default()) };
        let aws = self.clients_of(&memory).await?;
        is_ours(&aws, &memory).await?;
        let (control, id) = (self.control(&aws), lease.id.clone());
        driven(async move { Ok(destroy::environment(&aws, control.as_ref(), &memory, &id).await) }).await
    }

    async fn doctor(&self) -> Vec<Check> {
        doctor::checks().await
    }
}
