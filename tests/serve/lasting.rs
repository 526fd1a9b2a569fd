//! What lasts and what ends: leases, shares of the budget, machines and engines that do not answer.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use tierbox::Hold;
use tierbox_core::{LeaseHandle, Resource};
use tierbox_lease::{Journal, NewLease};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;

use crate::http::{self, Daemon, LIMIT};
use crate::{PROFILE, until};

/// An environment of Docker's whose lease is over, and whose engine takes connections and says nothing.
struct Hung {
    asked: Arc<AtomicUsize>,
    lease: PathBuf,
    engine: JoinHandle<()>,
    id: String,
}

impl Hung {
    fn plant(daemon: &Daemon) -> Self {
        let state = daemon.directory.path().join("state");
        let socket = daemon.directory.path().join("engine.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let engine = tokio::spawn(async move {
            let mut silent = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                silent.push(stream);
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        let lease = Journal::at(&state).unwrap().create(NewLease::new("docker", "docker", "T0.H1.N2")).unwrap();
        lease.record(&[Resource { kind: "container".into(), id: "0123456789ab".into() }]).unwrap();
        lease.set_data(json!({ "socket": socket, "ready": true })).unwrap();
        lease.set_hold(Hold::Until(SystemTime::now())).unwrap();
        let id = lease.id().to_owned();
        Self { asked, lease: state.join("leases").join(format!("{id}.json")), engine, id }
    }

    fn end(self) {
        self.engine.abort();
        std::fs::remove_file(self.lease).unwrap();
    }
}

fn end_of_lease(daemon: &Daemon, id: &str) -> Option<SystemTime> {
    match http::client(&daemon.directory).lease(id).ok()?.record.hold {
        Hold::Until(end) => Some(end),
        _ => None,
    }
}

async fn metric(daemon: &Daemon, name: &str) -> String {
    let text = daemon.get("/metrics").await.text();
    let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).map(str::to_owned);
    line.unwrap_or_else(|| panic!("{name} in {text}"))
}

async fn admitted(daemon: &Daemon) -> String {
    metric(daemon, "tierbox_admitted{backend=\"local\"}").await.rsplit(' ').next().unwrap_or_default().to_owned()
}

mod conformance {
    use super::*;

    #[tokio::test]
    async fn a_hung_clean_up_ends_nobody_elses_lease() {
        let daemon = Daemon::start(|_| ()).await;
        let busy = daemon.create(json!({ "profile": PROFILE, "ttl": 2 })).await;
        let work = daemon.shell(&busy, "until [ -e go ]; do sleep 0.1; done; echo done");
        let meanwhile = async {
            let hung = Hung::plant(&daemon);
            until("its clean-up has begun", || async { hung.asked.load(Ordering::Relaxed) > 0 }).await;
            let left = daemon.create(json!({ "profile": PROFILE, "ttl": 2 })).await;
            until("what nobody renews ends", || async { end_of_lease(&daemon, &left).is_none() }).await;
            let began = Instant::now();
            let listed = daemon.get("/v1/environments").await.text();
            assert!(began.elapsed() < Duration::from_secs(5), "a list took {:?}", began.elapsed());
            assert!(listed.contains(&busy) && listed.contains(&hung.id) && !listed.contains(&left), "{listed}");
            // Several times its ttl.
            tokio::time::sleep(Duration::from_secs(6)).await;
            assert!(end_of_lease(&daemon, &busy).is_some_and(|end| end > SystemTime::now()), "the lease in use ended");
            let put = daemon.send("PUT", &format!("/v1/environments/{busy}/files?path=go"), &[], b"").await;
            hung.end();
            put.status
        };
        let ((_, printed), put) = tokio::join!(work, meanwhile);
        assert_eq!((printed.as_str(), put), ("done\n", 200));
        daemon.finish().await;
    }

    #[tokio::test]
    async fn a_moment_of_use_prolongs_no_lease_beyond_what_its_client_asked_for() {
        let daemon = Daemon::start(|_| ()).await;
        let id = daemon.create(json!({ "profile": PROFILE, "ttl": 6 })).await;
        let first = end_of_lease(&daemon, &id).unwrap();
        // Until the daemon has seen that it is in use.
        let work = daemon.shell(&id, "until [ -e go ]; do sleep 0.1; done");
        let seen = async {
            until("it is renewed", || async { end_of_lease(&daemon, &id).is_some_and(|end| end > first) }).await;
            let end = end_of_lease(&daemon, &id).unwrap();
            assert!(end <= SystemTime::now() + Duration::from_secs(6), "it ends later than it was asked for");
            daemon.send("PUT", &format!("/v1/environments/{id}/files?path=go"), &[], b"").await
        };
        tokio::join!(work, seen);
        until("it ends", || async { end_of_lease(&daemon, &id).is_none() }).await;
        daemon.finish().await;
    }

    #[tokio::test]
    async fn a_name_renews_nothing_of_another_token() {
        let daemon = Daemon::with_tokens(&["0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"], |_| ()).await;
        let host = daemon.address.unwrap().to_string();
        let ask = |token: &'static str, path: &'static str, body: Value| {
            let (daemon, host) = (&daemon, host.clone());
            async move {
                let bearer = format!("Bearer {token}");
                let headers = [("host", host.as_str()), ("authorization", bearer.as_str()), ("content-type", "application/json")];
                daemon.tcp("POST", path, &headers, body.to_string().as_bytes()).await.value()
            }
        };
        let [one, two] = ["0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"];
        let mine = ask(one, "/v1/environments", json!({ "profile": PROFILE })).await["id"].clone();
        let theirs = ask(two, "/v1/environments", json!({ "profile": PROFILE })).await["id"].clone();
        assert_eq!(ask(one, "/v1/renew", json!({})).await["environments"], json!([mine]));
        assert_eq!(ask(two, "/v1/renew", json!({ "environments": [mine, theirs] })).await["environments"], json!([theirs]));
        daemon.finish().await;
    }

