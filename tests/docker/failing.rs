//! An engine of a test's own, that is killed, and that runs out of disk.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::json;
use tierbox::{ErrorKind, ExecRequest, Outcome, SandboxExt};

use crate::world::{ensure, sh, spec, start, text, trial, with_settings, write};

const BUSYBOX: &str = "tierbox-test/busybox:1";

pub fn all() -> Vec<Trial> {
    vec![
        trial("failing::an_engine_that_is_killed_loses_what_ran", an_engine_that_is_killed_loses_what_ran),
        trial("failing::a_full_disk_is_no_space", a_full_disk_is_no_space),
        trial("failing::a_disk_that_fills_up_in_a_machine_is_no_space", a_disk_that_fills_up_in_a_machine_is_no_space),
    ]
}

/// A second engine, ended with this value.
struct Own {
    dir: tempfile::TempDir,
    disk: &'static str,
}

impl Own {
    fn start(disk: &'static str) -> Result<Self, String> {
        let own = Self { dir: tempfile::tempdir().map_err(|error| error.to_string())?, disk };
        own.script("start")?;
        Ok(own)
    }

    fn script(&self, verb: &str) -> Result<(), String> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/engines/docker.sh");
        let status = Command::new(script)
            .arg(verb)
            .env("TIERBOX_ENGINE_DIR", self.dir.path())
            .env("TIERBOX_ENGINE_IMAGES", "busybox")
            .env("TIERBOX_ENGINE_DISK", self.disk)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .map_err(|error| error.to_string())?;
        ensure(status.success(), format!("docker.sh {verb}: {status}"))
    }

    fn host(&self) -> String {
        format!("unix://{}/docker/docker.sock", self.dir.path().display())
    }

    /// Kills the daemon as the kernel would for want of memory; it can say nothing any more.
    fn kill(&self) -> Result<(), String> {
        let pid = std::fs::read_to_string(self.dir.path().join("docker/dockerd.pid")).map_err(|error| error.to_string())?;
        let killed = Command::new("kill").args(["-9", pid.trim()]).status().map_err(|error| error.to_string())?;
        ensure(killed.success(), "the daemon could not be killed")?;
        // Its socket takes connections for as long as it dies.
        for _ in 0..200 {
            if !Path::new("/proc").join(pid.trim()).exists() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err("the daemon does not die".to_owned())
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Err(error) = self.script("stop") {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "{error}");
        }
    }
}

async fn an_engine_that_is_killed_loses_what_ran() -> Result<(), String> {
    let own = Own::start("")?;
    let mut spec = spec(BUSYBOX);
    spec.settings["host"] = json!(own.host());
    spec.workdir = Some("/workspace".to_owned());
    let environment = start(spec.clone()).await.map_err(text)?;
    let machine = environment.primary();
    let mut handle = machine.spawn(ExecRequest::new(["sleep", "1000"])).await.map_err(text)?;
    own.kill()?;
    let ended = tokio::time::timeout(Duration::from_secs(60), handle.wait()).await.map_err(|_| "it waits in vain")?;
    ensure(ended.as_ref().is_ok_and(|ended| ended.outcome == Outcome::Lost), format!("{ended:?}"))?;
    let late = machine.run(ExecRequest::new(["true"])).await.err();
    ensure(late.as_ref().is_some_and(|error| error.kind() == ErrorKind::Lost), format!("{late:?}"))?;
    let refused = start(spec.clone()).await.err().ok_or("it started without an engine")?;
    ensure(refused.kind() == ErrorKind::MissingEngine, format!("{refused:?}"))?;
    let unstopped = environment.stop().await.err().ok_or("it was stopped without an engine")?;
    ensure(unstopped.kind() == ErrorKind::MissingEngine, format!("{unstopped:?}"))?;
    own.script("start")?;
    environment.stop().await.map_err(text)?;
    let again = start(spec).await.map_err(text)?;
    ensure(sh(&again.primary(), "echo works").await? == "works", "it does not work again")?;
    again.stop().await.map_err(text)
}

async fn a_full_disk_is_no_space() -> Result<(), String> {
    let own = Own::start("24m")?;
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    write(dir.path(), "Dockerfile", &format!("FROM {BUSYBOX}\nUSER root\nRUN dd if=/dev/zero of=/big bs=1M count=64\n"));
    let mut spec = with_settings(json!({"dockerfile": "Dockerfile"}));
    spec.settings["host"] = json!(own.host());
    spec.base_dir = dir.path().to_owned();
    let error = start(spec).await.err().ok_or("64 MiB were stored in 24")?;
    ensure(error.message().to_lowercase().contains("no space left"), format!("{error:?}"))?;
    // The context itself does not fit.
    let data: Vec<u8> = (0_u32..12 << 20).flat_map(|number| number.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    std::fs::write(dir.path().join("data"), data).map_err(|error| error.to_string())?;
    write(dir.path(), "Dockerfile", &format!("FROM {BUSYBOX}\nCOPY data /data\n"));
    let mut spec = with_settings(json!({"dockerfile": "Dockerfile"}));
    spec.settings["host"] = json!(own.host());
    spec.base_dir = dir.path().to_owned();
    let error = start(spec).await.err().ok_or("48 MiB were stored in 24")?;
    ensure(error.kind() == ErrorKind::NoSpace, format!("{error:?}"))
}

/// Of the engine's, under a root that can be written to; and of an area in memory.
async fn a_disk_that_fills_up_in_a_machine_is_no_space() -> Result<(), String> {
    let own = Own::start("24m")?;
    let mut spec = spec(BUSYBOX);
    spec.settings["host"] = json!(own.host());
    spec.settings["read-only"] = json!(false);
    spec.user = Some("root".to_owned());
    (spec.limits.disk, spec.limits.inodes) = (Some(tierbox::Limit::best(8 << 20)), None);
    let environment = start(spec).await.map_err(text)?;
    let machine = environment.primary();
    for place in ["/srv", "/tmp"] {
        let fill = format!("dd if=/dev/zero of={place}/big bs=1M count=64");
        let filled = machine.run(ExecRequest::shell(fill)).await.map_err(text)?;
        ensure(!filled.success() && filled.stderr.text().contains("No space left"), format!("{place}: {filled:?}"))?;
        let error = machine.write_bytes(format!("{place}/file").as_str(), vec![b'x'; 1 << 20]).await.err();
        ensure(error.as_ref().is_some_and(|error| error.kind() == ErrorKind::NoSpace), format!("{place}: {error:?}"))?;
        let freed = sh(&machine, &format!("rm -f {place}/big {place}/file; echo works > {place}/file; cat {place}/file")).await?;
        ensure(freed == "works", format!("{place}: {freed}"))?;
    }
    environment.stop().await.map_err(text)
}
