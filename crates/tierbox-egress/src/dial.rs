//! From a name to a connection: resolved once, checked, and dialled at the address that was checked.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

/// How long a name may take to resolve.
const RESOLVE: Duration = Duration::from_secs(10);

/// How long an address may take to answer.
const CONNECT: Duration = Duration::from_secs(10);

/// How long addresses are used again.
const KEPT: Duration = Duration::from_secs(30);

/// The most names whose addresses are kept.
const MOST_KEPT: usize = 256;

/// The most addresses of a name that are tried.
const MOST_TRIED: usize = 4;

/// The most names that one sandbox resolves at once. The system's resolver cannot be interrupted, so a place is taken until it
/// has answered, however long ago whoever asked gave up: a sandbox that asks for slow names waits for itself and nobody else.
const MOST_LOOKUPS: usize = 4;

/// The stack of a thread that resolves a name: the C library and its modules are modest.
const STACK: usize = 512 << 10;

/// Names and ports that lead to an address of this host's, in a twin.
pub(crate) type Leads = HashMap<(String, u16), SocketAddr>;

/// Turns names into addresses.
#[async_trait]
pub trait Resolver: Send + Sync {
    /// The addresses of a name, best first. The name is complete: no search domain may be added.
    ///
    /// # Errors
    /// As the system says.
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>>;
}

/// As this host resolves names: `/etc/hosts`, then its resolver.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemResolver;

#[async_trait]
impl Resolver for SystemResolver {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let name = name.to_owned();
        let (answer, answered) = oneshot::channel();
        // A thread for each: how many there are is bounded by whoever asks, and one sandbox's take none from another's.
        let work = move || drop(answer.send(look_up(&name)));
        std::thread::Builder::new().name("tierbox-resolve".into()).stack_size(STACK).spawn(work)?;
        answered.await.map_err(io::Error::other)?
    }
}

fn look_up(name: &str) -> io::Result<Vec<IpAddr>> {
    let listed = std::fs::read_to_string("/etc/hosts").map(|hosts| listed(&hosts, name)).unwrap_or_default();
    if !listed.is_empty() {
        return Ok(listed);
    }
    // The dot keeps the resolver from trying the name below the host's own domains.
    Ok((format!("{name}."), 0).to_socket_addrs()?.map(|address| address.ip()).collect())
}

