//! Environments on an instance that exists: each a user and a directory of its own, and nothing else of the instance.

use std::sync::Arc;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use tierbox_core::{
    Backend, EnvironmentSpec, ErrorKind, ExecRequest, KillReason, LeaseHandle, Outcome as End, Sandbox, SandboxExt, Silent,
};
use tierbox_ec2::Ec2Backend;
use tierbox_lease::{CleanupOptions, NewLease};

use super::world::{Outcome, Started, World, ensure, text, trial};

pub fn all() -> Vec<Trial> {
    vec![
        trial("attach::tasks_are_kept_apart_and_leave_the_instance_alone", apart),
        trial("slow::attach::commands_are_bounded", bounded),
        trial("attach::a_dead_harness_is_cleaned_up_and_nobody_else", cleanup),
        trial("attach::old_tasks_go_and_young_ones_stay", old),
        trial("attach::what_cannot_be_is_refused", refused),
        trial("attach::an_instance_that_closes_nothing_is_refused", open),
        trial("attach::an_agent_that_is_gone_is_told_and_nothing_is_undone", no_agent),
        trial("attach::an_api_that_throttles_is_told_in_time_and_nothing_is_undone", throttled),
        trial("attach::without_a_bucket_no_secret_travels", no_bucket),
        trial("attach::an_instance_tells_how_it_is", status),
    ]
}

/// An instance that exists, by way of an environment that made it.
async fn instance(world: &World) -> Result<(Started, String), String> {
    let host = world.usual().await?;
    let id = world.server.instances().into_keys().next().ok_or("no instance")?;
    Ok((host, id))
}

fn spec(world: &World, id: &str) -> EnvironmentSpec {
    world.spec(|spec| {
        spec.settings["instance-id"] = id.into();
        spec.settings["base-dir"] = "/opt/tasks".into();
    })
}

/// Runs something as root of the instance, which no task can.
async fn root(host: &Started, script: &str) -> Result<String, String> {
    let done = host.environment.primary().run(ExecRequest::shell(script).user("root")).await.map_err(text)?;
    ensure!(done.success(), "{script}: {done:?}");
    Ok(done.stdout.text().trim().to_owned())
}

async fn said(sandbox: &dyn Sandbox, script: &str) -> Result<String, String> {
    let done = sandbox.run(ExecRequest::shell(script)).await.map_err(text)?;
    Ok(done.stdout.text().trim().to_owned())
}

/// Where the agent is gone, no task was made, and none is removed: that would wait for the agent again, longer than the start may take.
async fn no_agent(world: World) -> Outcome {
    let (host, id) = instance(&world).await?;
    let mut wanted = spec(&world, &id);
    wanted.limits.startup = Duration::from_secs(40);
    world.server.of("agent", &id, serde_json::json!({"down": true}));
    let begun = Instant::now();
    let refused = world.start(&wanted).await.err();
    let took = begun.elapsed();
    world.server.of("agent", &id, serde_json::json!({"down": false}));
    let told = refused.ok_or("it started")?.to_string();
    ensure!(told.contains("did not answer") && took < Duration::from_secs(80), "after {took:?}: {told}");
    host.environment.stop().await.map_err(text)
}

/// Where no command came through, the start says so before its time is over, and no more commands are sent to remove what is not there.
async fn throttled(world: World) -> Outcome {
    let (host, id) = instance(&world).await?;
    let mut wanted = spec(&world, &id);
    wanted.limits.startup = Duration::from_secs(30);
    let lease = Arc::new(world.journal.create(NewLease::new("ec2", "ec2", wanted.tier.to_string())).map_err(text)?);
    let backend = Ec2Backend::new();
    world.server.set(serde_json::json!({"throttle": {"SendCommand": 1.0}}));
    let begun = Instant::now();
    let refused = backend.start(&wanted, lease.clone(), &Silent).await.err();
    let removed = backend.destroy(&lease.snapshot()).await;
    let took = begun.elapsed();
    world.server.set(serde_json::json!({"throttle": {}}));
    let told = refused.ok_or("it started")?;
    let says = |what: &str| told.message().contains(what);
    ensure!(says("AWS throttled ssm:SendCommand") && says("times in a row") && says("limits.startup"), "{told}");
    ensure!(took < Duration::from_secs(45), "it took {took:?}");
    let removed = removed.map_err(text)?;
    ensure!(removed.failed.is_empty(), "{removed:?}");
    host.environment.stop().await.map_err(text)
}

