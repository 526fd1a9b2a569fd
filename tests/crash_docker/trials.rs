//! The trials and the harness that they kill.

use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime};

use libtest_mimic::Trial;
use serde_json::json;
use tierbox::{CleanupOptions, EnvironmentSpec, ExecRequest, SandboxExt, StartOptions, Tierbox};

use crate::support::{self, again, engines};

const ENGINE: &str = "docker";

/// Where the harness dies by its own hand.
const POINTS: [&str; 6] = ["lease", "networks", "created", "started", "ready", "destroy"];

/// How many random moments are tried.
const MOMENTS: u64 = 8;

/// Within this time from its start a harness is killed.
const SPAN: u64 = 1500;

/// How long a harness may take to reach its point.
const PATIENCE: Duration = Duration::from_secs(60);

const COMPOSE: &str = "
services:
  default: {image: tierbox-test/debian:1, volumes: ['data:/data']}
  other: {image: tierbox-test/debian:1, command: sleep infinity}
volumes: {data: }
";

pub fn all() -> Vec<Trial> {
    let points = POINTS.iter().map(|point| trial(&format!("points::{point}"), move || at_point(point)));
    points.chain([trial("building", building), trial("verifying", verifying), trial("moments", moments)]).collect()
}

fn trial(name: &str, test: impl Fn() -> Result<(), String> + Send + 'static) -> Trial {
    let name = format!("crash::docker::{name}");
    let absent = engines::address(ENGINE).err();
    let ignored = absent.is_some() && std::env::var_os("CI").is_none();
    let full = name.clone();
    let run = move || match &absent {
        Some(absence) => support::skip(ENGINE, &full, absence).map_err(Into::into),
        None => test().map_err(Into::into),
    };
    Trial::test(name, run).with_ignored_flag(ignored)
}

fn spec(dir: &Path) -> EnvironmentSpec {
    let mut spec = engines::docker_spec(ENGINE, "docker", engines::DEBIAN);
    let settings = spec.settings.as_object_mut().expect("a table");
    settings.remove("image");
    let (key, file) = if dir.join("Dockerfile").exists() { ("dockerfile", "Dockerfile") } else { ("compose", "compose.yaml") };
    settings.insert(key.to_owned(), json!(file));
    spec.base_dir = dir.to_owned();
    (spec.limits.disk, spec.limits.inodes) = (None, None);
    spec
}

fn tierbox(dir: &Path) -> Tierbox {
    Tierbox::builder().state_dir(dir.join("state")).user_config(false).build().expect("the facade")
}

/// Starts, runs and stops, again and again, until somebody kills it.
pub fn harness() -> ExitCode {
    let dir = std::env::var("CRASH_DIR").expect("a directory");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let tierbox = tierbox(Path::new(&dir));
    runtime.block_on(async {
        loop {
            let Ok(running) = tierbox.start_spec(spec(Path::new(&dir)), StartOptions::new()).await else { continue };
            let _ = running.run(ExecRequest::shell("setsid sleep 1000 & echo x > /tmp/x")).await;
            let _ = running.stop().await;
        }
    })
}

fn start(dir: &Path, point: Option<&str>) -> Child {
    let mut command = again::this_program_under(&[], "harness");
    command.env("CRASH_DIR", dir).stdout(Stdio::null()).stderr(Stdio::null());
    if let Some(point) = point {
        command.env("TIERBOX_CRASH_AT", point);
    }
    command.spawn().expect("the harness")
}

fn world() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("compose.yaml"), COMPOSE).expect("a file");
    dir
}

/// A container of somebody else's, which must survive.
struct Bystander(String);

impl Bystander {
    fn new() -> Self {
        Self(docker(&["run", "-d", "--network", "none", engines::DEBIAN, "sleep", "1000"]))
    }

    fn lives(&self) -> bool {
        docker(&["inspect", "-f", "{{.State.Running}}", &self.0]) == "true"
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        docker(&["rm", "-f", &self.0]);
    }
}

fn docker(arguments: &[&str]) -> String {
    let host = engines::address(ENGINE).unwrap_or_default();
    let output = Command::new("docker").arg("-H").arg(host).args(arguments).stdin(Stdio::null()).output().expect("docker");
    assert!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// What is left of the environments whose leases a state directory held.
fn remains(ids: &[String]) -> Vec<String> {
    let kinds: [&[&str]; 4] = [
        &["images", "-a", "--format", "{{.Repository}} {{.ID}}", "--filter", "label=dev.tierbox.lease"],
        &["ps", "-a", "--format", "{{.Names}}", "--filter", "label=dev.tierbox.lease"],
        &["network", "ls", "--format", "{{.Name}}", "--filter", "label=dev.tierbox.lease"],
        &["volume", "ls", "--format", "{{.Name}}", "--filter", "label=dev.tierbox.lease"],
    ];
    let all = kinds.iter().flat_map(|kind| docker(kind).lines().map(str::to_owned).collect::<Vec<_>>());
    all.filter(|name| ids.iter().any(|id| name.contains(id))).collect()
}

fn leases(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir.join("state/leases")).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".json")?.to_owned())).collect()
}

