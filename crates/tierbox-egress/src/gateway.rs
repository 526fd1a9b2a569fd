//! The gateway of one sandbox.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tierbox_core::{AllowRule, CanaryName, Decision, Error, ErrorKind, Result};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use crate::budget::Budget;
use crate::dial::{Dialer, Leads, Resolver, SystemResolver};
use crate::log::{Log, read};
use crate::room::{Open, Room};
use crate::rules::Rules;
use crate::serve::{Guard, connections, datagrams};
use crate::sockets::{Plan, Sockets};
use crate::tenant::{Tenant, Tenants};

/// Threads that serve. Names are resolved on threads of each sandbox's own.
const THREADS: usize = 2;

/// How long what is cut may take to write its end.
const LAST_LINES: Duration = Duration::from_secs(2);

/// What a gateway is made of.
#[derive(Clone)]
pub struct Config {
    /// The environment's id, for the log.
    pub sandbox: String,
    /// What may be reached.
    pub rules: Rules,
    /// The gateway's address, as the sandbox sees it.
    pub plan: Plan,
    /// Where decisions are written.
    pub log: PathBuf,
    /// How names are resolved.
    pub resolver: Arc<dyn Resolver>,
    pub(crate) leads: Leads,
}

impl Config {
    /// A configuration with this host's resolver.
    pub fn new(sandbox: &str, rules: Rules, plan: Plan, log: &Path) -> Self {
        Self {
            sandbox: sandbox.to_owned(),
            rules,
            plan,
            log: log.to_owned(),
            resolver: Arc::new(SystemResolver),
            leads: HashMap::new(),
        }
    }

    /// Leads names of verification's own to its listeners, for a twin: those ports of those names are dialled there, and need no
    /// resolver. The rules must list them too.
    ///
    /// # Errors
    /// `InvalidProfile` for an entry that is no rule.
    pub fn with_canaries(mut self, names: &[CanaryName]) -> Result<Self> {
        for canary in names {
            let rule: AllowRule = canary.rule.parse()?;
            let ports = rule.ports();
            self.leads.extend(ports.into_iter().map(|port| ((rule.name().to_owned(), port), canary.leads_to)));
        }
        Ok(self)
    }
}

/// Serves one sandbox until it is dropped; then its sockets are closed and its connections cut, and their ends are in the log.
///
/// It runs on threads of its own, whatever the caller's runtime does.
#[derive(Debug)]
pub struct Gateway {
    log: PathBuf,
    closing: watch::Sender<bool>,
    open: Open,
}

impl Gateway {
    /// Starts to serve.
    ///
    /// # Errors
    /// `HostUnable` if the sockets, the log or the threads cannot be had.
    pub fn start(config: Config, sockets: Sockets) -> Result<Self> {
        Self::start_with(config, sockets, crate::address::refused)
    }

    pub(crate) fn start_with(config: Config, sockets: Sockets, refused: fn(IpAddr) -> Option<&'static str>) -> Result<Self> {
        let failed = |error: io::Error| Error::new(ErrorKind::HostUnable, "start egress gateway", error.to_string());
        let runtime = runtime().map_err(failed)?;
        let log = config.log.clone();
        let tenant = Arc::new(tenant(config, refused)?);
        let open = tenant.room.open.clone();
        let (closing, guard) = Guard::new();
        let _inside = runtime.enter();
        serve(&Tenants::One(tenant), sockets, |work| {
            let guard = guard.clone();
            runtime.spawn(async move { guard.until_closed(work).await });
        })
        .map_err(failed)?;
        Ok(Self { log, closing, open })
    }

    /// What was decided so far, oldest first.
    ///
    /// # Errors
    /// What the file system says.
    pub fn decisions(&self) -> Result<Vec<Decision>> {
        read(&self.log)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.closing.send_replace(true);
        // What went on is told how it ended, in the log, before anybody believes that it is complete.
        self.open.is_over(LAST_LINES);
    }
}

/// Who is served by a configuration.
pub(crate) fn tenant(config: Config, refused: fn(IpAddr) -> Option<&'static str>) -> Result<Tenant> {
    let log = Log::open(&config.log)?;
    // Beyond every number that the log holds: no line of it is shorter than a byte.
    let asked = AtomicU64::new(log.length());
    Ok(Tenant::new(Room {
        log,
        sandbox: config.sandbox,
        rules: config.rules,
        address: config.plan.address(),
        dialer: Dialer::new(config.resolver, refused, config.leads),
        share: budget().share(),
        asked,
        open: Open::default(),
    }))
}

/// What serves sockets.
pub(crate) type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Has the work of all sockets begun. Inside a runtime.
///
/// # Errors
/// If a socket cannot be had without blocking.
pub(crate) fn serve(tenants: &Tenants, sockets: Sockets, begin: impl Fn(Work)) -> io::Result<()> {
    sockets.datagrams.set_nonblocking(true)?;
    let socket = tokio::net::UdpSocket::from_std(sockets.datagrams)?;
    let mut work: Vec<Work> = vec![Box::pin(datagrams(tenants.clone(), socket))];
    for (role, listener) in sockets.listeners {
        listener.set_nonblocking(true)?;
        work.push(Box::pin(connections(tenants.clone(), tokio::net::TcpListener::from_std(listener)?, role)));
    }
    work.into_iter().for_each(begin);
    Ok(())
}

pub(crate) fn runtime() -> io::Result<&'static Runtime> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let made = Builder::new_multi_thread()
        .worker_threads(THREADS)
        .max_blocking_threads(1)
        .thread_name("tierbox-egress")
        .enable_all()
        .build()?;
    // Another thread may have been faster; its runtime is the one.
    Ok(RUNTIME.get_or_init(|| made))
}

fn budget() -> &'static Arc<Budget> {
    static BUDGET: OnceLock<Arc<Budget>> = OnceLock::new();
    BUDGET.get_or_init(|| Arc::new(Budget::of_this_process()))
}
