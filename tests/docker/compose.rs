//! Compose files: every service a machine, networks between them, and nothing else to be reached.

use std::sync::Arc;
use std::time::Instant;

use libtest_mimic::Trial;
use serde_json::json;
use tierbox::{Environment, EnvironmentSpec, ErrorKind, ExecRequest, SandboxExt};

use crate::support::engines;
use crate::world::{Listener, docker, engine, ensure, nothing_left, sh, start, text, trial, with_settings, write};

pub fn all() -> Vec<Trial> {
    vec![
        trial("compose::services_reach_each_other_and_nothing_else", services_reach_each_other_and_nothing_else),
        trial("compose::networks_separate", networks_separate),
        trial("compose::machines_can_be_kept_apart", machines_can_be_kept_apart),
        trial("compose::volumes_are_shared_and_removed", volumes_are_shared_and_removed),
        trial("compose::dependencies_are_waited_for", dependencies_are_waited_for),
        trial("compose::a_service_that_fails_fails_the_start", a_service_that_fails_fails_the_start),
        trial("compose::an_images_own_check_is_waited_for", an_images_own_check_is_waited_for),
        trial("compose::networks_of_one_name_are_removed", networks_of_one_name_are_removed),
        trial("compose::all_writable_areas_keep_within_the_limit", all_writable_areas_keep_within_the_limit),
        trial("compose::each_machines_limits_are_reported", each_machines_limits_are_reported),
        trial("compose::what_a_service_drops_it_has_not", what_a_service_drops_it_has_not),
        trial("compose::builds_come_from_beside_the_file_and_are_reported", builds_come_from_beside_the_file_and_are_reported),
        trial("compose::a_build_takes_arguments_and_stops_at_a_stage", a_build_takes_arguments_and_stops_at_a_stage),
        trial("compose::a_command_without_a_value_is_the_images", a_command_without_a_value_is_the_images),
        trial("compose::dangerous_keys_never_reach_the_engine", dangerous_keys_never_reach_the_engine),
    ]
}

fn composed(text: &str) -> (tempfile::TempDir, EnvironmentSpec) {
    let dir = tempfile::tempdir().expect("a directory");
    write(dir.path(), "compose.yaml", text);
    let mut spec = with_settings(json!({"compose": "compose.yaml"}));
    spec.base_dir = dir.path().to_owned();
    // Volumes have no bound of their own.
    spec.limits.disk = None;
    spec.limits.inodes = None;
    (dir, spec)
}

const PAIR: &str = "
services:
  default:
    image: tierbox-test/debian:1
    command: sleep infinity
  web:
    image: tierbox-test/busybox:1
    working_dir: /workspace
    command: httpd -f -p 8080 -h /etc
    environment: {ROLE: server}
    healthcheck:
      test: [CMD, wget, -q, -O, /dev/null, 'http://127.0.0.1:8080/passwd']
      interval: 1s
    networks: {default: {aliases: [www]}}
    mem_limit: 64m
networks:
  default:
";

async fn services_reach_each_other_and_nothing_else() -> Result<(), String> {
    let (_dir, spec) = composed(PAIR);
    let environment = start(spec).await.map_err(text)?;
    let [primary, web] = [environment.machine("default").map_err(text)?, environment.machine("web").map_err(text)?];
    ensure(environment.primary().name() == "default", "another machine is the primary one")?;
    ensure(sh(&web, "echo $ROLE").await? == "server", "its variables are missing")?;
    // The control: a name and a port of the other service.
    let fetch = "exec 3<>/dev/tcp/www/8080 && printf 'GET /passwd HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3";
    let fetched = primary.run(ExecRequest::new(["/bin/bash", "-c", fetch])).await.map_err(text)?;
    ensure(fetched.stdout.text().contains("app:x:4242"), format!("{fetched:?}"))?;
    nothing_outside(&environment).await?;
    environment.stop().await.map_err(text)?;
    nothing_left(environment.id())
}

