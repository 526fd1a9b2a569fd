//! N1 as data: the rules that allow names, and the decisions that were made by them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

/// What may be spoken to an allowed name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AllowScheme {
    /// Plain HTTP.
    Http,
    /// TLS that names the server (SNI).
    Https,
    /// Any bytes. Nothing but the name and the port is checked.
    Tcp,
}

impl AllowScheme {
    /// As written before `://`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Tcp => "tcp",
        }
    }
}

/// One entry of `network.allow`: `[scheme://][*.]name[:port]`.
///
/// Without a scheme, HTTP and HTTPS are allowed; without a port, 80 for HTTP and 443 for HTTPS. `tcp://` needs a port.
/// `*.name` stands for every name below `name`, and not for `name` itself. Names are compared in lower case.
///
/// ```
/// use tierbox_core::{AllowRule, AllowScheme};
///
/// let rule: AllowRule = "*.files.example.org".parse()?;
/// assert!(rule.allows("a.files.example.org", 443, AllowScheme::Https));
/// assert!(!rule.allows("files.example.org", 443, AllowScheme::Https));
/// assert!(!rule.allows("a.files.example.org", 8443, AllowScheme::Https));
/// assert!("192.0.2.1".parse::<AllowRule>().is_err()); // names only
/// # Ok::<(), tierbox_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AllowRule {
    scheme: Option<AllowScheme>,
    wildcard: bool,
    name: String,
    port: Option<u16>,
}

impl AllowRule {
    /// The scheme, where one is written.
    pub fn scheme(&self) -> Option<AllowScheme> {
        self.scheme
    }

    /// Whether it stands for the names below [`name`](Self::name).
    pub fn is_wildcard(&self) -> bool {
        self.wildcard
    }

    /// The name, in lower case, without `*.`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The port, where one is written.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Whether a name, as [`host_name`] gives it, is one of this rule's.
    pub fn covers_name(&self, name: &str) -> bool {
        if !self.wildcard {
            return name == self.name;
        }
        name.strip_suffix(&self.name).and_then(|rest| rest.strip_suffix('.')).is_some_and(|rest| !rest.is_empty())
    }

    /// Whether this may be spoken on a port.
    pub fn covers_port(&self, port: u16, scheme: AllowScheme) -> bool {
        let spoken = match self.scheme {
            Some(own) => own == scheme,
            None => scheme != AllowScheme::Tcp,
        };
        let usual = match scheme {
            AllowScheme::Http => port == 80,
            AllowScheme::Https => port == 443,
            AllowScheme::Tcp => false,
        };
        spoken && self.port.map_or(usual, |own| own == port)
    }

    /// Whether this may be spoken to a name on a port.
    pub fn allows(&self, name: &str, port: u16, scheme: AllowScheme) -> bool {
        self.covers_name(name) && self.covers_port(port, scheme)
    }

    /// Whether everything that it allows is allowed by another rule too.
    pub fn is_within(&self, other: &Self) -> bool {
        let below = |name: &str| name.strip_suffix(&other.name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        let names = if self.wildcard { other.wildcard && below(&self.name) } else { other.covers_name(&self.name) };
        let schemes = [AllowScheme::Http, AllowScheme::Https, AllowScheme::Tcp];
        let ways = self.ports().into_iter().flat_map(|port| schemes.map(|scheme| (port, scheme)));
        names
            && ways
                .filter(|(port, scheme)| self.covers_port(*port, *scheme))
                .all(|(port, scheme)| other.covers_port(port, scheme))
    }

    /// Every port that it allows.
    pub fn ports(&self) -> Vec<u16> {
        match (self.port, self.scheme) {
            (Some(port), _) => vec![port],
            (None, Some(AllowScheme::Http)) => vec![80],
            (None, Some(AllowScheme::Https)) => vec![443],
            (None, _) => vec![80, 443],
        }
    }
}

impl fmt::Display for AllowRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(scheme) = self.scheme {
            write!(f, "{}://", scheme.as_str())?;
        }
        write!(f, "{}{}", if self.wildcard { "*." } else { "" }, self.name)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl FromStr for AllowRule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse(text).map_err(|why| {
            let shown: String = text.chars().take(80).flat_map(char::escape_debug).collect();
            Error::new(ErrorKind::InvalidProfile, "read allowed name", format!("\"{shown}\" {why}"))
                .with_help("write [http://|https://|tcp://]NAME[:PORT], or *.NAME for the names below it")
        })
    }
}

