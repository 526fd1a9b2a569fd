//! What an agent's token cannot do to the daemon: fill its memory, keep others out.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::http::{self, Daemon, LIMIT};
use crate::{PROFILE, until};

const HARNESS: &str = "0123456789abcdef0123456789abcdef";

async fn token(daemon: &Daemon, id: &str) -> String {
    let answer = daemon.json("POST", &format!("/v1/environments/{id}/token"), Value::Null).await;
    format!("Bearer {}", answer.value()["token"].as_str().unwrap())
}

/// This process's memory: the daemon is in it.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// A connection over TCP that has sent a request.
async fn asked(daemon: &Daemon, token: &str, method: &str, path: &str, body: &[u8]) -> TcpStream {
    let address = daemon.address.unwrap();
    let host = address.to_string();
    let headers = [("host", host.as_str()), ("authorization", token), ("content-type", "application/json")];
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&http::request(method, path, &headers, body)).await.unwrap();
    stream
}

async fn status(stream: &mut TcpStream) -> u16 {
    let mut line = [0; 12];
    tokio::time::timeout(LIMIT, stream.read_exact(&mut line)).await.expect("an answer in time").unwrap();
    String::from_utf8_lossy(&line[9..]).parse().unwrap()
}

mod escape {
    use super::*;

    #[tokio::test]
    async fn an_agents_code_retains_no_more_than_the_profile_says() {
        let daemon = Daemon::start(|_| ()).await;
        let id = daemon.create(json!({ "profile": PROFILE, "set": { "limits.output": "4KiB" } })).await;
        let token = token(&daemon, &id).await;
        let path = format!("/v1/environments/{id}/code");
        let run = async |limit: Value| {
            let task = json!({ "runtime": "sh", "code": "seq 100000", "output_limit": limit }).to_string();
            let headers = [("authorization", token.as_str()), ("content-type", "application/json")];
            daemon.send("POST", &path, &headers, task.as_bytes()).await
        };
        for greedy in [4097, 200_u64 << 20] {
            let refused = run(json!(greedy)).await;
            assert_eq!((refused.status, refused.kind().as_str()), (400, "invalid-input"), "{}", refused.text());
        }
        let fine = run(Value::Null).await;
        assert_eq!(fine.status, 200, "{}", fine.text());
        assert!(fine.value()["stdout"].as_str().unwrap().len() < 5000 && fine.value()["stdout_truncated"] == json!(true));
        assert_eq!(run(json!(4096)).await.status, 200);
        let greedy = json!({ "runtime": "sh", "code": "seq 100000", "output_limit": 1 << 20 });
        let of_harness = daemon.json("POST", &path, greedy).await.value();
        assert_eq!(of_harness["stdout_truncated"], json!(false));
        daemon.finish().await;
    }

    /// Eight clients that ask for 100 MiB each and do not read.
    #[tokio::test]
    async fn an_agents_reads_keep_memory_bounded() {
        let daemon = Daemon::with_tokens(&[HARNESS], |_| ()).await;
        let id = daemon.create(json!({ "profile": PROFILE })).await;
        let token = token(&daemon, &id).await;
        daemon.shell(&id, "truncate -s 100M big").await;
        let before = resident();
        let path = format!("/v1/environments/{id}/files?path=big");
        let mut streams = Vec::new();
        for _ in 0..8 {
            let mut stream = asked(&daemon, &token, "GET", &path, b"").await;
            assert_eq!(status(&mut stream).await, 200);
            streams.push(stream);
        }
        // All that is read ahead has been read when nothing grows any more.
        let mut last = 0_u64;
        while last.abs_diff(resident()) > 1 << 20 {
            last = resident();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        let grown = last.saturating_sub(before) >> 20;
        assert!(grown < 100, "{grown} MiB more for eight that read nothing");
        // One of them reads on, to the end.
        let mut one = streams.swap_remove(0);
        drop(streams);
        let mut chunk = vec![0; 1 << 20];
        let mut total = 0;
        while let Ok(count @ 1..) = tokio::time::timeout(LIMIT, one.read(&mut chunk)).await.expect("more in time") {
            total += count as u64;
        }
        assert!(total >= 100 << 20, "{total}");
        daemon.finish().await;
    }

    #[tokio::test]
    async fn an_agents_writes_take_turns_for_memory() {
        let daemon = Daemon::with_tokens(&[HARNESS], |_| ()).await;
        let id = daemon.create(json!({ "profile": PROFILE })).await;
        let token = token(&daemon, &id).await;
        let before = resident();
        let host = daemon.address.unwrap().to_string();
        let mut writers = Vec::new();
        for number in 0..8 {
            let path = format!("/v1/environments/{id}/files?path=f{number}");
            let headers = [("host", host.as_str()), ("authorization", token.as_str()), ("content-length", "62914560")];
            let head = http::request("PUT", &path, &headers, b"");
            let address = daemon.address.unwrap();
            writers.push(tokio::spawn(async move {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(&head).await.unwrap();
                let piece = vec![b'x'; 1 << 20];
                for _ in 0..60 {
                    stream.write_all(&piece).await.unwrap();
                }
                status(&mut stream).await
            }));
        }
        let mut most = 0;
        while !writers.iter().all(|writer| writer.is_finished()) {
            most = most.max(resident());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for writer in writers {
            assert_eq!(writer.await.unwrap(), 200);
        }
        let grown = most.saturating_sub(before) >> 20;
        assert!(grown < 300, "{grown} MiB more for eight that write 60 MiB each");
        assert_eq!(daemon.shell(&id, "cat f* | wc -c").await.1.trim(), (8_u64 * 62_914_560).to_string());
        daemon.finish().await;
    }

    #[tokio::test]
    async fn an_agent_leaves_room_for_harnesses() {
        let daemon = Daemon::with_tokens(&[HARNESS], |options| options.connections = 64).await;
        let id = daemon.create(json!({ "profile": PROFILE })).await;
        let token = token(&daemon, &id).await;
        let path = format!("/v1/environments/{id}/stream");
        let mut heard = Vec::new();
        let mut kept = Vec::new();
        for _ in 0..80 {
            let mut stream = asked(&daemon, &token, "POST", &path, b"{\"argv\": [\"sleep\", \"1000\"]}").await;
            heard.push(status(&mut stream).await);
            kept.push(stream);
        }
        assert_eq!(heard.iter().filter(|status| **status == 200).count(), 4, "{heard:?}");
        assert!(heard.iter().all(|status| [200, 429].contains(status)), "{heard:?}");
        // Those that were refused are closed, though their clients keep them.
        let harness = format!("Bearer {HARNESS}");
        for _ in 0..8 {
            assert_eq!(status(&mut asked(&daemon, &harness, "GET", "/v1", b"").await).await, 200);
        }
        // Whoever leaves makes room for the next.
        drop(kept);
        until("there is a seat again", || async {
            let path = format!("/v1/environments/{id}");
            status(&mut asked(&daemon, &token, "GET", &path, b"").await).await == 200
        })
        .await;
        daemon.finish().await;
    }
}
