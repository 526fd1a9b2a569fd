//! The daemon against the library, and many clients of it at once.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tierbox::{ExecRequest, SandboxExt, Tierbox};
use tierbox_serve::{Options, Server};
use tokio::sync::oneshot;

use crate::bench::{Bench, Failure, PROFILE};
use crate::machine::memory;
use crate::peers::TRUE;
use crate::report::{Row, short};
use crate::stats::{Summary, in_turns};

/// What the daemon may add to the median of a command, in milliseconds.
const MAY_ADD: f64 = 0.5;
const CLIENTS: usize = 32;

/// A daemon on a thread of its own, as `tierbox serve` runs it.
struct Daemon {
    socket: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Daemon {
    fn start(client: &Tierbox) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut options = Options::default();
        // What is measured is the daemon, not how many fit into this host.
        options.budget = tierbox_serve::Budget::default();
        let server = runtime.block_on(Server::bind(client.clone(), options))?;
        let socket = server.socket().to_owned();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("serve".into()).spawn(move || {
            let ended = runtime.block_on(server.run(async move { drop(stopped.await) }));
            ended.unwrap_or_else(|error| eprintln!("the daemon ended: {error}"));
        })?;
        Ok(Self { socket, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A connection that is kept.
struct Connection(BufReader<UnixStream>);

impl Connection {
    fn open(daemon: &Daemon) -> Result<Self, Failure> {
        Ok(Self(BufReader::new(UnixStream::connect(&daemon.socket)?)))
    }

    fn ask(&mut self, method: &str, path: &str, body: &str) -> Result<Vec<u8>, Failure> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.get_mut().write_all(request.as_bytes())?;
        let (mut line, mut length, mut status) = (String::new(), 0, String::new());
        loop {
            line.clear();
            self.0.read_line(&mut line)?;
            if status.is_empty() {
                status = line.trim().to_owned();
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut answer = vec![0; length];
        self.0.read_exact(&mut answer)?;
        if status.contains(" 200 ") { Ok(answer) } else { Err(format!("{status}: {}", String::from_utf8_lossy(&answer)).into()) }
    }

    fn create(&mut self) -> Result<String, Failure> {
        let answer = self.ask("POST", "/v1/environments", &format!("{{\"profile\":\"{PROFILE}\"}}"))?;
        let document: serde_json::Value = serde_json::from_slice(&answer)?;
        Ok(document["id"].as_str().ok_or("no id")?.to_owned())
    }

    fn exec(&mut self, environment: &str) -> Result<(), Failure> {
        let answer = self.ask("POST", &format!("/v1/environments/{environment}/exec"), &format!("{{\"argv\":[\"{TRUE}\"]}}"))?;
        let success = answer.windows(12).any(|part| part == b"{\"exited\":0}");
        if success { Ok(()) } else { Err(String::from_utf8_lossy(&answer).into_owned().into()) }
    }

    fn destroy(&mut self, environment: &str) -> Result<(), Failure> {
        self.ask("DELETE", &format!("/v1/environments/{environment}"), "").map(drop)
    }
}

/// `/bin/true` through the daemon against the library.
pub(crate) fn exec(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let daemon = Daemon::start(&bench.client)?;
    let running = bench.wait(bench.start())?;
    let sandbox = running.sandbox();
    let mut connection = Connection::open(&daemon)?;
    let environment = connection.create()?;
    let through = || -> Result<Duration, Failure> {
        let start = Instant::now();
        connection.exec(&environment)?;
        Ok(start.elapsed())
    };
    let direct = || -> Result<Duration, Failure> {
        let start = Instant::now();
        bench.wait(sandbox.run(ExecRequest::new([TRUE])))?;
        Ok(start.elapsed())
    };
    let (through, direct) = in_turns(bench.samples() * 5, through, direct)?;
    connection.destroy(&environment)?;
    bench.wait(running.stop())?;
    let (through, direct) = (Summary::of_times(&through), Summary::of_times(&direct));
    let adds = Summary::one((through.median - direct.median).max(0.0));
    let row = Row::less_is_better("what the daemon adds to an exec", "ms", adds, "the bound", Summary::one(MAY_ADD), 1.0);
    let told = format!("{} ms through the daemon, {} ms by the library", short(through.median), short(direct.median));
    Ok(vec![row.note(told)])
}

/// Short tasks (an environment, a command, its end) from 32 clients, against the library with as many at once.
pub(crate) fn tasks(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let count = if bench.quick { 200 } else { 1000 };
    let (before, _) = memory();
    let daemon = Daemon::start(&bench.client)?;
    let (left, times) = (Mutex::new(count), Mutex::new(Vec::new()));
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let work = || -> Result<(), Failure> {
            let mut connection = Connection::open(&daemon)?;
            while take(&left) {
                let start = Instant::now();
                let environment = connection.create()?;
                connection.exec(&environment)?;
                connection.destroy(&environment)?;
                times.lock().map_err(|_| "a thread panicked")?.push(start.elapsed());
            }
            Ok(())
        };
        let threads: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?)
    })?;
    let through = count as f64 / begin.elapsed().as_secs_f64();
    let (after, _) = memory();
    drop(daemon);
    let begin = Instant::now();
    bench.wait(many(&bench.client, count))?;
    let direct = count as f64 / begin.elapsed().as_secs_f64();
    let mut times = times.into_inner().map_err(|_| "a thread panicked")?;
    times.sort();
    let at = |share: f64| short(times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3);
    let grown = after.saturating_sub(before) as f64 / 1024.0 / 1024.0;
    let row = Row::more_is_better(
        "short tasks, 32 clients",
        "/s",
        Summary::one(through),
        "the library, 32 at once",
        Summary::one(direct),
        1.5,
    );
    Ok(vec![row.note(format!(
        "{count} tasks: median {} ms, p99 {} ms; {} MiB of memory more than before, clients and daemon together",
        at(0.5),
        at(0.99),
        short(grown)
    ))])
}

fn take(left: &Mutex<usize>) -> bool {
    left.lock().is_ok_and(|mut left| {
        let some = *left > 0;
        *left = left.saturating_sub(1);
        some
    })
}

async fn many(client: &Tierbox, count: usize) -> Result<(), Failure> {
    let places = std::sync::Arc::new(tokio::sync::Semaphore::new(CLIENTS));
    let lives = (0..count).map(|_| {
        let (client, places) = (client.clone(), places.clone());
        tokio::spawn(async move {
            let _place = places.acquire_owned().await;
            let running = client.start(PROFILE).await?;
            running.sandbox().run(ExecRequest::new([TRUE])).await?;
            running.stop().await
        })
    });
    for life in lives.collect::<Vec<_>>() {
        life.await??;
    }
    Ok(())
}