async fn apart(world: World) -> Outcome {
    let (host, id) = instance(&world).await?;
    let before = root(&host, "cut -d: -f1 /etc/passwd | sort; ls -A /opt").await?;
    let wanted = spec(&world, &id);
    let (one, two) = tokio::join!(world.start(&wanted), world.start(&wanted));
    let (one, two) = (one.map_err(text)?, two.map_err(text)?);
    let (first, second) = (one.environment.primary(), two.environment.primary());
    let (users, places) = (
        [said(first.as_ref(), "id -un").await?, said(second.as_ref(), "id -un").await?],
        [said(first.as_ref(), "pwd").await?, said(second.as_ref(), "pwd").await?],
    );
    ensure!(users[0] != users[1] && places[0] != places[1], "{users:?} {places:?}");
    ensure!(places[0] == format!("/opt/tasks/{}", users[0].trim_start_matches("tierbox-")), "{users:?} {places:?}");
    first.write_bytes("secret", "one's own").await.map_err(text)?;
    let look = format!("cat {}/secret; ls {}; kill -9 -1; :", places[0], places[0]);
    let seen = second.run(ExecRequest::shell(look)).await.map_err(text)?;
    ensure!(!seen.stdout.text().contains("own") && seen.stderr.text().contains("ermission denied"), "{seen:?}");
    // The control: it is there for its owner, who is alive.
    ensure!(first.read_bytes("secret", 100).await.map_err(text)? == b"one's own", "the file is gone");
    let metadata =
        "curl -s -m 3 -o /dev/null -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' http://169.254.169.254/latest/api/token";
    ensure!(!second.run(ExecRequest::shell(metadata)).await.map_err(text)?.success(), "the task reached the metadata");
    root(&host, metadata).await?;
    let left = second.run(ExecRequest::shell("setsid sleep 1000 >/dev/null 2>&1 & touch /tmp/mine")).await.map_err(text)?;
    ensure!(left.success(), "{left:?}");
    two.environment.stop().await.map_err(text)?;
    ensure!(
        root(&host, "ls -A /opt/tasks | grep -v '^.tierbox$'").await? == places[0].trim_start_matches("/opt/tasks/"),
        "not alone"
    );
    one.environment.stop().await.map_err(text)?;
    let after = root(&host, "cut -d: -f1 /etc/passwd | sort; ls -A /opt | grep -v '^tasks$'; :").await?;
    ensure!(before == after, "users or directories are left: {before} {after}");
    let left = root(&host, "ls -A /opt/tasks; ls /opt/tasks/.tierbox; ls /tmp; nft list tables; pgrep -x sleep; :").await?;
    ensure!(!left.contains("mine") && !left.contains("tierbox_") && !left.contains(&users[1]), "{left}");
    ensure!(world.server.instances().get(&id).map(String::as_str) == Some("running"), "{:?}", world.server.instances());
    host.environment.stop().await.map_err(text)?;
    ensure!(world.is_clean(), "{:?}", world.server.objects());
    Ok(())
}

