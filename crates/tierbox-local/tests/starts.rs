//! Real starts in both modes, on this host.
#![cfg(target_os = "linux")]

mod support;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tierbox_core::{
    Applied, Backend, CheckStatus, Environment, EnvironmentSpec, ErrorKind, ExecRequest, Hold, LeaseHandle, Limit, Limits,
    MountSpec, Outcome, Sandbox, SandboxExt,
};
use tierbox_lease::Lease;
use tierbox_local::LocalBackend;

use support::{State, skip, spec, start};

/// Starts an environment, or records why this host cannot.
async fn start_or_skip(test: &str, spec: &EnvironmentSpec, lease: &Arc<Lease>) -> Option<Box<dyn Environment>> {
    match start(spec, lease).await {
        Ok(environment) => Some(environment),
        Err(error) if error.kind() == ErrorKind::HostUnable => {
            skip("local", test, error.message(), error.help().unwrap_or_default());
            None
        }
        Err(error) => panic!("{error:?}"),
    }
}

async fn sh(sandbox: &dyn Sandbox, script: &str) -> String {
    let result = sandbox.run(ExecRequest::shell(script).timeout(Duration::from_secs(20))).await.unwrap();
    let (out, err) = (result.stdout.text(), result.stderr.text());
    assert_eq!(result.completed.outcome, Outcome::Exited(0), "{script}: {out}{err}");
    out.trim_end().to_owned()
}

fn cgroups_of(lease: &Lease) -> Vec<String> {
    lease.snapshot().resources_of("cgroup").map(str::to_owned).collect()
}

#[tokio::test]
async fn a_container_runs_commands_and_leaves_nothing() {
    let state = State::new();
    let lease = state.lease(Hold::Process);
    let mut spec = spec("T0.H1.N2");
    spec.limits = Limits {
        memory: Some(Limit::best(256 << 20)),
        cpu_millis: Some(Limit::best(1000)),
        pids: Some(Limit::best(64)),
        ..Limits::default()
    };
    let Some(environment) = start_or_skip("a_container_runs_commands_and_leaves_nothing", &spec, &lease).await else { return };
    let sandbox = environment.primary();
    assert_eq!(
        sh(&*sandbox, "id -un; pwd; echo $HOME $FROM_PROFILE; hostname").await,
        format!("agent\n/workspace\n/home/agent yes\n{}", lease.id())
    );
    assert_eq!(
        sh(&*sandbox, "cat /etc/resolv.conf; ls /home; grep -c : /proc/net/dev").await,
        "agent\n1",
        "no resolver, no people, loopback alone"
    );
    let report = environment.report();
    for needed in ["user namespace", "pid namespace", "seccomp", "no_new_privs"] {
        assert!(
            report.mechanisms.iter().any(|one| one.name == needed && one.applied == Applied::Enforced),
            "{needed}: {report:?}"
        );
    }
    let cgroups = cgroups_of(&lease);
    environment.stop().await.unwrap();
    environment.stop().await.unwrap();
    for cgroup in cgroups {
        assert!(!Path::new(&cgroup).exists(), "{cgroup} is left");
    }
    assert!(environment.ended(Duration::ZERO).await);
}

#[tokio::test]
async fn a_process_machine_works_in_its_own_directory() {
    let state = State::new();
    let lease = state.lease(Hold::Process);
    let Some(environment) = start_or_skip("a_process_machine_works_in_its_own_directory", &spec("T0.H0.N0"), &lease).await else {
        return;
    };
    let sandbox = environment.primary();
    let directory = lease.directory().unwrap();
    let answer = sh(&*sandbox, "pwd; touch here; echo $FROM_PROFILE; env | grep CARGO || echo clean").await;
    assert_eq!(answer, format!("{}\nyes\nclean", directory.join("work").display()));
    assert!(directory.join("work/here").exists(), "no isolation: the host sees the file");
    environment.stop().await.unwrap();
    assert!(!directory.join("work").exists());
}

#[tokio::test]
async fn mounts_are_visible_as_they_were_asked_for() {
    let state = State::new();
    let lease = state.lease(Hold::Process);
    let data = tempfile::tempdir().unwrap();
    std::fs::write(data.path().join("in"), "from the host").unwrap();
    open_to_all(data.path());
    let mut spec = spec("T0.H1.N2");
    spec.mounts = vec![MountSpec { host: data.path().into(), guest: "/data".into(), writable: false }];
    let Some(environment) = start_or_skip("mounts_are_visible_as_they_were_asked_for", &spec, &lease).await else { return };
    let sandbox = environment.primary();
    assert_eq!(sh(&*sandbox, "cat /data/in; touch /data/out 2>/dev/null || echo read-only").await, "from the hostread-only");
    environment.stop().await.unwrap();
}

fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn a_detached_machine_is_found_again_and_destroyed() {
    let state = State::new();
    let lease = state.lease(Hold::Kept);
    let mut spec = spec("T0.H1.N2");
    spec.hold = Hold::Kept;
    let backend = LocalBackend::new();
    let Some(environment) = start_or_skip("a_detached_machine_is_found_again_and_destroyed", &spec, &lease).await else { return };
    sh(&*environment.primary(), "echo kept > note").await;
    environment.detach().await.unwrap();
    drop(environment);
    let record = lease.snapshot();
    assert!(backend.is_alive(&record).await);
    let again = backend.attach(&record).await.unwrap();
    assert_eq!(sh(&*again.primary(), "cat note").await, "kept");
    drop(again);
    let report = backend.destroy(&record).await.unwrap();
    assert!(report.failed.is_empty(), "{report:?}");
    assert!(!backend.is_alive(&record).await);
    assert_eq!(backend.attach(&record).await.err().unwrap().kind(), ErrorKind::NotFound);
    assert!(backend.destroy(&record).await.unwrap().removed.is_empty(), "a second time there is nothing");
}

#[tokio::test]
async fn a_client_too_many_of_a_detached_machine_may_come_again() {
    let state = State::new();
    let lease = state.lease(Hold::Kept);
    let mut spec = spec("T0.H1.N2");
    spec.hold = Hold::Kept;
    let backend = LocalBackend::new();
    let name = "a_client_too_many_of_a_detached_machine_may_come_again";
    let Some(environment) = start_or_skip(name, &spec, &lease).await else { return };
    environment.detach().await.unwrap();
    drop(environment);
    let record = lease.snapshot();
    let socket = record.resources_of("socket").next().unwrap().to_owned();
    let others: Vec<_> = (0..256).map(|_| std::os::unix::net::UnixStream::connect(&socket).unwrap()).collect();
    for _ in 0..20 {
        let error = backend.attach(&record).await.err().expect("as many as it takes are there");
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::LimitReached, true), "{error}");
    }
    drop(others);
    let again = async {
        while backend.attach(&record).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), again).await.expect("there is room again");
    assert!(backend.destroy(&record).await.unwrap().failed.is_empty());
}

#[tokio::test]
async fn dropping_everything_ends_an_attached_machine() {
    let state = State::new();
    let lease = state.lease(Hold::Process);
    let Some(environment) = start_or_skip("dropping_everything_ends_an_attached_machine", &spec("T0.H1.N2"), &lease).await else {
        return;
    };
    let record = lease.snapshot();
    drop(environment);
    let backend = LocalBackend::new();
    let gone = async {
        while backend.is_alive(&record).await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("the machine ends with its channel");
}

#[tokio::test]
async fn doctor_starts_a_container() {
    let checks = LocalBackend::new().doctor().await;
    let containers = checks.iter().find(|check| check.name == "containers").unwrap();
    match containers.status {
        CheckStatus::Ok => assert!(containers.detail.contains("seccomp"), "{checks:#?}"),
        _ => assert!(!containers.remedy.is_empty(), "{checks:#?}"),
    }
}

/// Starts a machine with the whole network, if the helper is installed.
async fn connected(helper: &str) {
    let state = State::new();
    let lease = state.lease(Hold::Process);
    let mut spec = spec("T0.H1.N0");
    spec.settings = serde_json::json!({"network": helper});
    let environment = match start(&spec, &lease).await {
        // Without a device or a program for it, which is the host's affair.
        Err(error) if error.kind() == ErrorKind::HostUnable => {
            return skip(helper, &format!("{helper}_connects_a_machine"), error.message(), error.help().unwrap_or_default());
        }
        other => other.unwrap(),
    };
    let sandbox = environment.primary();
    let routes = sh(&*sandbox, "cat /proc/net/route | cut -f2; cat /etc/resolv.conf").await;
    assert!(routes.lines().any(|line| line == "00000000") && routes.contains("nameserver 10."), "{routes}");
    // 169.254.0.0 as the kernel prints it.
    assert!(routes.lines().any(|line| line == "0000FEA9"), "metadata services are not routed away: {routes}");
    let helper = lease.snapshot().data["helper"]["pid"].as_u64().expect("the helper is remembered");
    environment.stop().await.unwrap();
    assert!(!Path::new(&format!("/proc/{helper}")).exists(), "the helper ends with its machine");
}

#[tokio::test]
async fn slirp4netns_connects_a_machine() {
    connected("slirp4netns").await;
}

#[tokio::test]
async fn pasta_connects_a_machine() {
    connected("pasta").await;
}

#[tokio::test]
async fn a_writable_mount_takes_the_agents_files() {
    let state = State::new();
    let lease = state.lease(Hold::Process);
    let data = tempfile::tempdir().unwrap();
    // As root; a plain user owns it already.
    let _ = std::os::unix::fs::chown(data.path(), Some(1234), Some(1234));
    let owner = data.path().metadata().unwrap().uid();
    let mut spec = spec("T0.H1.N2");
    spec.mounts = vec![MountSpec { host: data.path().into(), guest: "/workspace/out".into(), writable: true }];
    let Some(environment) = start_or_skip("a_writable_mount_takes_the_agents_files", &spec, &lease).await else { return };
    sh(&*environment.primary(), "echo result > out/file").await;
    environment.stop().await.unwrap();
    assert_eq!(std::fs::read_to_string(data.path().join("file")).unwrap(), "result\n");
    assert_eq!(data.path().join("file").metadata().unwrap().uid(), owner, "what the agent makes is the directory's owner's");
}

#[tokio::test]
async fn a_root_directory_is_copied_on_write() {
    let state = State::new();
    let lease = state.lease(Hold::Process);
    let root = tempfile::tempdir().unwrap();
    open_to_all(root.path());
    for dir in ["etc", "opt"] {
        std::fs::create_dir(root.path().join(dir)).unwrap();
    }
    std::fs::write(root.path().join("etc/passwd"), "root:x:0:0::/root:/bin/sh\napp:x:1001:1001::/opt:/bin/sh\n").unwrap();
    std::fs::write(root.path().join("opt/original"), "untouched").unwrap();
    let mut spec = spec("T0.H1.N2");
    spec.user = Some("app".into());
    spec.workdir = Some("/opt/work".into());
    spec.settings = serde_json::json!({"root": root.path()});
    let Some(environment) = start_or_skip("a_root_directory_is_copied_on_write", &spec, &lease).await else { return };
    // No program is in this root, which is said as for any missing program.
    let result = environment.primary().run(ExecRequest::new(["/bin/sh", "-c", "true"])).await.unwrap();
    assert_eq!(result.completed.outcome, Outcome::Exited(127));
    environment.primary().write_bytes("/opt/work/made", "inside").await.unwrap();
    environment.stop().await.unwrap();
    assert!(!root.path().join("opt/work").exists(), "the host's directory is untouched");
}

#[tokio::test]
async fn a_required_limit_that_cannot_hold_is_refused_before_anything_is_made() {
    let state = State::new();
    let lease = state.lease(Hold::Process);
    let mut spec = spec("T0.H0.N0");
    spec.limits.disk = Some(Limit::required(1 << 30));
    let error = start(&spec, &lease).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::LimitRefused);
    assert!(error.message().contains("limits.disk"), "{error}");
    assert!(lease.snapshot().resources.is_empty());
}

