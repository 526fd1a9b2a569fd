//! Requests through the gateway of N1, against direct ones and against squid.
//!
//! The work is done by this program run again in a world of its own (network namespaces with a server in one of them), which
//! tells its numbers as one JSON value.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tierbox::egress::{Config, Gateway, Plan, Rules};
use tierbox_testkit::world;

use crate::bench::{Bench, Failure};
use crate::report::{Row, short};
use crate::stats::{Summary, in_turns};

/// Set where this program runs again: the number of samples.
const MARK: &str = "TIERBOX_BENCH_EGRESS";

const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const PORT: u16 = 9000;
const SQUID: &str = "127.0.0.1:3129";

/// What a download holds, for one connection and for each of many.
const ONE: usize = 512 << 20;
const EACH: usize = 4 << 20;
const MANY: usize = 200;

/// Milliseconds of requests, and MiB/s of downloads.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Numbers {
    direct: Vec<f64>,
    gateway: Vec<f64>,
    /// Requests through squid and, in turns with them, through the gateway. Empty without squid.
    squid: Vec<f64>,
    beside_squid: Vec<f64>,
    one_direct: Vec<f64>,
    one_gateway: Vec<f64>,
    many_direct: Vec<f64>,
    many_gateway: Vec<f64>,
}

/// The rows.
pub(crate) fn requests(bench: &Bench) -> Result<Vec<Row>, Failure> {
    if let Some(absence) = world::absent() {
        return Err(format!("{}: {}", absence.reason, absence.install).into());
    }
    let mut child = Command::new(std::env::current_exe()?);
    let output = child.env(MARK, bench.samples().to_string()).stderr(Stdio::inherit()).output()?;
    let numbers: Numbers = serde_json::from_slice(&output.stdout).map_err(|error| format!("{}: {error}", output.status))?;
    let of = |samples: &Vec<f64>| Summary::of(samples.clone());
    let (ours, direct) = (of(&numbers.gateway), of(&numbers.direct));
    let added = format!("{} ms more than without", short(ours.median - direct.median));
    let mut rows = vec![Row::less_is_better("request through the gateway", "ms", ours, "direct", direct, 8.0).note(added)];
    if numbers.squid.is_empty() {
        rows.push(Row::failed("request, beside squid", 1.0, "squid is not installed: apt-get install squid"));
    } else {
        let (ours, theirs) = (of(&numbers.beside_squid), of(&numbers.squid));
        rows.push(Row::less_is_better("request, beside squid", "ms", ours, "squid", theirs, 1.0));
    }
    let rate =
        |name: &str, ours: &Vec<f64>, direct: &Vec<f64>| Row::more_is_better(name, "MiB/s", of(ours), "direct", of(direct), 4.0);
    rows.push(rate("1 download", &numbers.one_gateway, &numbers.one_direct));
    rows.push(rate("200 downloads at once", &numbers.many_gateway, &numbers.many_direct));
    Ok(rows)
}