fn parse(text: &str) -> Result<AllowRule, &'static str> {
    let (scheme, rest) = match text.split_once("://") {
        None => (None, text),
        Some(("http", rest)) => (Some(AllowScheme::Http), rest),
        Some(("https", rest)) => (Some(AllowScheme::Https), rest),
        Some(("tcp", rest)) => (Some(AllowScheme::Tcp), rest),
        Some(_) => return Err("has a scheme that is not http, https or tcp"),
    };
    if rest.starts_with('[') {
        return Err("is an address: only names can be allowed");
    }
    let (host, port) = match rest.split_once(':') {
        None => (rest, None),
        Some((host, port)) => (host, Some(parse_port(port).ok_or("has a bad port")?)),
    };
    if scheme == Some(AllowScheme::Tcp) && port.is_none() {
        return Err("needs a port: tcp has no usual one");
    }
    let (wildcard, host) = match host.strip_prefix("*.") {
        Some(host) => (true, host),
        None => (false, host),
    };
    if wildcard && !host.contains('.') {
        return Err("allows a whole top-level domain");
    }
    if host.ends_with('.') {
        return Err("ends in a dot");
    }
    Ok(AllowRule { scheme, wildcard, name: check_name(host)?, port })
}

/// A port in decimal digits alone, from 1 to 65535.
fn parse_port(text: &str) -> Option<u16> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| plain)
}

/// A host name in the form in which rules compare it: lower case, no closing dot. `None` if it is not a name: an address
/// in any spelling, characters beyond letters, digits, `-` and `_`, labels or names that are too long.
pub fn host_name(text: &str) -> Option<String> {
    check_name(text.strip_suffix('.').unwrap_or(text)).ok()
}

fn check_name(name: &str) -> Result<String, &'static str> {
    if !name.is_ascii() {
        return Err("has letters beyond ASCII: write the name in its ASCII form (xn--…)");
    }
    let label = |label: &str| {
        let plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        plain && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
    };
    if name.len() > 253 || !name.split('.').all(label) {
        return Err("is not a domain name");
    }
    // Resolvers read such a name as an address, in octal and hexadecimal too.
    let last = name.rsplit('.').next().unwrap_or(name).to_ascii_lowercase();
    let numeric = last.bytes().all(|byte| byte.is_ascii_digit());
    if numeric || last.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_hexdigit())) {
        return Err("is an address: only names can be allowed");
    }
    Ok(name.to_ascii_lowercase())
}

/// What the gateway decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It may go on.
    Allowed,
    /// It was refused; the rule says why.
    Refused,
    /// It was allowed and failed: no address, no answer.
    Failed,
    /// An allowed one is over; the bytes are known.
    Ended,
}

/// How it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// A query for a name.
    Dns,
    /// A request of plain HTTP.
    Http,
    /// A connection with TLS.
    Tls,
    /// A connection of any bytes.
    Tcp,
}

/// One decision of the N1 gateway: a line of its log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// When; in JSON, milliseconds since 1970.
    #[serde(with = "milliseconds")]
    pub time: SystemTime,
    /// The environment that asked.
    pub sandbox: String,
    /// The machine that asked, where each has a gateway of its own; `None` where one gateway serves the whole environment. Never in
    /// a gateway's own log: who reads it there tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Numbers what was asked of one gateway: an `ended` record has the number and the machine of its `allowed` one.
    pub id: u64,
    /// How it was asked for.
    pub protocol: Protocol,
    /// The name that was asked for, as far as one could be read. Never longer than 255 bytes.
    pub name: String,
    /// The address that was dialled.
    pub address: Option<IpAddr>,
    /// The port; 53 for queries.
    pub port: u16,
    /// What was decided.
    pub verdict: Verdict,
    /// The rule that allowed it, or why it was refused.
    pub rule: String,
    /// Bytes from the sandbox, in `ended` records.
    pub sent: u64,
    /// Bytes to the sandbox, in `ended` records.
    pub received: u64,
    /// Whether verification asked, and not what runs inside. Never in the gateway's own log: who reads it there tells.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub verification: bool,
}

impl Decision {
    /// The rule of the last line of a log that is full.
    pub const LOG_FULL: &'static str = "the log of decisions is full: nothing more is allowed, and nothing more is recorded";

    /// Whether this is the last line of a log that is full: what was refused after it is not known.
    pub fn is_log_full(&self) -> bool {
        self.verdict == Verdict::Refused && self.rule == Self::LOG_FULL
    }
}