/// The addresses of a name in a file like `/etc/hosts`.
fn listed(hosts: &str, name: &str) -> Vec<IpAddr> {
    let of_line = |line: &str| {
        let mut words = line.split('#').next()?.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
    };
    hosts.lines().filter_map(of_line).collect()
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DialError {
    /// The name leads to where nobody may go.
    Refused(IpAddr, &'static str),
    /// It leads nowhere, or nobody answers.
    Failed(Option<IpAddr>, String),
}

/// Dials for one sandbox.
pub(crate) struct Dialer {
    resolver: Arc<dyn Resolver>,
    refused: fn(IpAddr) -> Option<&'static str>,
    leads: Leads,
    kept: Mutex<HashMap<String, (Instant, Vec<IpAddr>)>>,
    lookups: Arc<Semaphore>,
    patience: Duration,
}

impl Dialer {
    pub(crate) fn new(resolver: Arc<dyn Resolver>, refused: fn(IpAddr) -> Option<&'static str>, leads: Leads) -> Self {
        let lookups = Arc::new(Semaphore::new(MOST_LOOKUPS));
        Self { resolver, refused, leads, kept: Mutex::default(), lookups, patience: RESOLVE }
    }

    /// A connection to a name, and the address that it leads to.
    pub(crate) async fn dial(&self, name: &str, port: u16) -> Result<(TcpStream, IpAddr), DialError> {
        if let Some(canary) = self.leads.get(&(name.to_owned(), port)) {
            let failed = |error: io::Error| DialError::Failed(Some(canary.ip()), error.to_string());
            return Ok((TcpStream::connect(canary).await.map_err(failed)?, canary.ip()));
        }
        let addresses = self.addresses(name).await.map_err(|why| DialError::Failed(None, why))?;
        let mut last = DialError::Failed(None, "the name has no address".to_owned());
        for address in addresses.into_iter().take(MOST_TRIED) {
            if let Some(why) = (self.refused)(address) {
                // What was refused tells more than what did not answer.
                last = DialError::Refused(address, why);
                continue;
            }
            let why = match timeout(CONNECT, TcpStream::connect((address, port))).await {
                Ok(Ok(stream)) => {
                    let _ = stream.set_nodelay(true);
                    return Ok((stream, address));
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer in time".to_owned(),
            };
            if !matches!(last, DialError::Refused(..)) {
                last = DialError::Failed(Some(address), why);
            }
        }
        Err(last)
    }

    async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, String> {
        if let Some(addresses) = self.kept(name) {
            return Ok(addresses);
        }
        let addresses = match timeout(self.patience, self.look_up(name)).await {
            Ok(Ok(addresses)) => addresses,
            Ok(Err(error)) => return Err(format!("the name cannot be resolved: {error}")),
            Err(_) => return Err("the name was not resolved in time".to_owned()),
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MOST_KEPT {
            kept.clear();
        }
        kept.insert(name.to_owned(), (Instant::now(), addresses.clone()));
        Ok(addresses)
    }

    /// Resolves a name once there is a place. The place is the lookup's, not the caller's: who gives up leaves it taken.
    async fn look_up(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let place = self.lookups.clone().acquire_owned().await.map_err(io::Error::other)?;
        let (resolver, name) = (self.resolver.clone(), name.to_owned());
        let lookup = tokio::spawn(async move {
            let _place = place;
            resolver.resolve(&name).await
        });
        lookup.await.map_err(io::Error::other)?
    }

    fn kept(&self, name: &str) -> Option<Vec<IpAddr>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(name).filter(|(since, _)| since.elapsed() < KEPT).map(|(_, addresses)| addresses.clone())
    }
}

#[cfg(test)]
mod unit {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A resolver that never answers for slow names, whoever stops waiting, and counts them.
    #[derive(Default)]
    struct Slow(AtomicUsize);

    #[async_trait]
    impl Resolver for Slow {
        async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
            if name.starts_with("slow") {
                self.0.fetch_add(1, Ordering::SeqCst);
                std::future::pending::<()>().await;
            }
            Err(io::Error::other("no such name"))
        }
    }

    #[test]
    fn slow_names_of_one_sandbox_keep_their_places_and_nobody_else_waits() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let resolver = Arc::new(Slow::default());
            let dialer = || {
                let mut dialer = Dialer::new(resolver.clone(), |_| None, Leads::new());
                dialer.patience = Duration::from_millis(50);
                Arc::new(dialer)
            };
            let (hostile, other) = (dialer(), dialer());
            let asked = (0..40).map(|number| {
                let hostile = hostile.clone();
                tokio::spawn(async move { hostile.dial(&format!("slow{number}.test"), 80).await.map(drop) })
            });
            for one in asked.collect::<Vec<_>>() {
                let refused = one.await.unwrap().unwrap_err();
                assert_eq!(refused, DialError::Failed(None, "the name was not resolved in time".to_owned()));
            }
            // All gave up, and the lookups still run: no more of them were begun than there are places.
            assert_eq!(resolver.0.load(Ordering::SeqCst), MOST_LOOKUPS);
            let quick = |dialer: Arc<Dialer>| async move { dialer.dial("quick.test", 80).await.map(drop).unwrap_err() };
            assert_eq!(quick(other).await, DialError::Failed(None, "the name cannot be resolved: no such name".to_owned()));
            assert_eq!(quick(hostile).await, DialError::Failed(None, "the name was not resolved in time".to_owned()));
        });
    }

    #[test]
    fn hosts_are_found_by_whole_names() {
        let hosts = "127.0.0.1 localhost\n# 9.9.9.9 a.test\n203.0.113.1\tb.test A.test # a\n203.0.113.2 a.test.evil\nx a.test\n";
        assert_eq!(listed(hosts, "a.test"), ["203.0.113.1".parse::<IpAddr>().unwrap()]);
        assert!(listed(hosts, "test").is_empty());
    }
}
