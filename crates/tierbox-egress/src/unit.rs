//! The gateway against clients and servers of its own, over loopback.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tierbox_core::{Decision, Protocol, Verdict};

use crate::dial::Resolver;
use crate::gateway::{Config, Gateway};
use crate::hello::unit::{hello, named};
use crate::rules::Rules;
use crate::serve::Role;
use crate::sockets::{Plan, Sockets};

const PATIENCE: Duration = Duration::from_secs(20);

/// Names with addresses that change from one question to the next.
#[derive(Default)]
struct Names {
    answers: Mutex<HashMap<String, Vec<Vec<IpAddr>>>>,
    asked: Mutex<Vec<String>>,
}

#[async_trait]
impl Resolver for Names {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        self.asked.lock().unwrap().push(name.to_owned());
        let mut answers = self.answers.lock().unwrap();
        let answers = answers.get_mut(name).ok_or_else(|| io::Error::other("no such name"))?;
        Ok(if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() })
    }
}

/// A server that records what comes and answers each connection once.
struct Server {
    port: u16,
    got: mpsc::Receiver<Vec<u8>>,
}

impl Server {
    fn start(answer: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, got) = mpsc::channel();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let sender = sender.clone();
                std::thread::spawn(move || {
                    let mut chunk = [0; 4096];
                    while let Ok(count @ 1..) = stream.read(&mut chunk) {
                        let _ = sender.send(chunk[..count].to_vec());
                        let _ = stream.write_all(answer);
                    }
                });
            }
        });
        Self { port, got }
    }

    /// Everything that came until nothing has for a moment after the client's end.
    fn all(&self) -> Vec<u8> {
        self.got.try_iter().flatten().collect()
    }
}

struct Stage {
    gateway: Gateway,
    proxy: SocketAddr,
    http: SocketAddr,
    tls: SocketAddr,
    dns: SocketAddr,
    dns_stream: SocketAddr,
    names: Arc<Names>,
    _dir: tempfile::TempDir,
}

fn stage(rules: &[String], names: &[(&str, &[&str])], refused: fn(IpAddr) -> Option<&'static str>, port: u16) -> Stage {
    let dir = tempfile::tempdir().unwrap();
    let known = Names::default();
    for (name, answers) in names {
        let answers = answers.iter().map(|answer| answer.split(',').map(|ip| ip.parse().unwrap()).collect()).collect();
        known.answers.lock().unwrap().insert((*name).to_owned(), answers);
    }
    let names = Arc::new(known);
    let rules = Rules::parse(rules).unwrap();
    let listener = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (proxy, http, tls, queries) = (listener(), listener(), listener(), listener());
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = |listener: &TcpListener| listener.local_addr().unwrap();
    let stream_at = address(&queries);
    let (proxy_at, http_at, tls_at, dns_at) = (address(&proxy), address(&http), address(&tls), datagrams.local_addr().unwrap());
    let sockets = Sockets {
        datagrams,
        // The server's port, as if it were the one that the client came to.
        listeners: vec![(Role::Proxy, proxy), (Role::Port(port), http), (Role::Port(port), tls), (Role::Dns, queries)],
    };
    let plan = Plan::new(Ipv4Addr::LOCALHOST, &rules);
    let config = Config { resolver: names.clone(), ..Config::new("test-0", rules, plan, &dir.path().join("egress.jsonl")) };
    let gateway = Gateway::start_with(config, sockets, refused).unwrap();
    Stage { gateway, proxy: proxy_at, http: http_at, tls: tls_at, dns: dns_at, dns_stream: stream_at, names, _dir: dir }
}

/// Rules for one server on loopback, which this gateway may dial.
fn open(port: u16, rules: &[&str]) -> Stage {
    let rules: Vec<String> = rules.iter().map(|rule| rule.replace("PORT", &port.to_string())).collect();
    stage(&rules, &[("a.test", &["127.0.0.1"]), ("b.test", &["127.0.0.1"]), ("x.w.test", &["127.0.0.1"])], |_| None, port)
}

