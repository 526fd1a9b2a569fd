//! What happens when AWS fails: nothing is lost, and nothing runs twice.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use serde_json::json;
use tierbox_core::{ErrorKind, ExecRequest, Outcome as End, Sandbox, SandboxExt};

use super::world::{Outcome, World, ensure, text, trial};

pub fn all() -> Vec<Trial> {
    vec![
        trial("faults::three_calls_of_ten_are_throttled", throttled),
        trial("slow::faults::calls_answer_500_before_and_after_their_effect", errors),
        trial("faults::what_was_made_shows_late", late),
        trial("faults::an_agent_that_is_gone_for_a_while", agent),
        trial("slow::faults::an_instance_that_dies_is_lost", dies),
        trial("faults::addresses_that_have_expired_run_nothing", expired),
        trial("faults::slow_answers", slow),
    ]
}

/// Commands and files, each with a trace that shows whether anything ran twice.
async fn work(sandbox: &dyn Sandbox, rounds: usize) -> Outcome {
    for number in 0..rounds {
        let done = sandbox.run(ExecRequest::shell(format!("echo {number} >> trace; echo {number}"))).await.map_err(text)?;
        ensure!(done.outcome() == End::Exited(0) && done.stdout.text() == format!("{number}\n"), "command {number}: {done:?}");
        let secret = ExecRequest::shell("echo $TOKEN >> trace").env("TOKEN", format!("s{number}"));
        ensure!(sandbox.run(secret).await.map_err(text)?.success(), "a command with a variable failed");
    }
    let large: Vec<u8> = (0..150_000u32).map(|at| (at % 251) as u8).collect();
    sandbox.write_bytes("large", large.clone()).await.map_err(text)?;
    ensure!(sandbox.read_bytes("large", 1 << 20).await.map_err(text)? == large, "a file came back changed");
    let trace = String::from_utf8(sandbox.read_bytes("trace", 1 << 20).await.map_err(text)?.to_vec()).map_err(text)?;
    let expected: String = (0..rounds).map(|number| format!("{number}\ns{number}\n")).collect();
    ensure!(trace == expected, "commands ran twice or not at all:\n{trace}");
    Ok(())
}

async fn through(world: &World, rounds: usize) -> Outcome {
    let started = world.usual().await?;
    work(started.environment.primary().as_ref(), rounds).await?;
    started.environment.stop().await.map_err(text)?;
    ensure!(world.is_clean(), "{:?} {:?}", world.server.instances(), world.server.objects());
    ensure!(world.server.instances().len() == 1, "{:?}", world.server.instances());
    Ok(())
}

async fn throttled(world: World) -> Outcome {
    world.server.set(json!({"throttle": {"*": 0.3}}));
    let result = through(&world, 6).await;
    world.server.set(json!({"throttle": {}}));
    result
}

async fn errors(world: World) -> Outcome {
    let all = json!({"SendCommand": 4, "GetCommandInvocation": 4, "s3:PUT": 2, "s3:GET": 1, "s3:DELETE": 2, "ec2:RunInstances": 1,
                     "ec2:DescribeInstances": 1, "ec2:TerminateInstances": 1, "DescribeInstanceInformation": 2, "ec2:CreateTags": 1});
    world.server.set(json!({"errors": all, "errors_after": all}));
    through(&world, 4).await
}

async fn late(world: World) -> Outcome {
    world.server.set(json!({"ec2_visible_s": 3.0, "invocation_visible_s": 1.5}));
    through(&world, 1).await
}

async fn agent(world: World) -> Outcome {
    let started = world.usual().await?;
    let sandbox = started.environment.primary();
    let id = world.server.instances().into_keys().next().ok_or("no instance")?;
    world.server.of("agent", &id, json!({"down": true}));
    let server = world.server.clone();
    let back = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(4));
        server.of("agent", &id, json!({"down": false}));
    });
    work(sandbox.as_ref(), 1).await?;
    back.join().map_err(|_| "the thread panicked")?;
    started.environment.stop().await.map_err(text)
}

async fn dies(world: World) -> Outcome {
    let started = world.usual().await?;
    let sandbox = started.environment.primary();
    let id = world.server.instances().into_keys().next().ok_or("no instance")?;
    let mut handle = sandbox.spawn(ExecRequest::new(["sleep", "1000"])).await.map_err(text)?;
    world
        .until(Duration::from_secs(60), "the command is on its way", || {
            world.server.calls().get("SendCommand").is_some_and(|sent| *sent >= 4)
        })
        .await?;
    world.server.of("kill", &id, json!({}));
    let begun = Instant::now();
    let end = handle.wait().await.map_err(text)?;
    ensure!(end.outcome == End::Lost, "{end:?}");
    ensure!(begun.elapsed() < Duration::from_secs(120), "it took {:?} to see that the instance is gone", begun.elapsed());
    started.environment.stop().await.map_err(text)?;
    ensure!(world.is_clean(), "{:?}", world.server.instances());
    Ok(())
}

async fn expired(world: World) -> Outcome {
    let started = world.usual().await?;
    let sandbox = started.environment.primary();
    world.server.set(json!({"presign_lapses_s": 100_000}));
    let request = ExecRequest::shell("echo $TOKEN > ran").env("TOKEN", "x");
    let done = sandbox.run(request).await;
    let error = done.err().ok_or("it ran, though its address had expired")?;
    ensure!(error.kind() == ErrorKind::HostUnable && error.to_string().contains("403"), "{error:?}");
    world.server.set(json!({"presign_lapses_s": 0}));
    let there = sandbox.run(ExecRequest::new(["test", "-e", "ran"])).await.map_err(text)?;
    ensure!(there.outcome() == End::Exited(1), "it ran all the same: {there:?}");
    started.environment.stop().await.map_err(text)?;
    ensure!(world.is_clean(), "{:?}", world.server.objects());
    Ok(())
}

async fn slow(world: World) -> Outcome {
    world.server.set(json!({"latency_s": {"*": 0.4}}));
    through(&world, 1).await
}
