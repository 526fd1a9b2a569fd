//! What clients do at the edges of the protocols, and what a sandbox does to hide.

use std::pin::Pin;
use std::task::{Context, Poll};

use simple_dns::{CLASS, Name, Packet, Question, TYPE};

use super::*;

fn query(names: &[&str]) -> Vec<u8> {
    let mut packet = Packet::new_query(9);
    for name in names {
        packet.questions.push(Question::new(Name::new_unchecked(name), TYPE::A.into(), CLASS::IN.into(), false));
    }
    packet.build_bytes_vec().unwrap()
}

fn framed(query: &[u8]) -> Vec<u8> {
    [&(query.len() as u16).to_be_bytes()[..], query].concat()
}

fn ask(stream: &mut TcpStream, query: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(&framed(query))?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

fn line(stage: &Stage) -> TcpStream {
    let stream = TcpStream::connect(stage.dns_stream).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn queries_over_a_stream_are_answered_alike() {
    let stage = open(1, &["a.test"]);
    let mut stream = line(&stage);
    for (name, count) in [("a.test", 1), ("secret.evil.test", 0)] {
        let answer = ask(&mut stream, &query(&[name])).unwrap();
        assert_eq!(Packet::parse(&answer).unwrap().answers.len(), count, "{name}");
    }
    assert_eq!(stage.last(Verdict::Refused).name, "secret.evil.test");
    for bad in [framed(&query(&["a.test", "evil.test"])), framed(&[0; 2000])] {
        let mut stream = line(&stage);
        stream.write_all(&bad).unwrap();
        assert_eq!(stream.read(&mut [0; 16]).unwrap_or(0), 0, "it was answered");
    }
    let deadline = Instant::now() + PATIENCE;
    let refused =
        || stage.gateway.decisions().unwrap().into_iter().filter(|one| one.rule == "a query that cannot be read").count();
    while refused() < 2 {
        assert!(Instant::now() < deadline, "{} are on record", refused());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn queries_over_many_streams_have_one_measure() {
    let stage = open(1, &["a.test"]);
    let start = Instant::now();
    let mut answered = 0;
    for _ in 0..20 {
        let mut stream = line(&stage);
        answered += (0..100).take_while(|_| ask(&mut stream, &query(&["evil.test"])).is_ok()).count();
    }
    let most = 1000.0 + 200.0 * start.elapsed().as_secs_f64() + 1.0;
    assert!(answered < 2000 && answered as f64 <= most, "{answered} were answered in {:?}", start.elapsed());
    let refused = stage.until("limit", |one| one.rule == crate::tenant::TOO_MANY);
    assert_eq!((refused.protocol, refused.verdict), (Protocol::Dns, Verdict::Refused));
    let lines = stage.gateway.decisions().unwrap().into_iter().filter(|one| one.rule == crate::tenant::TOO_MANY).count();
    assert!(lines <= 20, "a flood has {lines} lines of its own");
}

#[test]
fn too_many_datagrams_are_told_once() {
    let stage = open(1, &["a.test"]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !stage.gateway.decisions().unwrap().iter().any(|one| one.rule == crate::tenant::TOO_MANY) {
        assert!(Instant::now() < deadline, "the limit is not on record");
        for _ in 0..200 {
            let _ = socket.send_to(&query(&["evil.test"]), stage.dns);
        }
    }
}

#[test]
fn another_version_of_http_and_upgrades_get_nowhere() {
    let server = Server::start(OK);
    let stage = open(server.port, &["a.test:PORT"]);
    let port = server.port;
    for at in [stage.http, stage.proxy] {
        let answer = text(&say(at, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert!(server.all().is_empty());
    let upgrade = format!(
        "GET / HTTP/1.1\r\nHost: a.test:{port}\r\nConnection: Upgrade, X-Mine\r\nX-Mine: 1\r\nUpgrade: websocket\r\n\r\n"
    );
    assert!(text(&say(stage.http, upgrade.as_bytes())).contains(" 200 "));
    let got = text(&server.all()).to_ascii_lowercase();
    assert!(got.starts_with("get / ") && !got.contains("upgrade") && !got.contains("x-mine"), "{got}");
}

#[test]
fn a_server_that_switches_protocols_unasked_is_left() {
    let server = Server::start(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n");
    let stage = open(server.port, &["a.test:PORT"]);
    let request = format!("GET / HTTP/1.1\r\nHost: a.test:{}\r\n\r\n", server.port);
    let answer = text(&say(stage.http, request.as_bytes()));
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
}

#[test]
fn trailers_do_not_go_on_as_a_request() {
    let server = Server::start(OK);
    let stage = open(server.port, &["a.test:PORT"]);
    let request = format!(
        "POST /up HTTP/1.1\r\nHost: a.test:{}\r\nTransfer-Encoding: chunked\r\nTrailer: Host\r\nConnection: close\r\n\r\n\
         5\r\nhello\r\n0\r\nHost: evil.test\r\n\r\n",
        server.port
    );
    say(stage.http, request.as_bytes());
    let got = text(&server.all()).to_ascii_lowercase();
    assert!(got.contains("hello") && !got.contains("evil.test") && !got.contains("trailer"), "{got}");
}

#[test]
fn a_get_with_a_body_in_chunks_is_refused_and_not_sent_without_it() {
    let server = Server::start(OK);
    let stage = open(server.port, &["a.test:PORT"]);
    for method in ["GET", "HEAD"] {
        let request = format!(
            "{method} /x HTTP/1.1\r\nHost: a.test:{}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            server.port
        );
        assert!(text(&say(stage.http, request.as_bytes())).starts_with("HTTP/1.1 403"));
        assert_eq!(stage.last(Verdict::Refused).rule, format!("a {method} with a body in chunks"));
    }
    assert!(server.all().is_empty());
    let request =
        format!("GET /x HTTP/1.1\r\nHost: a.test:{}\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello", server.port);
    assert!(text(&say(stage.http, request.as_bytes())).contains(" 200 "));
    assert!(text(&server.all()).ends_with("hello"));
}

#[test]
fn a_tunnel_with_a_body_carries_it_only_as_what_is_checked() {
    let server = Server::start(b"served");
    let stage = open(server.port, &["a.test:PORT"]);
    let port = server.port;
    let request = format!("CONNECT a.test:{port} HTTP/1.1\r\nHost: a.test:{port}\r\nContent-Length: 5\r\n\r\nhello");
    let answer = say(stage.proxy, request.as_bytes());
    assert!(!text(&answer).contains("served"), "{}", text(&answer));
    assert!(server.all().is_empty());
}

#[test]
fn a_tunnel_is_allowed_when_its_hello_was_judged() {
    let server = Server::start(b"served");
    let stage = open(server.port, &["a.test:PORT"]);
    connect(&stage, "a.test", server.port, &hello(&[named("b.test")], 4096));
    let refused = stage.last(Verdict::Refused);
    assert!(refused.rule.contains("the server name is b.test"), "{refused:?}");
    connect(&stage, "a.test", server.port, b"");
    stage.until("cut hello", |one| one.rule == crate::hello::HelloError::Cut.to_string());
    assert!(stage.gateway.decisions().unwrap().iter().all(|one| one.verdict == Verdict::Refused), "something was allowed");
}

/// A server that asks for another hello, whatever comes.
fn asks_again() -> (Server, Vec<u8>) {
    let answer = crate::opening::unit::retry_request();
    (Server::start(answer.clone().leak()), answer)
}

/// Begins TLS, directly or in a tunnel for `a.test`, and says what follows once the server has asked for another hello. What came then.
fn says_again(stage: &Stage, port: u16, in_tunnel: bool, [first, second]: [&[u8]; 2]) -> Vec<u8> {
    let mut stream = TcpStream::connect(if in_tunnel { stage.proxy } else { stage.tls }).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    if in_tunnel {
        stream.write_all(format!("CONNECT a.test:{port} HTTP/1.1\r\n\r\n").as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
    }
    stream.write_all(first).unwrap();
    let mut asked = vec![0; crate::opening::unit::retry_request().len()];
    stream.read_exact(&mut asked).unwrap();
    stream.write_all(second).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

#[test]
fn a_second_hello_is_judged_as_the_first() {
    let (server, asked) = asks_again();
    let stage = open(server.port, &["https://a.test:PORT", "https://b.test:PORT"]);
    let first = hello(&[named("a.test")], 4096);
    for in_tunnel in [false, true] {
        assert_eq!(says_again(&stage, server.port, in_tunnel, [&first, &first]), asked);
        assert_eq!(server.all(), [&first[..], &first].concat());
        // Not even another name that is listed: its rule and its address could be others.
        for (name, hidden) in [("evil.test", vec![]), ("b.test", vec![]), ("a.test", vec![(0xfe0d, vec![1])])] {
            let second = hello(&[vec![named(name)], hidden].concat(), 4096);
            assert_eq!(says_again(&stage, server.port, in_tunnel, [&first, &second]), crate::tunnel::ALERT, "{name}");
            assert_eq!(server.all(), first, "the second hello went on");
            let why = if name == "a.test" { "encrypted".to_owned() } else { format!("and the second {name}") };
            let refused = stage.until("refusal", |one| one.verdict == Verdict::Refused && one.rule.contains(&why));
            assert_eq!((refused.name.as_str(), refused.address), ("a.test", Some("127.0.0.1".parse().unwrap())));
        }
    }
}

#[test]
fn a_second_hello_before_the_answer_goes_nowhere() {
    let (server, _) = asks_again();
    let stage = open(server.port, &["https://a.test:PORT"]);
    let both = [hello(&[named("a.test")], 4096), hello(&[named("evil.test")], 4096)].concat();
    assert_eq!(say(stage.tls, &both), crate::tunnel::ALERT);
    assert_eq!(connect(&stage, "a.test", server.port, &both).1, crate::tunnel::ALERT);
    assert!(server.all().is_empty());
    let is_early = |one: &Decision| one.verdict == Verdict::Refused && one.rule.starts_with("a handshake record before");
    assert!(stage.until("refusal", is_early).address.is_some());
}

#[test]
fn a_tunnel_that_is_not_used_is_on_record_with_its_address() {
    let server = Server::start(b"served");
    let stage = open(server.port, &["a.test:PORT"]);
    connect(&stage, "a.test", server.port, &hello(&[named("b.test")], 4096));
    let refused = stage.until("refusal", |one| one.rule.contains("the server name is b.test"));
    assert_eq!((refused.verdict, refused.address), (Verdict::Refused, Some("127.0.0.1".parse().unwrap())));
}

/// A client that asks for something and cannot be told anything.
struct Gone(Vec<u8>);

impl tokio::io::AsyncRead for Gone {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut tokio::io::ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.0.is_empty() {
            return Poll::Pending;
        }
        buffer.put_slice(&std::mem::take(&mut self.0));
        Poll::Ready(Ok(()))
    }
}

impl tokio::io::AsyncWrite for Gone {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[test]
fn a_tunnel_whose_client_is_gone_is_on_record_with_its_address() {
    let server = Server::start(b"served");
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("egress.jsonl");
    let names = Names::default();
    names.answers.lock().unwrap().insert("a.test".into(), vec![vec!["127.0.0.1".parse().unwrap()]]);
    let rules = Rules::parse(&[format!("a.test:{}", server.port)]).unwrap();
    let plan = Plan::new(Ipv4Addr::LOCALHOST, &rules);
    let config = Config { resolver: Arc::new(names), ..Config::new("test-2", rules, plan, &log) };
    let tenant = crate::gateway::tenant(config, |_| None).unwrap();
    let client = Gone(format!("CONNECT a.test:{} HTTP/1.1\r\n\r\n", server.port).into_bytes());
    let (_closing, guard) = crate::serve::Guard::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let decisions = runtime.block_on(async {
        let place = Arc::new(tenant.place().unwrap());
        crate::http::serve(tenant.room.clone(), crate::http::Entry::Proxy, client, guard, place).await;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let decisions = crate::read_log(&log).unwrap();
            if !decisions.is_empty() || Instant::now() > deadline {
                return decisions;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let [failed] = &decisions[..] else { panic!("{decisions:?}") };
    assert_eq!((failed.verdict, failed.address), (Verdict::Failed, Some("127.0.0.1".parse().unwrap())));
    assert!(failed.rule.starts_with("the client left"), "{failed:?}");
    assert!(server.all().is_empty());
}

#[test]
fn what_does_not_come_in_time_is_on_record() {
    let stage = open(1, &["a.test"]);
    let mut held = Vec::new();
    for (at, bytes) in [(stage.http, &b"GET / HTTP/1.1\r\nX: "[..]), (stage.tls, &hello(&[named("a.test")], 4096)[..20])] {
        let mut stream = TcpStream::connect(at).unwrap();
        stream.write_all(bytes).unwrap();
        held.push(stream);
    }
    stage.until("late head", |one| one.rule == "a request whose head did not come in time");
    stage.until("late hello", |one| one.rule == crate::hello::HelloError::Late.to_string());
}

/// A request that takes longer than a connection may be silent, and is never silent so long.
#[test]
fn an_upload_goes_on_as_long_as_it_moves() {
    let server = Server::start(b"");
    let stage = open(server.port, &["a.test:PORT"]);
    let mut stream = TcpStream::connect(stage.http).unwrap();
    let head = format!("POST / HTTP/1.1\r\nHost: a.test:{}\r\nContent-Length: 10\r\n\r\n", server.port);
    stream.write_all(head.as_bytes()).unwrap();
    for _ in 0..10 {
        std::thread::sleep(crate::tunnel::IDLE * 3 / 20);
        stream.write_all(b"x").unwrap();
    }
    let mut got = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while !text(&got).ends_with("xxxxxxxxxx") {
        assert!(Instant::now() < deadline, "{}", text(&got));
        got.extend(server.all());
        std::thread::sleep(Duration::from_millis(5));
    }
    // And one that is silent is told so.
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 502");
}

#[test]
fn a_silent_tunnel_ends() {
    let (_server, stage, mut stream) = tunnel("");
    let start = Instant::now();
    let _ = stream.read_to_end(&mut Vec::new());
    assert!(start.elapsed() >= crate::tunnel::IDLE - Duration::from_millis(100), "it ended after {:?}", start.elapsed());
    assert_eq!(stage.last(Verdict::Ended).sent, 0);
}

/// The bytes of what was open are in the log when the gateway is gone, and what comes after it has other numbers.
#[test]
fn what_a_gateway_cuts_has_its_end_in_the_log() {
    let (_server, stage, mut stream) = tunnel("hello");
    let mut got = Vec::new();
    while !text(&got).ends_with("served") {
        let mut chunk = [0; 256];
        let count = stream.read(&mut chunk).unwrap();
        got.extend_from_slice(&chunk[..count]);
    }
    let Stage { gateway, _dir: dir, .. } = stage;
    drop(gateway);
    let path = dir.path().join("egress.jsonl");
    let decisions = crate::read_log(&path).unwrap();
    let (allowed, ended) = (&decisions[0], decisions.last().unwrap());
    assert_eq!((ended.verdict, ended.sent, ended.received, ended.id), (Verdict::Ended, 5, 6, allowed.id));
    let length = crate::Log::open(&path).unwrap().length();
    assert!(decisions.iter().all(|one| one.id < length), "a later gateway would use a number again");
}
