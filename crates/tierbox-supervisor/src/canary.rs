//! Canaries of verification: listeners that tell whoever reaches them that the place in which they stand is in reach.
//!
//! The harness opens them where it runs. Where an engine runs in another network, the program of this crate opens them there
//! (`tierbox-supervisor canaries`), and prints what [`Listeners::told`] says.

use std::fmt::Write as _;
use std::io::{Result, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;

/// The most addresses of a host that are told. Every bridge has one, and the one of the environment must be among them.
pub const MOST_ADDRESSES: usize = 24;

/// Listeners of every kind, open to everybody in this network, each of which answers with the nonce.
#[derive(Debug)]
pub struct Listeners {
    nonce: String,
    tcp: TcpListener,
    udp: UdpSocket,
    /// A host without IPv6 has nothing to hide there.
    tcp6: Option<TcpListener>,
    udp6: Option<UdpSocket>,
    dns: UdpSocket,
    unix: Vec<UnixListener>,
}

/// Where canaries listen: what is needed to ask for them from elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports {
    /// TCP on every IPv4 address.
    pub tcp: u16,
    /// UDP on every IPv4 address.
    pub udp: u16,
    /// TCP on every IPv6 address.
    pub tcp6: Option<u16>,
    /// UDP on every IPv6 address.
    pub udp6: Option<u16>,
    /// A resolver that answers every question without an answer.
    pub dns: u16,
}

impl Listeners {
    /// Opens them. `unix` are listeners of the caller's that answer in the same way.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(nonce: &str, unix: Vec<UnixListener>) -> Result<Self> {
        let listeners = Self {
            nonce: nonce.to_owned(),
            tcp: TcpListener::bind("0.0.0.0:0")?,
            udp: UdpSocket::bind("0.0.0.0:0")?,
            tcp6: TcpListener::bind("[::]:0").ok(),
            udp6: UdpSocket::bind("[::]:0").ok(),
            dns: UdpSocket::bind("0.0.0.0:0")?,
            unix,
        };
        listeners.all_tcp().try_for_each(|listener| listener.set_nonblocking(true))?;
        listeners.unix.iter().try_for_each(|listener| listener.set_nonblocking(true))?;
        listeners.all_udp().chain([&listeners.dns]).try_for_each(|socket| socket.set_nonblocking(true))?;
        Ok(listeners)
    }

    /// Where they listen.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn ports(&self) -> Result<Ports> {
        let port = |address: Result<SocketAddr>| address.map(|address| address.port());
        Ok(Ports {
            tcp: port(self.tcp.local_addr())?,
            udp: port(self.udp.local_addr())?,
            tcp6: self.tcp6.as_ref().map(|listener| port(listener.local_addr())).transpose()?,
            udp6: self.udp6.as_ref().map(|socket| port(socket.local_addr())).transpose()?,
            dns: port(self.dns.local_addr())?,
        })
    }

    /// What to wait for.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let tcp = self.all_tcp().map(AsFd::as_fd);
        let udp = self.all_udp().chain([&self.dns]).map(AsFd::as_fd);
        tcp.chain(udp).chain(self.unix.iter().map(AsFd::as_fd)).collect()
    }

    /// Answers whoever has come, and waits for nobody.
    pub fn answer(&self) {
        for listener in self.all_tcp() {
            while let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.write_all(self.nonce.as_bytes());
            }
        }
        for listener in &self.unix {
            while let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.write_all(self.nonce.as_bytes());
            }
        }
        let mut question = [0; 512];
        for socket in self.all_udp() {
            while let Ok((_, from)) = socket.recv_from(&mut question) {
                let _ = socket.send_to(self.nonce.as_bytes(), from);
            }
        }
        while let Ok((count, from)) = self.dns.recv_from(&mut question) {
            if count >= 12 {
                // The same question, marked as an answer without one.
                question[2] |= 0x80;
                let _ = self.dns.send_to(&question[..count], from);
            }
        }
    }

    /// What the program prints of them: a word and what it stands for, a line each.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn told(&self) -> Result<String> {
        let Ports { tcp, udp, tcp6, udp6, dns } = self.ports()?;
        let mut text = format!("tcp {tcp}\nudp {udp}\ndns {dns}\n");
        for (word, port) in [("tcp6", tcp6), ("udp6", udp6)] {
            if let Some(port) = port {
                let _ = writeln!(text, "{word} {port}");
            }
        }
        let (four, six) = addresses();
        for address in four.iter().chain(&six) {
            let _ = writeln!(text, "address {address}");
        }
        let namespace = std::fs::read_link("/proc/self/ns/net")?;
        let _ = writeln!(text, "namespace {}", namespace.display());
        Ok(text)
    }

    fn all_tcp(&self) -> impl Iterator<Item = &TcpListener> {
        [&self.tcp].into_iter().chain(&self.tcp6)
    }

    fn all_udp(&self) -> impl Iterator<Item = &UdpSocket> {
        [&self.udp].into_iter().chain(&self.udp6)
    }
}

/// This network's own addresses as the kernel lists them, IPv4 and IPv6, loopback first in each.
pub fn addresses() -> (Vec<String>, Vec<String>) {
    let (mut four, mut six) = (vec!["127.0.0.1".to_owned()], vec!["::1".to_owned()]);
    let list = std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let mut last = "";
    for line in list.lines() {
        if line.contains("/32 host LOCAL") && !last.starts_with("127.") && !four.iter().any(|known| known == last) {
            four.push(last.to_owned());
        }
        if let Some(address) = line.trim().strip_prefix("|-- ") {
            last = address;
        }
    }
    let list = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    for line in list.lines() {
        let hex = line.split_whitespace().next().unwrap_or_default();
        let Ok(bits) = u128::from_str_radix(hex, 16) else { continue };
        let address = std::net::Ipv6Addr::from(bits);
        // Link-local ones need an interface, which the machine names differently.
        if !address.is_loopback() && (bits >> 118) != 0x3fa {
            six.push(address.to_string());
        }
    }
    four.truncate(MOST_ADDRESSES);
    six.truncate(MOST_ADDRESSES);
    (four, six)
}
