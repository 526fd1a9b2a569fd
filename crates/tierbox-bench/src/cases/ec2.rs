//! EC2 on the test server, against what Inspect's own plugin took there with the same delays. `TIERBOX_TEST_AWS` names the server
//! (tests/engines/aws.sh); AWS itself was never reached.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tierbox::{EnvironmentSpec, ExecRequest, Running, SandboxExt, StartOptions, Verify};
use tokio::sync::Semaphore;

use crate::bench::{Bench, Failure};
use crate::peers::TRUE;
use crate::report::Row;
use crate::stats::Summary;

/// What the plugin took, in seconds and in calls of AWS's API: `exec true`, and a write of ten bytes.
const EXEC: (f64, f64) = (1.6, 9.0);
const WRITE: (f64, f64) = (2.7, 21.0);

/// Instances of one run, how many are on their way at once, and what AWS states for an account, about: calls a second, in buckets whose
/// burst is their rate. Nobody starts them faster than the first allows.
const MANY: usize = 200;
const AT_ONCE: usize = 24;
const STARTS: usize = 5;
const RATES: &str = r#"{"tps": {"ec2:RunInstances": 5, "ec2:TerminateInstances": 5, "ec2:DescribeInstances": 20, "SendCommand": 20,
    "GetCommandInvocation": 20, "ListCommandInvocations": 5, "DescribeInstanceInformation": 10}}"#;

/// The server, as a caller of its own sees it.
struct Server {
    address: String,
    key: String,
}

impl Server {
    /// The server that the environment names, as a new caller with a bucket of its own.
    fn new(name: &str) -> Result<Option<(Self, String)>, Failure> {
        let Some(url) = std::env::var("TIERBOX_TEST_AWS").ok().filter(|url| !url.is_empty()) else { return Ok(None) };
        let server = Self { address: url.trim_start_matches("http://").to_owned(), key: format!("{name}{}", std::process::id()) };
        let bucket = format!("bucket-{}", server.key);
        server.ask(&format!("PUT /{bucket}"), "")?;
        Ok(Some((server, bucket)))
    }