/// The same pair, of which the profile says that they do not meet. That they else would is shown above.
async fn machines_can_be_kept_apart() -> Result<(), String> {
    let (_dir, mut spec) = composed(PAIR);
    spec.network.apart = true;
    let environment = start(spec.clone()).await.map_err(text)?;
    for name in ["default", "web"] {
        let machine = environment.machine(name).map_err(text)?;
        let links = sh(
            &machine,
            "sed -n 's/^ *\\([^:]*\\):.*/\\1/p' /proc/net/dev | grep -v -e '^lo$' -e '^sit' -e '^tunl' -e '^gre'; :",
        )
        .await?;
        ensure(links.is_empty(), format!("{name} has the links {links}"))?;
    }
    let known = environment.primary().run(ExecRequest::shell("timeout 5 getent hosts www")).await.map_err(text)?;
    ensure(!known.success(), format!("the other machine's name is known: {}", known.stdout.text()))?;
    environment.stop().await.map_err(text)?;
    nothing_left(environment.id())?;
    // Where each has the whole network, the engine's bridge joins them.
    let mut open = spec;
    open.tier = "T0.H1.N0".parse().map_err(text)?;
    let refused = tierbox::docker::DockerBackend::new();
    let capabilities = tierbox::Backend::capabilities(&refused, &open).map_err(text)?;
    let error = capabilities.admit(&open).expect_err("refused");
    ensure(error.kind() == ErrorKind::TierRefused && error.message().contains("between-machines"), error.to_string())
}

/// Nothing but the other machines: neither the engine's host (every address of its bridges), nor beyond.
async fn nothing_outside(environment: &Arc<dyn Environment>) -> Result<(), String> {
    let _listener = Listener::start(&crate::world::daemon());
    let others = ["1.1.1.1", "169.254.169.254", "172.17.0.1"].map(str::to_owned);
    for address in others.into_iter().chain(crate::world::gateways()) {
        let script =
            format!("timeout 2 bash -c 'exec 3<>/dev/tcp/{address}/{} && echo reached' 2>/dev/null; :", crate::world::PORT);
        let seen = environment.primary().run(ExecRequest::new(["/bin/bash", "-c", &script])).await.map_err(text)?;
        ensure(!seen.stdout.text().contains("reached"), format!("{address} is reached"))?;
    }
    let named = environment.primary().run(ExecRequest::shell("timeout 5 getent hosts example.org")).await.map_err(text)?;
    ensure(!named.success(), format!("a name was resolved: {}", named.stdout.text()))
}

async fn networks_separate() -> Result<(), String> {
    let (_dir, spec) = composed(
        "
services:
  default: {image: tierbox-test/debian:1, networks: [front, back]}
  a: {image: tierbox-test/debian:1, networks: [front]}
  b: {image: tierbox-test/debian:1, networks: [back]}
  c: {image: tierbox-test/debian:1, network_mode: none}
networks: {front: , back: }
",
    );
    let environment = start(spec).await.map_err(text)?;
    let knows = async |machine: &str, other: &str| -> Result<bool, String> {
        let machine = environment.machine(machine).map_err(text)?;
        let found = machine.run(ExecRequest::shell(format!("timeout 5 getent hosts {other}"))).await.map_err(text)?;
        Ok(found.success())
    };
    for (from, to, expected) in
        [("default", "a", true), ("default", "b", true), ("a", "default", true), ("a", "b", false), ("c", "a", false)]
    {
        ensure(knows(from, to).await? == expected, format!("{from} -> {to} is not {expected}"))?;
    }
    environment.stop().await.map_err(text)?;
    nothing_left(environment.id())
}

async fn volumes_are_shared_and_removed() -> Result<(), String> {
    let (_dir, spec) = composed(
        "
services:
  default: {image: tierbox-test/debian:1, user: root, volumes: ['data:/data']}
  reader: {image: tierbox-test/debian:1, user: root, volumes: [{type: volume, source: data, target: /in, read_only: true}], network_mode: none}
volumes: {data: }
",
    );
    let environment = start(spec).await.map_err(text)?;
    sh(&environment.primary(), "echo shared > /data/file").await?;
    let reader = environment.machine("reader").map_err(text)?;
    ensure(
        sh(&reader, "cat /in/file; touch /in/x 2>/dev/null || echo closed").await? == "shared\nclosed",
        "not shared read-only",
    )?;
    environment.stop().await.map_err(text)?;
    nothing_left(environment.id())
}

