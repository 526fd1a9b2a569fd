//! A backend behind whose back something is done, for tests of verification.

mod unconfined;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tierbox::{
    Backend, CanaryName, Capabilities, Check, DestroyReport, Environment, EnvironmentSpec, LeaseHandle, LeaseRecord, Lifted,
    Progress, Registry, Result, Tierbox,
};

/// What is done behind everybody's back.
#[allow(dead_code, reason = "not every test program does all of it")]
pub enum Harm {
    /// What is started is a twin: a rule does not hold in it.
    Lifted(Lifted),
    /// What is started lists other names than the profile.
    Names(&'static [&'static str]),
    /// Beside an honest machine there is another, in which a rule does not hold.
    Beside(Lifted),
    /// Its machines take the list of programs that a command may execute, and do nothing with it.
    Unconfined,
    /// Another twin is made in place of one, or none at all.
    Twins(fn(&Lifted) -> Result<Lifted>),
    /// What is found again claims to be a virtual machine.
    FoundAnother,
    /// The siblings' gateways list other names than they are told.
    Siblings(fn(Vec<CanaryName>) -> Vec<CanaryName>),
}

/// A backend, except for some harm.
pub struct Sabotaged {
    honest: Arc<dyn Backend>,
    harm: Harm,
}

/// A client of a backend by its name, except for some harm.
pub fn sabotaged(backend: &str, state: &tempfile::TempDir, harm: Harm) -> Tierbox {
    let honest = Registry::linked().get(backend).unwrap();
    let mut registry = Registry::linked();
    registry.register(Arc::new(Sabotaged { honest, harm }));
    Tierbox::builder().registry(registry).user_config(false).state_dir(state.path().join("tierbox")).build().unwrap()
}

#[async_trait::async_trait]
impl Backend for Sabotaged {
    fn name(&self) -> &'static str {
        self.honest.name()
    }
    fn settings_schema(&self) -> serde_json::Value {
        self.honest.settings_schema()
    }
    fn validate(&self, spec: &EnvironmentSpec) -> Result<()> {
        self.honest.validate(spec)
    }
    fn capabilities(&self, spec: &EnvironmentSpec) -> Result<Capabilities> {
        self.honest.capabilities(spec)
    }
    async fn start(
        &self,
        spec: &EnvironmentSpec,
        lease: Arc<dyn LeaseHandle>,
        progress: &dyn Progress,
    ) -> Result<Box<dyn Environment>> {
        let inner = match &self.harm {
            Harm::Lifted(lifted) => self.honest.twin(spec, lifted, lease.clone()).await?,
            Harm::Names(names) => {
                let mut spec = spec.clone();
                spec.network.allow = names.iter().map(|name| (*name).to_owned()).collect();
                self.honest.start(&spec, lease.clone(), progress).await?
            }
            Harm::Siblings(_) | Harm::Twins(_) | Harm::Beside(_) | Harm::Unconfined | Harm::FoundAnother => {
                self.honest.start(spec, lease.clone(), progress).await?
            }
        };
        let mut report = inner.report().clone();
        report.tier = spec.tier;
        let beside = match &self.harm {
            Harm::Beside(lifted) => Some(self.beside(spec, lifted, lease.as_ref()).await?),
            _ => None,
        };
        let unconfined = matches!(self.harm, Harm::Unconfined);
        Ok(Box::new(Lying { inner, beside, report, unconfined }))
    }
    async fn twin(&self, spec: &EnvironmentSpec, lifted: &Lifted, lease: Arc<dyn LeaseHandle>) -> Result<Box<dyn Environment>> {
        let lifted = match (&self.harm, lifted) {
            // The mirror has one name, the twin that is its control more.
            (Harm::Siblings(change), Lifted::Names(names)) if names.len() == 1 => Lifted::Names(change(names.clone())),
            (Harm::Twins(other), lifted) => other(lifted)?,
            _ => lifted.clone(),
        };
        self.honest.twin(spec, &lifted, lease).await
    }
    async fn attach(&self, lease: &LeaseRecord) -> Result<Box<dyn Environment>> {
        let inner = self.honest.attach(lease).await?;
        if !matches!(self.harm, Harm::FoundAnother) {
            return Ok(inner);
        }
        let mut report = inner.report().clone();
        report.tier = "T0.H3.N2".parse()?;
        Ok(Box::new(Lying { inner, beside: None, report, unconfined: false }))
    }
    async fn is_alive(&self, lease: &LeaseRecord) -> bool {
        self.honest.is_alive(lease).await
    }
    async fn destroy(&self, lease: &LeaseRecord) -> Result<DestroyReport> {
        self.honest.destroy(lease).await
    }
    async fn doctor(&self) -> Vec<Check> {
        self.honest.doctor().await
    }
}

impl Sabotaged {
    /// A second machine, under a lease of its own.
    async fn beside(&self, spec: &EnvironmentSpec, lifted: &Lifted, lease: &dyn LeaseHandle) -> Result<Box<dyn Environment>> {
        let journal = tierbox_lease::Journal::at(&lease.directory()?.join("beside"))?;
        let own = tierbox_lease::NewLease::new(self.honest.name(), "beside", spec.tier.to_string());
        self.honest.twin(spec, lifted, Arc::new(journal.create(own)?)).await
    }
}

/// An environment that claims to be what was asked for.
struct Lying {
    inner: Box<dyn Environment>,
    beside: Option<Box<dyn Environment>>,
    report: tierbox::Report,
    unconfined: bool,
}

#[async_trait::async_trait]
impl Environment for Lying {
    fn id(&self) -> &str {
        self.inner.id()
    }
    fn machines(&self) -> Vec<Arc<dyn tierbox::Sandbox>> {
        let machines = self.inner.machines().into_iter().chain(self.beside.iter().flat_map(|beside| beside.machines()));
        let wrap = |machine| match self.unconfined {
            true => Arc::new(unconfined::Unconfined(machine)) as Arc<dyn tierbox::Sandbox>,
            false => machine,
        };
        machines.map(wrap).collect()
    }
    fn report(&self) -> &tierbox::Report {
        &self.report
    }
    fn identity(&self) -> Option<BTreeMap<String, String>> {
        self.inner.identity()
    }
    fn connection(&self, machine: &str) -> Result<tierbox::Connection> {
        self.inner.connection(machine)
    }
    async fn stop(&self) -> Result<()> {
        if let Some(beside) = &self.beside {
            beside.stop().await?;
        }
        self.inner.stop().await
    }
    async fn ended(&self, limit: Duration) -> bool {
        self.inner.ended(limit).await
    }
}
