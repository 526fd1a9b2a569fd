//! What the gateway knows of one sandbox, and the decisions about it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tierbox_core::{AllowScheme, Decision, Protocol, Verdict};
use tokio::net::TcpStream;

use crate::budget::Share;
use crate::dial::{DialError, Dialer};
use crate::log::Log;
use crate::rules::Rules;

/// The longest name in a record.
const LONGEST_NAME: usize = 255;

/// One sandbox.
pub(crate) struct Room {
    pub(crate) sandbox: String,
    pub(crate) rules: Rules,
    pub(crate) address: Ipv4Addr,
    pub(crate) log: Log,
    pub(crate) dialer: Dialer,
    pub(crate) share: Share,
    pub(crate) asked: AtomicU64,
    pub(crate) open: Open,
}

/// How much that was allowed goes on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Open(Arc<(Mutex<usize>, Condvar)>);

impl Open {
    fn change(&self, change: impl FnOnce(usize) -> usize) {
        let mut open = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        *open = change(*open);
        self.0.1.notify_all();
    }

    /// Waits until nothing goes on any more, for at most `limit`.
    pub(crate) fn is_over(&self, limit: Duration) -> bool {
        let open = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.1.wait_timeout_while(open, limit, |open| *open > 0);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// As [`tierbox_core::host_name`] gives it.
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) scheme: AllowScheme,
}

/// A connection to a server, to which nothing went yet.
pub(crate) struct Dialled {
    pub(crate) stream: TcpStream,
    pub(crate) address: IpAddr,
    pub(crate) rule: String,
}

/// Why not, in words for the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Denied {
    /// Not allowed.
    Refused(String),
    /// Allowed, and it did not work.
    Failed(String),
}

impl Room {
    /// Writes a decision that is no allowance.
    pub(crate) fn refuse(&self, protocol: Protocol, name: &str, port: u16, why: impl Into<String>) -> Denied {
        let why = why.into();
        self.note(protocol, name, port, None, Verdict::Refused, why.clone());
        Denied::Refused(why)
    }

    /// Writes that a connection to this address, which was made, is not used.
    pub(crate) fn unused(&self, target: &Target, address: IpAddr, verdict: Verdict, why: String) {
        self.note(protocol(target.scheme), &target.name, target.port, Some(address), verdict, why);
    }

    fn note(&self, protocol: Protocol, name: &str, port: u16, address: Option<IpAddr>, verdict: Verdict, why: String) {
        let decision = self.decision(self.next(), protocol, name, port, verdict, why);
        self.log.write(&Decision { address, ..decision });
    }

    /// Writes what was answered to a query. False if nothing may be answered.
    pub(crate) fn answered(&self, name: &str, rule: Option<String>) -> bool {
        let verdict = if rule.is_some() { Verdict::Allowed } else { Verdict::Refused };
        let rule = rule.unwrap_or_else(|| NOT_LISTED.to_owned());
        self.log.write(&self.decision(self.next(), Protocol::Dns, name, 53, verdict, rule))
    }

    /// Connects to what was asked for, if it is allowed.
    pub(crate) async fn connect(self: &Arc<Self>, target: &Target) -> Result<(TcpStream, Flow), Denied> {
        let Dialled { stream, address, rule } = self.dial(target).await?;
        self.begin(target, address, rule).map(|flow| (stream, flow))
    }

    /// Connects to what would be allowed, if what comes is what is said of it. Nothing goes there before [`begin`](Self::begin).
    pub(crate) async fn dial(&self, target: &Target) -> Result<Dialled, Denied> {
        let protocol = protocol(target.scheme);
        let Some(rule) = self.rules.find(&target.name, target.port, target.scheme) else {
            return Err(self.refuse(protocol, &target.name, target.port, NOT_LISTED));
        };
        let rule = rule.to_string();
        match self.dialer.dial(&target.name, target.port).await {
            Ok((stream, address)) => Ok(Dialled { stream, address, rule }),
            Err(error) => Err(self.undialled(target, error)),
        }
    }

    /// Another request over a connection to an address that was checked.
    pub(crate) fn begin(self: &Arc<Self>, target: &Target, address: IpAddr, rule: String) -> Result<Flow, Denied> {
        let mut decision = self.decision(self.next(), protocol(target.scheme), &target.name, target.port, Verdict::Allowed, rule);
        decision.address = Some(address);
        if !self.log.write(&decision) {
            return Err(Denied::Refused("the log of decisions cannot be written".to_owned()));
        }
        self.open.change(|open| open + 1);
        Ok(Flow { room: self.clone(), decision, sent: AtomicU64::new(0), received: AtomicU64::new(0) })
    }

    fn undialled(&self, target: &Target, error: DialError) -> Denied {
        let (verdict, address, why) = match error {
            DialError::Refused(address, what) => {
                (Verdict::Refused, Some(address), format!("the name leads to {address}, which is {what}"))
            }
            DialError::Failed(address, why) => (Verdict::Failed, address, why),
        };
        self.note(protocol(target.scheme), &target.name, target.port, address, verdict, why.clone());
        if verdict == Verdict::Refused { Denied::Refused(why) } else { Denied::Failed(why) }
    }

    fn next(&self) -> u64 {
        self.asked.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn decision(&self, id: u64, protocol: Protocol, name: &str, port: u16, verdict: Verdict, rule: String) -> Decision {
        let name = name.chars().take(LONGEST_NAME).map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect();
        Decision {
            time: SystemTime::now(),
            sandbox: self.sandbox.clone(),
            machine: None,
            id,
            protocol,
            name,
            address: None,
            port,
            verdict,
            rule,
            sent: 0,
            received: 0,
            verification: false,
        }
    }
}

/// Why most is refused.
pub(crate) const NOT_LISTED: &str = "not in network.allow";

fn protocol(scheme: AllowScheme) -> Protocol {
    match scheme {
        AllowScheme::Http => Protocol::Http,
        AllowScheme::Https => Protocol::Tls,
        AllowScheme::Tcp => Protocol::Tcp,
    }
}

/// Something that was allowed and goes on. Its end is written when it is dropped.
pub(crate) struct Flow {
    room: Arc<Room>,
    decision: Decision,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Flow {
    /// The address it leads to.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        self.decision.address
    }

    /// Writes why it is cut.
    pub(crate) fn refuse(&self, why: String) {
        let Decision { protocol, name, port, address, .. } = &self.decision;
        self.room.note(*protocol, name, *port, *address, Verdict::Refused, why);
    }

    /// Bytes went out.
    pub(crate) fn sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes came in.
    pub(crate) fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.decision.time = SystemTime::now();
        self.decision.verdict = Verdict::Ended;
        self.decision.sent = *self.sent.get_mut();
        self.decision.received = *self.received.get_mut();
        self.room.log.write(&self.decision);
        self.room.open.change(|open| open.saturating_sub(1));
    }
}
