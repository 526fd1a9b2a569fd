//! The daemon as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tierbox::{Result, StartOptions, Tierbox};

use crate::admission::{Admission, Demand, Permit};
use crate::events::Events;
use crate::held::Held;
use crate::listen::{self, Listeners};
use crate::metrics::Metrics;
use crate::options::{Options, default_socket};
use crate::seats::Seats;
use crate::tokens::Tokens;
use crate::{reaper, recovery, wire};

/// What all requests share.
pub(crate) struct Shared {
    pub client: Tierbox,
    pub options: Options,
    pub tokens: Tokens,
    pub admission: Admission,
    pub metrics: Arc<Metrics>,
    pub events: Events,
    pub seats: Seats,
    environments: Mutex<BTreeMap<String, Arc<Held>>>,
    /// What each environment has of the budget, until it is gone. Those that others started have nothing.
    shares: Mutex<BTreeMap<String, Permit>>,
    /// Environments whose clean-up is under way.
    cleaning: Mutex<BTreeSet<String>>,
}

impl Shared {
    pub fn environments(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Held>>> {
        self.environments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn shares(&self) -> MutexGuard<'_, BTreeMap<String, Permit>> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn cleaning(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.cleaning.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn about(&self, profile: Option<&str>) -> Result<wire::About> {
        let spec = profile.map(|profile| self.client.resolve(profile, &StartOptions::default())).transpose()?;
        let concurrency = spec.as_ref().and_then(|spec| {
            let demand = Demand::of(spec);
            let budget = &self.options.budget;
            let share = |bound: Option<u64>, each: u64| bound.and_then(|bound| bound.checked_div(each));
            let by_backend = budget.backends.get(&spec.backend).copied();
            let bounds = [share(budget.memory, demand.memory), share(budget.cpu_millis, demand.cpu_millis), by_backend];
            // Where none fits, the start of one says so better than a count of none.
            bounds.into_iter().flatten().chain(spec.limits.max_environments).min().map(|most| most.max(1))
        });
        Ok(wire::About {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            backends: self.client.registry().names().into_iter().map(str::to_owned).collect(),
            concurrency,
            tier: spec.as_ref().map(|spec| spec.tier.to_string()),
            backend: spec.map(|spec| spec.backend),
            ttl: self.options.ttl.as_secs_f64(),
        })
    }
}

/// A daemon that listens.
pub struct Server {
    shared: Arc<Shared>,
    listeners: Listeners,
    /// What an earlier daemon served.
    left: Vec<String>,
}

impl Server {
    /// Binds the sockets, and takes the share of the environments that an earlier daemon served. They themselves are found again while
    /// it runs: one that does not answer holds up nobody.
    ///
    /// # Errors
    /// `AlreadyExists` if a daemon listens there already; `InvalidInput` for an address that is not loopback, or for one
    /// without tokens; `PermissionDenied` for a directory of the socket that others can enter.
    pub async fn bind(client: Tierbox, options: Options) -> Result<Self> {
        let socket = options.socket.clone().map_or_else(|| default_socket(&client), Ok)?;
        client.journal()?;
        let listeners = Listeners::bind(&socket, options.tcp, options.tokens.is_some()).await?;
        let tokens = options.tokens.clone().map_or_else(Tokens::ephemeral, Ok)?;
        let shared = Arc::new(Shared {
            client,
            tokens,
            admission: Admission::new(options.budget.clone()),
            metrics: Arc::default(),
            events: Events::default(),
            seats: Seats::of(options.connections),
            environments: Mutex::default(),
            shares: Mutex::default(),
            cleaning: Mutex::default(),
            options,
        });
        let left = shared.take_shares()?;
        tracing::info!(target: "tierbox::op", socket = %socket.display(), environments = left.len(), "serve");
        Ok(Self { shared, listeners, left })
    }

    /// The path of the Unix socket.
    pub fn socket(&self) -> &Path {
        &self.listeners.path
    }

    /// The TCP address, with the port that was chosen where 0 was asked for.
    pub fn address(&self) -> Option<std::net::SocketAddr> {
        self.listeners.address
    }

    /// Serves until `stop` is ready, or until the daemon was idle for as long as its options say. Environments live on.
    ///
    /// # Errors
    /// If a socket fails.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<()> {
        let reaper = reaper::run(self.shared.clone());
        let result = tokio::select! {
            result = listen::accept(self.shared.clone(), &self.listeners) => result,
            () = reaper => Ok(()),
            () = recovery::run(self.shared.clone(), self.left) => Ok(()),
            () = stop => Ok(()),
        };
        reaper::forget_queue(&self.shared);
        let _ = std::fs::remove_file(&self.listeners.path);
        // Whoever may bind this path from here on finds it free, and keeps what it puts there.
        drop(self.listeners);
        result
    }
}
