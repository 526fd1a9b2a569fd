//! An engine that names another process as a machine's first: one that numbers processes otherwise than this host.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use libtest_mimic::Trial;
use serde_json::json;
use tierbox::ErrorKind;

use crate::support::engines;
use crate::world::{engine, ensure, start, text, trial};

pub fn all() -> Vec<Trial> {
    vec![
        trial("lying::another_processs_network_is_left_alone::T0.H1.N0", || another_processs_network_is_left_alone("T0.H1.N0")),
        trial("lying::another_processs_network_is_left_alone::T0.H1.N1", || another_processs_network_is_left_alone("T0.H1.N1")),
    ]
}

/// A process in a network of its own, which is nobody's machine.
struct Bystander(Child);

impl Bystander {
    fn start() -> Result<Self, String> {
        let child = Command::new("unshare").args(["--net", "sleep", "1000"]).stdin(Stdio::null()).spawn();
        let bystander = Self(child.map_err(|error| error.to_string())?);
        let own = std::fs::read_link("/proc/self/ns/net").map_err(|error| error.to_string())?;
        let there = format!("/proc/{}/ns/net", bystander.0.id());
        while std::fs::read_link(&there).map_err(|error| error.to_string())? == own {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Ok(bystander)
    }

    /// Its routes, and who listens in its network.
    fn network(&self) -> Result<String, String> {
        let pid = self.0.id().to_string();
        let mut shown = Command::new("nsenter");
        let shown = shown.args(["-t", &pid, "-n", "sh", "-c", "ip route show table all; cat /proc/net/tcp /proc/net/udp"]);
        let shown = shown.output().map_err(|error| error.to_string())?;
        ensure(shown.status.success(), format!("{shown:?}"))?;
        Ok(String::from_utf8_lossy(&shown.stdout).into_owned())
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Stands before the real engine, and names this process wherever that names one.
fn lie(at: &Path, engine: PathBuf, pid: u32) -> std::io::Result<()> {
    let listener = UnixListener::bind(at)?;
    std::thread::spawn(move || {
        for line in listener.incoming() {
            let (Ok(line), Ok(real)) = (line, UnixStream::connect(&engine)) else { return };
            let (Ok(asked), Ok(answers)) = (line.try_clone(), real.try_clone()) else { return };
            std::thread::spawn(move || pass(asked, real, |_| ()));
            std::thread::spawn(move || pass(answers, line, |said| rename(said, pid)));
        }
    });
    Ok(())
}

fn pass(mut from: UnixStream, mut to: UnixStream, change: impl Fn(&mut [u8])) {
    let mut buffer = vec![0; 256 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        change(&mut buffer[..length]);
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// Puts one number in the place of another of the same length or more; what is left over is blank, as JSON may be.
fn rename(said: &mut [u8], pid: u32) {
    const KEY: &[u8] = b"\"Pid\":";
    let pid = pid.to_string().into_bytes();
    for at in 0..said.len().saturating_sub(KEY.len()) {
        let Some(rest) = said[at..].strip_prefix(KEY) else { continue };
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits >= pid.len() {
            let number = &mut said[at + KEY.len()..][..digits];
            number.fill(b' ');
            number[..pid.len()].copy_from_slice(&pid);
        }
    }
}

async fn another_processs_network_is_left_alone(tier: &'static str) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let bystander = Bystander::start()?;
    let before = bystander.network()?;
    let socket = dir.path().join("engine.sock");
    let real = engines::address(engine()).map_err(|absence| absence.reason)?;
    let real = PathBuf::from(real.trim_start_matches("unix://"));
    lie(&socket, real, bystander.0.id()).map_err(|error| error.to_string())?;
    let profile = if tier.ends_with("N1") { "docker-web" } else { "docker" };
    let mut spec = engines::docker_spec(engine(), profile, "tierbox-test/debian:1");
    spec.settings["host"] = json!(format!("unix://{}", socket.display()));
    (spec.tier, spec.reason) = (tier.parse().map_err(text)?, Some("a test".to_owned()));
    let error = start(spec).await.err().ok_or("it started")?;
    let told = error.kind() == ErrorKind::HostUnable && error.message().contains("another network") && error.help().is_some();
    ensure(told, format!("{error:?}"))?;
    let after = bystander.network()?;
    ensure(before == after, format!("the network of another process was changed: {after}"))
}
