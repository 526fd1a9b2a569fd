//! N0: the outside is reached, but neither this host nor a metadata service.

use std::process::{Child, Command, Stdio};

use libtest_mimic::Trial;
use tierbox::{ErrorKind, ExecRequest, SandboxExt};

use crate::world::{Listener, PORT, daemon, ensure, gateways, in_network_of, nothing_left, on_podman, spec, start, text, trial};

pub fn all() -> Vec<Trial> {
    vec![
        trial("outside::only_what_is_outside_is_reached", only_what_is_outside_is_reached),
        on_podman("outside::only_what_is_outside_is_reached", only_what_is_outside_is_reached),
        trial("outside::no_setting_gives_the_hosts_network", no_setting_gives_the_hosts_network),
    ]
}

/// An address that is outside; the engine's own on the same line; the metadata service's.
const OUTSIDE: &str = "203.0.113.1";
const OWN: &str = "203.0.113.2";
const METADATA: &str = "169.254.169.254";

/// The outside: a network namespace behind the engine's, in which something listens.
struct Outside {
    process: Child,
    _listener: Listener,
}

impl Outside {
    fn make(daemon: &str) -> Self {
        let process = Command::new("nsenter")
            .args(["-t", daemon, "-n", "unshare", "--net", "sleep", "1000"])
            .stdin(Stdio::null())
            .spawn()
            .expect("nsenter");
        let pid = process.id().to_string();
        wait_for_network(&pid, daemon);
        let engine = |words: &[&str]| in_network_of(daemon, &[&["ip"], words].concat());
        let there = |words: &[&str]| in_network_of(&pid, &[&["ip"], words].concat());
        engine(&["link", "add", "tbout0", "type", "veth", "peer", "name", "tbout1", "netns", &pid]);
        engine(&["addr", "add", &format!("{OWN}/24"), "dev", "tbout0"]);
        engine(&["link", "set", "tbout0", "up"]);
        there(&["link", "set", "lo", "up"]);
        there(&["link", "set", "tbout1", "up"]);
        there(&["addr", "add", &format!("{OUTSIDE}/24"), "dev", "tbout1"]);
        there(&["addr", "add", &format!("{METADATA}/32"), "dev", "tbout1"]);
        engine(&["route", "replace", METADATA, "via", OUTSIDE]);
        let listener = Listener::start(&pid);
        Self { process, _listener: listener }
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // Its end of the line goes with its network, and the engine's with that.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn wait_for_network(pid: &str, other: &str) {
    let network = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let is_sleep = || std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sleep");
    for _ in 0..200 {
        if is_sleep() && network(pid).is_some() && network(pid) != network(other) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("no network was made");
}

async fn only_what_is_outside_is_reached() -> Result<(), String> {
    let daemon = daemon();
    let _outside = Outside::make(&daemon);
    let _own = Listener::start(&daemon);
    // The controls: the engine's host reaches all of them.
    for address in [OUTSIDE, OWN, METADATA] {
        in_network_of(&daemon, &["busybox", "nc", "-w", "2", address, &PORT.to_string()]);
    }
    let mut spec = spec("tierbox-test/debian:1");
    spec.tier = "T0.H1.N0".parse().map_err(text)?;
    spec.reason = Some("a test".to_owned());
    let environment = start(spec).await.map_err(text)?;
    let reaches = async |address: &str| -> Result<bool, String> {
        let script = format!("timeout 3 bash -c 'exec 3<>/dev/tcp/{address}/{PORT} && echo reached' 2>/dev/null; :");
        let seen = environment.primary().run(ExecRequest::new(["/bin/bash", "-c", &script])).await.map_err(text)?;
        Ok(seen.stdout.text().contains("reached"))
    };
    let mut tries = 0;
    // The one thing that must work; a busy machine may take its time.
    while !reaches(OUTSIDE).await? {
        tries += 1;
        ensure(tries < 20, "the outside is not reached")?;
    }
    ensure(!reaches(METADATA).await?, "the metadata service is reached")?;
    let bridges = gateways();
    ensure(bridges.len() > 1, "the engine has no bridge of its own for it")?;
    for address in bridges.iter().map(String::as_str).chain([OWN]) {
        ensure(!reaches(address).await?, format!("this host is reached at {address}"))?;
    }
    // Nobody inside can lift that.
    let lift = ExecRequest::shell("ip route del 169.254.0.0/16 2>&1; echo 1 > /proc/sys/net/ipv4/ip_forward").user("root");
    environment.primary().run(lift).await.map_err(text)?;
    ensure(!reaches(METADATA).await?, "root inside reaches the metadata service")?;
    let report = environment.report().clone();
    ensure(report.notes.iter().any(|note| note.contains("metadata")), format!("{:?}", report.notes))?;
    ensure(report.reason.as_deref() == Some("a test"), format!("{:?}", report.reason))?;
    environment.stop().await.map_err(text)?;
    nothing_left(environment.id())
}

async fn no_setting_gives_the_hosts_network() -> Result<(), String> {
    let mut spec = spec("tierbox-test/debian:1");
    spec.settings["network"] = serde_json::json!("host");
    let error = start(spec).await.err().ok_or("it started in the host's network")?;
    ensure(error.kind() == ErrorKind::InvalidProfile, format!("{error:?}"))
}
