//! EC2 on the test server, against what Inspect's own plugin took there with the same delays. `TIERBOX_TEST_AWS` names the server
//! (tests/engines/aws.sh); AWS itself was never reached.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tierbox::{EnvironmentSpec, ExecRequest, Running, SandboxExt, StartOptions, Verify};

use crate::bench::{Bench, Failure};
use crate::peers::TRUE;
use crate::report::Row;
use crate::stats::Summary;

/// What the plugin took, in seconds and in calls of AWS's API: `exec true`, and a write of ten bytes.
const EXEC: (f64, f64) = (1.6, 9.0);
const WRITE: (f64, f64) = (2.7, 21.0);

/// The server, as a caller of its own sees it.
struct Server {
    address: String,
    key: String,
}

impl Server {
    fn ask(&self, head: &str) -> Result<String, Failure> {
        let mut stream = TcpStream::connect(&self.address)?;
        let credential = format!("Credential={}/20261129/us-east-1/s3/aws4_request", self.key);
        let rest = format!(
            "Authorization: AWS4-HMAC-SHA256 {credential}, SignedHeaders=host, Signature=0\r\nHost: {}\r\n\
             Connection: close\r\nContent-Length: 0\r\n\r\n",
            self.address
        );
        stream.write_all(format!("{head} HTTP/1.1\r\n{rest}").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.split_once("\r\n\r\n").map_or_else(String::new, |(_, body)| body.to_owned()))
    }

    fn calls(&self) -> Result<u64, Failure> {
        let state: Value = serde_json::from_str(&self.ask(&format!("POST /__emu__/state?key={}", self.key))?)?;
        Ok(state["calls"].as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum())
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
    let Some(url) = std::env::var("TIERBOX_TEST_AWS").ok().filter(|url| !url.is_empty()) else { return Ok(Vec::new()) };
    let server = Server { address: url.trim_start_matches("http://").to_owned(), key: format!("bench{}", std::process::id()) };
    let bucket = format!("bucket-{}", server.key);
    server.ask(&format!("PUT /{bucket}"))?;
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
    bench.wait(running.stop())?;
    let peer = "Inspect's plugin";
    let rows = [("EC2: exec", exec, EXEC), ("EC2: write of 10 bytes", write, WRITE)].into_iter().map(|(name, own, other)| {
        Row::less_is_better(name, "ms", own.0, peer, Summary::one(other.0 * 1000.0), 1.0)
            .note(format!("{:.1} calls of AWS's API, {} by the plugin", own.1, other.1))
    });
    Ok(rows.collect())
}