/// What verification sees from inside is seen from outside too, at every start: the first process of each of these machines is
/// not what was planned.
#[tokio::test]
async fn a_look_from_outside_finds_what_does_not_hold() {
    use tierbox_core::{Lifted, ShownPath};
    use tierbox_local::SelfCheck;

    let state = State::new();
    let spec = EnvironmentSpec { env: [].into(), ..spec("T0.H1.N2") };
    let lease = state.lease(Hold::Process);
    let Some(honest) = start_or_skip("a_look_from_outside_finds_what_does_not_hold", &spec, &lease).await else { return };
    let seen = SelfCheck::of(&spec, &lease.snapshot()).unwrap().run().unwrap().unwrap().detail;
    let reported = honest.report().mechanisms.iter().find(|mechanism| mechanism.name == "self-check").unwrap();
    assert_eq!(reported.detail, seen);
    assert!(["mounts", "links", "routes"].iter().all(|part| seen.contains(part)), "{seen}");
    if rustix::process::geteuid().is_root() {
        assert!(["6 namespaces", "id map", "seccomp"].iter().all(|part| seen.contains(part)), "{seen}");
    }
    honest.stop().await.unwrap();
    let shared = tempfile::tempdir().unwrap();
    let mount = Lifted::Mounts(vec![ShownPath { host: shared.path().to_owned(), guest: "/opt/shared".into() }]);
    for (lifted, found) in [
        (Lifted::Network, "network|net namespace|route|interface"),
        (Lifted::Seccomp, "not filtered"),
        (Lifted::NoNewPrivs, "no_new_privs|not filtered"),
        (Lifted::Capabilities, "capabilities"),
        (Lifted::Ipc, "ipc namespace"),
        (Lifted::Uts, "uts namespace"),
        (mount, "/opt/shared"),
    ] {
        let lease = state.lease(Hold::Process);
        let twin = LocalBackend::new().twin(&spec, &lifted, lease.clone()).await.unwrap();
        let error = SelfCheck::of(&spec, &lease.snapshot()).unwrap().run().expect_err(lifted.name());
        assert_eq!(error.kind(), ErrorKind::TierRefused);
        assert!(found.split('|').any(|part| error.message().contains(part)), "{lifted:?}: {error}");
        twin.stop().await.unwrap();
    }
}
