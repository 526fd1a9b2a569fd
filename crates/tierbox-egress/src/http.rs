//! HTTP: each request is judged by itself, taken apart and written anew, so that nothing but what was judged goes on.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tierbox_core::{AllowScheme, Protocol, Verdict, host_name};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::Mutex;

use crate::body::{Counted, Way};
use crate::budget::Place;
use crate::idle::{Felt, Pulse};
use crate::room::{Denied, Dialled, Flow, Room, Target};
use crate::serve::Guard;
use crate::tunnel::{self, ALERT, IDLE, OPENING};

/// The most bytes of a request's or answer's head.
const LARGEST_HEAD: usize = 64 << 10;

/// The most header fields.
const MOST_FIELDS: usize = 128;

/// Headers that are about one connection and never go on.
const OF_THE_CONNECTION: [HeaderName; 5] = [CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];

/// The same, without constants.
const OF_THE_CONNECTION_TOO: [&str; 4] = ["keep-alive", "proxy-connection", "proxy-authorization", "proxy-authenticate"];

/// How a client came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// To the proxy: absolute URIs and `CONNECT`.
    Proxy,
    /// To a port, as if it were the server's.
    Port(u16),
}

/// One client connection.
struct Visit {
    room: Arc<Room>,
    entry: Entry,
    guard: Guard,
    /// Held until tunnels made over this connection have ended too.
    place: Arc<Place>,
    upstream: Mutex<Option<Upstream>>,
    /// Tells when nothing moves between the client and this gateway.
    pulse: Pulse,
    /// Whether a request came.
    asked: AtomicBool,
}

/// A connection to a server, kept for the next request to the same name and port.
struct Upstream {
    target: Target,
    address: std::net::IpAddr,
    sender: SendRequest<Counted>,
}

