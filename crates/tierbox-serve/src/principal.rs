//! Who asks, and whether they may ask at all: by the socket they come over, by their token, by what their browser adds.

use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HOST, ORIGIN};
use tierbox::{Error, ErrorKind, Result};

use crate::grant::Grant;
use crate::tokens::Tokens;
use crate::turns::Client;

/// The header by which a client names itself, so that its leases and its place in the queue are its own.
pub(crate) const CLIENT: &str = "tierbox-client";

/// Whose request it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Principal {
    /// Sets up and scores: may do everything.
    Harness,
    /// May do in the machines of this grant what the tier's tooling axis allows.
    Agent(Grant),
}

/// How a connection came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Over the Unix socket, from this process of our own user.
    Unix {
        /// Its process id.
        pid: i32,
        /// Its user: ours, or root.
        uid: u32,
    },
    /// Over TCP, to this port of ours.
    Tcp {
        /// The port.
        port: u16,
    },
}

/// Why a request is not heard.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It carries no token, or a wrong one.
    Unauthorized,
    /// It comes through a browser, or to a name that is not ours.
    Forbidden(&'static str),
}

impl Origin {
    /// Whose request it is, and by what one knows: the token or the user.
    pub fn principal(&self, headers: &HeaderMap, tokens: &Tokens) -> std::result::Result<(Principal, String), Refusal> {
        // Whatever a browser sends on its own account carries one of these. No client of ours does.
        if headers.contains_key(ORIGIN) || headers.contains_key("sec-fetch-site") {
            return Err(Refusal::Forbidden("requests from browsers are refused"));
        }
        if let Self::Tcp { port } = self
            && !names_us(headers, *port)
        {
            return Err(Refusal::Forbidden("the Host header does not name this daemon"));
        }
        match (headers.get(AUTHORIZATION), self) {
            (Some(value), _) => {
                let token = value.to_str().ok().and_then(|text| text.strip_prefix("Bearer ")).map(str::trim);
                let known = token.and_then(|token| Some((tokens.principal(token)?, token)));
                let (principal, token) = known.ok_or(Refusal::Unauthorized)?;
                Ok((principal, format!("token-{}", Tokens::mark(token))))
            }
            (None, Self::Unix { uid, .. }) => Ok((Principal::Harness, format!("uid-{uid}"))),
            (None, Self::Tcp { .. }) => Err(Refusal::Unauthorized),
        }
    }

    /// The client, for the queue and for `renew`: whose it is, and what it calls itself, else its process.
    ///
    /// # Errors
    /// `InvalidInput` for what cannot be a name.
    pub fn client(&self, headers: &HeaderMap, owner: String) -> Result<Client> {
        Ok(Client { owner, name: self.name(headers)? })
    }

    fn name(&self, headers: &HeaderMap) -> Result<String> {
        let Some(value) = headers.get(CLIENT) else {
            return Ok(match self {
                Self::Unix { pid, .. } => format!("pid-{pid}"),
                Self::Tcp { .. } => "tcp".to_owned(),
            });
        };
        let name = value.to_str().unwrap_or_default();
        let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if (1..=64).contains(&name.len()) && name.bytes().all(fine) {
            return Ok(name.to_owned());
        }
        let message = format!("{CLIENT} is not 1 to 64 letters, digits, dashes, underscores and dots");
        Err(Error::new(ErrorKind::InvalidInput, "read request", message))
    }
}

/// Against names that were bound to this address by somebody else's DNS.
fn names_us(headers: &HeaderMap, port: u16) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let Some((name, stated)) = host.to_str().ok().and_then(|host| host.rsplit_once(':')) else { return false };
    stated.parse() == Ok(port) && ["127.0.0.1", "localhost", "[::1]"].contains(&name)
}

#[cfg(test)]
mod unit {
    use super::*;

    fn ask(origin: &Origin, headers: &[(&'static str, &str)]) -> std::result::Result<Principal, Refusal> {
        let headers = headers.iter().map(|(name, value)| (hyper::header::HeaderName::from_static(name), value.parse().unwrap()));
        origin.principal(&headers.collect(), &Tokens::ephemeral().unwrap()).map(|(principal, _)| principal)
    }

    #[test]
    fn who_comes_over_tcp_needs_a_token_and_our_name() {
        let tcp = Origin::Tcp { port: 80 };
        for host in ["evil.example:80", "127.0.0.1:81", "127.0.0.1", "localhost.evil.example:80", ""] {
            assert!(matches!(ask(&tcp, &[("host", host)]), Err(Refusal::Forbidden(_))), "{host}");
        }
        for host in ["127.0.0.1:80", "localhost:80", "[::1]:80"] {
            assert_eq!(ask(&tcp, &[("host", host)]), Err(Refusal::Unauthorized));
        }
        assert_eq!(ask(&tcp, &[("host", "localhost:80"), ("authorization", "Bearer x")]), Err(Refusal::Unauthorized));
    }

    #[test]
    fn a_browser_is_refused_on_every_socket() {
        let unix = Origin::Unix { pid: 1, uid: 0 };
        assert_eq!(ask(&unix, &[]), Ok(Principal::Harness));
        for header in [("origin", "null"), ("origin", "http://localhost"), ("sec-fetch-site", "none")] {
            assert!(matches!(ask(&unix, &[header]), Err(Refusal::Forbidden(_))));
        }
        assert_eq!(ask(&unix, &[("authorization", "Basic eDp5")]), Err(Refusal::Unauthorized));
    }
}
