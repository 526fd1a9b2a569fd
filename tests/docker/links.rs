//! What lies beside a machine's networks: addresses that nobody gave it, and who else is on its line.

use libtest_mimic::Trial;
use serde_json::json;
use tierbox::{ErrorKind, ExecRequest, Hold, Sandbox, SandboxExt, StartOptions, Tierbox, Verify};

use crate::world::{
    Listener, PORT, daemon, ensure, link_locals, nothing_left, on_podman, sh, spec, start, text, trial, with_settings, write,
};

const PAIR: &str = "
services:
  default: {image: tierbox-test/debian:1}
  other: {image: tierbox-test/debian:1, command: sleep 1000}
";

pub fn all() -> Vec<Trial> {
    vec![
        trial("links::no_ipv6_reaches_the_engines_host::T0.H1.N2", || no_ipv6_reaches_the_engines_host("T0.H1.N2")),
        trial("links::no_ipv6_reaches_the_engines_host::T0.H1.N0", || no_ipv6_reaches_the_engines_host("T0.H1.N0")),
        on_podman("links::no_ipv6_reaches_the_engines_host::T0.H1.N0", || no_ipv6_reaches_the_engines_host("T0.H1.N0")),
        on_podman("links::services_that_are_joined_are_refused", services_that_are_joined_are_refused),
        trial("links::a_service_outlives_the_limit_of_commands", a_service_outlives_the_limit_of_commands),
        trial("links::nobody_inside_takes_the_line_over", nobody_inside_takes_the_line_over),
        on_podman("links::nobody_inside_takes_the_line_over", nobody_inside_takes_the_line_over),
    ]
}

/// By the link-local addresses of the engine's bridges, which need no network that anybody planned.
async fn no_ipv6_reaches_the_engines_host(tier: &'static str) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    write(dir.path(), "compose.yaml", PAIR);
    let mut spec =
        if tier.ends_with("N0") { spec("tierbox-test/debian:1") } else { with_settings(json!({"compose": "compose.yaml"})) };
    spec.base_dir = dir.path().to_owned();
    (spec.tier, spec.reason) = (tier.parse().map_err(text)?, Some("a test".to_owned()));
    let environment = start(spec).await.map_err(text)?;
    let _listener = Listener::start(&daemon());
    let machine = environment.primary();
    ensure(sh(&machine, "ls /sys/class/net").await?.contains("eth0"), "the machine is on no network, so nothing is shown")?;
    let own = sh(&machine, "grep -v ' lo$' /proc/net/if_inet6; :").await?;
    for address in link_locals() {
        let script = format!("timeout 3 bash -c 'exec 3<>/dev/tcp/{address}%eth0/{PORT} && echo reached' 2>/dev/null; :");
        let seen = machine.run(ExecRequest::new(["/bin/bash", "-c", &script])).await.map_err(text)?;
        ensure(!seen.stdout.text().contains("reached"), format!("the engine's host is reached at {address}"))?;
    }
    environment.stop().await.map_err(text)?;
    ensure(own.is_empty(), format!("it has addresses of IPv6: {own}"))?;
    nothing_left(environment.id())
}

/// podman knows no names of theirs where no other resolver may be asked.
async fn services_that_are_joined_are_refused() -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    write(dir.path(), "compose.yaml", PAIR);
    let mut spec = with_settings(json!({"compose": "compose.yaml"}));
    spec.base_dir = dir.path().to_owned();
    let error = start(spec).await.err().ok_or("it started")?;
    let told = error.kind() == ErrorKind::Unsupported && error.message().contains("podman") && error.help().is_some();
    ensure(told, format!("{error:?}"))
}

async fn a_service_outlives_the_limit_of_commands() -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    write(dir.path(), "compose.yaml", PAIR);
    let mut spec = with_settings(json!({"compose": "compose.yaml"}));
    spec.base_dir = dir.path().to_owned();
    spec.limits.exec = Some(std::time::Duration::from_secs(1));
    let environment = start(spec).await.map_err(text)?;
    let other = environment.machine("other").map_err(text)?;
    // Longer than that, and asked for.
    let longer = ExecRequest::new(["sleep", "2"]).timeout(std::time::Duration::from_secs(60));
    ensure(other.run(longer).await.map_err(text)?.success(), "a command that asks for more time does not get it")?;
    let cut = other.run(ExecRequest::new(["sleep", "60"])).await.map_err(text)?;
    let service = other.execs().await.map_err(text)?.into_iter().find(|exec| exec.detached).ok_or("there is no service")?;
    environment.stop().await.map_err(text)?;
    ensure(!cut.success(), "the limit does not hold for commands")?;
    ensure(matches!(service.state, tierbox::ExecState::Running), format!("{service:?}"))?;
    nothing_left(environment.id())
}

/// Whoever listens in the supervisor's place would answer for the machine, and read what later commands are given.
const FAKE: &str = "use Socket; my $at = '/.tierbox-line/own/socket'; socket(my $s, PF_UNIX, SOCK_STREAM, 0) or die; \
                    bind($s, sockaddr_un($at)) or die; listen($s, 5) or die; open(my $f, '>', '/tmp/listens'); close $f; \
                    while (accept(my $c, $s)) { sysread($c, my $b, 1000); open(my $g, '>>', '/tmp/heard'); print $g length $b; close $g }";

async fn nobody_inside_takes_the_line_over() -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let client = Tierbox::builder().state_dir(dir.path().join("state")).user_config(false).build().map_err(text)?;
    let mut spec = spec("tierbox-test/debian:1");
    (spec.verify, spec.hold) = (Some(Verify::Off), Hold::Kept);
    let running = client.start_spec(spec, StartOptions::new().hold(Hold::Kept)).await.map_err(text)?;
    let machine = running.sandbox();
    let tried = taken_over(&client, running.id(), &machine).await;
    running.stop().await.map_err(text)?;
    tried
}

async fn taken_over(client: &Tierbox, id: &str, machine: &std::sync::Arc<dyn Sandbox>) -> Result<(), String> {
    // As the agent: it can neither look there nor move it.
    let agents =
        sh(machine, "ls /.tierbox-line 2>&1; mv /.tierbox-line /tmp/x 2>&1; test -e /.tierbox-line || echo moved; :").await?;
    ensure(!agents.contains("own") && !agents.contains("moved"), agents)?;
    let again = client.attach(id).await.map_err(text)?;
    ensure(sh(&again.sandbox(), "echo two").await? == "two", "a second client")?;
    drop(again);
    // As root, who may: then nobody is let in, and the fake hears nothing.
    let fake = format!(
        "mv /.tierbox-line/own /.tierbox-line/old && mkdir /.tierbox-line/own && exec perl -e \"{}\"",
        FAKE.replace('$', "\\$")
    );
    machine.spawn_detached(ExecRequest::shell(fake).user("root")).await.map_err(text)?;
    let listens = "for i in $(seq 200); do test -e /tmp/listens && exit 0; sleep 0.05; done; exit 1";
    ensure(
        machine.run(ExecRequest::shell(listens)).await.map_err(text)?.success(),
        "the fake does not listen, so nothing is shown",
    )?;
    let error = client.attach(id).await.err().ok_or("a line to somebody else was taken")?;
    ensure(error.kind() == ErrorKind::NotFound && error.to_string().contains("in its place"), format!("{error:?}"))?;
    let heard = sh(machine, "cat /tmp/heard 2>/dev/null; :").await?;
    ensure(heard.chars().all(|digit| digit == '0'), format!("the fake heard {heard} bytes"))
}
