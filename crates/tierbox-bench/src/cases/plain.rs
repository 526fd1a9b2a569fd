//! The plain sandbox over a local shell against that shell alone: what its one script costs.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tierbox::{ExecRequest, SandboxExt};
use tierbox_core::{Error, HostIsolation, Locality, Network, Result};
use tierbox_guest::plain::{PlainConfig, PlainLimits, PlainOutput, PlainRun, PlainSandbox, PlainTransport, capabilities};
use tokio::io::AsyncWriteExt;

use crate::bench::{Bench, Failure};
use crate::peers::{TRUE, timed};
use crate::report::Row;
use crate::stats::{Summary, in_turns};

/// A shell of this host, in a session of its own as sshd makes one.
struct Shell;

#[async_trait]
impl PlainTransport for Shell {
    fn limits(&self) -> PlainLimits {
        PlainLimits { script: 120 << 10, stdin: 8 << 20, output: 8 << 20 }
    }

    async fn run(&self, run: PlainRun) -> Result<PlainOutput> {
        let failed = |error| Error::io("run script", error);
        let mut command = tokio::process::Command::new("setsid");
        command.args(["/bin/sh", "-c", &run.script]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        let stdin = child.stdin.take();
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A script need not read to the end.
                let _ = stdin.write_all(&run.stdin).await;
            }
        };
        let ((), output) = tokio::join!(feed, child.wait_with_output());
        let output = output.map_err(failed)?;
        Ok(PlainOutput { status: output.status.code().unwrap_or(255), stdout: output.stdout, stderr: output.stderr })
    }
}

/// `/bin/true` by one script of the plain sandbox's, against the same shell that runs it and nothing else.
pub(crate) fn exec(bench: &Bench) -> std::result::Result<Vec<Row>, Failure> {
    let can = capabilities(HostIsolation::H0, vec![Network::N0], Locality::Local);
    let config = PlainConfig { workdir: Some("/tmp".to_owned()), ..PlainConfig::new("main", "plain", can) };
    let sandbox = bench.wait(PlainSandbox::open(Arc::new(Shell), config))?;
    let ours = || -> std::result::Result<Duration, Failure> {
        let start = Instant::now();
        let result = bench.wait(sandbox.run(ExecRequest::new([TRUE])))?;
        let time = start.elapsed();
        if result.success() { Ok(time) } else { Err(format!("{TRUE} {}", result.outcome()).into()) }
    };
    let shell = || timed(std::process::Command::new("setsid").args(["/bin/sh", "-c", TRUE]));
    let (ours, floor) = in_turns(bench.samples() * 2, ours, shell)?;
    bench.wait(sandbox.remove())?;
    let (measured, floor) = (Summary::of_times(&ours), Summary::of_times(&floor));
    let row = Row::less_is_better("plain: exec of /bin/true", "ms", measured, "sh -c", floor, 20.0);
    Ok(vec![row.note("directory, FIFOs, two readers, the command and the report: one script")])
}
