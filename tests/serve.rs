//! The daemon, as its clients see it, and as people who mean harm do.
#![cfg(target_os = "linux")]

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[path = "serve/bounded.rs"]
mod bounded;
#[path = "serve/http.rs"]
mod http;
#[path = "serve/lasting.rs"]
mod lasting;
mod support;

use http::{Daemon, LIMIT};

/// Plain processes: what is tested here is the daemon, and they start where containers cannot.
const PROFILE: &str = "local-process";

async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let checked = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(LIMIT, checked).await.is_ok(), "it never came true: {what}");
}

mod conformance {
    use super::*;

    #[tokio::test]
    async fn an_environment_lives_from_create_to_destroy() {
        let daemon = Daemon::start(|_| ()).await;
        let id = daemon.create(json!({ "profile": PROFILE, "name": "first", "labels": { "task": "t" } })).await;
        let shown = daemon.get("/v1/environments/first").await.value();
        assert_eq!((&shown["id"], &shown["tier"], &shown["state"]), (&json!(id), &json!("T0.H0.N0"), &json!("up")));
        assert!(shown["report"]["mechanisms"].is_array() && shown["machines"] == json!(["default"]));
        let listed = daemon.get("/v1/environments").await.value();
        assert_eq!(listed["environments"][0]["labels"], json!({ "task": "t" }));
        let (head, printed) = daemon.shell(&id, "echo out; echo err >&2; exit 3").await;
        assert_eq!((head["outcome"].clone(), printed.as_str()), (json!({ "exited": 3 }), "out\nerr\n"));
        assert_eq!(daemon.json("DELETE", "/v1/environments/first", Value::Null).await.status, 200);
        let gone = daemon.json("DELETE", &format!("/v1/environments/{id}"), Value::Null).await;
        assert_eq!((gone.status, gone.kind().as_str()), (404, "not-found"));
        daemon.finish().await;
    }

    #[tokio::test]
    async fn bytes_travel_as_they_are() {
        let daemon = Daemon::start(|_| ()).await;
        let id = daemon.create(json!({ "profile": PROFILE })).await;
        let every: Vec<u8> = (0..=255).cycle().take(3 << 20).collect();
        let path = format!("/v1/environments/{id}/files?path=a%20b%2F%C3%A9+");
        let put = daemon.send("PUT", &path, &[], &every).await;
        assert_eq!(put.status, 200, "{}", put.text());
        assert!(daemon.get(&path).await.body == every);
        assert_eq!(daemon.get(&format!("{path}&offset=1&length=3")).await.body, [1, 2, 3]);
        let stat = daemon.get(&path.replace("files", "stat")).await.value();
        assert_eq!((&stat["kind"], &stat["size"]), (&json!("file"), &json!(3 << 20)));
        let head = json!({ "argv": ["cat"], "stdin": true }).to_string();
        let body = [head.as_bytes(), b"\n", &every].concat();
        let kind = [("content-type", "application/vnd.tierbox.exec")];
        let answer = daemon.send("POST", &format!("/v1/environments/{id}/exec"), &kind, &body).await;
        let start = answer.body.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        assert!(answer.body[start..] == every);
        let streamed = daemon.send("POST", &format!("/v1/environments/{id}/stream"), &kind, &body).await;
        let frames = streamed.frames();
        let stdout: Vec<u8> = frames.iter().filter(|(kind, _)| *kind == 1).flat_map(|(_, bytes)| bytes.clone()).collect();
        assert!(stdout == every && frames[0].0 == 0 && frames.last().unwrap().0 == 3);
        daemon.finish().await;
    }

    #[tokio::test]
    async fn empty_stdin_is_not_no_stdin_and_a_limit_keeps_both_ends() {
        let daemon = Daemon::start(|_| ()).await;
        let id = daemon.create(json!({ "profile": PROFILE })).await;
        let (_, none) = daemon.shell(&id, "readlink /proc/self/fd/0").await;
        assert_eq!(none, "/dev/null\n");
        let body = b"{\"argv\":[\"readlink\",\"/proc/self/fd/0\"],\"stdin\":true}\n";
        let kind = [("content-type", "application/vnd.tierbox.exec")];
        let (_, empty) = daemon.send("POST", &format!("/v1/environments/{id}/exec"), &kind, body).await.head_and_bytes();
        assert!(empty.starts_with("pipe:"), "{empty}");
        let document = json!({ "argv": ["seq", "1000"], "output_limit": 10 });
        let answer = daemon.json("POST", &format!("/v1/environments/{id}/exec"), document).await;
        let (head, printed) = answer.head_and_bytes();
        assert_eq!(head["stdout"], json!({ "head": 5, "tail": 5, "total": 3893 }));
        assert_eq!(printed, "1\n2\n31000\n");
        daemon.finish().await;
    }

    #[tokio::test]
    async fn a_slow_reader_stops_the_command_and_memory_stays_bounded() {
        let daemon = Daemon::start(|_| ()).await;
        let id = daemon.create(json!({ "profile": PROFILE })).await;
        let script = "i=0; while [ $i -lt 64 ]; do head -c 1048576 /dev/zero; i=$((i+1)); echo $i > progress; done";
        let body = json!({ "argv": ["/bin/sh", "-c", script] }).to_string();
        let mut stream = daemon.connect().await;
        let kind = [("content-type", "application/json")];
        let path = format!("/v1/environments/{id}/stream");
        stream.write_all(&http::request("POST", &path, &kind, body.as_bytes())).await.unwrap();
        let mut some = [0; 4096];
        stream.read_exact(&mut some).await.unwrap();
        let progress =
            || async { daemon.shell(&id, "cat progress 2>/dev/null || echo 0").await.1.trim().parse::<u64>().unwrap() };
        // Whatever is buffered on the way fills up, and then nothing moves.
        let mut seen = progress().await;
        let still = async {
            loop {
                tokio::time::sleep(Duration::from_millis(300)).await;
                let now = progress().await;
                if now == seen {
                    return now;
                }
                seen = now;
            }
        };
        let stopped = tokio::time::timeout(LIMIT, still).await.expect("it stops");
        assert!(stopped < 16, "{stopped} MiB were taken from a command that nobody reads");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert!(rest.len() > 63 << 20);
        assert_eq!(progress().await, 64);
        daemon.finish().await;
    }