async fn bounded(world: World) -> Outcome {
    let (host, id) = instance(&world).await?;
    let mut wanted = spec(&world, &id);
    wanted.settings["max-execution-seconds"] = 30.into();
    wanted.settings["max-memory-mib"] = 128.into();
    let started = world.start(&wanted).await.map_err(text)?;
    let sandbox = started.environment.primary();
    let eat = |mib: u32| format!("python3 -c 'x = bytearray({mib} << 20); print(len(x))'");
    let little = sandbox.run(ExecRequest::shell(eat(20))).await.map_err(text)?;
    ensure!(little.success(), "20 MiB were refused: {little:?}");
    let much = sandbox.run(ExecRequest::shell(eat(400))).await.map_err(text)?;
    ensure!(!much.success(), "400 MiB were had: {much:?}");
    let file = sandbox.run(ExecRequest::shell("head -c 120000000 /dev/zero > big; wc -c < big")).await.map_err(text)?;
    ensure!(file.stdout.text().trim() == "102400000", "{file:?}");
    ensure!(said(sandbox.as_ref(), "ulimit -n").await? == "1024", "open files are not bounded");
    // Whatever its caller allows.
    let begun = Instant::now();
    let long = sandbox.run(ExecRequest::new(["sleep", "200"]).timeout(Duration::from_secs(150))).await.map_err(text)?;
    ensure!(long.outcome() == End::Killed(KillReason::Timeout), "{long:?}");
    ensure!(begun.elapsed() < Duration::from_secs(60), "it took {:?}", begun.elapsed());
    started.environment.stop().await.map_err(text)?;
    host.environment.stop().await.map_err(text)
}

async fn cleanup(world: World) -> Outcome {
    let (host, id) = instance(&world).await?;
    let (dead, living) =
        (world.start(&spec(&world, &id)).await.map_err(text)?, world.start(&spec(&world, &id)).await.map_err(text)?);
    let place = said(dead.environment.primary().as_ref(), "pwd").await?;
    let other = said(living.environment.primary().as_ref(), "pwd; touch file").await?;
    let name = dead.lease.id().to_owned();
    // Its owner dies: the lock is free, and nothing was undone.
    std::mem::forget(dead.environment);
    drop(dead.lease);
    let report = tierbox_lease::cleanup(&world.journal, &world.registry(), CleanupOptions::default()).await.map_err(text)?;
    ensure!(report.failed.is_empty() && report.removed.iter().any(|line| line.contains(&name)), "{report:?}");
    let left = root(&host, &format!("test ! -e {place} && test -e {other}/file && ls /opt/tasks")).await?;
    ensure!(left == other.trim_start_matches("/opt/tasks/"), "{left}");
    let again = tierbox_lease::cleanup(&world.journal, &world.registry(), CleanupOptions::default()).await.map_err(text)?;
    ensure!(again.failed.is_empty() && again.removed.is_empty(), "{again:?}");
    living.environment.stop().await.map_err(text)?;
    ensure!(world.server.instances().get(&id).map(String::as_str) == Some("running"), "{:?}", world.server.instances());
    host.environment.stop().await.map_err(text)
}

async fn old(world: World) -> Outcome {
    let (host, id) = instance(&world).await?;
    let mut short = spec(&world, &id);
    short.settings["cleanup-after-hours"] = 1.into();
    let gone = world.start(&short).await.map_err(text)?;
    let stays = world.start(&spec(&world, &id)).await.map_err(text)?;
    let (old, young) =
        (said(gone.environment.primary().as_ref(), "pwd").await?, said(stays.environment.primary().as_ref(), "pwd").await?);
    // Two hours without a sign of life are too many for one hour, and not for the usual 24. What is no task is nobody's business.
    root(&host, "touch -d '2 hours ago' /opt/tasks/.tierbox/*/alive; mkdir -p /opt/tasks/mine/0123456789abcdef").await?;
    let next = world.start(&spec(&world, &id)).await.map_err(text)?;
    root(&host, &format!("test ! -e {old} && test -d {young} && test -d /opt/tasks/mine/0123456789abcdef")).await?;
    let told = format!("{:?}", next.environment.report().notes);
    ensure!(told.contains("1 older tasks were removed"), "{told}");
    for each in [next, stays, gone] {
        each.environment.stop().await.map_err(text)?;
    }
    host.environment.stop().await.map_err(text)
}

