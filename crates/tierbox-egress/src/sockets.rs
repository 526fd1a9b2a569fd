//! The sockets that a sandbox reaches, and nothing else.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::rules::Rules;
use crate::serve::Role;

/// The proxy's port.
pub const PROXY_PORT: u16 = 3128;

/// The port of queries.
const DNS_PORT: u16 = 53;

/// Where the gateway listens for one sandbox: an address that only the sandbox reaches, and ports on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    address: Ipv4Addr,
    ports: Vec<u16>,
}

impl Plan {
    /// Plans for an address. Besides DNS and the proxy there is a listener for each port on which a rule allows HTTP or TLS.
    pub fn new(address: Ipv4Addr, rules: &Rules) -> Self {
        Self { address, ports: rules.ports().into_iter().filter(|port| ![DNS_PORT, PROXY_PORT].contains(port)).collect() }
    }

    /// Plans for a gateway that serves many: listeners on the usual ports of HTTP and TLS. Those on other ports are reached by the
    /// proxy.
    pub fn shared(address: Ipv4Addr) -> Self {
        Self { address, ports: vec![80, 443] }
    }

    /// The gateway's address: the sandbox's only resolver, and what every allowed name resolves to.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The address and port of each TCP listener, in the order in which [`Sockets::from_descriptors`] takes them. The
    /// datagram socket, on port 53, comes before them.
    pub fn tcp(&self) -> Vec<SocketAddr> {
        self.roles().into_iter().map(|role| SocketAddr::from((self.address, port_of(role)))).collect()
    }

    fn roles(&self) -> Vec<Role> {
        [Role::Dns, Role::Proxy].into_iter().chain(self.ports.iter().copied().map(Role::Port)).collect()
    }

    /// The variables that programs in the sandbox look at.
    pub fn variables(&self) -> Vec<(String, String)> {
        let proxy = format!("http://{}:{PROXY_PORT}", self.address);
        let own = "localhost,127.0.0.1,::1".to_owned();
        // curl reads http_proxy in lower case only; others read either.
        ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"]
            .into_iter()
            .map(|name| (name.to_owned(), proxy.clone()))
            .chain(["no_proxy", "NO_PROXY"].into_iter().map(|name| (name.to_owned(), own.clone())))
            .collect()
    }

    /// Listens, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// As `bind(2)`, naming the address.
    pub fn bind(&self) -> io::Result<Sockets> {
        let named = |address: SocketAddr| move |error: io::Error| io::Error::new(error.kind(), format!("{address}: {error}"));
        let query = SocketAddr::from((self.address, DNS_PORT));
        let datagrams = UdpSocket::bind(query).map_err(named(query))?;
        let listeners = self.roles().into_iter().map(|role| {
            let address = SocketAddr::from((self.address, port_of(role)));
            TcpListener::bind(address).map(|listener| (role, listener)).map_err(named(address))
        });
        Ok(Sockets { datagrams, listeners: listeners.collect::<io::Result<_>>()? })
    }

    /// Listens in another network namespace, given as an open `/proc/<pid>/ns/net`. Needs CAP_SYS_ADMIN in the caller's
    /// own user namespace. The address must exist there.
    ///
    /// # Errors
    /// As `setns(2)` and `bind(2)`.
    pub fn bind_in(&self, namespace: BorrowedFd<'_>) -> io::Result<Sockets> {
        // Only the thread that enters is moved, and it ends here.
        let work = || {
            rustix::thread::move_into_link_name_space(namespace, Some(rustix::thread::LinkNameSpaceType::Network))?;
            self.bind()
        };
        std::thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked"))))
    }
}

fn port_of(role: Role) -> u16 {
    match role {
        Role::Dns => DNS_PORT,
        Role::Proxy => PROXY_PORT,
        Role::Port(port) => port,
    }
}

/// Sockets that listen.
#[derive(Debug)]
pub struct Sockets {
    pub(crate) datagrams: UdpSocket,
    pub(crate) listeners: Vec<(Role, TcpListener)>,
}

impl Sockets {
    /// Sockets that somebody else made: the datagram socket, then the listeners of [`Plan::tcp`].
    ///
    /// # Errors
    /// `InvalidData` if they are not those of the plan.
    pub fn from_descriptors(plan: &Plan, mut descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        if descriptors.len() != plan.roles().len() + 1 {
            return Err(wrong("another number of sockets than planned"));
        }
        let listeners = descriptors.split_off(1).into_iter().map(TcpListener::from);
        let datagrams = descriptors.pop().map(UdpSocket::from).ok_or_else(|| wrong("no socket for datagrams"))?;
        let listeners: Vec<_> = plan.roles().into_iter().zip(listeners).collect();
        for (role, listener) in &listeners {
            if listener.local_addr()? != SocketAddr::from((plan.address, port_of(*role))) {
                return Err(wrong("a socket that listens elsewhere than planned"));
            }
        }
        Ok(Self { datagrams, listeners })
    }

    /// The descriptors, in the order of [`from_descriptors`](Self::from_descriptors).
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        std::iter::once(self.datagrams.as_fd()).chain(self.listeners.iter().map(|(_, listener)| listener.as_fd())).collect()
    }
}
