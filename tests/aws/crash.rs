//! The harness is killed with SIGKILL: at each named point, and at moments that nobody chose. The next cleanup removes all.

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, SystemTime};

use libtest_mimic::Trial;
use tierbox_core::{ExecRequest, SandboxExt};
use tierbox_lease::CleanupOptions;

use super::world::{Outcome, World, ensure, text, trial};

/// Set in the process that is to be killed: the access key of its caller.
const KEY: &str = "TIERBOX_TEST_AWS_HARNESS";
/// Set in the process that cleans up after it.
const CLEANUP: &str = "TIERBOX_TEST_AWS_CLEANUP";
/// The directory of its journal.
const STATE: &str = "TIERBOX_TEST_AWS_STATE";

pub fn all() -> Vec<Trial> {
    vec![trial("crash::at_each_named_point", named_points), trial("crash::at_moments_that_nobody_chose", moments)]
}

/// Whether this process is the harness that is killed.
pub fn is_harness() -> bool {
    std::env::var_os(KEY).is_some()
}

/// Starts an environment and works in it until it is killed.
pub fn be_harness() -> ExitCode {
    let key = std::env::var(KEY).expect("a key");
    let state = std::path::PathBuf::from(std::env::var_os(STATE).expect("a directory"));
    let world = World::of(&key, &state);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    if std::env::var_os(CLEANUP).is_some() {
        return runtime.block_on(clean(&world));
    }
    runtime.block_on(async {
        let Ok(started) = world.usual().await else { return };
        let sandbox = started.environment.primary();
        for _ in 0..5 {
            let request = ExecRequest::shell("echo $TOKEN").env("TOKEN", "x").stdin_bytes(vec![1; 60_000]);
            let _ = sandbox.run(request).await;
        }
        let _ = started.environment.stop().await;
    });
    ExitCode::SUCCESS
}

fn harness(world: &World, point: Option<&str>) -> Result<std::process::Child, String> {
    let mut command = Command::new(std::env::current_exe().map_err(text)?);
    command.env(KEY, &world.server.key).env(STATE, world.state()).stdin(Stdio::null()).stdout(Stdio::null());
    if let Some(point) = point {
        command.env("TIERBOX_CRASH_AT", point);
    }
    command.spawn().map_err(text)
}

/// What a dead harness left is removed by the next cleanup, a process of its own. The profile's keys are in no lease: who cleans up
/// has them in the environment.
async fn is_cleaned_up(world: &World, when: &str) -> Outcome {
    let mut command = Command::new(std::env::current_exe().map_err(text)?);
    command.env(KEY, &world.server.key).env(STATE, world.state()).env(CLEANUP, "1").stdin(Stdio::null());
    command.env("AWS_ACCESS_KEY_ID", &world.server.key).env("AWS_SECRET_ACCESS_KEY", "nobody checks it");
    let output = tokio::task::spawn_blocking(move || command.output()).await.map_err(text)?.map_err(text)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "killed {when}: {said}");
    ensure!(world.is_clean(), "killed {when}: {:?} {:?}: {said}", world.server.instances(), world.server.objects());
    let left = world.journal.list().map_err(text)?.entries.len();
    ensure!(left == 0, "killed {when}: {left} leases are left: {said}");
    Ok(())
}

async fn clean(world: &World) -> ExitCode {
    let report = tierbox_lease::cleanup(&world.journal, &world.registry(), CleanupOptions::default()).await;
    println!("{report:?}");
    if report.is_ok_and(|report| report.failed.is_empty()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn named_points(world: World) -> Outcome {
    for point in ["lease", "launched", "recorded", "online", "prepared"] {
        let mut child = harness(&world, Some(point))?;
        let ended = tokio::task::spawn_blocking(move || child.wait()).await.map_err(text)?.map_err(text)?;
        ensure!(!ended.success(), "it did not die at {point}");
        is_cleaned_up(&world, point).await?;
    }
    Ok(())
}

async fn moments(world: World) -> Outcome {
    let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_err(text)?.as_nanos() as u64;
    println!("seed {seed}");
    let mut number = seed;
    for _ in 0..6 {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let moment = Duration::from_millis((number >> 33) % 6000);
        let mut child = harness(&world, None)?;
        tokio::time::sleep(moment).await;
        let _ = child.kill();
        child.wait().map_err(text)?;
        is_cleaned_up(&world, &format!("after {moment:?}")).await?;
    }
    Ok(())
}