async fn dependencies_are_waited_for() -> Result<(), String> {
    let (_dir, spec) = composed(
        "
services:
  default:
    image: tierbox-test/debian:1
    command: [sh, -c, 'cat /data/ready > /tmp/seen; sleep infinity']
    volumes: ['data:/data']
    depends_on: {seed: {condition: service_completed_successfully}, slow: {condition: service_healthy}}
  seed: {image: tierbox-test/debian:1, user: root, command: [sh, -c, 'sleep 1; echo seeded > /data/ready'], volumes: ['data:/data']}
  slow:
    image: tierbox-test/debian:1
    command: [sh, -c, 'sleep 1; touch /tmp/well; sleep infinity']
    healthcheck: {test: test -e /tmp/well, interval: 500ms, retries: 20}
volumes: {data: }
",
    );
    let start_time = Instant::now();
    let environment = start(spec).await.map_err(text)?;
    ensure(start_time.elapsed().as_millis() > 1000, "nobody waited")?;
    // It was started; what it does first takes a moment.
    let seen = "for i in $(seq 200); do test -s /tmp/seen && break; sleep 0.05; done; cat /tmp/seen";
    ensure(sh(&environment.primary(), seen).await? == "seeded", "it started too early")?;
    environment.stop().await.map_err(text)?;
    nothing_left(environment.id())
}

async fn a_service_that_fails_fails_the_start() -> Result<(), String> {
    let (_dir, spec) = composed(
        "
services:
  default: {image: tierbox-test/debian:1}
  bad: {image: tierbox-test/debian:1, command: [sh, -c, 'echo my last words >&2; exit 3'], healthcheck: {test: 'false', interval: 1s}}
",
    );
    let error = start(spec).await.err().ok_or("it started")?;
    ensure(error.message().contains("bad") && error.message().contains("my last words"), format!("{error:?}"))
}

/// A service that waits for the health of another, whose image is built with this check.
fn waiting(check: &str) -> (tempfile::TempDir, EnvironmentSpec) {
    let (dir, spec) = composed(
        "
services:
  default: {image: tierbox-test/debian:1, depends_on: {other: {condition: service_healthy}}}
  other: {build: ./other, command: [sh, -c, 'sleep 2; touch /tmp/well; sleep infinity']}
",
    );
    write(dir.path(), "other/Dockerfile", &format!("FROM tierbox-test/busybox:1\n{check}\n"));
    (dir, spec)
}

async fn an_images_own_check_is_waited_for() -> Result<(), String> {
    let (_dir, spec) = waiting("HEALTHCHECK --interval=1s --timeout=5s --retries=10 CMD test -e /tmp/well");
    let environment = start(spec).await.map_err(text)?;
    let other = environment.machine("other").map_err(text)?;
    let age = "echo $(($(date +%s) - $(stat -c %Y /tmp/well)))";
    // The control: it was not well before, and is since then.
    let (well, started) = (sh(&other, age).await, sh(&environment.primary(), "test -d /proc/1 && echo up").await);
    environment.stop().await.map_err(text)?;
    ensure(well.is_ok() && started? == "up", format!("{well:?}"))?;
    nothing_left(environment.id())?;
    let never = "HEALTHCHECK --interval=1s --timeout=1s --retries=2 CMD echo not well; exit 1";
    let (_dir, spec) = waiting(never);
    let error = start(spec).await.err().ok_or("it started beside what never gets well")?;
    ensure(error.kind() == ErrorKind::HostUnable && error.message().contains("not well"), format!("{error:?}"))?;
    for check in ["HEALTHCHECK NONE", "LABEL a=b"] {
        let (_dir, spec) = waiting(check);
        let error = start(spec).await.err().ok_or("it started beside what nobody checks")?;
        ensure(error.kind() == ErrorKind::InvalidProfile && error.message().contains("other"), format!("{error:?}"))?;
    }
    // Where nobody waits for it, the image's check counts for nothing: another command runs here.
    let (dir, spec) = waiting(never);
    write(
        dir.path(),
        "compose.yaml",
        "services: {default: {image: tierbox-test/debian:1}, other: {build: ./other, command: sleep infinity}}\n",
    );
    let environment = start(spec).await.map_err(text)?;
    environment.stop().await.map_err(text)?;
    nothing_left(environment.id())
}

