//! Large files: their pieces, their memory, and what becomes of their objects.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use serde_json::json;
use tierbox_core::{ExecRequest, ReadOptions, SandboxExt, WriteOptions};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use super::world::{Outcome, World, ensure, text, trial};

pub fn all() -> Vec<Trial> {
    vec![
        trial("files::pieces_go_several_at_a_time_and_leave_nothing", pieces),
        trial("files::an_object_that_was_changed_on_its_way_is_not_used", changed),
        trial("files::a_write_that_fails_leaves_no_object", fails),
        trial("slow::files::a_gibibyte_takes_constant_memory", gibibyte),
    ]
}

/// Numbers of eight bytes, so that whatever is lost, doubled or swapped shows.
struct Numbers {
    at: u64,
    end: u64,
}

impl AsyncRead for Numbers {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        while buf.remaining() >= 8 && self.at < self.end {
            buf.put_slice(&(self.at / 8).to_le_bytes());
            self.at += 8;
        }
        Poll::Ready(Ok(()))
    }
}

/// Reads numbers to their end; says how many bytes they were.
async fn numbers(mut reader: impl AsyncRead + Unpin) -> Result<u64, String> {
    let mut reader = tokio::io::BufReader::with_capacity(1 << 20, &mut reader);
    let mut at = 0;
    loop {
        let number = match reader.read_u64_le().await {
            Ok(number) => number,
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(at * 8),
            Err(error) => return Err(text(error)),
        };
        ensure!(number == at, "number {at} came back as {number}");
        at += 1;
    }
}

async fn pieces(world: World) -> Outcome {
    const SIZE: u64 = 48 << 20;
    let started = world.usual().await?;
    let sandbox = started.environment.primary();
    // Each answer takes its time, as AWS's do: what is done one after the other shows.
    world.server.set(json!({"latency_s": {"SendCommand": 0.5}}));
    let source = Numbers { at: 0, end: SIZE };
    let begun = Instant::now();
    sandbox.write(&"large".into(), Box::new(source), WriteOptions::default()).await.map_err(text)?;
    let (_, reader) = sandbox.read(&"large".into(), ReadOptions::default()).await.map_err(text)?;
    ensure!(numbers(reader).await? == SIZE, "the file came back shorter or longer");
    world.server.set(json!({"latency_s": {}}));
    let sum = sandbox.run(ExecRequest::shell("wc -c < large; ls -A")).await.map_err(text)?;
    ensure!(sum.stdout.text().trim().starts_with(&SIZE.to_string()) && !sum.stdout.text().contains(".tierbox"), "{sum:?}");
    world.until(Duration::from_secs(20), "the objects are removed", || world.server.objects().is_empty()).await?;
    println!("48 MiB there and back in {:?}", begun.elapsed());
    started.environment.stop().await.map_err(text)
}

/// Whoever can write to the bucket cannot choose what runs, nor what a file holds.
async fn changed(world: World) -> Outcome {
    let started = world.usual().await?;
    let sandbox = started.environment.primary();
    world.server.set(json!({"latency_s": {"SendCommand": 1.0}}));
    let (server, stop) = (world.server.clone(), std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let stopped = stop.clone();
    let evil = std::thread::spawn(move || {
        let mut changed = Vec::new();
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) && changed.len() < 2 {
            for key in server.objects() {
                if !changed.contains(&key) && changed.len() < 2 {
                    server.signed("PUT", &format!("/{}/{key}", server.bucket()), "s3", "echo evil > evil");
                    changed.push(key);
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        changed.len()
    });
    let done = sandbox.run(ExecRequest::shell("echo $TOKEN; cat evil").env("TOKEN", "good")).await.map_err(text)?;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let changed = evil.join().map_err(|_| "the thread panicked")?;
    ensure!(changed > 0, "no object was changed, so nothing was shown");
    ensure!(done.stdout.text() == "good\n" && done.stderr.text().contains("No such file"), "{done:?}");
    world.server.set(json!({"latency_s": {}}));
    started.environment.stop().await.map_err(text)?;
    ensure!(world.is_clean(), "{:?}", world.server.objects());
    Ok(())
}

async fn fails(world: World) -> Outcome {
    let started = world.usual().await?;
    let sandbox = started.environment.primary();
    let nowhere = sandbox.write_bytes("/proc/nowhere/file", vec![1; 20 << 20]).await;
    ensure!(nowhere.is_err(), "it was written");
    // A source that breaks in the middle, when pieces are under way.
    let broken = Numbers { at: 0, end: 20 << 20 }.chain(Broken);
    let result = sandbox.write(&"broken".into(), Box::new(broken), WriteOptions::default()).await;
    ensure!(result.is_err(), "it was written");
    world.until(Duration::from_secs(20), "the objects are removed", || world.server.objects().is_empty()).await?;
    let mut left = String::new();
    for _ in 0..20 {
        left = sandbox.run(ExecRequest::shell("ls -A | grep -v '^\\.[bp]'; :")).await.map_err(text)?.stdout.text();
        if left.is_empty() {
            break;
        }
    }
    ensure!(left.is_empty(), "something is left in the machine: {left}");
    started.environment.stop().await.map_err(text)
}

struct Broken;

impl AsyncRead for Broken {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Err(std::io::Error::other("broken")))
    }
}

/// The most memory that this process has held, in bytes.
fn peak() -> Result<u64, String> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(text)?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>().map_err(text)? << 10)
}

async fn gibibyte(world: World) -> Outcome {
    const SIZE: u64 = 1 << 30;
    let started = world.usual().await?;
    let sandbox = started.environment.primary();
    let before = peak()?;
    let begun = Instant::now();
    let source = Numbers { at: 0, end: SIZE };
    sandbox.write(&"large".into(), Box::new(source), WriteOptions::default()).await.map_err(text)?;
    let written = begun.elapsed();
    let (_, reader) = sandbox.read(&"large".into(), ReadOptions::default()).await.map_err(text)?;
    ensure!(numbers(reader).await? == SIZE, "the file came back shorter or longer");
    let more = peak()?.saturating_sub(before);
    println!("1 GiB: written in {written:?}, there and back in {:?}, {} MiB more memory", begun.elapsed(), more >> 20);
    ensure!(more < 160 << 20, "it took {} MiB of memory", more >> 20);
    started.environment.stop().await.map_err(text)?;
    ensure!(world.is_clean(), "{:?}", world.server.objects());
    Ok(())
}
