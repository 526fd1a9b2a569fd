//! Canaries on the engine's own host, where that is in another network than this process.
//!
//! The twin whose network is the host's stands there, so it opens them. What shows that they are reached from there is another such
//! twin: had the engine given each a network of its own, the one would not hear the other.

use std::net::IpAddr;
use std::time::Duration;

use tierbox_core::{Error, ErrorKind, ExecRequest, GuestPath, Result, Sandbox, SandboxExt};
use tierbox_supervisor::canary::{MOST_ADDRESSES, Ports};

use super::canary::Canaries;
use super::run::put;

/// How long they stand at most. The end of their twin is their end too.
const STAND: Duration = Duration::from_secs(60);
/// How long they may take to stand.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where they listen, and what that network is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Elsewhere {
    pub ports: Ports,
    /// IPv4 addresses of that host, loopback first.
    pub addresses4: Vec<String>,
    /// IPv6 addresses of that host, loopback first.
    pub addresses6: Vec<String>,
    /// Its network namespace.
    pub namespace: String,
}

impl Elsewhere {
    /// Opens canaries in a twin on the engine's host, with the nonce of this host's own.
    ///
    /// # Errors
    /// What came of the program, or that its words make no sense.
    pub(super) async fn open(twin: &dyn Sandbox, program: &'static [u8], canaries: &Canaries) -> Result<Self> {
        let path = put(twin, program, &format!("tierbox-canaries-{}", &canaries.nonce[..12])).await?;
        let seconds = STAND.as_secs().to_string();
        let argv = [&path, "canaries", &canaries.nonce, &canaries.nameless, &seconds].map(str::to_owned);
        let result = twin.run(ExecRequest::new(argv).timeout(PATIENCE)).await;
        let _ = twin.remove(&GuestPath::from(path.as_str()), false).await;
        let result = result?;
        let failed = |why: String| {
            let why: String = why.chars().filter(|char| !char.is_control()).take(300).collect();
            Error::new(ErrorKind::Io, "open canaries", format!("none stand on the engine's host: {why}"))
        };
        if !result.success() {
            return Err(failed(format!("the program {}: {}", result.outcome(), result.stderr.text())));
        }
        Self::parse(&result.stdout.text()).ok_or_else(|| failed("the program's words make no sense".to_owned()))
    }

    /// What the program prints. A container said it: everything is what it must be, or nothing is believed.
    fn parse(text: &str) -> Option<Self> {
        let (mut four, mut six) = (Vec::new(), Vec::new());
        let (mut tcp, mut udp, mut dns, mut tcp6, mut udp6, mut namespace) = (None, None, None, None, None, None);
        for line in text.lines() {
            let (word, value) = line.split_once(' ')?;
            let port = || value.parse::<u16>().ok().filter(|port| *port > 0);
            match word {
                "tcp" => tcp = Some(port()?),
                "udp" => udp = Some(port()?),
                "dns" => dns = Some(port()?),
                "tcp6" => tcp6 = Some(port()?),
                "udp6" => udp6 = Some(port()?),
                "address" => match value.parse::<IpAddr>().ok()? {
                    IpAddr::V4(address) => four.push(address.to_string()),
                    IpAddr::V6(address) => six.push(address.to_string()),
                },
                "namespace" => {
                    let inode = value.strip_prefix("net:[")?.strip_suffix(']')?;
                    namespace = Some(format!("net:[{}]", inode.parse::<u64>().ok()?));
                }
                _ => return None,
            }
        }
        if four.len().max(six.len()) > MOST_ADDRESSES {
            return None;
        }
        let ports = Ports { tcp: tcp?, udp: udp?, tcp6, udp6, dns: dns? };
        Some(Self { ports, addresses4: four, addresses6: six, namespace: namespace? })
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    const TOLD: &str = "tcp 1\nudp 2\ndns 3\ntcp6 4\naddress 127.0.0.1\naddress 172.17.0.1\naddress ::1\nnamespace net:[42]\n";

    #[test]
    fn only_what_makes_sense_is_believed() {
        let told = Elsewhere::parse(TOLD).unwrap();
        assert_eq!(told.ports, Ports { tcp: 1, udp: 2, tcp6: Some(4), udp6: None, dns: 3 });
        assert_eq!((told.addresses4.len(), told.addresses6, told.namespace.as_str()), (2, vec!["::1".to_owned()], "net:[42]"));
        let many = format!("{TOLD}{}", "address 10.0.0.1\n".repeat(MOST_ADDRESSES));
        let without = TOLD.replace("udp 2\n", "");
        let other = |from: &str, to: &str| TOLD.replace(from, to);
        for bad in ["", &many, &without, &other("tcp 1", "tcp 0"), &other("tcp 1", "tcp 65536"), &other("42", "4 2")] {
            assert_eq!(Elsewhere::parse(bad), None, "{bad}");
        }
        for (from, to) in [("172.17.0.1", "172.17.0.1/x"), ("net:[42]", "net:[]"), ("address ::1", "adress ::1")] {
            assert_eq!(Elsewhere::parse(&other(from, to)), None, "{to}");
        }
    }

    /// What the listeners tell is what is understood here.
    #[test]
    fn the_words_are_those_of_the_listeners() {
        let listeners = tierbox_supervisor::canary::Listeners::open("n", Vec::new()).unwrap();
        let told = Elsewhere::parse(&listeners.told().unwrap()).unwrap();
        assert_eq!(told.ports, listeners.ports().unwrap());
        assert_eq!(told.addresses4[0], "127.0.0.1");
        assert_eq!(told.namespace, std::fs::read_link("/proc/self/ns/net").unwrap().to_string_lossy());
    }
}