    fn ask(&self, head: &str, body: &str) -> Result<String, Failure> {
        let mut stream = TcpStream::connect(&self.address)?;
        let credential = format!("Credential={}/20261129/us-east-1/s3/aws4_request", self.key);
        let rest = format!(
            "Authorization: AWS4-HMAC-SHA256 {credential}, SignedHeaders=host, Signature=0\r\nHost: {}\r\n\
             Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        stream.write_all(format!("{head} HTTP/1.1\r\n{rest}").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.split_once("\r\n\r\n").map_or_else(String::new, |(_, body)| body.to_owned()))
    }

    fn state(&self) -> Result<Value, Failure> {
        Ok(serde_json::from_str(&self.ask(&format!("POST /__emu__/state?key={}", self.key), "{}")?)?)
    }

    fn calls(&self) -> Result<u64, Failure> {
        Ok(self.state()?["calls"].as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum())
    }

    fn spec(&self, bucket: &str) -> Result<EnvironmentSpec, Failure> {
        let mut spec = EnvironmentSpec::new("ec2", "T0.H3.N0".parse()?);
        // The server's machines have this host's kernel, and would be refused.
        spec.verify = Some(Verify::Off);
        spec.settings = json!({
            "region": "us-east-1", "endpoint-url": format!("http://{}", self.address), "access-key-id": self.key,
            "secret-access-key": "nobody checks it", "bucket": bucket,
        });
        Ok(spec)
    }
}

/// Seconds and calls of some rounds.
fn rounds(server: &Server, count: usize, mut once: impl FnMut() -> Result<(), Failure>) -> Result<(Summary, f64), Failure> {
    let (mut times, before): (Vec<Duration>, u64) = (Vec::new(), server.calls()?);
    for _ in 0..count {
        let start = Instant::now();
        once()?;
        times.push(start.elapsed());
    }
    let calls = (server.calls()? - before) as f64 / count as f64;
    Ok((Summary::of_times(&times), calls))
}

/// A small command and a small file. Nothing where no server is named.
pub(crate) fn all(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let Some((server, bucket)) = Server::new("bench")? else { return Ok(Vec::new()) };
    let running: Running = bench.wait(bench.client.start_spec(server.spec(&bucket)?, StartOptions::new()))?;
    let sandbox = running.sandbox();
    let count = if bench.quick { 5 } else { 25 };
    let exec = rounds(&server, count, || {
        bench.wait(sandbox.run(ExecRequest::new([TRUE])))?;
        Ok(())
    })?;
    let write = rounds(&server, count, || {
        bench.wait(sandbox.write_bytes("small", "0123456789"))?;
        Ok(())
    })?;
    let read = rounds(&server, count, || {
        bench.wait(sandbox.read_bytes("small", 100))?;
        Ok(())
    })?;
    let large = rounds(&server, count.div_ceil(3), || {
        let request = ExecRequest::new(["cat"]).stdin_bytes(vec![7; 100_000]);
        let done = bench.wait(sandbox.run(request))?;
        if done.stdout.total == 100_000 { Ok(()) } else { Err(format!("{} bytes came back", done.stdout.total).into()) }
    })?;
    // What its probes find is for the tests: these machines have this host's kernel.
    let proof = rounds(&server, count.div_ceil(8), || {
        bench.wait(running.verify())?;
        Ok(())
    })?;
    bench.wait(running.stop())?;
    let proof = Row::less_is_better("EC2: verification", "ms", proof.0, "a command", exec.0, 60.0)
        .note(format!("{:.1} calls of AWS's API", proof.1));
    let peer = "Inspect's plugin";
    let rows = [("EC2: exec", exec, EXEC), ("EC2: write of 10 bytes", write, WRITE)].into_iter().map(|(name, own, other)| {
        Row::less_is_better(name, "ms", own.0, peer, Summary::one(other.0 * 1000.0), 1.0)
            .note(format!("{:.1} calls of AWS's API, {} by the plugin", own.1, other.1))
    });
    // What the plugin has no figure for: a read it was not asked for, and so much input fails with it. A write's stands for both.
    let others = [("EC2: read of 10 bytes", read), ("EC2: 100 kB of input, and back", large)].into_iter().map(|(name, own)| {
        Row::less_is_better(name, "ms", own.0, "its write of 10 bytes", Summary::one(WRITE.0 * 1000.0), 1.0)
            .note(format!("{:.1} calls of AWS's API", own.1))
    });
    Ok(rows.chain(others).chain([proof]).collect())
}

/// Two hundred instances: each is started, runs a command once, and is ended, within rates of the API.
pub(crate) fn crowd(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let Some((server, bucket)) = Server::new("crowd")? else { return Ok(Vec::new()) };
    server.ask(&format!("POST /__emu__/config?key={}", server.key), RATES)?;
    let many = if bench.quick { 20 } else { MANY };
    let mut spec = server.spec(&bucket)?;
    spec.limits.startup = Duration::from_secs(600);
    let (spec, places) = (Arc::new(spec), Arc::new(Semaphore::new(AT_ONCE)));
    let start = Instant::now();
    bench.wait_with_all_cores(async {
        let mut lives = tokio::task::JoinSet::new();
        for number in 0..many {
            let (client, spec, places) = (bench.client.clone(), spec.clone(), places.clone());
            lives.spawn(async move {
                let _place = places.acquire_owned().await?;
                let running = client.start_spec((*spec).clone(), StartOptions::new()).await?;
                let done = running.run(ExecRequest::shell(format!("echo {number} >> ran; cat ran"))).await?;
                running.stop().await?;
                let said = done.stdout.text();
                if said == format!("{number}\n") { Ok::<_, Failure>(()) } else { Err(format!("{number} said {said:?}").into()) }
            });
        }
        while let Some(life) = lives.join_next().await {
            life??;
        }
        Ok::<_, Failure>(())
    })?;
    let took = start.elapsed().as_secs_f64();
    let (calls, throttled) = (server.calls()?, server.state()?["throttled"].as_u64().unwrap_or_default());
    let floor = Summary::one(many as f64 / STARTS as f64);
    let name = format!("EC2: {many} instances started, used, ended");
    let row = Row::less_is_better(&name, "s", Summary::one(took), "their starts at the stated rate", floor, 2.5);
    Ok(vec![row.note(format!("{calls} calls, {throttled} of them throttled and made again; none failed"))])
}