/// Measures, if this program was run for that.
pub(crate) fn inside() -> Option<ExitCode> {
    let samples = std::env::var(MARK).ok()?.parse().ok()?;
    Some(world::run(|| match measure(samples) {
        Ok(numbers) => {
            println!("{}", serde_json::to_string(&numbers).unwrap_or_default());
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }))
}

fn measure(samples: usize) -> Result<Numbers, Failure> {
    let directory = world::directory().ok_or("there is no world")?;
    world::among_servers(serve)??;
    let added = Command::new("ip").args(["addr", "add", &format!("{ADDRESS}/32"), "dev", "lo"]).status()?;
    let rules = Rules::parse(&[format!("index.test:{PORT}")])?;
    let plan = Plan::new(ADDRESS, &rules);
    let sockets = plan.bind().map_err(|error| format!("{added}: {error}"))?;
    let log = directory.join("egress.jsonl");
    let _gateway = Gateway::start(Config::new("bench", rules, plan.clone(), &log), sockets)?;
    let server = SocketAddr::new(world::SERVER.parse()?, PORT);
    let ours = SocketAddr::from((ADDRESS, tierbox::egress::PROXY_PORT));
    let mut numbers = Numbers::default();
    let (gateway, direct) = in_turns(samples * 5, || get(ours, 2), || get(server, 2))?;
    (numbers.gateway, numbers.direct) = (milliseconds(&gateway), milliseconds(&direct));
    if let Some(squid) = Squid::start(&directory)? {
        let (gateway, theirs) = in_turns(samples * 5, || get(ours, 2), || get(SQUID.parse()?, 2))?;
        (numbers.beside_squid, numbers.squid) = (milliseconds(&gateway), milliseconds(&theirs));
        drop(squid);
    }
    let downloads = (samples / 10).max(3);
    let (gateway, direct) = in_turns(downloads, || get(ours, ONE), || get(server, ONE))?;
    (numbers.one_gateway, numbers.one_direct) = (rates(&gateway, ONE), rates(&direct, ONE));
    let (gateway, direct) = in_turns(downloads, || all_at_once(ours), || all_at_once(server))?;
    (numbers.many_gateway, numbers.many_direct) = (rates(&gateway, EACH * MANY), rates(&direct, EACH * MANY));
    Ok(numbers)
}

fn milliseconds(times: &[Duration]) -> Vec<f64> {
    times.iter().map(|time| time.as_secs_f64() * 1e3).collect()
}

fn rates(times: &[Duration], bytes: usize) -> Vec<f64> {
    times.iter().map(|time| bytes as f64 / f64::from(1 << 20) / time.as_secs_f64()).collect()
}

/// Listens among the servers, and answers a request for `/N` with N bytes.
fn serve() -> std::io::Result<()> {
    let listener = TcpListener::bind((world::SERVER, PORT))?;
    // The thread is in the servers' namespace, and so are the threads that it starts.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || drop(answer(stream)));
        }
    });
    Ok(())
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut chunk = vec![0; 256 << 10];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut chunk)? {
            0 => return Ok(()),
            count => head.extend_from_slice(&chunk[..count]),
        }
    }
    let text = String::from_utf8_lossy(&head);
    let wanted = text.split(' ').nth(1).and_then(|path| path.rsplit('/').next()?.parse().ok()).unwrap_or(0);
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {wanted}\r\nConnection: close\r\n\r\n")?;
    let mut left: usize = wanted;
    while left > 0 {
        let count = left.min(chunk.len());
        stream.write_all(&chunk[..count])?;
        left -= count;
    }
    Ok(())
}

/// Asks for some bytes, over a new connection to the server or to a proxy, and times it.
fn get(at: SocketAddr, bytes: usize) -> Result<Duration, Failure> {
    let start = Instant::now();
    let mut stream = TcpStream::connect(at)?;
    write!(stream, "GET http://index.test:{PORT}/{bytes} HTTP/1.1\r\nHost: index.test:{PORT}\r\nConnection: close\r\n\r\n")?;
    let mut chunk = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        match stream.read(&mut chunk)? {
            0 => break,
            count => total += count,
        }
    }
    let time = start.elapsed();
    if total > bytes { Ok(time) } else { Err(format!("{at} answered with {total} bytes of {bytes}").into()) }
}

fn all_at_once(at: SocketAddr) -> Result<Duration, Failure> {
    let start = Instant::now();
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..MANY).map(|_| scope.spawn(move || get(at, EACH).map(drop))).collect();
        all.into_iter().try_for_each(|one| one.join().unwrap_or_else(|_| Err("a download panicked".into())))
    })?;
    Ok(start.elapsed())
}

/// A squid that allows the same one name, and keeps nothing.
struct Squid(Child);

impl Squid {
    fn start(directory: &Path) -> Result<Option<Self>, Failure> {
        let Some(program) = ["/usr/sbin/squid", "/usr/bin/squid"].into_iter().find(|path| Path::new(path).exists()) else {
            return Ok(None);
        };
        let file = directory.join("squid.conf");
        let text = format!(
            "http_port {SQUID}\nacl allowed dstdomain index.test\nhttp_access allow allowed\nhttp_access deny all\ncache deny all\n\
             pid_filename none\naccess_log stdio:/dev/null\ncache_log /dev/null\ncache_store_log none\n\
             shutdown_lifetime 0 seconds\nhosts_file /etc/hosts\n"
        );
        std::fs::write(&file, text)?;
        let child = Command::new(program)
            .args(["-N", "-n", &format!("tierbox{}", std::process::id()), "-f"])
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let squid = Self(child);
        for _ in 0..500 {
            if TcpStream::connect(SQUID).is_ok() {
                return Ok(Some(squid));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err("squid does not listen".into())
    }
}

impl Drop for Squid {
    fn drop(&mut self) {
        // It has shared memory to remove.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}
