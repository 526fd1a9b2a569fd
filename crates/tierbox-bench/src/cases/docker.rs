//! Containers of a Docker Engine, against the engine's own API and command.
//!
//! `DOCKER_HOST` names the engine; it must have the image that `tests/engines/docker.sh` makes.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::exec::{CreateExecOptions, StartExecResults};
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::RemoveContainerOptions;
use futures_util::StreamExt;
use tierbox::{EnvironmentSpec, ExecRequest, Hold, Registry, Running, SandboxExt, StartOptions};

use super::inspect::{Inspect, STEPS};
use crate::bench::{Bench, Failure};
use crate::peers::TRUE;
use crate::report::{Row, short};
use crate::stats::{Summary, in_a_row, in_turns};

/// What both sides run: a small Debian.
const IMAGE: &str = "tierbox-test/debian:1";

/// What a warm command, a read and a write of 1 KiB may take, in milliseconds.
const PROMISE: f64 = 1.5;

/// What a verification may take in containers of the engine's own, one after another.
const VERIFICATION: f64 = 10.0;

/// Idle machines at once.
const IDLE: usize = 10;

/// Containers at once.
const MANY: usize = 50;

fn spec(bench: &Bench) -> Result<EnvironmentSpec, Failure> {
    let profile = bench.client.load("docker", &StartOptions::new())?;
    let mut spec = profile.spec(&Registry::linked(), Hold::Process)?;
    spec.settings["image"] = IMAGE.into();
    spec.settings["pull"] = "never".into();
    spec.limits.memory = None;
    Ok(spec)
}

async fn start(bench: &Bench, spec: EnvironmentSpec) -> Result<Running, Failure> {
    Ok(bench.client.start_spec(spec, StartOptions::new()).await?)
}

fn engine(bench: &Bench) -> Result<Docker, Failure> {
    let docker = bench.wait(async { Docker::connect_with_unix_defaults() })?;
    Ok(bench.wait(docker.negotiate_version())?)
}

/// A container as plain as it can be, which sleeps.
async fn raw_start(docker: &Docker) -> Result<String, Failure> {
    let body = ContainerCreateBody {
        image: Some(IMAGE.to_owned()),
        cmd: Some(vec!["sleep".to_owned(), "1000".to_owned()]),
        host_config: Some(HostConfig { network_mode: Some("none".to_owned()), ..HostConfig::default() }),
        ..ContainerCreateBody::default()
    };
    let id = docker.create_container(None, body).await?.id;
    docker.start_container(&id, None).await?;
    Ok(id)
}

async fn raw_remove(docker: &Docker, id: &str) -> Result<(), Failure> {
    Ok(docker.remove_container(id, Some(RemoveContainerOptions { force: true, ..Default::default() })).await?)
}

/// A command by the engine's own API, to its exit status.
async fn raw_exec(docker: &Docker, id: &str, words: &[&str]) -> Result<(), Failure> {
    let options = CreateExecOptions {
        cmd: Some(words.iter().map(|word| (*word).to_owned()).collect()),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        ..CreateExecOptions::default()
    };
    let exec = docker.create_exec(id, options).await?.id;
    if let StartExecResults::Attached { mut output, .. } = docker.start_exec(&exec, None).await? {
        while let Some(part) = output.next().await {
            part?;
        }
    }
    match docker.inspect_exec(&exec).await?.exit_code {
        Some(0) => Ok(()),
        other => Err(format!("{words:?} ended with {other:?}").into()),
    }
}

fn promised(name: &str, measured: &[Duration], theirs: &[Duration], what: &str) -> Row {
    let (measured, theirs) = (Summary::of_times(measured), Summary::of_times(theirs));
    let row = Row::less_is_better(name, "ms", measured, "the promise", Summary::one(PROMISE), 1.0);
    row.note(format!("{what}: {} ms", short(theirs.median)))
}

/// A warm command against what is promised, and what the engine's own exec takes. Not in turns: that one leaves the engine work for
/// some milliseconds after its end, and a promise is no peer whom a slow moment should hit as well.
pub(crate) fn exec(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let docker = engine(bench)?;
    let running = bench.wait(start(bench, spec(bench)?))?;
    let id = bench.wait(raw_start(&docker))?;
    let ours = || -> Result<Duration, Failure> {
        let start = Instant::now();
        let result = bench.wait(running.run(ExecRequest::new([TRUE])))?;
        if result.success() { Ok(start.elapsed()) } else { Err(format!("{TRUE} {}", result.outcome()).into()) }
    };
    let theirs = || -> Result<Duration, Failure> {
        let start = Instant::now();
        bench.wait(raw_exec(&docker, &id, &[TRUE]))?;
        Ok(start.elapsed())
    };
    let (ours, theirs) = (in_a_row(bench.samples(), ours)?, in_a_row(bench.samples() / 5, theirs)?);
    bench.wait(running.stop())?;
    bench.wait(raw_remove(&docker, &id))?;
    Ok(vec![promised("docker: exec of /bin/true", &ours, &theirs, "the engine's own exec")])
}

