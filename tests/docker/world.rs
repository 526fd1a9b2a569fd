//! What the tests have in common: an engine, specifications, and leases that are kept in memory.

use std::future::Future;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use libtest_mimic::Trial;
use serde_json::json;
use tierbox::{Environment, EnvironmentSpec, ExecRequest, Result, Sandbox, SandboxExt};
use tierbox_testkit::{BackendFactory, Factory};

use crate::support::{self, engines};

/// The engine of most tests.
const ENGINE: &str = "docker";

/// The other one that speaks its language.
const PODMAN: &str = "podman";

tokio::task_local! {
    static TESTED: &'static str;
}

/// Tells a process in another role which engine is tested.
pub const TESTED_ENGINE: &str = "TIERBOX_TEST_TESTED_ENGINE";

/// The engine that is tested.
pub fn engine() -> &'static str {
    let told = || if std::env::var(TESTED_ENGINE).is_ok_and(|engine| engine == PODMAN) { PODMAN } else { ENGINE };
    TESTED.try_with(|engine| *engine).unwrap_or_else(|_| told())
}

/// A test on the engine; ignored where there is none, unless it must be here.
pub fn trial<F, R>(name: &str, test: F) -> Trial
where
    F: Fn() -> R + Send + 'static,
    R: Future<Output = std::result::Result<(), String>>,
{
    trial_on(ENGINE, format!("docker::{name}"), test)
}

/// The same on podman's service.
pub fn on_podman<F, R>(name: &str, test: F) -> Trial
where
    F: Fn() -> R + Send + 'static,
    R: Future<Output = std::result::Result<(), String>>,
{
    trial_on(PODMAN, format!("docker::podman::{name}"), test)
}

