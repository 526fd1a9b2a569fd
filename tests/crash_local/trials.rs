//! The experiments, as tests.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use libtest_mimic::{Failed, Trial};
use tierbox_testkit::plain;

use crate::support::{self, again, remains};

/// Points in the harness and in the supervisor's halves, by the profile that passes them.
const CONTAINER: &[&str] = &["lease", "spawned", "clone", "map", "cgroup", "mount", "pivot", "seccomp", "ready", "started"];
const PROCESS: &[&str] = &["lease", "spawned", "clone", "cgroup", "ready", "started"];

/// How many random moments a run tries; a hundred for the slow one.
const FEW: usize = 20;
const MANY: usize = 100;

/// Every experiment.
pub fn all() -> Vec<Trial> {
    let mut trials = vec![Trial::test("crash::what_is_left_is_seen", what_is_left_is_seen)];
    for (who, as_plain) in [("", false), ("plain::", true)] {
        for (profile, points) in [("local", CONTAINER), ("local-process", PROCESS)] {
            let mode = if profile == "local" { "container" } else { "process" };
            let trial = |name: String, plan: Plan| {
                let absent = if as_plain { plain::absent() } else { None };
                Trial::test(name, move || plan.run()).with_ignored_flag(absent.is_some())
            };
            let plan = |kind: &'static str| Plan { profile, kind, point: "", moments: 0, as_plain };
            for point in points {
                trials.push(trial(format!("crash::{who}{mode}::at_{point}"), Plan { point, ..plan("once") }));
            }
            trials.push(trial(format!("crash::{who}{mode}::at_destroy"), Plan { point: "destroy", ..plan("cleanup") }));
            trials.push(trial(format!("crash::{who}{mode}::at_random_moments"), Plan { moments: FEW, ..plan("random") }));
            trials
                .push(trial(format!("slow::crash::{who}{mode}::at_a_hundred_moments"), Plan { moments: MANY, ..plan("random") }));
            trials.push(trial(format!("crash::{who}{mode}::detached_outlives_its_harness"), plan("detach")));
        }
    }
    trials
}

#[derive(Clone, Copy)]
struct Plan {
    profile: &'static str,
    kind: &'static str,
    point: &'static str,
    moments: usize,
    as_plain: bool,
}

impl Plan {
    fn run(self) -> Result<(), Failed> {
        if self.profile == "local"
            && let Some(absence) = support::containers_absent()
        {
            return support::skip("local-container", "crash", &absence).map_err(Failed::from);
        }
        let mut judge = if self.as_plain {
            let mut command = plain::this_program()?;
            command.env(again::ROLE, "judge");
            command
        } else {
            again::this_program_under(&[], "judge")
        };
        let seed = seed()?;
        judge.env("CRASH_PROFILE", self.profile).env("CRASH_PLAN", self.kind).env("CRASH_MOMENTS", moments(seed, self.moments));
        match self.kind {
            "random" => drop(writeln!(std::io::stderr(), "TIERBOX_TEST_SEED={seed} repeats these moments")),
            "cleanup" => drop(judge.env("CRASH_CLEANUP_AT", self.point)),
            _ if !self.point.is_empty() => drop(judge.env("TIERBOX_CRASH_AT", self.point)),
            _ => (),
        }
        judged(judge, seed)
    }
}

/// The judge's own control: it finds a file and, where one can be made, a cgroup.
fn what_is_left_is_seen() -> Result<(), Failed> {
    let left = tempfile::Builder::new().prefix("tierbox-left-").tempdir()?;
    let id = left.path().file_name().ok_or("a directory has a name")?.to_string_lossy().into_owned();
    let group = ["/sys/fs/cgroup/freezer", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .map(|parent| Path::new(parent).join(&id))
        .into_iter()
        .find(|group| std::fs::create_dir(group).is_ok());
    let found = remains::of_environment(&id);
    let expected = 1 + usize::from(group.is_some());
    if let Some(group) = &group {
        std::fs::remove_dir(group)?;
    }
    drop(left);
    if found.len() != expected {
        return Err(format!("{expected} remains were made, and found were {found:?}").into());
    }
    let still = remains::of_environment(&id);
    if still.is_empty() { Ok(()) } else { Err(format!("what is gone is still found: {still:?}").into()) }
}

/// The seed of the random moments: `TIERBOX_TEST_SEED`, or another each time.
fn seed() -> Result<u64, Failed> {
    match std::env::var("TIERBOX_TEST_SEED") {
        Ok(text) => text.parse().map_err(|_| format!("TIERBOX_TEST_SEED={text:?} is no number").into()),
        Err(_) => Ok(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |now| now.as_nanos() as u64)),
    }
}

fn judged(mut judge: Command, seed: u64) -> Result<(), Failed> {
    let output = judge.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("TIERBOX_TEST_SEED={seed}, {}: {}", output.status, String::from_utf8_lossy(&output.stderr)).into())
}

/// Moments in microseconds after the harness began: dense at first, where the start is.
fn moments(seed: u64, count: usize) -> String {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let moments: Vec<String> =
        (0..count).map(|number| (next() % if number % 2 == 0 { 15_000 } else { 120_000 }).to_string()).collect();
    moments.join(",")
}