mod milliseconds {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        serializer.serialize_u64(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let since = Duration::from_millis(u64::deserialize(deserializer)?);
        UNIX_EPOCH.checked_add(since).ok_or_else(|| serde::de::Error::custom("the time is out of range"))
    }
}

#[cfg(test)]
mod unit {
    use proptest::prelude::*;

    use super::*;

    fn rule(text: &str) -> AllowRule {
        text.parse().unwrap()
    }

    #[test]
    fn hostile_names_are_refused() {
        for bad in [
            "",
            ".",
            "*",
            "*.",
            "*.org",
            "*.*.example.org",
            "a.*.example.org",
            "*example.org",
            "example..org",
            ".example.org",
            "example.org.",
            "-a.example.org",
            "a-.example.org",
            "127.0.0.1",
            "[::1]",
            "::1",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "017700000001",
            "a.0x1",
            "example.org:0",
            "example.org:65536",
            "example.org:080",
            "example.org:+80",
            "example.org:",
            "ftp://example.org",
            "tcp://example.org",
            "https://example.org/",
            "https://u@example.org",
            "exämple.org",
            "example.org:443:443",
            "ex ample.org",
            "example.org\n",
            "example.org\0",
            "http:example.org",
            "HTTP://example.org",
        ] {
            let error = bad.parse::<AllowRule>().expect_err(bad);
            assert_eq!(error.kind(), ErrorKind::InvalidProfile, "{bad:?}");
        }
        assert!("a".repeat(64).parse::<AllowRule>().is_err());
        assert!(["a".repeat(60).as_str(); 5].join(".").parse::<AllowRule>().is_err());
    }

    #[test]
    fn schemes_and_ports_follow_what_is_usual() {
        use AllowScheme::{Http, Https, Tcp};
        let plain = rule("Example.ORG");
        assert!(plain.allows("example.org", 80, Http) && plain.allows("example.org", 443, Https));
        assert!(!plain.allows("example.org", 443, Http) && !plain.allows("example.org", 80, Https));
        assert!(!plain.allows("example.org", 443, Tcp));
        assert!(rule("example.org:8443").allows("example.org", 8443, Https));
        assert!(!rule("example.org:8443").allows("example.org", 443, Https));
        assert!(!rule("https://example.org").allows("example.org", 80, Http));
        assert!(rule("tcp://example.org:22").allows("example.org", 22, Tcp));
        assert!(!rule("tcp://example.org:22").allows("example.org", 22, Https));
    }

    #[test]
    fn suffixes_match_whole_labels_below() {
        let below = rule("*.example.org");
        assert!(below.covers_name("a.example.org") && below.covers_name("a.b.example.org"));
        for other in ["example.org", "badexample.org", "a.example.org.evil.test", ".example.org", "example.org.", ""] {
            assert!(!below.covers_name(other), "{other}");
        }
    }

    #[test]
    fn a_rule_is_within_another_if_it_allows_nothing_more() {
        for (inner, outer) in
            [("a.b.test", "*.b.test"), ("*.a.b.test", "*.b.test"), ("https://b.test", "b.test"), ("b.test:443", "b.test:443")]
        {
            assert!(rule(inner).is_within(&rule(outer)), "{inner} {outer}");
        }
        for (inner, outer) in [
            ("b.test", "*.b.test"),
            ("*.test.x", "*.b.test.x"),
            ("*.cb.test", "*.b.test"),
            ("b.test", "https://b.test"),
            ("b.test:8443", "b.test"),
            ("tcp://b.test:443", "b.test:443"),
            ("b.test:443", "b.test"),
            ("*.b.test", "a.b.test"),
        ] {
            assert!(!rule(inner).is_within(&rule(outer)), "{inner} {outer}");
        }
    }

    proptest! {
        #[test]
        fn display_and_parse_agree(text in "((http|https|tcp)://)?(\\*\\.)?[a-z0-9._-]{1,40}(:[0-9]{1,5})?") {
            if let Ok(rule) = text.parse::<AllowRule>() {
                prop_assert_eq!(rule.to_string(), text);
            }
        }

        #[test]
        fn any_text_gets_an_answer(text in ".{0,300}") {
            let _ = text.parse::<AllowRule>();
            if let Some(name) = host_name(&text) {
                let stable = host_name(&name);
                prop_assert_eq!(stable, Some(name));
            }
        }
    }
}