    #[tokio::test]
    async fn who_goes_away_kills_what_is_theirs_and_not_what_is_detached() {
        let daemon = Daemon::start(|_| ()).await;
        let id = daemon.create(json!({ "profile": PROFILE })).await;
        let detached = json!({ "argv": ["/bin/sh", "-c", "echo $$ > detached; sleep 1000"], "detach": true });
        let answer = daemon.json("POST", &format!("/v1/environments/{id}/exec"), detached).await;
        let exec = answer.value()["exec"].as_str().unwrap().to_owned();
        let alive = |name: &'static str| {
            let (daemon, id) = (&daemon, &id);
            async move { daemon.shell(id, &format!("kill -0 $(cat {name}) 2>/dev/null && echo yes")).await.1 == "yes\n" }
        };
        until("the detached one runs", || alive("detached")).await;
        for (index, way) in ["exec", "stream"].into_iter().enumerate() {
            // The second one has stdin under way that the command does not take.
            for (number, stdin) in [0, 4 << 20].into_iter().enumerate() {
                let name: &'static str = [["a", "b"], ["c", "d"]][index][number];
                let script = format!("(setsid sleep 1000 & echo $! > {name}); sleep 1000");
                let head = json!({ "argv": ["/bin/sh", "-c", script], "stdin": stdin > 0 }).to_string();
                let length = (head.len() + 1 + stdin).to_string();
                let headers = [("content-type", "application/vnd.tierbox.exec"), ("content-length", length.as_str())];
                let request = http::request("POST", &format!("/v1/environments/{id}/{way}"), &headers, head.as_bytes());
                let stream = daemon.connect().await;
                let (_reader, mut writer) = stream.into_split();
                let body = [request.as_slice(), b"\n", &vec![b'x'; stdin]].concat();
                let writing = tokio::spawn(async move {
                    let _ = writer.write_all(&body).await;
                    std::future::pending::<()>().await;
                });
                until("its child runs", || alive(name)).await;
                writing.abort();
                let _ = writing.await;
                drop(_reader);
                until("its child is gone", || async { !alive(name).await }).await;
            }
        }
        // What lies behind the request, and nobody has asked for yet, hides no end.
        let document = json!({ "argv": ["/bin/sh", "-c", "echo $$ > behind; exec sleep 1000"] }).to_string();
        let request = http::request(
            "POST",
            &format!("/v1/environments/{id}/exec"),
            &[("content-type", "application/json")],
            document.as_bytes(),
        );
        let mut stream = daemon.connect().await;
        stream.write_all(&[request.as_slice(), b"GET /v1 HTTP/1.1\r\n"].concat()).await.unwrap();
        until("the one with more behind it runs", || alive("behind")).await;
        drop(stream);
        until("it is gone", || async { !alive("behind").await }).await;
        assert!(alive("detached").await);
        let execs = daemon.get(&format!("/v1/environments/{id}/execs")).await.value();
        assert!(
            execs["execs"]
                .as_array()
                .unwrap()
                .iter()
                .any(|known| known["exec"] == json!(exec) && known["detached"] == json!(true))
        );
        let killed = daemon.json("DELETE", &format!("/v1/environments/{id}/execs/{exec}"), Value::Null).await;
        assert_eq!(killed.status, 200);
        let frames = daemon.get(&format!("/v1/environments/{id}/execs/{exec}/output")).await.frames();
        let last: Value = serde_json::from_slice(&frames.last().unwrap().1).unwrap();
        assert_eq!(last["outcome"], json!({ "killed": "cancelled" }));
        daemon.finish().await;
    }

    #[tokio::test]
    async fn a_daemon_that_is_started_again_finds_its_environments_and_their_share() {
        let mut daemon = Daemon::start(|_| ()).await;
        let id = daemon.create(json!({ "profile": PROFILE })).await;
        daemon.shell(&id, "echo kept > file").await;
        daemon.end().await;
        daemon.again(|_| ()).await;
        assert_eq!(daemon.shell(&id, "cat file").await.1, "kept\n");
        let metrics = daemon.get("/metrics").await.text();
        assert!(metrics.contains("tierbox_admitted{backend=\"local\"} 1"), "{metrics}");
        daemon.json("DELETE", &format!("/v1/environments/{id}"), Value::Null).await;
        let metrics = daemon.get("/metrics").await.text();
        assert!(metrics.contains("tierbox_admitted{backend=\"local\"} 0"), "{metrics}");
        daemon.finish().await;
    }

    #[tokio::test]
    async fn a_lease_ends_with_its_client_unless_it_is_renewed_or_in_use() {
        let daemon = Daemon::start(|_| ()).await;
        let mine = [("content-type", "application/json"), ("tierbox-client", "me")];
        let create = json!({ "profile": PROFILE, "ttl": 2 }).to_string();
        let started = |answer: http::Answer| answer.value()["id"].as_str().unwrap().to_owned();
        let left = daemon.create(json!({ "profile": PROFILE, "ttl": 2 })).await;
        let renewed = started(daemon.send("POST", "/v1/environments", &mine, create.as_bytes()).await);
        let kept = daemon.create(json!({ "profile": PROFILE, "ttl": 2 })).await;
        daemon.json("POST", &format!("/v1/environments/{kept}/renew"), json!({ "keep": true })).await;
        let answer = daemon.send("POST", "/v1/renew", &mine, b"{\"ttl\": 600}").await.value();
        assert_eq!(answer["environments"], json!([renewed]));
        let busy = daemon.create(json!({ "profile": PROFILE, "ttl": 2 })).await;
        let state = |id: &str| {
            let path = format!("/v1/environments/{id}");
            let daemon = &daemon;
            async move { daemon.get(&path).await }
        };
        let work = daemon.shell(&busy, "sleep 1; until [ -e go ]; do sleep 0.1; done; echo done");
        let wait = async {
            until("the lease that nobody renews ends", || async { state(&left).await.status == 404 }).await;
            tokio::time::sleep(Duration::from_secs(6)).await;
            let path = format!("/v1/environments/{busy}/files?path=go");
            daemon.send("PUT", &path, &[], b"").await
        };
        let ((_, printed), put) = tokio::join!(work, wait);
        assert_eq!((printed.as_str(), put.status), ("done\n", 200));
        assert_eq!(state(&renewed).await.status, 200);
        assert_eq!(state(&kept).await.value()["state"], json!("kept"));
        daemon.finish().await;
    }

    #[tokio::test]
    async fn starts_wait_their_turn_and_are_shown() {
        let daemon = Daemon::start(|options| {
            options.budget.backends.insert("local".into(), 1);
        })
        .await;
        let first = daemon.create(json!({ "profile": PROFILE })).await;
        let refused = daemon.json("POST", "/v1/environments", json!({ "profile": PROFILE, "wait": 0.1 })).await;
        assert_eq!((refused.status, refused.kind().as_str()), (429, "limit-reached"));
        assert_eq!(refused.value()["retryable"], json!(true));
        let headers = [("content-type", "application/json"), ("tierbox-client", "patient")];
        let document = json!({ "profile": PROFILE }).to_string();
        let waiting = daemon.send("POST", "/v1/environments", &headers, document.as_bytes());
        let free = async {
            let queue = tierbox_serve::queue_file(&daemon.directory.path().join("state"), std::process::id());
            until("the queue is written down", || async {
                std::fs::read_to_string(&queue).is_ok_and(|text| text.contains("\"patient\""))
            })
            .await;
            let listed = daemon.get("/v1/environments").await.value();
            assert_eq!(listed["waiting"][0]["client"], json!("patient"));
            assert_eq!(tierbox_serve::waiting(&daemon.directory.path().join("state"))[0].client, "patient");
            daemon.json("DELETE", &format!("/v1/environments/{first}"), Value::Null).await
        };
        let (second, _) = tokio::join!(waiting, free);
        assert_eq!(second.status, 200, "{}", second.text());
        daemon.finish().await;
    }

    #[tokio::test]
    async fn a_start_whose_client_goes_away_leaves_nothing() {
        let daemon = Daemon::start(|options| {
            options.budget.backends.insert("local".into(), 1);
        })
        .await;
        let first = daemon.create(json!({ "profile": PROFILE })).await;
        let mut stream = daemon.connect().await;
        let kind = [("content-type", "application/json")];
        let document = json!({ "profile": PROFILE }).to_string();
        stream.write_all(&http::request("POST", "/v1/environments", &kind, document.as_bytes())).await.unwrap();
        let waiting = || async { daemon.get("/v1/environments").await.value()["waiting"].as_array().unwrap().len() };
        until("it waits", || async { waiting().await == 1 }).await;
        drop(stream);
        until("it left the queue", || async { waiting().await == 0 }).await;
        daemon.json("DELETE", &format!("/v1/environments/{first}"), Value::Null).await;
        assert_eq!(daemon.get("/v1/environments").await.value()["environments"], json!([]));
        daemon.finish().await;
    }

    #[tokio::test]
    async fn a_code_task_runs_and_its_files_are_had() {
        let daemon = Daemon::start(|_| ()).await;
        let id = daemon.create(json!({ "profile": PROFILE })).await;
        let path = |rest: &str| format!("/v1/environments/{id}/code{rest}");
        let code = "cat in.txt; echo made > out.txt; exit 4";
        let task = json!({ "code": code, "runtime": "sh", "files": { "in.txt": "given" }, "session": "s" });
        let report = daemon.json("POST", &path(""), task).await.value();
        assert_eq!((&report["exit_code"], &report["stdout"]), (&json!(4), &json!("given")), "{report}");
        let hash = report["task_hash"].as_str().unwrap();
        let files = daemon.get(&path(&format!("/{hash}/files"))).await.value();
        assert!(files["files"].as_array().unwrap().contains(&json!({ "name": "out.txt", "size": 5 })), "{files}");
        assert_eq!(daemon.get(&path(&format!("/{hash}/file?name=out.txt"))).await.body, b"made\n");
        assert_eq!(daemon.get(&path(&format!("/{hash}/file?name=none"))).await.status, 404);
        let status = daemon.get(&path("")).await.value();
        assert_eq!(status["sessions"][0]["name"], json!("s"), "{status}");
        let cleaned = daemon.json("POST", &path("/cleanup"), json!({ "older_than": 0 })).await;
        assert_eq!(cleaned.status, 200, "{}", cleaned.text());
        let unknown = daemon.json("POST", &path(""), json!({ "code": "x", "runtime": "no-such" })).await;
        assert!(unknown.status == 400 || unknown.status == 403, "{}", unknown.text());
        daemon.finish().await;
    }

    #[tokio::test]
    async fn expired_tasks_go_by_themselves_and_the_base_directory_stays() {
        let daemon = Daemon::start(|options| options.task_sweep = Duration::from_millis(500)).await;
        let id = daemon.create(json!({ "profile": PROFILE })).await;
        let task = |name: &str| json!({ "code": format!(": {name}"), "runtime": "sh" });
        let path = format!("/v1/environments/{id}/code");
        let run = async |name: &str| {
            let report = daemon.json("POST", &path, task(name)).await.value();
            report["task_hash"].as_str().unwrap().to_owned()
        };
        let (old, new) = (run("old").await, run("new").await);
        daemon.shell(&id, &format!("touch -d '2 days ago' .tierbox-code/.tasks/{old}")).await;
        let there = |name: &str| {
            let script = format!("[ -d .tierbox-code/{name} ] && echo yes");
            let (daemon, id) = (&daemon, &id);
            async move { daemon.shell(id, &script).await.1 == "yes\n" }
        };
        until("the old task is gone", || async { !there(&old).await }).await;
        assert!(there(&new).await && there("").await);
        daemon.finish().await;
    }

    #[tokio::test]
    async fn a_task_whose_client_goes_away_is_killed() {
        let daemon = Daemon::start(|_| ()).await;
        let id = daemon.create(json!({ "profile": PROFILE })).await;
        let code = "setsid sleep 1000 & echo $! > pid; sleep 1000";
        let task = json!({ "code": code, "runtime": "sh", "private_dir": false }).to_string();
        let headers = [("content-type", "application/json")];
        let mut stream = daemon.connect().await;
        stream
            .write_all(&http::request("POST", &format!("/v1/environments/{id}/code"), &headers, task.as_bytes()))
            .await
            .unwrap();
        let alive = || async { daemon.shell(&id, "kill -0 $(cat pid) 2>/dev/null && echo yes").await.1 == "yes\n" };
        until("its child runs", alive).await;
        drop(stream);
        until("its child is gone", || async { !alive().await }).await;
        daemon.finish().await;
    }

    #[tokio::test]
    async fn what_is_known_and_recorded_of_an_environment_can_be_had() {
        if let Some(absence) = tokio::task::spawn_blocking(support::containers_absent).await.unwrap() {
            return support::skip("local-container", "serve::conformance::records", &absence).unwrap();
        }
        let mut daemon = Daemon::start(|_| ()).await;
        let id = daemon.create(json!({ "profile": "local", "log": true })).await;
        let path = |rest: &str| format!("/v1/environments/{id}/{rest}");
        let verified = daemon.json("POST", &path("verify"), Value::Null).await;
        assert_eq!(verified.value()["verified"], json!(true), "{}", verified.text());
        let attestation = daemon.get(&path("attestation")).await.value();
        assert_eq!((&attestation["tier"], &attestation["environment"]), (&json!("T0.H1.N2"), &json!(id)), "{attestation}");
        assert_eq!(daemon.get(&path("")[..path("").len() - 1]).await.value()["attestation"]["tier"], json!("T0.H1.N2"));
        daemon.shell(&id, "echo seen").await;
        let entries = |answer: http::Answer| -> Vec<Value> {
            answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        let log = entries(daemon.get(&path("log")).await);
        let execs = log.iter().filter(|entry| entry["operation"] == "exec").count();
        assert!(execs >= 2 && log[0]["seq"] == json!(0), "{log:?}");
        let rest = entries(daemon.get(&path(&format!("log?after={}", log.len() - 2))).await);
        assert_eq!(rest.iter().map(|entry| entry["seq"].as_u64().unwrap()).min(), Some(log.len() as u64 - 1));
        // Another daemon knows what was written down, and so does anybody when the environment is gone.
        daemon.end().await;
        daemon.again(|_| ()).await;
        assert_eq!(daemon.get(&path("attestation")).await.value(), attestation);
        let later = daemon.json("POST", &path("verify"), Value::Null).await;
        assert_eq!((later.status, &later.value()["verdict"]), (200, &json!("verified")), "{}", later.text());
        daemon.json("DELETE", &format!("/v1/environments/{id}"), Value::Null).await;
        assert!(entries(daemon.get(&path("log")).await).len() > log.len());
        assert_eq!(daemon.get(&path("attestation")).await.value(), attestation);
        for unknown in ["local-00000000", "..", "%2Fetc", "..%2Fx"] {
            let answer = daemon.get(&format!("/v1/environments/{unknown}/log")).await;
            assert!(answer.status == 404 || answer.status == 400, "{unknown}: {}", answer.text());
        }
        // Where nothing is decided about an agent, nothing is written down unasked.
        let plain = daemon.create(json!({ "profile": PROFILE })).await;
        assert_eq!(daemon.get(&format!("/v1/environments/{plain}/log")).await.status, 404);
        daemon.finish().await;
    }

    #[tokio::test]
    async fn without_a_log_an_environment_is_verified_and_attested_after_a_restart() {
        if let Some(absence) = tokio::task::spawn_blocking(support::containers_absent).await.unwrap() {
            return support::skip("local-container", "serve::conformance::restart", &absence).unwrap();
        }
        let mut daemon = Daemon::start(|_| ()).await;
        let here = daemon.directory.path();
        std::fs::write(here.join("secret"), "hunter2-hunter2").unwrap();
        let profile = here.join("secretive.toml");
        let text = "extends = \"local\"\ntier = \"T0.H1.N2\"\n[env]\nAPI_TOKEN = \"file:secret\"\n";
        std::fs::write(&profile, text).unwrap();
        let id = daemon.create(json!({ "profile": profile.to_str().unwrap() })).await;
        let path = |rest: &str| format!("/v1/environments/{id}/{rest}");
        let attestation = daemon.get(&path("attestation")).await.value();
        daemon.end().await;
        daemon.again(|_| ()).await;
        let verified = daemon.json("POST", &path("verify"), Value::Null).await;
        assert_eq!((verified.status, &verified.value()["verdict"]), (200, &json!("verified")), "{}", verified.text());
        let later = daemon.get(&path("attestation")).await;
        assert_eq!(later.status, 200, "{}", later.text());
        let same = |of: &Value| (of["environment"].clone(), of["tier"].clone(), of["profile_sha256"].clone());
        assert_eq!(same(&later.value()), same(&attestation));
        assert!(!later.text().contains("hunter2"));
        daemon.finish().await;
    }

    #[tokio::test]
    async fn who_follows_hears_of_starts_commands_and_ends() {
        let daemon = Daemon::start(|_| ()).await;
        let mut stream = daemon.connect().await;
        stream.write_all(&http::request("GET", "/v1/events", &[], b"")).await.unwrap();
        let mut heard = [0; 16];
        stream.read_exact(&mut heard).await.unwrap();
        let id = daemon.create(json!({ "profile": PROFILE })).await;
        let (head, _) = daemon.shell(&id, "exit 5").await;
        let code = format!("/v1/environments/{id}/code");
        let task = daemon.json("POST", &code, json!({ "runtime": "sh", "code": "exit 6" })).await.value();
        let detached = json!({ "argv": ["/bin/sh", "-c", "exit 7"], "detach": true });
        let detached = daemon.json("POST", &format!("/v1/environments/{id}/exec"), detached).await.value();
        until("all three are counted", || async { daemon.get("/metrics").await.text().contains("tierbox_exec_seconds_count 3") })
            .await;
        daemon.json("DELETE", &format!("/v1/environments/{id}"), Value::Null).await;
        let mut text = String::new();
        let until_the_end = async {
            let mut chunk = [0; 4096];
            while !text.contains("destroyed") {
                let count = stream.read(&mut chunk).await.unwrap();
                assert!(count > 0, "{text}");
                text.push_str(&String::from_utf8_lossy(&chunk[..count]));
            }
        };
        tokio::time::timeout(LIMIT, until_the_end).await.unwrap();
        let documents = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let told: Vec<Value> = documents.filter(Value::is_object).collect();
        let kinds: Vec<&str> = told.iter().filter_map(|event| event["event"].as_str()).collect();
        let of_execs = ["exec-started", "exec-ended"];
        let expected =
            [["asked", "started"].as_slice(), &of_execs, &["task-started", "task-ended"], &of_execs, &["destroyed"]].concat();
        assert_eq!(kinds, expected);
        assert_eq!((&told[5]["task"], &told[5]["outcome"]), (&task["task_hash"], &json!({ "exited": 6 })));
        assert_eq!((&told[7]["exec"], &told[7]["outcome"]), (&detached["exec"], &json!({ "exited": 7 })));
        assert_eq!((&told[3]["exec"], &told[3]["outcome"]), (&head["exec"], &json!({ "exited": 5 })));
        assert!(told[1..].iter().all(|event| event["environment"] == json!(id)));
        assert_eq!((&told[1]["backend"], &told[1]["profile"]), (&json!("local"), &json!(PROFILE)));
        daemon.finish().await;
    }

    #[tokio::test]
    async fn two_daemons_do_not_share_a_socket_and_one_that_died_leaves_no_obstacle() {
        let mut daemon = Daemon::start(|_| ()).await;
        let second = tierbox_serve::Server::bind(http::client(&daemon.directory), Default::default()).await;
        assert_eq!(second.err().unwrap().kind(), tierbox::ErrorKind::AlreadyExists);
        daemon.end().await;
        std::os::unix::net::UnixListener::bind(&daemon.socket).unwrap();
        daemon.again(|_| ()).await;
        assert_eq!(daemon.get("/v1").await.status, 200);
        daemon.finish().await;
    }

    #[test]
    fn the_openapi_document_is_the_committed_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        let made = format!("{}\n", serde_json::to_string_pretty(&tierbox_serve::openapi()).unwrap());
        if std::env::var_os("TIERBOX_TEST_BLESS").is_some() {
            std::fs::write(path, &made).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(committed == made, "docs/openapi.json is out of date: run this test with TIERBOX_TEST_BLESS=1");
    }
}

