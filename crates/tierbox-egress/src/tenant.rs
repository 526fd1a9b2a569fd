//! Whose connection it is: one sandbox's, whose sockets nobody else reaches, or that of the sandbox whose address it comes from.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use tierbox_core::Protocol;
use tokio::sync::watch;

use crate::budget::Place;
use crate::room::Room;
use crate::serve::Guard;

/// Queries a second that a sandbox may ask in the long run, and at once.
const QUERIES: (f64, f64) = (200.0, 1000.0);

/// Why queries are not answered.
pub(crate) const TOO_MANY: &str = "too many queries at once: this one and more are not answered";

/// Connections a second that a sandbox may make in the long run, and at once.
const CONNECTIONS: (f64, f64) = (1000.0, 2000.0);

/// A measure that fills again over time.
struct Bucket {
    rate: f64,
    most: f64,
    left: f64,
    since: Instant,
}

impl Bucket {
    fn new((rate, most): (f64, f64)) -> Self {
        Self { rate, most, left: most, since: Instant::now() }
    }

    fn take(&mut self) -> bool {
        let now = Instant::now();
        self.left = (self.left + now.duration_since(self.since).as_secs_f64() * self.rate).min(self.most);
        self.since = now;
        let enough = self.left >= 1.0;
        if enough {
            self.left -= 1.0;
        }
        enough
    }
}

/// A sandbox that is served, until this is dropped: then its connections are cut.
pub(crate) struct Tenant {
    pub(crate) room: Arc<Room>,
    pub(crate) guard: Guard,
    _closing: watch::Sender<bool>,
    queries: Mutex<Bucket>,
    connections: Mutex<Bucket>,
    full: AtomicBool,
    /// Whether it asks more than it may.
    asks_too_much: AtomicBool,
}

impl Tenant {
    pub(crate) fn new(room: Room) -> Self {
        let (closing, guard) = Guard::new();
        Self {
            room: Arc::new(room),
            guard,
            _closing: closing,
            queries: Mutex::new(Bucket::new(QUERIES)),
            connections: Mutex::new(Bucket::new(CONNECTIONS)),
            full: AtomicBool::new(false),
            asks_too_much: AtomicBool::new(false),
        }
    }

    /// Whether one more query may be answered, in a datagram or over a connection. A flood must not fill the log, so that it may not
    /// is recorded once for each time that it asks too much.
    pub(crate) fn may_ask(&self) -> bool {
        let may = self.queries.lock().unwrap_or_else(PoisonError::into_inner).take();
        if self.asks_too_much.swap(!may, Ordering::Relaxed) || may {
            return may;
        }
        self.room.refuse(Protocol::Dns, "", 53, TOO_MANY);
        false
    }

    /// A place for one more connection; without one, whether that is to be recorded. A flood must not fill the log, so that is once
    /// for each time that it fills up.
    pub(crate) fn place(&self) -> Result<Place, bool> {
        let may = self.connections.lock().unwrap_or_else(PoisonError::into_inner).take();
        match may.then(|| self.room.share.take()).flatten() {
            Some(place) => {
                self.full.store(false, Ordering::Relaxed);
                Ok(place)
            }
            None => Err(!self.full.swap(true, Ordering::Relaxed)),
        }
    }
}

/// Those whom a socket serves.
#[derive(Clone)]
pub(crate) enum Tenants {
    /// One, whoever connects: nobody else can.
    One(Arc<Tenant>),
    /// Each by the addresses that it has. Nobody else is served.
    Many(Arc<RwLock<HashMap<IpAddr, Arc<Tenant>>>>),
}

impl Tenants {
    /// Who has this address.
    pub(crate) fn at(&self, address: IpAddr) -> Option<Arc<Tenant>> {
        match self {
            Self::One(tenant) => Some(tenant.clone()),
            Self::Many(tenants) => tenants.read().unwrap_or_else(PoisonError::into_inner).get(&address).cloned(),
        }
    }
}
