//! N1: named hosts alone, by the gateway in the machine's own network.

use libtest_mimic::Trial;
use tierbox::{ExecRequest, SandboxExt};

use crate::world::{
    Listener, PORT, daemon, ensure, gateways, nothing_left, on_podman, sh, spec, start, text, trial, with_settings, write,
};

pub fn all() -> Vec<Trial> {
    vec![
        trial("names::only_allowed_names_are_known", only_allowed_names_are_known),
        trial("names::services_have_it_beside_each_other", services_have_it_beside_each_other),
        on_podman("names::only_allowed_names_are_known", only_allowed_names_are_known),
    ]
}

async fn only_allowed_names_are_known() -> Result<(), String> {
    let mut spec = spec("tierbox-test/debian:1");
    spec.tier = "T0.H1.N1".parse().map_err(text)?;
    spec.network.allow = vec!["allowed.example".to_owned()];
    let environment = start(spec).await.map_err(text)?;
    let machine = environment.primary();
    ensure(sh(&machine, "getent hosts allowed.example").await?.starts_with("127.98.18.1 "), "the allowed name is not known")?;
    let other = machine.run(ExecRequest::shell("getent hosts other.example")).await.map_err(text)?;
    ensure(!other.success(), format!("another name is known: {}", other.stdout.text()))?;
    ensure(
        sh(&machine, "ls /sys/class/net; echo $https_proxy").await? == "lo\nhttp://127.98.18.1:3128",
        "its network is not empty",
    )?;
    // Nobody else is asked, and the names of this host are not to be seen.
    ensure(sh(&machine, "grep nameserver /etc/resolv.conf").await? == "nameserver 127.98.18.1", "another resolver is asked")?;
    let hosts = sh(&machine, "cat /etc/hosts").await?;
    let known: Vec<&str> =
        hosts.lines().flat_map(|line| line.split('#').next().unwrap_or_default().split_whitespace().skip(1)).collect();
    let own = |name: &&str| name.contains("localhost") || name.starts_with("ip6-") || *name == "default";
    ensure(known.iter().all(own), format!("{known:?} are known"))?;
    // A name that is allowed, and an address behind it that is not this one.
    let odd = "exec 3<>/dev/tcp/127.98.18.1/443; printf 'not tls\\r\\n\\r\\n' >&3; timeout 3 cat <&3 | wc -c";
    let odd = machine.run(ExecRequest::new(["/bin/bash", "-c", odd])).await.map_err(text)?;
    // No more than a TLS alert.
    ensure(odd.stdout.text().trim().parse().is_ok_and(|bytes: u32| bytes < 16), format!("{odd:?}"))?;
    let decisions = environment.decisions().await.map_err(text)?;
    ensure(decisions.iter().any(|decision| decision.name == "other.example"), format!("{decisions:?}"))?;
    let gateway = environment.report().mechanisms.iter().any(|found| found.name == "egress gateway");
    ensure(gateway, "the gateway is not reported")?;
    environment.stop().await.map_err(text)?;
    nothing_left(environment.id())
}

const SERVICES: &str = "
services:
  default: {image: tierbox-test/debian:1, networks: [front]}
  web:
    image: tierbox-test/busybox:1
    working_dir: /workspace
    command: httpd -f -p 8080 -h /etc
    healthcheck: {test: [CMD, wget, -Y, 'off', -q, -O, /dev/null, 'http://127.0.0.1:8080/passwd'], interval: 1s}
    networks: {front: {aliases: [www]}}
  alone: {image: tierbox-test/debian:1, network_mode: none}
networks: {front: }
";

/// Each machine has the way to allowed names, on whatever network it is with others, and one that is to have no network has none.
async fn services_have_it_beside_each_other() -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    write(dir.path(), "compose.yaml", SERVICES);
    let mut spec = with_settings(serde_json::json!({"compose": "compose.yaml"}));
    spec.base_dir = dir.path().to_owned();
    spec.tier = "T0.H1.N1".parse().map_err(text)?;
    spec.network.allow = vec!["allowed.example".to_owned()];
    let environment = start(spec).await.map_err(text)?;
    let knows = async |machine: &str, name: &str| -> Result<String, String> {
        let machine = environment.machine(machine).map_err(text)?;
        let found = machine.run(ExecRequest::shell(format!("timeout 10 getent hosts {name}; :"))).await.map_err(text)?;
        Ok(found.stdout.text().trim().to_owned())
    };
    ensure(knows("default", "allowed.example").await?.starts_with("127.98.18.1 "), "the allowed name is not known")?;
    ensure(knows("default", "other.example").await?.is_empty(), "another name is known")?;
    ensure(knows("alone", "allowed.example").await?.is_empty(), "a machine without a network knows a name")?;
    // The other service: by its name, not by the gateway.
    let machine = environment.primary();
    let fetch = "exec 3<>/dev/tcp/www/8080 && printf 'GET /passwd HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3";
    let fetched = machine.run(ExecRequest::new(["/bin/bash", "-c", fetch])).await.map_err(text)?;
    ensure(fetched.stdout.text().contains("app:x:4242"), format!("{fetched:?}"))?;
    let beside = sh(&machine, "echo ,$no_proxy, ,$NO_PROXY,").await?;
    ensure(beside.matches(",www,").count() == 2 && beside.matches(",web,").count() == 2, beside)?;
    // And nothing but that: the engine's host is not reached by the bridge.
    let _listener = Listener::start(&daemon());
    for address in gateways() {
        let script = format!("timeout 2 bash -c 'exec 3<>/dev/tcp/{address}/{PORT} && echo reached' 2>/dev/null; :");
        let seen = machine.run(ExecRequest::new(["/bin/bash", "-c", &script])).await.map_err(text)?;
        ensure(!seen.stdout.text().contains("reached"), format!("{address} is reached"))?;
    }
    environment.stop().await.map_err(text)?;
    nothing_left(environment.id())
}
