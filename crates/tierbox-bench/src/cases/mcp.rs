//! The MCP server against the library.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tierbox::{ExecRequest, SandboxExt};

use crate::bench::{Bench, Failure, PROFILE};
use crate::peers::TRUE;
use crate::report::{Row, short};
use crate::stats::{Summary, in_turns};

/// What a call may take more than the library at the median, in milliseconds: as much as through the daemon.
const MAY_ADD: f64 = 0.5;

/// A `tierbox` with the features `serve` and `mcp`, which the one that is measured elsewhere has not.
pub(crate) fn program() -> Option<OsString> {
    std::env::var_os("TIERBOX_BENCH_PROGRAM").filter(|path| !path.is_empty())
}

/// A server, and a client that does as little as the protocol lets it.
struct Server {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    calls: u64,
}

impl Server {
    fn start(bench: &Bench, program: OsString) -> Result<Self, Failure> {
        let mut command = Command::new(program);
        command.args(["--quiet", "mcp", "--profile", PROFILE]).env("TIERBOX_STATE_DIR", bench.directory().join("mcp"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().ok_or("the server has no output")?);
        let mut server = Self { child, stdin, stdout, calls: 0 };
        let client = json!({ "name": "bench", "version": "1" });
        server.ask("initialize", json!({ "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client }))?;
        server.send(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }))?;
        Ok(server)
    }

    fn send(&mut self, message: &Value) -> Result<(), Failure> {
        let stdin = self.stdin.as_mut().ok_or("the server has no input")?;
        Ok(stdin.write_all(format!("{message}\n").as_bytes())?)
    }

    fn ask(&mut self, method: &str, params: Value) -> Result<Value, Failure> {
        self.calls += 1;
        self.send(&json!({ "jsonrpc": "2.0", "id": self.calls, "method": method, "params": params }))?;
        loop {
            let mut line = String::new();
            if self.stdout.read_line(&mut line)? == 0 {
                return Err("the server has ended".into());
            }
            let message: Value = serde_json::from_str(&line)?;
            if message["id"] == self.calls {
                return Ok(message["result"].clone());
            }
        }
    }

    fn exec(&mut self) -> Result<Duration, Failure> {
        let start = Instant::now();
        let answer = self.ask("tools/call", json!({ "name": "exec", "arguments": { "argv": [TRUE] } }))?;
        let time = start.elapsed();
        if answer["structuredContent"]["exit_code"] == 0 { Ok(time) } else { Err(answer.to_string().into()) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It ends its sandbox with its input.
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}

/// `/bin/true` by the tool `exec` against the library. Nothing where no program with the server is named.
pub(crate) fn exec(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let Some(program) = program() else { return Ok(Vec::new()) };
    let mut server = Server::start(bench, program)?;
    let running = bench.wait(bench.start())?;
    let sandbox = running.sandbox();
    let direct = || -> Result<Duration, Failure> {
        let start = Instant::now();
        bench.wait(sandbox.run(ExecRequest::new([TRUE])))?;
        Ok(start.elapsed())
    };
    let (through, direct) = in_turns(bench.samples() * 5, || server.exec(), direct)?;
    bench.wait(running.stop())?;
    let (through, direct) = (Summary::of_times(&through), Summary::of_times(&direct));
    let adds = Summary::one((through.median - direct.median).max(0.0));
    let row = Row::less_is_better("what MCP adds to an exec", "ms", adds, "the bound", Summary::one(MAY_ADD), 1.0);
    Ok(vec![row.note(format!("{} ms by a call, {} ms by the library", short(through.median), short(direct.median)))])
}