    /// Its first process is stopped while the daemon is started again: it can be renewed meanwhile, and is had when it goes on.
    #[tokio::test]
    async fn a_machine_that_does_not_answer_a_new_daemon_is_renewed_and_found_later() {
        let mut daemon = Daemon::start(|_| ()).await;
        let mine = [("content-type", "application/json"), ("tierbox-client", "me")];
        let create = json!({ "profile": PROFILE, "ttl": 60 }).to_string();
        let id = daemon.send("POST", "/v1/environments", &mine, create.as_bytes()).await.value()["id"].clone();
        let id = id.as_str().unwrap();
        let first = daemon.shell(id, "echo $PPID").await.1.trim().parse().unwrap();
        let first = rustix::process::Pid::from_raw(first).unwrap();
        daemon.end().await;
        rustix::process::kill_process(first, rustix::process::Signal::STOP).unwrap();
        let began = Instant::now();
        daemon.again(|_| ()).await;
        assert_eq!(daemon.get("/v1").await.status, 200);
        assert!(began.elapsed() < Duration::from_secs(5), "the new daemon was there after {:?}", began.elapsed());
        assert_eq!(admitted(&daemon).await, "1");
        let renewed = daemon.send("POST", "/v1/renew", &mine, b"{\"ttl\": 600}").await.value();
        rustix::process::kill_process(first, rustix::process::Signal::CONT).unwrap();
        assert_eq!(renewed["environments"], json!([id]));
        assert!(end_of_lease(&daemon, id).is_some_and(|end| end > SystemTime::now() + Duration::from_secs(500)));
        until("it is found again", || async { metric(&daemon, "tierbox_environments").await.ends_with(" 1") }).await;
        assert_eq!(daemon.shell(id, "echo here").await.1, "here\n");
        assert_eq!(admitted(&daemon).await, "1");
        daemon.finish().await;
    }

    #[tokio::test]
    async fn what_could_not_be_ended_keeps_its_share_and_its_client() {
        let daemon = Daemon::start(|_| ()).await;
        let mine = [("content-type", "application/json"), ("tierbox-client", "me")];
        let create = json!({ "profile": PROFILE }).to_string();
        let id = daemon.send("POST", "/v1/environments", &mine, create.as_bytes()).await.value()["id"].clone();
        let path = format!("/v1/environments/{}", id.as_str().unwrap());
        let journal = Journal::at(&daemon.directory.path().join("state")).unwrap();
        let elsewhere = journal.adopt(id.as_str().unwrap()).unwrap();
        assert_eq!(daemon.json("DELETE", &path, Value::Null).await.status, 429);
        drop(elsewhere);
        assert_eq!(admitted(&daemon).await, "1");
        let renewed = daemon.send("POST", "/v1/renew", &mine, b"{}").await.value();
        assert_eq!(renewed["environments"], json!([id]));
        assert_eq!(daemon.json("DELETE", &path, Value::Null).await.status, 200);
        assert_eq!(admitted(&daemon).await, "0");
        daemon.finish().await;
    }

    #[tokio::test]
    async fn what_is_destroyed_goes_though_its_client_leaves_at_once() {
        let daemon = Daemon::start(|_| ()).await;
        let id = daemon.create(json!({ "profile": PROFILE })).await;
        let path = format!("/v1/environments/{id}");
        let mut stream = daemon.connect().await;
        stream.write_all(&http::request("DELETE", &path, &[], b"")).await.unwrap();
        drop(stream);
        until("it is gone", || async { daemon.get(&path).await.status == 404 }).await;
        until("its lease is gone", || async { end_of_lease(&daemon, &id).is_none() }).await;
        assert_eq!(admitted(&daemon).await, "0");
        daemon.finish().await;
    }

    /// Who asks how many may run at once is told of one where none has room: its start says why.
    #[tokio::test]
    async fn concurrency_is_never_none() {
        let daemon = Daemon::start(|options| options.budget.memory = Some(1 << 20)).await;
        let profile = daemon.directory.path().join("large.toml");
        std::fs::write(&profile, "extends = \"local\"\ntier = \"T0.H1.N2\"\n[limits]\nmemory = \"2GiB\"\n").unwrap();
        let about = daemon.get(&format!("/v1?profile={}", profile.display())).await.value();
        assert_eq!(about["concurrency"], json!(1), "{about}");
        let refused = daemon.json("POST", "/v1/environments", json!({ "profile": profile })).await;
        assert!(refused.status != 200 && refused.value()["retryable"] == json!(false), "{}", refused.text());
        daemon.finish().await;
    }

    /// A daemon that ends takes nothing of the one that comes after it.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_successor_keeps_its_socket() {
        let mut daemon = Daemon::start(|_| ()).await;
        for _ in 0..20 {
            let client = http::client(&daemon.directory);
            let next = async {
                loop {
                    let bound = tierbox_serve::Server::bind(client.clone(), Default::default()).await;
                    match bound {
                        Ok(server) => return server,
                        Err(error) => assert_eq!(error.kind(), tierbox::ErrorKind::AlreadyExists),
                    }
                    tokio::task::yield_now().await;
                }
            };
            let next = tokio::time::timeout(LIMIT, next);
            let (stop, task) = daemon.parts();
            let (next, ended) = tokio::join!(next, async {
                let _ = stop.send(());
                task.await
            });
            ended.unwrap().unwrap();
            daemon.take(next.expect("a successor"));
            assert_eq!(daemon.get("/v1").await.status, 200);
        }
        daemon.finish().await;
    }
}
