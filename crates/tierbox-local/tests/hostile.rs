//! Hosts that deny what a container needs, each built from a namespace: one error of one kind, at once, with the remedy.
#![cfg(target_os = "linux")]

use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tierbox_core::{Backend, EnvironmentSpec, Hold, Limits, Silent};
use tierbox_lease::{Journal, NewLease};
use tierbox_local::LocalBackend;

/// Set in the copy of this program that runs on the hostile host.
const INSIDE: &str = "TIERBOX_TEST_INSIDE";

/// Runs this program's `inside` case after `prepare`, a shell script, in new namespaces as a plain user.
fn on_host(namespaces: &[&str], prepare: &str) -> (Output, Duration) {
    let started = Instant::now();
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    if rustix_is_root() {
        // From here on nothing of this process's directories may be entered, so the program is opened before.
        command = Command::new("setpriv");
        command.args(["--reuid=54321", "--regid=54321", "--clear-groups", "unshare"]);
    }
    let script = format!("{prepare}\nexec \"$1\" --exact inside --nocapture");
    command.args(namespaces).args(["sh", "-c", &script, "sh"]).arg(program);
    let output = command.env(INSIDE, "1").env("TMPDIR", "/tmp").stdin(Stdio::null()).output().unwrap();
    (output, started.elapsed())
}

fn rustix_is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata) == 0)
}

/// Whether plain users may make namespaces on this host at all, and may read this program.
fn can_try() -> bool {
    let (output, _) = on_host(&["--user", "--map-root-user", "--mount"], "exit 0");
    output.status.success()
}

fn refused(namespaces: &[&str], prepare: &str, what: &str, remedy: &str) {
    if !can_try() {
        return;
    }
    let (output, took) = on_host(namespaces, prepare);
    let said = String::from_utf8_lossy(&output.stdout);
    let line = said
        .lines()
        .find(|line| line.contains("REFUSED"))
        .unwrap_or_else(|| panic!("{said}\n{}", String::from_utf8_lossy(&output.stderr)));
    assert!(line.contains("HostUnable"), "{line}");
    assert!(line.contains(what) && line.contains(remedy), "{line}");
    assert!(took < Duration::from_secs(5), "took {took:?}");
    let inner = line.split("ms=").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap();
    assert!(inner < 1000, "{line}");
}

/// Runs on the hostile host; elsewhere it has nothing to do.
#[tokio::test]
#[expect(clippy::print_stdout, reason = "the other half of this test reads it")]
async fn inside() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::at(&dir.path().join("state")).unwrap();
    let lease = Arc::new(journal.create(NewLease::new("local", "test", "T0.H1.N2")).unwrap());
    let spec = EnvironmentSpec {
        profile: "test".into(),
        tier: "T0.H1.N2".parse().unwrap(),
        backend: "local".into(),
        limits: Limits::default(),
        env: Default::default(),
        workdir: None,
        user: None,
        mounts: Vec::new(),
        files: Vec::new(),
        network: Default::default(),
        settings: serde_json::Value::Null,
        base_dir: "/".into(),
        hold: Hold::Process,
        reason: None,
        weakened: Vec::new(),
        programs: Vec::new(),
    };
    let started = Instant::now();
    match LocalBackend::new().start(&spec, lease, &Silent).await {
        Ok(environment) => {
            environment.stop().await.unwrap();
            println!("STARTED");
        }
        Err(error) => println!(
            "REFUSED {:?} ms={} {} | {}",
            error.kind(),
            started.elapsed().as_millis(),
            error.message(),
            error.help().unwrap_or("no remedy")
        ),
    }
}

#[test]
fn a_namespace_inside_a_namespace_is_no_obstacle() {
    if !can_try() {
        return;
    }
    let (output, _) = on_host(&["--user", "--map-root-user"], "");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("STARTED"), "{said}");
}

#[test]
fn no_namespaces_left() {
    let prepare = "echo 0 > /proc/sys/user/max_user_namespaces";
    refused(&["--user", "--map-root-user"], prepare, "max_user_namespaces is 0", "sysctl");
}

#[test]
fn a_user_without_an_id() {
    refused(&["--user"], "", "no id", "uid_map");
}

#[test]
fn a_masked_proc() {
    let prepare = "mount -t tmpfs none /proc/acpi 2>/dev/null || mount -t tmpfs none /proc/fs";
    refused(&["--user", "--map-root-user", "--mount"], prepare, "parts of /proc are covered", "systempaths=unconfined");
}

#[test]
fn no_proc_at_all() {
    refused(&["--user", "--map-root-user", "--mount"], "mount -t tmpfs none /proc", "/proc is not mounted", "mount -t proc");
}