/// Serves HTTP on a client's connection.
pub(crate) async fn serve<C>(room: Arc<Room>, entry: Entry, client: C, guard: Guard, place: Arc<Place>)
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (client, pulse) = Felt::new(client);
    let asked = AtomicBool::new(false);
    let visit = Visit { room, entry, guard: guard.clone(), place, upstream: Mutex::new(None), pulse: pulse.clone(), asked };
    let visit = Arc::new(visit);
    let visited = visit.clone();
    let service = service_fn(move |request| {
        let visit = visit.clone();
        async move { Ok::<_, Infallible>(visit.answer(request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(OPENING)
        .max_buf_size(LARGEST_HEAD)
        .max_headers(MOST_FIELDS)
        .preserve_header_case(true)
        .half_close(true)
        .serve_connection(TokioIo::new(client), service)
        .with_upgrades();
    let served = async {
        tokio::select! {
            ended = connection => ended.err(),
            // Later than who waits for a server tells so.
            () = pulse.stopped(IDLE + OPENING) => None,
        }
    };
    if let Some(error) = guard.until_closed(served).await.flatten() {
        visited.broke(&error);
    }
}

impl Entry {
    fn port(self) -> u16 {
        match self {
            Self::Proxy => crate::sockets::PROXY_PORT,
            Self::Port(port) => port,
        }
    }
}

impl Visit {
    /// Records a client that broke the rules of HTTP, which the parser told it, or kept its first request's head back. One that went
    /// away needs nothing.
    fn broke(&self, error: &hyper::Error) {
        let why = match () {
            () if error.is_parse() => format!("a request that is no HTTP: {error}"),
            () if error.is_timeout() && self.pulse.is_felt() && !self.asked.load(Ordering::Relaxed) => {
                "a request whose head did not come in time".to_owned()
            }
            () => return,
        };
        self.room.refuse(Protocol::Http, "", self.entry.port(), why);
    }

    async fn answer(self: Arc<Self>, mut request: Request<Incoming>) -> Response<Counted> {
        self.asked.store(true, Ordering::Relaxed);
        let answer =
            if request.method() == Method::CONNECT { self.tunnel(&mut request).await } else { self.forward(request).await };
        answer.unwrap_or_else(|denied| told(&denied))
    }

    /// What a request asks for. URI and `Host` must agree, and with the port that the client came to.
    fn target(&self, request: &Request<Incoming>) -> Result<Target, Denied> {
        let malformed = |why: &str, name: &str, port: u16| self.room.refuse(Protocol::Http, name, port, why);
        let mut hosts = request.headers().get_all(HOST).iter();
        let host = match (hosts.next(), hosts.next()) {
            (Some(host), None) => host.to_str().unwrap_or_default().to_owned(),
            (None, _) => return Err(malformed("a request without Host", "", 0)),
            _ => return Err(malformed("a request with more than one Host", "", 0)),
        };
        let (name, port) = authority(&host, 80).ok_or_else(|| malformed("a Host that is no name", &host, 0))?;
        match (self.entry, request.uri().scheme_str(), request.uri().authority()) {
            (_, Some("http"), Some(own)) => {
                if authority(own.as_str(), 80).as_ref() != Some(&(name.clone(), port)) {
                    return Err(malformed("the URI and Host name different servers", &name, port));
                }
            }
            (Entry::Port(_), None, None) => {}
            (Entry::Proxy, None, None) => return Err(malformed("a request to the proxy without a server", &name, port)),
            _ => return Err(malformed("a URI that is not http", &name, port)),
        }
        if let Entry::Port(own) = self.entry
            && own != port
        {
            return Err(malformed("Host names another port", &name, port));
        }
        Ok(Target { name, port, scheme: AllowScheme::Http })
    }

    async fn forward(&self, request: Request<Incoming>) -> Result<Response<Counted>, Denied> {
        let target = self.target(&request)?;
        if matches!(*request.method(), Method::GET | Method::HEAD) && request.headers().contains_key(TRANSFER_ENCODING) {
            // It could not be sent on, and a request without it is another request.
            let why = format!("a {} with a body in chunks", request.method());
            return Err(self.room.refuse(Protocol::Http, &target.name, target.port, why));
        }
        let mut upstream = self.upstream.lock().await;
        let (mut sender, flow) = match upstream.take() {
            Some(kept) if kept.target == target && !kept.sender.is_closed() => self.again(kept).await?,
            _ => self.fresh(&target).await?,
        };
        let flow = Arc::new(flow);
        let request = outgoing(request, &target, &flow)?;
        let failed = |error: &dyn std::fmt::Display| Denied::Failed(format!("{} did not answer: {error}", target.name));
        // However long a body takes, as long as it moves.
        let answer = tokio::select! {
            answer = sender.send_request(request) => answer.map_err(|error| failed(&error))?,
            () = self.pulse.stopped(IDLE) => return Err(failed(&"no answer in time")),
        };
        if let Some(address) = flow.address() {
            *upstream = Some(Upstream { target, address, sender });
        }
        let (mut head, body) = answer.into_parts();
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            *upstream = None;
            return Err(Denied::Failed("the server switched protocols without being asked".to_owned()));
        }
        strip(&mut head.headers);
        head.version = Version::HTTP_11;
        Ok(Response::from_parts(head, Counted::Passing(body, Way::In, flow)))
    }

    async fn again(&self, mut kept: Upstream) -> Result<(SendRequest<Counted>, Flow), Denied> {
        // The rules may say that names on another port are another thing, so each request is looked up.
        let Some(rule) = self.room.rules.find(&kept.target.name, kept.target.port, kept.target.scheme).map(ToString::to_string)
        else {
            return self.fresh(&kept.target).await;
        };
        if kept.sender.ready().await.is_err() {
            return self.fresh(&kept.target).await;
        }
        Ok((kept.sender, self.room.begin(&kept.target, kept.address, rule)?))
    }

    async fn fresh(&self, target: &Target) -> Result<(SendRequest<Counted>, Flow), Denied> {
        let (server, flow) = self.room.connect(target).await?;
        let failed = |error: hyper::Error| Denied::Failed(format!("{} cannot be used: {error}", target.name));
        let (sender, connection) = hyper::client::conn::http1::Builder::new()
            .preserve_header_case(true)
            .max_buf_size(LARGEST_HEAD)
            .max_headers(MOST_FIELDS)
            .handshake(TokioIo::new(server))
            .await
            .map_err(failed)?;
        let guard = self.guard.clone();
        tokio::spawn(async move { guard.until_closed(connection).await });
        Ok((sender, flow))
    }

    async fn tunnel(self: &Arc<Self>, request: &mut Request<Incoming>) -> Result<Response<Counted>, Denied> {
        let shown = request.uri().to_string();
        let malformed = |why: &str| self.room.refuse(Protocol::Tls, &shown, 0, why);
        if self.entry != Entry::Proxy {
            return Err(malformed("CONNECT at a port that is not the proxy's"));
        }
        let asked = request.uri().authority().and_then(|own| own.port_u16().map(|_| own.as_str()));
        let (name, port) =
            asked.and_then(|own| authority(own, 0)).ok_or_else(|| malformed("CONNECT without a name and a port"))?;
        for host in request.headers().get_all(HOST) {
            let agreed = host.to_str().ok().and_then(|host| authority(host, port));
            // Some programs leave the port out, others write it.
            if agreed.is_none_or(|(own, _)| own != name) {
                return Err(malformed("CONNECT and Host name different servers"));
            }
        }
        let raw = self.room.rules.find(&name, port, AllowScheme::Tcp).is_some();
        let scheme = if raw { AllowScheme::Tcp } else { AllowScheme::Https };
        let target = Target { name, port, scheme };
        let server = self.room.dial(&target).await?;
        let upgrade = hyper::upgrade::on(request);
        let visit = self.clone();
        tokio::spawn(async move {
            let guard = visit.guard.clone();
            let pass = async {
                match upgrade.await {
                    Ok(client) => visit.pass(TokioIo::new(client), server, &target).await,
                    Err(error) => {
                        let why = format!("the client left before its tunnel began: {error}");
                        visit.room.unused(&target, server.address, Verdict::Failed, why);
                        Ok(())
                    }
                }
            };
            let _ = guard.until_closed(pass).await;
        });
        Ok(Response::new(Counted::own(String::new())))
    }

    async fn pass<C>(&self, mut client: C, server: Dialled, target: &Target) -> io::Result<()>
    where
        C: AsyncRead + AsyncWrite + Unpin,
    {
        let _place = &self.place;
        let Dialled { stream, address, rule } = server;
        let unlogged = |_| io::Error::other("the log of decisions cannot be written");
        let begin = || self.room.begin(target, address, rule).map_err(unlogged);
        if target.scheme == AllowScheme::Tcp {
            return tunnel::pass(client, stream, &begin()?).await;
        }
        let refusal = match tunnel::read_hello(&mut client).await {
            Ok(hello) if hello.name == target.name => return tunnel::pass_tls(client, hello, stream, &begin()?).await,
            Ok(hello) => format!("CONNECT names {}, and the server name is {}", target.name, hello.name),
            Err(error) => error.to_string(),
        };
        self.room.unused(target, address, Verdict::Refused, refusal);
        client.write_all(&ALERT).await
    }
}

/// The request as the server gets it: origin form, one Host, no header of the connection, its length decided anew.
fn outgoing(request: Request<Incoming>, target: &Target, flow: &Arc<Flow>) -> Result<Request<Counted>, Denied> {
    let (mut head, body) = request.into_parts();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let malformed = |_| Denied::Refused("a URI that cannot be sent on".to_owned());
    // `OPTIONS *` has no path.
    let path = if path.is_empty() { "/" } else { path };
    head.uri = path.parse::<Uri>().map_err(malformed)?;
    head.version = Version::HTTP_11;
    strip(&mut head.headers);
    head.headers.remove(EXPECT);
    head.headers.remove(CONTENT_LENGTH);
    let host = if target.port == 80 { target.name.clone() } else { format!("{}:{}", target.name, target.port) };
    head.headers
        .insert(HOST, HeaderValue::from_str(&host).map_err(|_| Denied::Refused("a Host that cannot be sent".to_owned()))?);
    Ok(Request::from_parts(head, Counted::Passing(body, Way::Out, flow.clone())))
}

fn strip(headers: &mut HeaderMap) {
    let listed: Vec<String> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    for name in listed.iter().map(String::as_str).chain(OF_THE_CONNECTION_TOO) {
        // Host and the length are decided here, whatever the client lists.
        headers.remove(name);
    }
    for name in &OF_THE_CONNECTION {
        headers.remove(name);
    }
}

/// A name and a port. `usual` stands for a missing port; 0 means that there must be one.
fn authority(text: &str, usual: u16) -> Option<(String, u16)> {
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => (name, port.parse().ok().filter(|_| port.bytes().all(|byte| byte.is_ascii_digit()))?),
        None => (text, usual),
    };
    if port == 0 { None } else { host_name(name).map(|name| (name, port)) }
}

/// The refusal, in words for whoever reads the program's output.
fn told(denied: &Denied) -> Response<Counted> {
    let (status, text) = match denied {
        Denied::Refused(why) => (StatusCode::FORBIDDEN, format!("tierbox: refused: {why}\n")),
        Denied::Failed(why) => (StatusCode::BAD_GATEWAY, format!("tierbox: failed: {why}\n")),
    };
    let mut answer = Response::new(Counted::own(text));
    *answer.status_mut() = status;
    answer.headers_mut().insert("x-tierbox-egress", HeaderValue::from_static("1"));
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

#[cfg(test)]
mod unit {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn authorities_are_names_and_ports() {
        assert_eq!(authority("Index.Test:8080", 80), Some(("index.test".into(), 8080)));
        assert_eq!(authority("index.test.", 80), Some(("index.test".into(), 80)));
        assert_eq!(authority("index.test", 0), None);
        for bad in
            ["", ":80", "a.test:", "a.test:0", "a.test:+1", "a.test:99999", "u@a.test", "127.0.0.1", "[::1]:80", "a.test:80:80"]
        {
            assert_eq!(authority(bad, 80), None, "{bad}");
        }
    }

    #[test]
    fn headers_of_the_connection_do_not_go_on() {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("connection", "close, X-Private"), ("x-private", "1"), ("te", "trailers"), ("upgrade", "h2c"), ("accept", "*/*")]
        {
            headers.insert(name, HeaderValue::from_static(value));
        }
        strip(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
    }

    proptest! {
        #[test]
        fn any_authority_gets_an_answer(text in ".{0,80}") {
            if let Some((name, port)) = authority(&text, 80) {
                prop_assert!(port > 0 && host_name(&name) == Some(name));
            }
        }
    }
}
