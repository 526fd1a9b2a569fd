//! Hosts that deny what a container needs, each built from a namespace: one error of one kind, at once, with the remedy.
#![cfg(target_os = "linux")]

mod support;

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tierbox_core::Hold;

use support::{State, skip, spec, start};

/// Set in the copy of this program that runs on the hostile host.
const INSIDE: &str = "TIERBOX_TEST_INSIDE";

/// Runs this program's `inside` case after `prepare`, a shell script, in new namespaces as a plain user.
fn on_host(namespaces: &[&str], prepare: &str) -> (Output, Duration) {
    let started = Instant::now();
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    if is_root() {
        command = Command::new("setpriv");
        command.args(["--reuid=54321", "--regid=54321", "--clear-groups", "unshare"]);
    }
    let script = format!("{prepare}\nexec \"$1\" --exact inside --nocapture");
    command.args(namespaces).args(["sh", "-c", &script, "sh"]).arg(program);
    let output = command.env(INSIDE, "1").env("TMPDIR", "/tmp").stdin(Stdio::null()).output().unwrap();
    (output, started.elapsed())
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata) == 0)
}

/// Whether plain users may make namespaces on this host at all, and may run this program.
fn can_try(test: &str) -> bool {
    let (output, _) = on_host(&["--user", "--map-root-user", "--mount"], "test -x \"$1\"; exit");
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        skip("local", test, &format!("a plain user cannot make a namespace here: {}", said.trim()), "see `tierbox doctor`");
    }
    output.status.success()
}

fn refused(test: &str, namespaces: &[&str], prepare: &str, what: &str, remedy: &str) {
    if !can_try(test) {
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
    let state = State::new();
    let lease = state.lease(Hold::Process);
    let started = Instant::now();
    match start(&spec("T0.H1.N2"), &lease).await {
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
    if !can_try("a_namespace_inside_a_namespace_is_no_obstacle") {
        return;
    }
    let (output, _) = on_host(&["--user", "--map-root-user"], "");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("STARTED"), "{said}");
}

#[test]
fn no_namespaces_left() {
    let prepare = "echo 0 > /proc/sys/user/max_user_namespaces";
    refused("no_namespaces_left", &["--user", "--map-root-user"], prepare, "max_user_namespaces is 0", "sysctl");
}

#[test]
fn a_user_without_an_id() {
    refused("a_user_without_an_id", &["--user"], "", "no id", "uid_map");
}

#[test]
fn a_masked_proc() {
    let prepare = "mount -t tmpfs none /proc/acpi 2>/dev/null || mount -t tmpfs none /proc/fs";
    refused(
        "a_masked_proc",
        &["--user", "--map-root-user", "--mount"],
        prepare,
        "parts of /proc are covered",
        "systempaths=unconfined",
    );
}

#[test]
fn no_proc_at_all() {
    refused(
        "no_proc_at_all",
        &["--user", "--map-root-user", "--mount"],
        "mount -t tmpfs none /proc",
        "/proc is not mounted",
        "mount -t proc",
    );
}
