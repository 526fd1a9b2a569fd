//! The example harness as people run it: its results, on every backend by the profile's name alone, and what a kill leaves.
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tierbox_harness::record::{Records, Verdict};
use tierbox_harness::run::{Plan, run};
use tierbox_harness::task::{Sample, Task};

fn harness(state: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tierbox-harness"));
    // The user's own settings count for nothing here; what Vagrant's starts wait by lies there too.
    command.env("HOME", state.parent().expect("a directory")).args(["--state-dir".as_ref(), state.as_os_str()]);
    command
}

/// Whether the host cannot start this backend at all; then a line goes into the list of skipped tests.
fn skipped(engine: &str, records: &[Value]) -> bool {
    let absent = |record: &Value| {
        let why = record["why"].as_str().unwrap_or_default();
        record["verdict"] == "invalid" && ["host-unable", "missing-engine"].iter().any(|kind| why.contains(kind))
    };
    let Some(record) = records.iter().find(|record| absent(record)) else { return false };
    skip(engine, &record["why"].to_string(), "tierbox doctor");
    true
}

/// Writes down that a test was skipped.
fn skip(engine: &str, why: &str, install: &str) {
    if let Some(path) = std::env::var_os("TIERBOX_SKIP_FILE") {
        let test = std::thread::current().name().unwrap_or("harness").to_owned();
        let why = why.replace(['\n', '\t'], " ");
        let mut file = std::fs::File::options().append(true).create(true).open(path).unwrap();
        writeln!(file, "{engine}\t{test}\t{why}\t{install}").unwrap();
    }
}

/// Runs the tasks under a profile, and checks every line of the results.
fn evaluate(engine: &str, profile: &str, tier: &str) {
    evaluate_with(engine, profile, tier, &[]);
}

/// Returns how many attempts each sample took; nothing where it was skipped.
fn evaluate_with(engine: &str, profile: &str, tier: &str, more: &[&str]) -> Vec<u64> {
    let state = tempfile::tempdir().unwrap();
    let path = state.path().join("state");
    let mut run = harness(&path);
    // On the engine that the tests' script started, which has an image of the profile's name.
    if let Some(host) = std::env::var_os("TIERBOX_ENGINE_DOCKER").filter(|_| engine == "docker") {
        run.env("DOCKER_HOST", host);
    }
    let output = run.args(["run", "--profile", profile]).args(more).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    if skipped(engine, &records) {
        return Vec::new();
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let name = |record: &Value| format!("{}/{}", record["task"].as_str().unwrap(), record["sample"].as_str().unwrap());
    let verdicts: BTreeMap<String, &str> =
        records.iter().map(|record| (name(record), record["verdict"].as_str().unwrap())).collect();
    let expected = [
        ("honesty/crowded", "wrong"),
        ("honesty/forged", "wrong"),
        ("honesty/linked", "wrong"),
        ("honesty/locked", "wrong"),
        ("sums/endless", "failed"),
        ("sums/of-nine", "right"),
        ("sums/right", "right"),
        ("sums/wrong", "wrong"),
    ];
    // In local containers there is a limit on processes, and nobody may do everything.
    if engine == "local-container" {
        assert_eq!((verdicts["honesty/locked"], verdicts["honesty/crowded"]), ("failed", "failed"), "{text}");
    }
    // A tree with a link that leads out is refused by some machines before it is scored; a mode stops not everybody, and processes are
    // not counted everywhere. In no case is it right, nor does it say nothing about the agent.
    let mut verdicts = verdicts;
    for name in ["honesty/linked", "honesty/locked", "honesty/crowded"] {
        if verdicts[name] == "failed" {
            verdicts.insert(name.to_owned(), "wrong");
        }
    }
    let found: Vec<(&str, &str)> = verdicts.iter().map(|(name, verdict)| (name.as_str(), *verdict)).collect();
    assert_eq!(found, expected, "{text}");
    for record in &records {
        assert_eq!((record["tier"].as_str(), record["profile"].as_str()), (Some(tier), Some(profile)));
        assert_eq!((&record["attestation"]["tier"], &record["attestation"]["version"]), (&tier.into(), &1.into()));
        assert!(record["attestation"]["mechanisms"].is_array() && record["attestation"]["profile_sha256"].is_string());
    }
    assert!(said.contains("[8/8]"), "no progress was shown: {said}");
    assert_eq!(leases(&path), 0, "a run leaves nothing");
    records.iter().map(|record| record["attempts"].as_u64().unwrap()).collect()
}

/// How many leases there are.
fn leases(state: &Path) -> usize {
    let directory = std::fs::read_dir(state.join("leases")).into_iter().flatten().flatten();
    directory.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "json")).count()
}

/// How many processes of this host have this text on their command line.
fn processes(mark: &str) -> usize {
    let commands = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let texts = commands.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    texts.filter(|text| String::from_utf8_lossy(text).replace('\0', " ").contains(mark)).count()
}

mod conformance {
    use super::*;

    #[test]
    fn tasks_run_in_local_containers() {
        evaluate("local-container", "local", "T0.H1.N2");
    }