/// Cleans up after a dead harness and judges.
fn judge(dir: &Path, bystander: &Bystander) -> Result<(), String> {
    let ids = leases(dir);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let report = runtime.block_on(tierbox(dir).cleanup(CleanupOptions::default())).map_err(|error| error.to_string())?;
    let left = remains(&ids);
    if !report.failed.is_empty() || !left.is_empty() {
        return Err(format!("{ids:?} left {left:?}; {report:?}"));
    }
    if !leases(dir).is_empty() {
        return Err(format!("leases are left: {:?}", leases(dir)));
    }
    if bystander.lives() { Ok(()) } else { Err("a container of somebody else's was ended".to_owned()) }
}

/// Of what the engine lists that in whose variables a text stands, whatever it is labelled with.
fn marked(mark: &str, lists: &[&[&str]]) -> Vec<String> {
    let host = engines::address(ENGINE).unwrap_or_default();
    let asked = |words: &[&str]| {
        let output = Command::new("docker").args(["-H", &host]).args(words).stdin(Stdio::null()).output().expect("docker");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let ids: Vec<String> = lists.iter().map(|list| asked(list)).collect();
    // What others remove meanwhile is not there to be told.
    let told = |id: &&str| asked(&["inspect", "-f", "{{.Config.Env}}", id]).contains(mark);
    ids.iter().flat_map(|ids| ids.split_whitespace()).filter(told).map(str::to_owned).collect()
}

/// The harness is killed while a step of a build runs, after a stage that was built.
fn building() -> Result<(), String> {
    let (dir, bystander) = (world(), Bystander::new());
    let mark = format!(
        "mark{}x{}",
        std::process::id(),
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos()
    );
    let text = format!(
        "FROM {0} AS one\nENV MARK={mark}\nRUN echo 1 > /one\nFROM {0}\nENV MARK={mark}\nCOPY --from=one /one /one\nRUN sleep 1000\n",
        engines::DEBIAN
    );
    std::fs::write(dir.path().join("Dockerfile"), text).map_err(|error| error.to_string())?;
    let mut harness = start(dir.path(), None);
    let begun = Instant::now();
    let images = ["images", "-aq", "--no-trunc"];
    let sleeps = ["ps", "-q", "--no-trunc", "--filter", "status=running"];
    while marked(&mark, &[&sleeps]).is_empty() || marked(&mark, &[&images]).len() < 3 {
        if begun.elapsed() > PATIENCE {
            let _ = harness.kill();
            let _ = harness.wait();
            return Err(format!("no step of the build runs within {PATIENCE:?}"));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let _ = harness.kill();
    let _ = harness.wait();
    judge(dir.path(), &bystander)?;
    let left = marked(&mark, &[&images, &["ps", "-aq", "--no-trunc"]]);
    if left.is_empty() { Ok(()) } else { Err(format!("{left:?} are left")) }
}

/// The harness is killed in its first verification, while canaries stand on the engine's own host: the twin that hears them is made once they do.
fn verifying() -> Result<(), String> {
    let (dir, bystander) = (world(), Bystander::new());
    let mut harness = start(dir.path(), None);
    let begun = Instant::now();
    let on_the_host = || {
        let (ids, names) = (leases(dir.path()), docker(&["ps", "--filter", "network=host", "--format", "{{.Names}}"]));
        names.lines().filter(|name| ids.iter().any(|id| name.contains(id))).count()
    };
    while on_the_host() < 2 && begun.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(5));
    }
    let found = on_the_host();
    let _ = harness.kill();
    let _ = harness.wait();
    judge(dir.path(), &bystander)?;
    if begun.elapsed() < PATIENCE { Ok(()) } else { Err(format!("{found} twins were on the engine's host, and never two")) }
}

fn at_point(point: &str) -> Result<(), String> {
    let (dir, bystander) = (world(), Bystander::new());
    let mut harness = start(dir.path(), Some(point));
    let begun = Instant::now();
    while harness.try_wait().map_err(|error| error.to_string())?.is_none() {
        if begun.elapsed() > PATIENCE {
            let _ = harness.kill();
            let _ = harness.wait();
            return Err(format!("it did not reach the point {point} within {PATIENCE:?}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    judge(dir.path(), &bystander)
}

fn moments() -> Result<(), String> {
    let seed = std::env::var("TIERBOX_CRASH_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos() as u64);
    let (dir, bystander) = (world(), Bystander::new());
    for round in 0..MOMENTS {
        let mixed = (seed.wrapping_add(round)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        let mut harness = start(dir.path(), None);
        std::thread::sleep(Duration::from_millis(mixed % SPAN));
        let _ = harness.kill();
        let _ = harness.wait();
        judge(dir.path(), &bystander).map_err(|why| format!("round {round}, TIERBOX_CRASH_SEED={seed}: {why}"))?;
    }
    Ok(())
}