mod escape {
    use super::*;

    const HARNESS: &str = "0123456789abcdef0123456789abcdef";

    /// A daemon on TCP, with one token for a harness.
    async fn on_tcp() -> Daemon {
        on_tcp_with(|_| ()).await
    }

    async fn on_tcp_with(change: impl Fn(&mut tierbox_serve::Options)) -> Daemon {
        Daemon::with_tokens(&[HARNESS], change).await
    }

    #[tokio::test]
    async fn only_its_own_user_can_reach_the_socket() {
        use std::os::unix::fs::PermissionsExt;
        let daemon = Daemon::start(|_| ()).await;
        let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&daemon.socket), mode(daemon.socket.parent().unwrap())), (0o600, 0o700));
        daemon.finish().await;
        let open = tempfile::tempdir().unwrap();
        std::fs::set_permissions(open.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut options = tierbox_serve::Options::default();
        options.socket = Some(open.path().join("serve.sock"));
        let refused = tierbox_serve::Server::bind(http::client(&open), options).await.err().unwrap();
        assert_eq!(refused.kind(), tierbox::ErrorKind::PermissionDenied);
    }

    #[tokio::test]
    async fn who_comes_over_tcp_needs_a_token_and_is_no_browser() {
        let daemon = on_tcp().await;
        let host = daemon.address.unwrap().to_string();
        let bearer = format!("Bearer {HARNESS}");
        let ask = |headers: Vec<(&'static str, String)>| {
            let daemon = &daemon;
            async move {
                let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
                daemon.tcp("GET", "/v1", &headers, b"").await.status
            }
        };
        assert_eq!(ask(vec![("host", host.clone()), ("authorization", bearer.clone())]).await, 200);
        assert_eq!(ask(vec![("host", host.clone())]).await, 401);
        assert_eq!(ask(vec![("host", host.clone()), ("authorization", format!("{bearer}0"))]).await, 401);
        // A page whose name was bound to this address afterwards, and a form on somebody's page.
        assert_eq!(ask(vec![("host", "evil.example".into()), ("authorization", bearer.clone())]).await, 403);
        let port = daemon.address.unwrap().port();
        assert_eq!(ask(vec![("host", format!("evil.example:{port}")), ("authorization", bearer.clone())]).await, 403);
        let from_page = vec![("host", host.clone()), ("authorization", bearer.clone()), ("origin", "http://evil.example".into())];
        assert_eq!(ask(from_page).await, 403);
        for (address, tokens) in [("0.0.0.0:0", true), ("127.0.0.1:0", false)] {
            let mut options = tierbox_serve::Options::default();
            options.tcp = Some(address.parse().unwrap());
            options.tokens = tokens.then(tierbox_serve::Tokens::default);
            let directory = tempfile::tempdir().unwrap();
            let refused = tierbox_serve::Server::bind(http::client(&directory), options).await.err().unwrap();
            assert_eq!(refused.kind(), tierbox::ErrorKind::InvalidInput, "{address}");
        }
        daemon.finish().await;
    }

    #[tokio::test]
    async fn an_agent_does_in_its_own_environment_what_its_tier_allows() {
        if let Some(absence) = tokio::task::spawn_blocking(support::containers_absent).await.unwrap() {
            return support::skip("local-container", "serve::escape::agents", &absence).unwrap();
        }
        let daemon = Daemon::start(|_| ()).await;
        let free = daemon.create(json!({ "profile": "local" })).await;
        let named = daemon.create(json!({ "profile": "local-tools" })).await;
        let token = |id: String| {
            let daemon = &daemon;
            async move {
                let answer = daemon.json("POST", &format!("/v1/environments/{id}/token"), Value::Null).await;
                format!("Bearer {}", answer.value()["token"].as_str().unwrap())
            }
        };
        let (of_free, of_named) = (token(free.clone()).await, token(named.clone()).await);
        let ask = |token: &str, method: &'static str, path: String, body: Value| {
            let (daemon, token) = (&daemon, token.to_owned());
            async move {
                let headers = [("authorization", token.as_str()), ("content-type", "application/json")];
                daemon.send(method, &path, &headers, body.to_string().as_bytes()).await
            }
        };
        let exec = |id: &str| format!("/v1/environments/{id}/exec");
        let file = |id: &str| format!("/v1/environments/{id}/files?path=f");
        let shell = || json!({ "argv": ["/bin/sh", "-c", "echo hi"] });
        assert_eq!(ask(&of_free, "POST", exec(&free), shell()).await.status, 200);
        assert_eq!(ask(&of_free, "PUT", file(&free), json!(1)).await.status, 200);
        assert_eq!(ask(&of_free, "GET", file(&free), json!(1)).await.body, b"1");
        // What only harnesses may ask is refused, and not left out in silence.
        let part = |more: &str| format!("{}&{more}", file(&free));
        assert_eq!(ask(&of_free, "GET", part("offset=1&length=1"), json!(1)).await.status, 400);
        assert_eq!(ask(&of_free, "PUT", part("create_new=true"), json!(1)).await.status, 400);
        let greedy = json!({ "argv": ["/bin/true"], "output_limit": 200 << 20 });
        assert_eq!(ask(&of_free, "POST", exec(&free), greedy.clone()).await.status, 400);
        assert_eq!(daemon.json("POST", &exec(&free), greedy).await.status, 200);
        let shown = |token: &'static str| format!("/v1/environments/{free}{token}");
        assert!(ask(&of_free, "GET", shown(""), Value::Null).await.value()["attestation"].is_null());
        assert!(!daemon.get(&shown("")).await.value()["attestation"].is_null());
        // A token is for the primary machine, or for those that it names, which exist.
        let elsewhere = json!({ "argv": ["/bin/true"], "machine": "other" });
        let denied = ask(&of_free, "POST", exec(&free), elsewhere).await;
        assert_eq!((denied.status, denied.kind().as_str()), (403, "policy-denied"), "{}", denied.text());
        assert_eq!(ask(&of_free, "GET", format!("{}&machine=other", file(&free)), json!(1)).await.status, 403);
        let names = |names: Value| (format!("/v1/environments/{free}/token"), json!({ "machines": names }));
        let (path, wanted) = names(json!(["default"]));
        let granted = daemon.json("POST", &path, wanted).await.value();
        let of_default = format!("Bearer {}", granted["token"].as_str().unwrap());
        assert_eq!(ask(&of_default, "POST", exec(&free), shell()).await.status, 200);
        assert_eq!(ask(&of_default.replace(":default", ":other"), "POST", exec(&free), shell()).await.status, 401);
        let (path, wanted) = names(json!(["default", "other"]));
        assert_eq!(daemon.json("POST", &path, wanted).await.status, 404);
        // T1: the named programs, and reading.
        let denied = ask(&of_named, "POST", exec(&named), shell()).await;
        assert_eq!((denied.status, denied.kind().as_str()), (403, "policy-denied"));
        assert_eq!(ask(&of_named, "POST", exec(&named), json!({ "argv": ["/usr/bin/head", "/etc/passwd"] })).await.status, 200);
        assert_eq!(ask(&of_named, "POST", exec(&named), json!({ "argv": ["/usr/bin/head"], "user": "root" })).await.status, 403);
        let streamed = format!("/v1/environments/{named}/stream");
        assert_eq!(ask(&of_named, "POST", streamed, shell()).await.status, 403);
        assert_eq!(ask(&of_named, "PUT", file(&named), json!(1)).await.status, 403);
        let listing = format!("/v1/environments/{named}/directory?path=/etc");
        assert_eq!(ask(&of_named, "GET", listing, json!(1)).await.status, 200);
        // Every decision is on record, without having been asked for.
        let log = daemon.get(&format!("/v1/environments/{named}/log")).await.text();
        assert_eq!(log.matches("\"verdict\":\"refused\"").count(), 4, "{log}");
        // Nobody else's, and nothing of the harness's.
        assert_eq!(ask(&of_free, "POST", exec(&named), shell()).await.status, 403);
        for (method, path) in [
            ("GET", "/v1/environments".to_owned()),
            ("POST", "/v1/environments".to_owned()),
            ("DELETE", format!("/v1/environments/{free}")),
            ("POST", format!("/v1/environments/{free}/renew")),
            ("POST", format!("/v1/environments/{free}/token")),
            ("GET", format!("/v1/environments/{free}/execs")),
            ("GET", "/metrics".to_owned()),
            ("POST", format!("/v1/environments/{free}/verify")),
            ("GET", format!("/v1/environments/{free}/attestation")),
            ("GET", format!("/v1/environments/{named}/log")),
        ] {
            assert_eq!(ask(&of_free, method, path.clone(), json!({})).await.status, 403, "{method} {path}");
        }
        daemon.finish().await;
    }

    /// Over TCP whoever shows no token in time is cut off, whatever he sends; whoever did stays.
    #[tokio::test]
    async fn strangers_are_cut_off_soon() {
        let daemon = on_tcp_with(|options| {
            options.patience = Duration::from_secs(600);
            options.greeting = Duration::from_millis(500);
        })
        .await;
        let address = daemon.address.unwrap();
        let host = address.to_string();
        let ask = |more: &str| format!("GET /v1 HTTP/1.1\r\nhost: {host}\r\n{more}\r\n");
        for start in [String::new(), "GET /v1 HTTP/1.1\r\nhost".to_owned(), ask("")] {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            stream.write_all(start.as_bytes()).await.unwrap();
            let mut heard = Vec::new();
            tokio::time::timeout(LIMIT, stream.read_to_end(&mut heard)).await.expect("the end of the connection").unwrap();
            assert_eq!(heard.is_empty(), !start.ends_with("\r\n\r\n"), "{}", String::from_utf8_lossy(&heard));
        }
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        for _ in 0..2 {
            stream.write_all(ask(&format!("authorization: Bearer {HARNESS}\r\n")).as_bytes()).await.unwrap();
            let mut heard = [0; 12];
            stream.read_exact(&mut heard).await.expect("a known client is heard");
            assert_eq!(&heard, b"HTTP/1.1 200");
            // The rest of the answer, and more time than a stranger has.
            let mut rest = [0; 64 << 10];
            let silence = async { while stream.read(&mut rest).await.unwrap() > 0 {} };
            assert!(tokio::time::timeout(Duration::from_millis(900), silence).await.is_err(), "the connection was closed");
        }
        drop(stream);
        daemon.finish().await;
    }

    /// Silence over TCP takes no place from those who come over the socket.
    #[tokio::test]
    async fn who_has_no_token_keeps_nobody_out() {
        let daemon = on_tcp_with(|options| {
            options.patience = Duration::from_secs(600);
            options.greeting = Duration::from_secs(600);
            options.connections = 4;
        })
        .await;
        let address = daemon.address.unwrap();
        let mut silent = Vec::new();
        for _ in 0..12 {
            silent.push(tokio::net::TcpStream::connect(address).await.unwrap());
        }
        for _ in 0..8 {
            assert_eq!(daemon.get("/v1").await.status, 200);
        }
        drop(silent);
        daemon.finish().await;
    }

    #[tokio::test]
    async fn who_is_slow_or_endless_is_cut_off_and_others_are_served() {
        let daemon = Daemon::start(|options| {
            options.patience = Duration::from_millis(400);
            options.connections = 8;
        })
        .await;
        let id = daemon.create(json!({ "profile": PROFILE })).await;
        // Heads that never end hold all places but one, until their time is up.
        let mut slow = Vec::new();
        for _ in 0..7 {
            let mut stream = daemon.connect().await;
            stream.write_all(b"GET /v1 HTTP/1.1\r\nhost: x\r\n").await.unwrap();
            slow.push(stream);
        }
        assert_eq!(daemon.get("/v1").await.status, 200);
        for mut stream in slow {
            let mut rest = Vec::new();
            let ended = tokio::time::timeout(LIMIT, stream.read_to_end(&mut rest)).await;
            assert!(ended.is_ok(), "a connection without a head was kept");
        }
        // A body that stops in the middle of its document.
        let headers = [("content-type", "application/json"), ("content-length", "100")];
        let stopped = daemon.send("POST", "/v1/environments", &headers, b"{\"profile\":").await;
        assert_eq!((stopped.status, stopped.kind().as_str()), (504, "timeout"));
        // A file that stops: nothing of it is left.
        let half =
            daemon.send("PUT", &format!("/v1/environments/{id}/files?path=half"), &[("content-length", "100")], b"abc").await;
        assert_ne!(half.status, 200);
        assert_eq!(daemon.get(&format!("/v1/environments/{id}/files?path=half")).await.status, 404);
        // Heads and documents that are too long.
        let long = "x".repeat(256 << 10);
        // The connection may break off before what is said of it has arrived.
        assert!([0, 400, 431].contains(&daemon.send("GET", "/v1", &[("x-long", &long)], b"").await.status));
        let names: Vec<String> = (0..100).map(|number| format!("x-{number}")).collect();
        let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "x")).collect();
        assert!([0, 400, 431].contains(&daemon.send("GET", "/v1", &many, b"").await.status));
        let endless = vec![b' '; 9 << 20];
        let refused = daemon.send("POST", "/v1/environments", &[("content-type", "application/json")], &endless).await;
        assert_eq!(refused.status, 413);
        daemon.finish().await;
    }

    #[tokio::test]
    async fn hostile_names_and_documents_are_refused_before_anything_happens() {
        let daemon = Daemon::start(|_| ()).await;
        let id = daemon.create(json!({ "profile": PROFILE })).await;
        for profile in ["../../etc/passwd", "./x.toml", "", "a\u{0}b", "no-such-profile", "/etc/passwd"] {
            let answer = daemon.json("POST", "/v1/environments", json!({ "profile": profile })).await;
            assert!([400, 404].contains(&answer.status), "{profile:?}: {} {}", answer.status, answer.text());
        }
        for document in [
            json!({ "profile": PROFILE, "ttl": 0 }),
            json!({ "profile": PROFILE, "ttl": -1 }),
            json!({ "profile": PROFILE, "ttl": 1e300 }),
            json!({ "profile": PROFILE, "name": "../x" }),
            json!({ "profile": PROFILE, "labels": { "serve.client": "somebody" } }),
            json!({ "profile": PROFILE, "unknown": 1 }),
            json!([]),
        ] {
            let answer = daemon.json("POST", "/v1/environments", document.clone()).await;
            assert_eq!(answer.status, 400, "{document}: {}", answer.text());
        }
        let exec = format!("/v1/environments/{id}/exec");
        for document in [
            json!({ "argv": [] }),
            json!({ "argv": ["a\u{0}"] }),
            json!({ "argv": ["a"], "env": { "A=B": "c" } }),
            json!({ "argv": ["a"], "timeout": -1 }),
            json!({ "argv": ["a"], "timeout": 0 }),
            json!({ "argv": ["a"], "output_limit": 1_u64 << 60 }),
            json!({ "argv": ["a"], "stdin": true }),
            json!({ "argv": "a" }),
            json!({}),
        ] {
            assert_eq!(daemon.json("POST", &exec, document.clone()).await.status, 400, "{document}");
        }
        for path in ["/v1/environments/..%2F..%2Fetc/exec", "/v1/environments/%00/exec", "/v1/environments/-/exec"] {
            let answer = daemon.json("POST", path, json!({ "argv": ["a"] })).await;
            assert!([400, 404].contains(&answer.status), "{path}: {}", answer.status);
        }
        for query in [
            "",
            "?path=",
            "?path=a%00b",
            "?path=a&path=b",
            "?path=a&x=1",
            "?path=a&offset=-1",
            "?path=a&max=99999999999999999999",
        ] {
            assert_eq!(daemon.get(&format!("/v1/environments/{id}/files{query}")).await.status, 400, "{query}");
        }
        let many = daemon.send("GET", "/v1", &[("tierbox-client", "a b")], b"").await;
        assert_eq!(many.status, 400);
        let wrong = daemon.send("POST", &exec, &[("content-type", "text/plain")], b"{\"argv\":[\"a\"]}").await;
        assert_eq!(wrong.status, 415);
        let method = daemon.send("PATCH", &exec, &[], b"").await;
        assert!(method.status == 405 && method.headers.contains("allow: post"), "{method:?}");
        // A secret in a document that is wrong is not said back.
        let secret = daemon
            .send("POST", &exec, &[("content-type", "application/json")], b"{\"argv\":[\"a\"],\"env\":{\"K\":hunter2}}")
            .await;
        assert!(secret.status == 400 && !secret.text().contains("hunter2"));
        daemon.finish().await;
    }
}