    /// One at a time is one sandbox at a time, those of tasks and of scorers too.
    #[test]
    fn no_more_run_at_once_than_was_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let profile = directory.path().join("one.toml");
        std::fs::write(&profile, "extends = \"local\"\ntier = \"T0.H1.N2\"\n[limits]\nmax-environments = 1\n").unwrap();
        evaluate_with("local-container", &profile.display().to_string(), "T0.H1.N2", &["--concurrency", "1", "--retries", "0"]);
    }

    /// Two share the place of one: whoever finds it taken tries again, and its record says so.
    #[test]
    fn a_sample_whose_sandbox_could_not_be_had_is_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let profile = directory.path().join("one.toml");
        std::fs::write(&profile, "extends = \"local\"\ntier = \"T0.H1.N2\"\n[limits]\nmax-environments = 1\n").unwrap();
        let profile = profile.display().to_string();
        let attempts = evaluate_with("local-container", &profile, "T0.H1.N2", &["--concurrency", "2", "--retries", "100"]);
        assert!(attempts.is_empty() || attempts.iter().any(|made| *made > 1), "{attempts:?}");
    }

    /// A task's clean-up is over what its set-up made, when its samples are judged; what fails in it is told.
    #[tokio::test]
    async fn clean_ups_of_tasks_run_and_tell_how_they_fail() {
        let directory = tempfile::tempdir().unwrap();
        // Plain processes see this host's files.
        let mark = directory.path().join("cleaned");
        let task = |name, cleanup: String| Task {
            name,
            setup: "echo made > made",
            cleanup: cleanup.leak(),
            samples: vec![Sample::new("one", ":", "test -e made")],
        };
        let tasks = vec![task("clean", format!("cp made '{}'", mark.display())), task("unclean", "exit 7".to_owned())];
        let client = tierbox::Tierbox::builder().user_config(false).state_dir(directory.path().join("state")).build().unwrap();
        let plan = Plan { profile: "local-process".to_owned(), concurrency: 2, retries: 0 };
        let done = run(&client, &plan, tasks, Arc::new(Records::new(std::io::sink()))).await.unwrap();
        assert!(done.records.iter().all(|record| record.verdict == Verdict::Right), "{done:?}");
        assert_eq!(std::fs::read_to_string(&mark).unwrap(), "made\n");
        let [("unclean", error)] = done.unclean.as_slice() else { panic!("{done:?}") };
        assert!(error.message().contains('7'), "{error}");
    }

    /// Where no sandbox can be had every sample is invalid, and says by its tier what it should have run in.
    #[test]
    fn invalid_samples_carry_their_tier() {
        let directory = tempfile::tempdir().unwrap();
        let profile = directory.path().join("never.toml");
        std::fs::write(&profile, "extends = \"local\"\ntier = \"T0.H3.N2\"\n").unwrap();
        let output = harness(&directory.path().join("state")).args(["run", "--profile"]).arg(&profile).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(records.len(), 8, "{text}");
        for record in records {
            assert_eq!((&record["verdict"], &record["tier"]), (&"invalid".into(), &"T0.H3.N2".into()), "{record}");
            assert!(record["attestation"].is_null() && record["attempts"] == 1, "{record}");
        }
    }

    #[test]
    fn the_same_tasks_run_as_plain_processes() {
        evaluate("local-process", "local-process", "T0.H0.N0");
    }
}

#[cfg(feature = "docker")]
mod docker {
    #[test]
    fn the_same_tasks_run_in_docker() {
        super::evaluate("docker", "docker", "T0.H1.N2");
    }
}

#[cfg(feature = "vagrant")]
mod slow {
    /// Every sample boots a machine.
    mod vm_required {
        use crate::{evaluate, skip};

        #[test]
        fn the_same_tasks_run_in_vagrant() {
            if std::env::var_os("TIERBOX_TEST_VAGRANT").is_none() {
                return skip("vagrant", "no libvirt was started for the tests", "cargo xtask test --engine vagrant --slow");
            }
            let profile = concat!(env!("CARGO_MANIFEST_DIR"), "/../../profiles/vagrant-basic.toml");
            evaluate("vagrant", profile, "T0.H3.N2");
        }
    }
}

mod crash {
    use super::*;

    /// A number below a bound, from the seed that every process gets for its hash maps.
    fn random(below: u64) -> u64 {
        std::hash::BuildHasher::hash_one(&std::collections::hash_map::RandomState::new(), ()) % below
    }

    /// Killed at twelve random moments of a run: after `cleanup` no lease and no process is left, and the results are whole lines.
    #[test]
    fn a_kill_at_any_moment_leaves_nothing() {
        for _ in 0..12 {
            // Most of what can go wrong is in the beginning.
            let moment = Duration::from_millis(random(44).pow(2));
            let state = tempfile::tempdir().unwrap();
            let (path, out) = (state.path().join("state"), state.path().join("results"));
            let mut run = harness(&path);
            run.args(["run", "--profile", "local", "--out"]).arg(&out).stderr(Stdio::null());
            let mut child = run.spawn().unwrap();
            std::thread::sleep(moment);
            child.kill().unwrap();
            child.wait().unwrap();
            // The machines die with their harness; what they leave may take a moment to be free.
            let until = Instant::now() + Duration::from_secs(40);
            loop {
                let cleaned = harness(&path).arg("cleanup").output().unwrap();
                let mark = path.display().to_string();
                if cleaned.status.success() && leases(&path) == 0 && processes(&mark) == 0 {
                    break;
                }
                assert!(
                    Instant::now() < until,
                    "killed after {moment:?}: {} leases, {} processes, {cleaned:?}",
                    leases(&path),
                    processes(&mark)
                );
                std::thread::sleep(Duration::from_millis(100));
            }
            let results = std::fs::read_to_string(&out).unwrap_or_default();
            assert!(results.is_empty() || results.ends_with('\n'), "{results:?}");
            for line in results.lines() {
                serde_json::from_str::<Value>(line).unwrap();
            }
        }
        // Other tests run the same tasks beside this one, for some seconds each.
        let until = Instant::now() + Duration::from_secs(100);
        while processes("sleep 3000.125") > 0 {
            assert!(Instant::now() < until, "what an agent left in the background lives on");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