fn trial_on<F, R>(engine: &'static str, full: String, test: F) -> Trial
where
    F: Fn() -> R + Send + 'static,
    R: Future<Output = std::result::Result<(), String>>,
{
    let absent = engines::address(engine).err();
    let must = std::env::var_os("CI").is_some();
    let ignored = absent.is_some() && !must;
    let name = full.clone();
    let run = move || {
        if let Some(absence) = &absent {
            return support::skip(engine, &full, absence).map_err(Into::into);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        runtime.block_on(TESTED.scope(engine, test())).map_err(Into::into)
    };
    Trial::test(name, run).with_ignored_flag(ignored)
}

/// A specification with an image of the tests'.
pub fn spec(image: &str) -> EnvironmentSpec {
    engines::docker_spec(engine(), "docker", image)
}

/// A specification with other settings than an image.
pub fn with_settings(settings: serde_json::Value) -> EnvironmentSpec {
    let mut spec = spec("x:1");
    let host = spec.settings["host"].clone();
    spec.settings = settings;
    spec.settings["host"] = host;
    spec.settings["pull"] = json!("never");
    spec
}

/// Starts an environment of a specification.
pub async fn start(spec: EnvironmentSpec) -> Result<Arc<dyn Environment>> {
    let backend = Arc::new(tierbox::docker::DockerBackend::new());
    BackendFactory::new(engine(), backend, spec, None).start(&|_| ()).await
}

/// What a script prints; an error with everything if it fails.
pub async fn sh(sandbox: &Arc<dyn Sandbox>, script: &str) -> std::result::Result<String, String> {
    let result = sandbox.run(ExecRequest::shell(script)).await.map_err(|error| error.to_string())?;
    if !result.success() {
        return Err(format!("{script:?}: {result:?}"));
    }
    Ok(result.stdout.text().trim().to_owned())
}

/// Runs the engine's own command, and returns what it prints.
pub fn docker(arguments: &[&str]) -> String {
    let output = asked(arguments);
    assert!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The same of what may be gone; `None` if it is.
pub fn try_docker(arguments: &[&str]) -> Option<String> {
    let output = asked(arguments);
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn asked(arguments: &[&str]) -> std::process::Output {
    let host = engines::address(engine()).unwrap_or_default();
    Command::new("docker").arg("-H").arg(host).args(arguments).stdin(Stdio::null()).output().expect("docker")
}

/// What the engine still has that bears an environment's label.
pub fn remains(id: &str) -> Vec<String> {
    let label = format!("label=dev.tierbox.lease={id}");
    let kinds: [&[&str]; 4] = [
        &["ps", "-a", "--format", "{{.Names}}", "--filter", &label],
        &["network", "ls", "--format", "{{.Name}}", "--filter", &label],
        &["volume", "ls", "--format", "{{.Name}}", "--filter", &label],
        &["images", "-a", "--format", "{{.Repository}}:{{.ID}}", "--filter", &label],
    ];
    kinds.iter().flat_map(|kind| docker(kind).lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// Fails unless nothing of an environment is left.
pub fn nothing_left(id: &str) -> std::result::Result<(), String> {
    let left = remains(id);
    if left.is_empty() { Ok(()) } else { Err(format!("{id} left {left:?}")) }
}

/// Fails with a message unless the condition holds.
pub fn ensure(condition: bool, message: impl Into<String>) -> std::result::Result<(), String> {
    if condition { Ok(()) } else { Err(message.into()) }
}

/// Writes a file below a directory.
pub fn write(dir: &Path, name: &str, contents: &str) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
    std::fs::write(path, contents).expect("a file");
}

/// An error as text, for tests that fail with text.
pub fn text(error: tierbox::Error) -> String {
    error.to_string()
}

/// The port of [`Listener`]s.
pub const PORT: u16 = 7777;

/// The engine's daemon, by its process: whoever listens on its socket, as the kernel tells it.
pub fn daemon() -> String {
    use std::os::fd::AsFd;
    let address = engines::address(engine()).unwrap_or_default();
    let line = std::os::unix::net::UnixStream::connect(address.trim_start_matches("unix://")).expect("the engine's socket");
    let peer = rustix::net::sockopt::socket_peercred(line.as_fd()).expect("the kernel knows who listens");
    peer.pid.as_raw_nonzero().to_string()
}

/// The addresses that the engine's host has on its bridges, as its kernel has them: the engine itself names that of the default bridge
/// only once something was on it.
pub fn gateways() -> Vec<String> {
    on_bridges("-4")
}

fn on_bridges(family: &str) -> Vec<String> {
    let shown =
        Command::new("nsenter").args(["-t", &daemon(), "-n", "ip", "-o", family, "addr", "show", "type", "bridge"]).output();
    let shown = String::from_utf8(shown.expect("nsenter").stdout).expect("ip writes text");
    let address = |line: &str| {
        Some(line.split_whitespace().skip_while(|word| !word.starts_with("inet")).nth(1)?.split('/').next()?.to_owned())
    };
    shown.lines().filter_map(address).collect()
}

/// The link-local addresses of the engine's host on its bridges.
pub fn link_locals() -> Vec<String> {
    on_bridges("-6").into_iter().filter(|address| address.starts_with("fe80:")).collect()
}

/// Runs a command in the network of a process; fails the test unless it succeeds.
pub fn in_network_of(pid: &str, words: &[&str]) {
    let status = Command::new("nsenter").args(["-t", pid, "-n"]).args(words).stdin(Stdio::null()).status();
    assert!(status.as_ref().is_ok_and(std::process::ExitStatus::success), "{words:?} in the network of {pid}: {status:?}");
}

/// Something that listens on every address of a process's network namespace.
pub struct Listener(std::process::Child);

impl Listener {
    /// Starts it, and waits until it answers there.
    pub fn start(pid: &str) -> Self {
        let port = PORT.to_string();
        let child = Command::new("nsenter")
            .args(["-t", pid, "-n", "busybox", "httpd", "-f", "-p", &port, "-h", "/usr/share"])
            .stdin(Stdio::null())
            .spawn()
            .expect("nsenter");
        let listener = Self(child);
        // The control: in its own network it is reached.
        let connect = ["-t", pid, "-n", "busybox", "nc", "-w", "1", "127.0.0.1", &port];
        for _ in 0..100 {
            let tried = Command::new("nsenter").args(connect).stdin(Stdio::null()).stdout(Stdio::null()).status();
            if tried.is_ok_and(|status| status.success()) {
                return listener;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("nothing listens where it should");
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