/// 1 KiB out and in.
pub(crate) fn files(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let docker = engine(bench)?;
    let running = bench.wait(start(bench, spec(bench)?))?;
    let id = bench.wait(raw_start(&docker))?;
    let contents = vec![b'x'; 1024];
    let write = || -> Result<Duration, Failure> {
        let start = Instant::now();
        bench.wait(running.write_bytes("/workspace/file", contents.clone()))?;
        Ok(start.elapsed())
    };
    let raw_write = || -> Result<Duration, Failure> {
        let start = Instant::now();
        bench.wait(raw_exec(&docker, &id, &["dd", "if=/dev/zero", "of=/tmp/file", "bs=1024", "count=1", "status=none"]))?;
        Ok(start.elapsed())
    };
    let (writes, raw_writes) = in_turns(bench.samples(), write, raw_write)?;
    let read = || -> Result<Duration, Failure> {
        let start = Instant::now();
        let read = bench.wait(running.read_bytes("/workspace/file", 4096))?;
        if read.len() == 1024 { Ok(start.elapsed()) } else { Err("another length was read".into()) }
    };
    let raw_read = || -> Result<Duration, Failure> {
        let start = Instant::now();
        bench.wait(raw_exec(&docker, &id, &["cat", "/tmp/file"]))?;
        Ok(start.elapsed())
    };
    let (reads, raw_reads) = in_turns(bench.samples(), read, raw_read)?;
    bench.wait(running.stop())?;
    bench.wait(raw_remove(&docker, &id))?;
    Ok(vec![
        promised("docker: write of 1 KiB", &writes, &raw_writes, "dd by the engine's own exec"),
        promised("docker: read of 1 KiB", &reads, &raw_reads, "cat by the engine's own exec"),
    ])
}

/// Create and destroy, each against the engine's API; and one whole life against `docker run --rm`.
pub(crate) fn lifecycle(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let docker = engine(bench)?;
    let count = bench.samples() / 5;
    let (mut ours, mut raw): ([Vec<Duration>; 2], [Vec<Duration>; 2]) = Default::default();
    let (mut lives, mut runs) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let begun = Instant::now();
        let running = bench.wait(start(bench, spec(bench)?))?;
        ours[0].push(begun.elapsed());
        bench.wait(running.run(ExecRequest::new([TRUE])))?;
        let stopping = Instant::now();
        bench.wait(running.stop())?;
        ours[1].push(stopping.elapsed());
        lives.push(begun.elapsed());
        let begun = Instant::now();
        let id = bench.wait(raw_start(&docker))?;
        raw[0].push(begun.elapsed());
        let stopping = Instant::now();
        bench.wait(raw_remove(&docker, &id))?;
        raw[1].push(stopping.elapsed());
        runs.push(docker_run()?);
    }
    let row = |name: &str, ours: &[Duration], against: &str, theirs: &[Duration]| {
        Row::less_is_better(name, "ms", Summary::of_times(ours), against, Summary::of_times(theirs), 1.5)
    };
    Ok(vec![
        row("docker: create", &ours[0], "create + start by the API", &raw[0]),
        row("docker: destroy", &ours[1], "remove by the API", &raw[1]),
        row("docker: start + exec + stop", &lives, "docker run --rm", &runs),
    ])
}

fn docker_run() -> Result<Duration, Failure> {
    let start = Instant::now();
    let mut command = Command::new("docker");
    command.args(["run", "--rm", "--network", "none", IMAGE, TRUE]).stdin(Stdio::null()).stdout(Stdio::null());
    let status = command.status().map_err(|error| format!("docker: {error}"))?;
    if status.success() { Ok(start.elapsed()) } else { Err(format!("docker run: {status}").into()) }
}

/// Fifty at once: each starts, runs a command, and stops.
pub(crate) fn many(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let spec = Arc::new(spec(bench)?);
    let start = Instant::now();
    bench.wait_with_all_cores(async {
        let mut lives = tokio::task::JoinSet::new();
        for _ in 0..MANY {
            let (client, spec) = (bench.client.clone(), spec.clone());
            lives.spawn(async move {
                let running = client.start_spec((*spec).clone(), StartOptions::new()).await?;
                let result = running.run(ExecRequest::new([TRUE])).await?;
                running.stop().await?;
                if result.success() { Ok::<_, Failure>(()) } else { Err(format!("{TRUE} {}", result.outcome()).into()) }
            });
        }
        while let Some(life) = lives.join_next().await {
            life??;
        }
        Ok::<_, Failure>(())
    })?;
    let ours = start.elapsed();
    let start = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..MANY).map(|_| scope.spawn(docker_run)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?.map(drop))
    })?;
    let rate = |time: Duration| Summary::one(MANY as f64 / time.as_secs_f64());
    Ok(vec![Row::more_is_better(
        "docker: 50 at once",
        "/s",
        rate(ours),
        "docker run --rm, 50 at once",
        rate(start.elapsed()),
        1.5,
    )])
}