fn say(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Stage {
    /// Waits for a decision.
    fn until(&self, what: &str, is_it: impl Fn(&Decision) -> bool) -> Decision {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.gateway.decisions().unwrap().into_iter().rfind(&is_it) {
                Some(decision) => return decision,
                None if Instant::now() > deadline => panic!("no {what}: {:?}", self.gateway.decisions()),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn last(&self, verdict: Verdict) -> Decision {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.gateway.decisions().unwrap().into_iter().rfind(|decision| decision.verdict == verdict);
            match found {
                Some(decision) => return decision,
                None if Instant::now() > deadline => panic!("no decision {verdict:?}: {:?}", self.gateway.decisions()),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[test]
fn plain_http_goes_through_the_proxy_and_transparently() {
    let server = Server::start(OK);
    let stage = open(server.port, &["a.test:PORT"]);
    let port = server.port;
    let proxied = say(
        stage.proxy,
        format!(
            "GET http://A.test:{port}/x?y HTTP/1.1\r\nHost: a.test:{port}\r\nProxy-Connection: close\r\nConnection: close\r\n\r\n"
        )
        .as_bytes(),
    );
    assert!(text(&proxied).ends_with("ok"), "{}", text(&proxied));
    let got = text(&server.all()).to_ascii_lowercase();
    assert!(got.starts_with("get /x?y http/1.1\r\n") && got.contains(&format!("host: a.test:{port}")), "{got}");
    assert!(!got.contains("proxy-"), "{got}");
    let direct = say(stage.http, format!("GET /z HTTP/1.1\r\nHost: a.test:{port}\r\nConnection: close\r\n\r\n").as_bytes());
    assert!(text(&direct).ends_with("ok"));
    let ended = stage.last(Verdict::Ended);
    assert_eq!((ended.protocol, ended.name.as_str(), ended.port, ended.received), (Protocol::Http, "a.test", port, 2));
    assert_eq!(ended.address, Some("127.0.0.1".parse().unwrap()));
    assert_eq!(ended.rule, format!("a.test:{port}"));
}

#[test]
fn each_request_of_a_connection_is_judged() {
    let server = Server::start(OK);
    let stage = open(server.port, &["a.test:PORT"]);
    let port = server.port;
    let request = |name: &str| format!("GET / HTTP/1.1\r\nHost: {name}:{port}\r\n\r\n");
    let answer = text(&say(stage.http, (request("a.test") + &request("b.test") + &request("a.test")).as_bytes()));
    let statuses: Vec<&str> = answer.split("HTTP/1.1 ").skip(1).map(|part| &part[..3]).collect();
    assert_eq!(&statuses[..2], ["200", "403"], "{answer}");
    assert!(!text(&server.all()).contains("b.test"));
    assert_eq!(stage.last(Verdict::Refused).name, "b.test");
}

#[test]
fn what_disagrees_or_smuggles_is_refused() {
    let server = Server::start(OK);
    let stage = open(server.port, &["a.test:PORT", "*.w.test:PORT"]);
    let port = server.port;
    let refused_at_the_proxy = [
        format!("GET http://a.test:{port}/ HTTP/1.1\r\nHost: b.test:{port}\r\n\r\n"),
        format!("GET http://b.test:{port}/ HTTP/1.1\r\nHost: a.test:{port}\r\n\r\n"),
        format!("GET http://a.test:{port}/ HTTP/1.1\r\n\r\n"),
        format!("GET http://a.test:{port}/ HTTP/1.1\r\nHost: a.test:{port}\r\nHost: b.test\r\n\r\n"),
        format!("GET http://a.test:{port}/ HTTP/1.1\r\nHost: a.test:{port}\r\nHost: a.test:{port}\r\n\r\n"),
        format!("GET http://u:p@a.test:{port}/ HTTP/1.1\r\nHost: a.test:{port}\r\n\r\n"),
        format!("GET https://a.test:{port}/ HTTP/1.1\r\nHost: a.test:{port}\r\n\r\n"),
        format!("GET /x HTTP/1.1\r\nHost: a.test:{port}\r\n\r\n"),
        format!("GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"),
        format!("GET http://a.test:{port}.b.test/ HTTP/1.1\r\nHost: a.test:{port}\r\n\r\n"),
        "GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned(),
        format!("GET http://w.test:{port}/ HTTP/1.1\r\nHost: w.test:{port}\r\n\r\n"),
        format!(
            "POST http://a.test:{port}/ HTTP/1.1\r\nHost: a.test:{port}\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n123456"
        ),
        format!("POST http://a.test:{port}/ HTTP/1.1\r\nHost: a.test:{port}\r\nContent-Length: +5\r\n\r\n12345"),
        format!("POST http://a.test:{port}/ HTTP/1.1\r\nHost: a.test:{port}\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        format!("GET http://a.test:{port}/ HTTP/1.1\r\nHost : a.test:{port}\r\n\r\n"),
        format!("GET http://a.test:{port}/ HTTP/1.1\r\nHost: a.test:{port}\r\n folded: x\r\n\r\n"),
    ];
    let asked = refused_at_the_proxy.len() + 3;
    for request in refused_at_the_proxy {
        let answer = text(&say(stage.proxy, request.as_bytes()));
        assert!(answer.starts_with("HTTP/1.1 40"), "{request:?} got {answer:?}");
    }
    for request in [
        format!("GET http://b.test:{port}/ HTTP/1.1\r\nHost: a.test:{port}\r\n\r\n"),
        "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned(),
        format!("CONNECT a.test:{port} HTTP/1.1\r\nHost: a.test:{port}\r\n\r\n"),
    ] {
        let answer = text(&say(stage.http, request.as_bytes()));
        assert!(answer.starts_with("HTTP/1.1 40"), "{request:?} got {answer:?}");
    }
    assert_eq!(text(&server.all()), "");
    // Each of them is on record, those that the parser refused too.
    let refused = || {
        let decisions = stage.gateway.decisions().unwrap();
        decisions.into_iter().filter(|one| one.verdict == Verdict::Refused).collect::<Vec<_>>()
    };
    let deadline = Instant::now() + PATIENCE;
    while refused().len() < asked {
        assert!(Instant::now() < deadline, "{} of {asked} are on record: {:#?}", refused().len(), refused());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(refused().iter().any(|one| one.rule.starts_with("a request that is no HTTP")));
}

#[test]
fn what_is_no_query_is_on_record() {
    let stage = open(1, &["a.test"]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.send_to(b"no query", stage.dns).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while stage.gateway.decisions().unwrap().is_empty() {
        assert!(Instant::now() < deadline, "nothing is on record");
        std::thread::sleep(Duration::from_millis(5));
    }
    let refused = stage.last(Verdict::Refused);
    assert_eq!((refused.protocol, refused.port, refused.rule.as_str()), (Protocol::Dns, 53, "a query that cannot be read"));
}

#[test]
fn bodies_are_framed_anew() {
    let server = Server::start(OK);
    let stage = open(server.port, &["a.test:PORT"]);
    let port = server.port;
    let chunks = "2f\r\nGET /smuggled HTTP/1.1\r\nHost: evil.test\r\n\r\nxxxx\r\n0\r\n\r\n";
    // Of two lengths one counts, here and for the server: there is nothing that only one of them takes for a request.
    for lengths in ["Transfer-Encoding: chunked\r\nContent-Length: 4", "Content-Length: 4\r\nTransfer-Encoding: chunked"] {
        say(stage.http, format!("POST / HTTP/1.1\r\nHost: a.test:{port}\r\n{lengths}\r\n\r\n{chunks}").as_bytes());
        let got = text(&server.all()).to_ascii_lowercase();
        assert!(!(got.contains("content-length") && got.contains("transfer-encoding")), "{got}");
    }
    let allowed = stage.gateway.decisions().unwrap().into_iter().filter(|one| one.verdict == Verdict::Allowed).count();
    assert!(allowed <= 2, "two requests became {allowed}");
}

#[test]
fn tls_goes_where_its_server_name_says() {
    let server = Server::start(b"served");
    let stage = open(server.port, &["https://a.test:PORT", "https://*.w.test:PORT"]);
    for name in ["a.test", "X.w.test"] {
        let bytes = hello(&[named(name)], 4096);
        assert_eq!(text(&say(stage.tls, &bytes)), "served");
        assert_eq!(server.all(), bytes);
    }
    for bytes in [
        hello(&[named("b.test")], 4096),
        hello(&[named("w.test")], 4096),
        hello(&[], 4096),
        hello(&[named("a.test"), (0xfe0d, vec![1])], 4096),
        hello(&[named("127.0.0.1")], 4096),
        b"\x00\x01\x02 no protocol".to_vec(),
    ] {
        assert_eq!(say(stage.tls, &bytes), crate::tunnel::ALERT, "{bytes:?}");
    }
    assert!(server.all().is_empty());
    // On a port for TLS only, plain HTTP is refused too.
    let plain = say(stage.http, format!("GET / HTTP/1.1\r\nHost: a.test:{}\r\n\r\n", server.port).as_bytes());
    assert!(text(&plain).starts_with("HTTP/1.1 403"));
}

fn connect(stage: &Stage, name: &str, port: u16, then: &[u8]) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(stage.proxy).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(format!("CONNECT {name}:{port} HTTP/1.1\r\nHost: {name}:{port}\r\n\r\n").as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            break;
        }
        head.push(byte[0]);
    }
    let mut answer = Vec::new();
    if text(&head).starts_with("HTTP/1.1 200") {
        let _ = stream.write_all(then);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut answer);
    }
    (text(&head), answer)
}

#[test]
fn a_tunnel_carries_tls_to_the_name_that_it_was_made_for() {
    let server = Server::start(b"served");
    let stage = open(server.port, &["a.test:PORT", "b.test:PORT"]);
    let good = hello(&[named("a.test")], 100);
    assert_eq!(connect(&stage, "a.test", server.port, &good).1, b"served");
    assert_eq!(server.all(), good);
    let ended = stage.last(Verdict::Ended);
    assert_eq!((ended.protocol, ended.sent, ended.received), (Protocol::Tls, good.len() as u64, 6));
    for bytes in
        [hello(&[named("b.test")], 4096), hello(&[], 4096), b"GET / HTTP/1.1\r\n\r\n".to_vec(), b"SSH-2.0-x\r\n".to_vec()]
    {
        assert_eq!(connect(&stage, "a.test", server.port, &bytes).1, crate::tunnel::ALERT);
    }
    for (name, port) in [("c.test", server.port), ("a.test", 22), ("127.0.0.1", server.port), ("[::1]", server.port)] {
        let (head, _) = connect(&stage, name, port, b"");
        assert!(head.starts_with("HTTP/1.1 40"), "{name}:{port} got {head}");
    }
    assert!(server.all().is_empty());
}

#[test]
fn unchecked_bytes_need_a_rule_of_their_own() {
    let server = Server::start(b"served");
    let stage = open(server.port, &["tcp://a.test:PORT"]);
    assert_eq!(connect(&stage, "a.test", server.port, b"SSH-2.0-x\r\n").1, b"served");
    assert_eq!(stage.last(Verdict::Ended).protocol, Protocol::Tcp);
}

#[test]
fn the_address_that_is_dialled_was_checked() {
    let server = Server::start(OK);
    let port = server.port;
    let rules = ["a.test", "b.test", "c.test", "d.test"].map(|name| format!("{name}:{port}"));
    let names: [(&str, &[&str]); 3] = [
        ("a.test", &["127.0.0.1"]),
        ("b.test", &["169.254.169.254,10.0.0.1,::ffff:127.0.0.1,64:ff9b::7f00:1"]),
        // The second answer would be another address, if anybody asked twice.
        ("c.test", &["192.168.0.1", "127.0.0.1"]),
    ];
    let stage = stage(&rules, &names, crate::address::refused, port);
    for name in ["a.test", "b.test", "c.test"] {
        let answer = say(stage.http, format!("GET / HTTP/1.1\r\nHost: {name}:{port}\r\n\r\n").as_bytes());
        assert!(text(&answer).starts_with("HTTP/1.1 403"), "{name}: {}", text(&answer));
    }
    let unknown = say(stage.http, format!("GET / HTTP/1.1\r\nHost: d.test:{port}\r\n\r\n").as_bytes());
    assert!(text(&unknown).starts_with("HTTP/1.1 502"), "{}", text(&unknown));
    assert_eq!(*stage.names.asked.lock().unwrap(), ["a.test", "b.test", "c.test", "d.test"]);
    assert!(server.all().is_empty());
    let decisions = stage.gateway.decisions().unwrap();
    assert!(decisions.iter().filter(|one| one.verdict == Verdict::Refused).all(|one| one.rule.contains("leads to")));
}

#[test]
fn queries_are_answered_and_never_sent_on() {
    use simple_dns::{CLASS, Name, Packet, Question, RCODE, TYPE};
    let stage = open(1, &["a.test"]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    for (name, code) in [("a.test", RCODE::NoError), ("secret.evil.test", RCODE::NameError)] {
        let mut packet = Packet::new_query(9);
        packet.questions.push(Question::new(Name::new_unchecked(name), TYPE::A.into(), CLASS::IN.into(), false));
        socket.send_to(&packet.build_bytes_vec().unwrap(), stage.dns).unwrap();
        let mut answer = [0; 1024];
        let length = socket.recv(&mut answer).unwrap();
        assert_eq!(Packet::parse(&answer[..length]).unwrap().rcode(), code, "{name}");
    }
    assert!(stage.names.asked.lock().unwrap().is_empty());
    let refused = stage.last(Verdict::Refused);
    assert_eq!((refused.protocol, refused.name.as_str()), (Protocol::Dns, "secret.evil.test"));
}

#[test]
fn a_flood_of_half_open_connections_does_not_reach_another_sandbox() {
    let server = Server::start(OK);
    let (flooded, other) = (open(server.port, &["a.test:PORT"]), open(server.port, &["a.test:PORT"]));
    let request = format!("GET / HTTP/1.1\r\nHost: a.test:{}\r\nConnection: close\r\n\r\n", server.port);
    let mut half_open = Vec::new();
    for _ in 0..300 {
        if let Ok(mut stream) = TcpStream::connect(flooded.http) {
            let _ = stream.write_all(b"GET / HTTP/1.1\r\nX: ");
            half_open.push(stream);
        }
    }
    let start = Instant::now();
    assert!(text(&say(other.http, request.as_bytes())).ends_with("ok"));
    assert!(start.elapsed() < Duration::from_secs(5), "it took {:?}", start.elapsed());
    assert!(flooded.gateway.decisions().unwrap().len() < 50, "the flood fills the log");
}

#[test]
fn a_head_without_end_is_refused() {
    let stage = open(1, &["a.test"]);
    let mut request = b"GET / HTTP/1.1\r\nHost: a.test\r\nX: ".to_vec();
    request.resize(1 << 20, b'x');
    let answer = text(&say(stage.http, &request));
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
}

/// Asks for a tunnel to a server that is allowed, and sends this at once.
fn tunnel(early: &str) -> (Server, Stage, TcpStream) {
    let server = Server::start(b"served");
    let stage = open(server.port, &["tcp://a.test:PORT"]);
    let mut stream = TcpStream::connect(stage.proxy).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(format!("CONNECT a.test:{} HTTP/1.1\r\n\r\n{early}", server.port).as_bytes()).unwrap();
    (server, stage, stream)
}

#[test]
fn a_gateway_that_is_gone_leaves_nothing_open() {
    let (_server, stage, mut stream) = tunnel("");
    let mut head = [0; 12];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    let proxy = stage.proxy;
    drop(stage);
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(proxy).is_ok() {
        assert!(Instant::now() < deadline, "the gateway still listens");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn nothing_is_allowed_that_cannot_be_logged() {
    let server = Server::start(OK);
    let rules = Rules::parse(&[format!("a.test:{}", server.port)]).unwrap();
    let http = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = http.local_addr().unwrap();
    let sockets =
        Sockets { datagrams: UdpSocket::bind("127.0.0.1:0").unwrap(), listeners: vec![(Role::Port(server.port), http)] };
    let names = Names::default();
    names.answers.lock().unwrap().insert("a.test".into(), vec![vec!["127.0.0.1".parse().unwrap()]]);
    let plan = Plan::new(Ipv4Addr::LOCALHOST, &rules);
    let config = Config { resolver: Arc::new(names), ..Config::new("test-1", rules, plan, std::path::Path::new("/dev/full")) };
    let _gateway = Gateway::start_with(config, sockets, |_| None).unwrap();
    let answer = say(at, format!("GET / HTTP/1.1\r\nHost: a.test:{}\r\n\r\n", server.port).as_bytes());
    assert!(text(&answer).starts_with("HTTP/1.1 403"), "{}", text(&answer));
    assert!(server.all().is_empty());
}

mod edges;
