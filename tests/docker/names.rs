//! N1: named hosts alone, by the gateway in the machine's own network.

use libtest_mimic::Trial;
use tierbox::{ExecRequest, SandboxExt};

use crate::world::{ensure, nothing_left, on_podman, sh, spec, start, text, trial};

pub fn all() -> Vec<Trial> {
    vec![
        trial("names::only_allowed_names_are_known", only_allowed_names_are_known),
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
