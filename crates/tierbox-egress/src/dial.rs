//! From a name to a connection: resolved once, checked, and dialled at the address that was checked.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
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

/// The most names that one sandbox resolves at once, so that slow ones do not keep others waiting.
const MOST_LOOKUPS: usize = 4;

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
        let resolved = tokio::task::spawn_blocking(move || {
            let listed = std::fs::read_to_string("/etc/hosts").map(|hosts| listed(&hosts, &name)).unwrap_or_default();
            if !listed.is_empty() {
                return Ok(listed);
            }
            // The dot keeps the resolver from trying the name below the host's own domains.
            Ok((format!("{name}."), 0).to_socket_addrs()?.map(|address| address.ip()).collect())
        });
        resolved.await.map_err(io::Error::other)?
    }
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
    resolver: std::sync::Arc<dyn Resolver>,
    refused: fn(IpAddr) -> Option<&'static str>,
    kept: Mutex<HashMap<String, (Instant, Vec<IpAddr>)>>,
    lookups: Semaphore,
}

impl Dialer {
    pub(crate) fn new(resolver: std::sync::Arc<dyn Resolver>, refused: fn(IpAddr) -> Option<&'static str>) -> Self {
        Self { resolver, refused, kept: Mutex::default(), lookups: Semaphore::new(MOST_LOOKUPS) }
    }

    /// A connection to a name, and the address that it leads to.
    pub(crate) async fn dial(&self, name: &str, port: u16) -> Result<(TcpStream, IpAddr), DialError> {
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
        let work = async {
            let _place = self.lookups.acquire().await;
            self.resolver.resolve(name).await
        };
        let addresses = match timeout(RESOLVE, work).await {
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

    fn kept(&self, name: &str) -> Option<Vec<IpAddr>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(name).filter(|(since, _)| since.elapsed() < KEPT).map(|(_, addresses)| addresses.clone())
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn hosts_are_found_by_whole_names() {
        let hosts = "127.0.0.1 localhost\n# 9.9.9.9 a.test\n203.0.113.1\tb.test A.test # a\n203.0.113.2 a.test.evil\nx a.test\n";
        assert_eq!(listed(hosts, "a.test"), ["203.0.113.1".parse::<IpAddr>().unwrap()]);
        assert!(listed(hosts, "test").is_empty());
    }
}