/// Every step of a life against Inspect's provider, in turns. Nothing where no Python with Inspect is named.
pub(crate) fn inspect(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let Some(mut inspect) = Inspect::start("docker")? else { return Ok(Vec::new()) };
    let (mut ours, mut theirs): ([Vec<Duration>; 5], [Vec<Duration>; 5]) = Default::default();
    for _ in 0..bench.samples() / 5 {
        for (times, time) in ours.iter_mut().zip(bench.wait(life(bench))?) {
            times.push(time);
        }
        for (times, step) in theirs.iter_mut().zip(STEPS) {
            times.push(inspect.step(step)?);
        }
    }
    let row = |index: usize| {
        let name = format!("docker: {}, for Inspect", STEPS[index]);
        let (ours, theirs) = (Summary::of_times(&ours[index]), Summary::of_times(&theirs[index]));
        Row::less_is_better(&name, "ms", ours, "Inspect's docker provider", theirs, 1.0)
    };
    Ok((0..STEPS.len()).map(row).collect())
}

async fn life(bench: &Bench) -> Result<[Duration; 5], Failure> {
    let begun = Instant::now();
    let running = start(bench, spec(bench)?).await?;
    let created = begun.elapsed();
    let begun = Instant::now();
    let result = running.run(ExecRequest::new([TRUE])).await?;
    let executed = begun.elapsed();
    if !result.success() {
        return Err(format!("{TRUE} {}", result.outcome()).into());
    }
    let begun = Instant::now();
    running.write_bytes("/tmp/file", vec![b'x'; 1024]).await?;
    let written = begun.elapsed();
    let begun = Instant::now();
    running.read_bytes("/tmp/file", 4096).await?;
    let read = begun.elapsed();
    let begun = Instant::now();
    running.stop().await?;
    Ok([created, executed, written, read, begun.elapsed()])
}

/// All probes with their twins, which are containers too, against what the engine itself takes for one of these, start to end.
pub(crate) fn verification(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let docker = engine(bench)?;
    let running = bench.wait(start(bench, spec(bench)?))?;
    let ours = || -> Result<Duration, Failure> {
        let start = Instant::now();
        let found = bench.wait(running.verify())?;
        if found.verified { Ok(start.elapsed()) } else { Err("docker is not verified here".into()) }
    };
    let theirs = || -> Result<Duration, Failure> {
        let start = Instant::now();
        let id = bench.wait(raw_start(&docker))?;
        bench.wait(raw_remove(&docker, &id))?;
        Ok(start.elapsed())
    };
    let (ours, theirs) = in_turns(bench.samples() / 10, ours, theirs)?;
    bench.wait(running.stop())?;
    let (ours, theirs) = (Summary::of_times(&ours), Summary::of_times(&theirs));
    let row = Row::less_is_better("docker: verification", "ms", ours, "one container, to its end", theirs, VERIFICATION);
    Ok(vec![row.note("its twins are some ten containers, made at the same time")])
}

/// What an idle machine takes: its processes and the engine's for it, against a container in which a sleep runs.
pub(crate) fn idle(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let docker = engine(bench)?;
    let (before, _) = crate::machine::memory();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..IDLE {
        ours.push(bench.wait(start(bench, spec(bench)?))?);
        theirs.push(bench.wait(raw_start(&docker))?);
    }
    let (after, _) = crate::machine::memory();
    let harness = after.saturating_sub(before) as f64 / 1024.0 / IDLE as f64;
    let of = |container: &str| -> Result<f64, Failure> {
        let found = bench.wait(docker.inspect_container(container, None))?;
        let pid = found.state.and_then(|state| state.pid).ok_or("the engine tells no process")?;
        super::idle::tree(u32::try_from(pid)?)
    };
    let containers = |running: &Running| -> Result<f64, Failure> {
        let lease = bench.wait(bench.client.list_one(running.id()))?.record;
        let name = lease.resources_of("container").next().ok_or("the lease names no container")?.to_owned();
        Ok(of(&name)? + harness)
    };
    let measured: Vec<f64> = ours.iter().map(containers).collect::<Result<_, _>>()?;
    let raw: Vec<f64> = theirs.iter().map(|id| of(id)).collect::<Result<_, _>>()?;
    for running in ours {
        bench.wait(running.stop())?;
    }
    theirs.iter().try_for_each(|id| bench.wait(raw_remove(&docker, id)))?;
    let (measured, raw) = (Summary::of(measured), Summary::of(raw));
    let row = Row::less_is_better("docker: memory per idle machine", "KiB", measured, "a container with a sleep", raw, 8.0);
    Ok(vec![
        row.note(format!("{} KiB of it the harness's; the engine's own process for each is the same for both", short(harness))),
    ])
}
