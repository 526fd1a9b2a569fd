//! A backend behind whose back something is done, for tests of verification.

mod unconfined;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tierbox::{
    Backend, CanaryName, Capabilities, Check, DestroyReport, Environment, EnvironmentSpec, Error, ErrorKind, LeaseHandle,
    LeaseRecord, Lifted, Progress, Registry, Result, Tierbox,
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
    /// Nothing can be started.
    Unable,
    /// Its machines can be put back, and are then something else.
    Restored(Restored),
    /// The siblings' gateways list other names than they are told.
    Siblings(fn(Vec<CanaryName>) -> Vec<CanaryName>),
}

/// What machines are that were put back.
#[allow(dead_code, reason = "not every test program does all of it")]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Restored {
    /// What they were.
    Same,
    /// Others, in which a rule does not hold.
    WithoutSeccomp,
    /// Gone: nothing can be probed.
    Gone,
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
            Harm::Unable => return Err(Error::new(ErrorKind::Internal, "start", "nothing can be started")),
            _ => self.honest.start(spec, lease.clone(), progress).await?,
        };
        let mut report = inner.report().clone();
        report.tier = spec.tier;
        let beside = match &self.harm {
            Harm::Beside(lifted) => Some(self.beside(spec, lifted, lease.as_ref()).await?),
            Harm::Restored(Restored::WithoutSeccomp) => Some(self.beside(spec, &Lifted::Seccomp, lease.as_ref()).await?),
            _ => None,
        };
        let unconfined = matches!(self.harm, Harm::Unconfined);
        Ok(Box::new(Lying { inner, beside, report, unconfined, restored: self.restored(), is_back: AtomicBool::new(false) }))
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
        let mut report = inner.report().clone();
        match self.harm {
            Harm::FoundAnother => report.tier = "T0.H3.N2".parse()?,
            Harm::Restored(_) => {}
            _ => return Ok(inner),
        }
        let (restored, is_back) = (self.restored(), AtomicBool::new(false));
        Ok(Box::new(Lying { inner, beside: None, report, unconfined: false, restored, is_back }))
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
    fn restored(&self) -> Option<Restored> {
        if let Harm::Restored(restored) = self.harm { Some(restored) } else { None }
    }

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
    restored: Option<Restored>,
    /// Whether it was put back.
    is_back: AtomicBool,
}

#[async_trait::async_trait]
impl Environment for Lying {
    fn id(&self) -> &str {
        self.inner.id()
    }
    fn machines(&self) -> Vec<Arc<dyn tierbox::Sandbox>> {
        let beside: Vec<_> = self.beside.iter().flat_map(|beside| beside.machines()).collect();
        let machines = match (self.restored, self.is_back.load(Ordering::Relaxed)) {
            (None, _) => [self.inner.machines(), beside].concat(),
            (Some(Restored::WithoutSeccomp), true) => beside,
            (Some(_), _) => self.inner.machines(),
        };
        let wrap = |machine| match self.unconfined {
            true => Arc::new(unconfined::Unconfined(machine)) as Arc<dyn tierbox::Sandbox>,
            false => machine,
        };
        machines.into_iter().map(wrap).collect()
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
    async fn restore(&self, name: &str) -> Result<()> {
        match self.restored {
            None => return self.inner.restore(name).await,
            Some(Restored::Gone) => self.inner.stop().await?,
            Some(_) => {}
        }
        self.is_back.store(true, Ordering::Relaxed);
        Ok(())
    }
    async fn detach(&self) -> Result<()> {
        self.inner.detach().await
    }
    async fn decisions(&self) -> Result<Vec<tierbox::Decision>> {
        self.inner.decisions().await
    }
    async fn ended(&self, limit: Duration) -> bool {
        self.inner.ended(limit).await
    }
}