/// What the engine answers to a request of its interface.
fn asked(path: &str, body: &serde_json::Value) -> String {
    use std::io::{Read, Write};
    let address = engines::address(engine()).unwrap_or_default();
    let mut line = std::os::unix::net::UnixStream::connect(address.trim_start_matches("unix://")).expect("the engine's socket");
    let body = body.to_string();
    let head = "Host: x\r\nContent-Type: application/json\r\nConnection: close";
    write!(line, "POST {path} HTTP/1.1\r\n{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).expect("a request");
    let mut said = String::new();
    line.read_to_string(&mut said).expect("an answer");
    said
}

/// Engines have several networks of one name, which is then no name to remove one by.
async fn networks_of_one_name_are_removed() -> Result<(), String> {
    let (_dir, spec) = composed(PAIR);
    let environment = start(spec).await.map_err(text)?;
    let name = format!("tierbox-{}-default", environment.id());
    let labels = json!({"dev.tierbox.lease": environment.id()});
    let said = asked("/v1.41/networks/create", &json!({"Name": name, "Internal": true, "Labels": labels}));
    let found = docker(&["network", "ls", "--format", "{{.Name}}", "--filter", &format!("name=^{name}$")]);
    let stopped = environment.stop().await;
    // The control: there were two.
    ensure(found.lines().count() == 2, format!("{found:?}: {said}"))?;
    stopped.map_err(text)?;
    nothing_left(environment.id())
}

async fn dangerous_keys_never_reach_the_engine() -> Result<(), String> {
    for key in ["privileged: true", "pid: host", "volumes: ['/:/host']", "network_mode: host", "cap_add: [SYS_ADMIN]"] {
        let (_dir, spec) = composed(&format!("services:\n  default:\n    image: tierbox-test/debian:1\n    {key}\n"));
        let error = start(spec).await.err().ok_or(format!("{key} was taken"))?;
        let name = key.split(':').next().unwrap_or_default();
        ensure(error.kind() == ErrorKind::InvalidProfile && error.message().contains(name), format!("{error:?}"))?;
    }
    Ok(())
}

async fn all_writable_areas_keep_within_the_limit() -> Result<(), String> {
    let (_dir, mut spec) = composed("services: {default: {image: 'tierbox-test/debian:1', tmpfs: [/a, /b, /c, /d, /e]}}\n");
    spec.limits.disk = Some(tierbox::Limit::required(8 << 20));
    let environment = start(spec).await.map_err(text)?;
    // Whoever fills all of them holds no more than that.
    let fill = "for dir in /workspace /tmp /run /dev/shm /a /b /c /d /e; do head -c 9000000 /dev/zero > $dir/x 2>/dev/null; done; \
                cat /workspace/x /tmp/x /dev/shm/x /a/x /b/x /c/x /d/x /e/x | wc -c";
    let held = sh(&environment.primary(), fill).await;
    environment.stop().await.map_err(text)?;
    let held: u64 = held?.parse().map_err(|error| format!("{error}"))?;
    ensure(held <= 8 << 20, format!("{held} bytes in 8 MiB"))?;
    ensure(held > 6 << 20, format!("{held} bytes only"))
}

async fn each_machines_limits_are_reported() -> Result<(), String> {
    let (_dir, mut spec) = composed(
        "
services:
  first: {image: 'tierbox-test/debian:1', mem_limit: 100m, command: sleep infinity}
  second: {image: 'tierbox-test/debian:1', mem_limit: 200m, x-default: true, depends_on: [first]}
",
    );
    spec.limits.memory = Some(tierbox::Limit::required(1 << 30));
    let environment = start(spec).await.map_err(text)?;
    let limits = environment.report().limits.clone();
    environment.stop().await.map_err(text)?;
    let value = |name: &str| limits.iter().find(|limit| limit.name == name).map(|limit| limit.value.clone());
    ensure(value("memory").as_deref() == Some("200 MiB"), format!("{limits:?}"))?;
    ensure(value("memory of first").as_deref() == Some("100 MiB"), format!("{limits:?}"))?;
    ensure(value("pids of first").is_none(), format!("what is the same stands twice: {limits:?}"))
}

async fn what_a_service_drops_it_has_not() -> Result<(), String> {
    let (_dir, mut spec) =
        composed("services: {default: {image: 'tierbox-test/debian:1', cap_drop: [ALL], hostname: box.example}}\n");
    spec.settings["capabilities"] = json!(["NET_BIND_SERVICE"]);
    let environment = start(spec).await.map_err(text)?;
    let machine = environment.primary();
    let name = sh(&machine, "cat /proc/sys/kernel/hostname; grep CapEff /proc/self/status").await?;
    let root = machine.run(ExecRequest::shell("grep CapEff /proc/self/status").user("root")).await.map_err(text)?;
    environment.stop().await.map_err(text)?;
    ensure(name == "box.example\nCapEff:\t0000000000000000", name)?;
    let held = root.stdout.text().split_whitespace().nth(1).and_then(|held| u64::from_str_radix(held, 16).ok());
    // What the profile gave besides, number 10, is gone again; what changes users stays.
    ensure(held.is_some_and(|held| held & (1 << 10) == 0 && held & (1 << 7) != 0), format!("{root:?}"))
}

async fn builds_come_from_beside_the_file_and_are_reported() -> Result<(), String> {
    let (dir, spec) = composed("services: {default: {build: ./image}}\n");
    write(dir.path(), "image/Dockerfile", "FROM tierbox-test/busybox:1\nUSER root\nRUN echo built > /built\nUSER app\n");
    let environment = start(spec.clone()).await.map_err(text)?;
    let (seen, notes) = (sh(&environment.primary(), "cat /built").await, environment.report().notes.join("; "));
    environment.stop().await.map_err(text)?;
    ensure(seen? == "built" && notes.contains("image of default was built from"), notes)?;
    // A link that leads out of the directory leads nowhere.
    let outside = tempfile::tempdir().map_err(|error| error.to_string())?;
    std::fs::rename(dir.path().join("image"), outside.path().join("image")).map_err(|error| error.to_string())?;
    std::os::unix::fs::symlink(outside.path().join("image"), dir.path().join("image")).map_err(|error| error.to_string())?;
    let error = start(spec).await.err().ok_or("it was built from elsewhere")?;
    ensure(error.kind() == ErrorKind::InvalidProfile && error.message().contains("leads out"), format!("{error:?}"))
}

async fn a_build_takes_arguments_and_stops_at_a_stage() -> Result<(), String> {
    let (dir, spec) = composed("services: {default: {build: {context: ., args: {WHAT: argued}, target: one}}}\n");
    let text_of = "FROM tierbox-test/busybox:1 AS one\nARG WHAT=not\nUSER root\nRUN echo $WHAT > /one\nUSER app\n\
                   FROM one AS two\nUSER root\nRUN echo two > /one\nUSER app\n";
    write(dir.path(), "Dockerfile", text_of);
    let environment = start(spec).await.map_err(text)?;
    let seen = sh(&environment.primary(), "cat /one").await;
    environment.stop().await.map_err(text)?;
    ensure(seen.as_deref() == Ok("argued"), format!("{seen:?}"))
}

async fn a_command_without_a_value_is_the_images() -> Result<(), String> {
    let (dir, spec) = composed("services:\n  default:\n    build: .\n    command:\n    entrypoint:\n");
    write(dir.path(), "Dockerfile", "FROM tierbox-test/busybox:1\nENTRYPOINT [\"sleep\"]\nCMD [\"4711\"]\n");
    let environment = start(spec).await.map_err(text)?;
    let services = environment.primary().execs().await.map_err(text)?.into_iter().filter(|exec| exec.detached).count();
    environment.stop().await.map_err(text)?;
    ensure(services == 1, format!("{services} services run"))
}