mod docker {
    use serde_json::{Value, json};

    use crate::http::Daemon;
    use crate::{support, until};

    /// No lease on disk says when a container without the supervisor ends: the daemon does.
    #[tokio::test]
    async fn what_cannot_be_detached_ends_when_nobody_renews_it() {
        let host = match support::engines::address("docker") {
            Ok(host) => host,
            Err(absence) => return support::skip("docker", "docker::what_cannot_be_detached_ends", &absence).unwrap(),
        };
        let daemon = Daemon::start(|_| ()).await;
        let profile = daemon.directory.path().join("plain.toml");
        let settings = format!("image = \"tierbox-test/debian:1\"\nhost = {host:?}\npull = \"never\"\ntransport = \"plain\"\n");
        std::fs::write(&profile, format!("extends = \"docker\"\ntier = \"T0.H1.N2\"\n[docker]\n{settings}")).unwrap();
        let renewed = daemon.create(json!({ "profile": profile, "ttl": 10 })).await;
        daemon.json("POST", &format!("/v1/environments/{renewed}/renew"), json!({ "ttl": 600 })).await;
        let left = daemon.create(json!({ "profile": profile, "ttl": 2 })).await;
        // By the list: who asks for one uses it.
        let is_there = |id: String| {
            let daemon = &daemon;
            async move { daemon.get("/v1/environments").await.text().contains(&id) }
        };
        until("the one that nobody renews ends", || async { !is_there(left.clone()).await }).await;
        assert!(is_there(renewed.clone()).await);
        let ended = daemon.json("DELETE", &format!("/v1/environments/{renewed}"), Value::Null).await;
        assert_eq!(ended.status, 200, "{}", ended.text());
        daemon.finish().await;
    }
}