async fn refused(world: World) -> Outcome {
    let (host, id) = instance(&world).await?;
    root(&host, "mkdir -m 777 /opt/open; mkdir /opt/theirs; chown tierbox /opt/theirs; ln -s /etc /opt/link").await?;
    for place in ["/opt/open", "/opt/open/below", "/opt/theirs", "/opt/link", "/opt/link/below"] {
        let mut wanted = spec(&world, &id);
        wanted.settings["base-dir"] = place.into();
        let Err(error) = world.start(&wanted).await else { return Err(format!("it started in {place}")) };
        ensure!(error.kind() == ErrorKind::HostUnable && error.message().contains("/opt"), "{place}: {error:?}");
    }
    let Err(error) = world.start(&spec(&world, "i-0123456789abcdef0")).await else { return Err("it started nowhere".to_owned()) };
    ensure!(error.kind() == ErrorKind::HostUnable && error.to_string().contains("no instance"), "{error:?}");
    let mut closed = spec(&world, &id);
    closed.tier = "T0.H3.N2".parse().map_err(text)?;
    let Err(error) = world.start(&closed).await else { return Err("N2 was promised".to_owned()) };
    ensure!(error.kind() == ErrorKind::TierRefused, "{error:?}");
    let left = root(&host, "grep -c '^tierbox-' /etc/passwd; :").await?;
    ensure!(left == "0", "{left} users are left");
    host.environment.stop().await.map_err(text)
}

/// A task that finds the metadata service open has the instance's role.
async fn open(world: World) -> Outcome {
    let (host, id) = instance(&world).await?;
    root(&host, "for name in nft iptables iptables-nft iptables-legacy ip; do rm -f /usr/sbin/$name /usr/bin/$name; done; nft list tables 2>&1 | grep -q 'not found'").await?;
    let error = world.start(&spec(&world, &id)).await.err().ok_or("it started")?;
    ensure!(error.kind() == ErrorKind::HostUnable && error.message().contains("metadata"), "{error:?}");
    ensure!(root(&host, "grep -c '^tierbox-' /etc/passwd; :").await? == "0", "a user is left");
    host.environment.stop().await.map_err(text)
}

async fn no_bucket(world: World) -> Outcome {
    let (host, id) = instance(&world).await?;
    let mut wanted = spec(&world, &id);
    wanted.settings.as_object_mut().ok_or("no table")?.remove("bucket");
    let started = world.start(&wanted).await.map_err(text)?;
    let sandbox = started.environment.primary();
    let bytes: Vec<u8> = (0..40_000u32).map(|at| (at % 253) as u8).collect();
    sandbox.write_bytes("file", bytes.clone()).await.map_err(text)?;
    ensure!(sandbox.read_bytes("file", 1 << 20).await.map_err(text)? == bytes, "the file came back changed");
    let error = match sandbox.run(ExecRequest::shell("echo $TOKEN > ran").env("TOKEN", "hunter2")).await {
        Ok(done) => return Err(format!("it ran: {done:?}")),
        Err(error) => error,
    };
    ensure!(error.to_string().contains("bucket"), "{error:?}");
    ensure!(said(sandbox.as_ref(), "ls").await? == "file", "it ran all the same");
    ensure!(!world.server.history().contains("hunter2"), "the secret is in the history");
    started.environment.stop().await.map_err(text)?;
    host.environment.stop().await.map_err(text)
}

async fn status(world: World) -> Outcome {
    let (host, id) = instance(&world).await?;
    let started = world.start(&spec(&world, &id)).await.map_err(text)?;
    let status = Ec2Backend::new().status(&spec(&world, &id).settings).await.map_err(text)?;
    ensure!(status.instance == id && status.state == "running" && status.tasks == 1, "{status:?}");
    ensure!(status.cpus > 0 && status.memory[1] > 0 && status.memory[0] >= status.memory[1], "{status:?}");
    ensure!(status.disk[0] >= status.disk[1] && status.disk[0] > 0, "{status:?}");
    started.environment.stop().await.map_err(text)?;
    host.environment.stop().await.map_err(text)
}
