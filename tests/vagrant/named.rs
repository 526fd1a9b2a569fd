//! N1 on libvirt: a machine reaches a named host through the gateway, and nothing else. The named host is a server in a network
//! namespace of the test's own, under an invented name that only the test's own `/etc/hosts` knows.

use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use libtest_mimic::Trial;
use tierbox::{ExecRequest, Hold, Sandbox, SandboxExt, StartOptions, Verdict};

use crate::hello;
use crate::machines::reaches_no_address_of_the_host;
use crate::support::again;
use crate::world::{self, Outcome, World, remains, text, tokens, trial};

/// The server's address: one of those that are kept for documentation.
const SERVER: &str = "203.0.113.10";

/// A private address, to which a listed name leads.
const ASTRAY: &str = "10.99.0.10";

/// Serves a directory on both ports of the web. What answers to client hellos speaks no TLS, and need not.
const SERVE: &str = r#"
import functools, http.server, sys, threading
serve = functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[2])
servers = [http.server.ThreadingHTTPServer((sys.argv[1], port), serve) for port in (80, 443)]
threading.Thread(target=servers[1].serve_forever).start()
servers[0].serve_forever()
"#;

/// This host's end of the way to it.
const DEVICE: &str = "tbxtest0";

/// All tests.
pub fn all() -> Vec<Trial> {
    vec![trial("libvirt", "vm_required::egress::a_named_host_is_reached_and_nothing_else", named)]
}

/// The rest happens in a mount namespace, because names are the host's own to know.
async fn named(world: World) -> Outcome {
    let mut command = again::this_program_under(&["unshare", "--mount", "--"], "named");
    command.env("NAMED_STATE", &world.state).env("NAMED_FILES", &world.files).stdout(Stdio::piped());
    let output = tokio::task::spawn_blocking(move || command.output()).await.map_err(text)?.map_err(text)?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stdout).into_owned()) }
}

/// That process.
pub fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let path = |name: &str| std::path::PathBuf::from(std::env::var_os(name).unwrap_or_default());
    let (state, files) = (path("NAMED_STATE"), path("NAMED_FILES"));
    let world = World { client: world::client(&state), state, files };
    match runtime.block_on(inside(&world)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            use std::io::Write;
            let _ = writeln!(std::io::stdout(), "{why}");
            ExitCode::FAILURE
        }
    }
}

/// A server at an address behind a pair of devices. It ends with its namespace, and the devices with it.
struct Server(Child);

impl Server {
    fn start(files: &Path) -> Result<Self, String> {
        std::fs::write(files.join("index.html"), "from the named host\n").map_err(text)?;
        let hosts = format!("127.0.0.1 localhost\n{SERVER} index.test other.test\n{ASTRAY} astray.test\n");
        std::fs::write(files.join("hosts"), hosts).map_err(text)?;
        sh(&format!("mount --bind {}/hosts /etc/hosts", files.display()))?;
        let wait = format!("until ip addr show dev s0 2>/dev/null | grep -q {SERVER}; do sleep 0.05; done");
        let serve = format!("exec python3 -c '{SERVE}' {SERVER} {}", files.display());
        let mut command = Command::new("unshare");
        command.args(["--net", "--", "sh", "-c", &format!("{wait}; {serve}")]).stdin(Stdio::null());
        let server = Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().map_err(text)?);
        let pid = server.0.id();
        let own = "readlink /proc/self/ns/net";
        sh(&format!("until [ \"$(readlink /proc/{pid}/ns/net)\" != \"$({own})\" ]; do sleep 0.02; done"))?;
        for step in [
            format!("ip link add {DEVICE} type veth peer name s0 netns {pid}"),
            format!("ip addr add 203.0.113.1/24 dev {DEVICE}"),
            format!("ip link set {DEVICE} up"),
            format!("nsenter --target {pid} --net -- ip link set s0 up"),
            format!("nsenter --target {pid} --net -- ip addr add {SERVER}/24 dev s0"),
        ] {
            sh(&step)?;
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn sh(script: &str) -> Outcome {
    let output = Command::new("timeout").args(["20", "sh", "-c", script]).output().map_err(text)?;
    if output.status.success() { Ok(()) } else { Err(format!("{script}: {}", String::from_utf8_lossy(&output.stderr))) }
}

/// Asks for a page, with bash alone.
async fn page(machine: &dyn Sandbox, host: &str) -> Result<String, String> {
    page_of(machine, host, "index.test").await
}

/// Asks for a page of another name than the one that leads there.
async fn page_of(machine: &dyn Sandbox, host: &str, name: &str) -> Result<String, String> {
    let script = "exec 3<>/dev/tcp/$0/80 || exit 1; printf 'GET / HTTP/1.0\\r\\nHost: %s\\r\\n\\r\\n' \"$1\" >&3; cat <&3";
    let request = ExecRequest::new(["bash", "-c", script, host, name]).timeout(Duration::from_secs(10));
    Ok(machine.run(request).await.map_err(text)?.stdout.text())
}

/// The name of TLS counts, and where a name leads.
async fn names_are_judged(running: &tierbox::Running) -> Outcome {
    let machine = running.sandbox();
    for (name, is_listed) in [(Some("index.test"), true), (Some("other.test"), false), (None, false)] {
        let answer = hello::answer_to(machine.as_ref(), name).await.map_err(text)?;
        let is_good = if is_listed { !answer.is_empty() && answer != hello::REFUSED } else { answer == hello::REFUSED };
        if !is_good {
            return Err(format!("a hello that names {name:?} is answered by {answer:?}"));
        }
    }
    let found = page_of(machine.as_ref(), "astray.test", "astray.test").await?;
    if !found.contains(" 403 ") {
        return Err(format!("a listed name that leads to {ASTRAY} gave {found:?}"));
    }
    let decisions = running.decisions().await.map_err(text)?;
    let refused = |name: &str, why: &str| {
        decisions.iter().any(|one| one.verdict == Verdict::Refused && one.name == name && one.rule.contains(why))
    };
    let all = refused("other.test", "not in network.allow")
        && refused("", "TLS without a server name")
        && refused("astray.test", &format!("leads to {ASTRAY}"));
    if all { Ok(()) } else { Err(format!("what was decided: {decisions:?}")) }
}

async fn inside(world: &World) -> Outcome {
    let _server = Server::start(&world.files)?;
    let mut spec = world.spec("vagrant-basic", &[("tier", "T0.H3.N1")]);
    spec.network.allow = vec!["index.test".to_owned(), "astray.test".to_owned()];
    let mut detached = spec.clone();
    detached.hold = Hold::Kept;
    if world.client.start_spec(detached, StartOptions::new().hold(Hold::Kept)).await.is_ok() {
        return Err("a machine was let go whose gateway ends with this process".to_owned());
    }
    let running = world.client.start_spec(spec, StartOptions::new()).await.map_err(text)?;
    let machine = running.sandbox();
    let found = page(machine.as_ref(), "index.test").await?;
    if !found.contains("from the named host") {
        return Err(format!("the named host gave {found:?}"));
    }
    for other in ["other.test", SERVER] {
        let found = page(machine.as_ref(), other).await?;
        if found.contains("from the named host") {
            return Err(format!("{other} was reached"));
        }
    }
    names_are_judged(&running).await?;
    // With a route of its own making, too, and on the gateway's own address at another port.
    let route = "ip route replace default via $(sed -n 's/^nameserver //p' /etc/resolv.conf)";
    machine.run(ExecRequest::shell(route).user("root")).await.map_err(text)?;
    if page(machine.as_ref(), SERVER).await?.contains("from the named host") {
        return Err("a route of its own leads out".to_owned());
    }
    reaches_no_address_of_the_host(&machine).await?;
    let proxy = machine.run(ExecRequest::shell("echo $http_proxy")).await.map_err(text)?.stdout.text();
    if !proxy.starts_with("http://10.") || !proxy.contains(":3128") {
        return Err(format!("programs that take proxies are told {proxy:?}"));
    }
    let decisions = running.decisions().await.map_err(text)?;
    if !decisions.iter().any(|one| one.verdict == Verdict::Allowed && one.name == "index.test") {
        return Err(format!("what was decided: {decisions:?}"));
    }
    let token = tokens(&world.client).pop().ok_or("no token")?;
    running.stop().await.map_err(text)?;
    let left = remains(&token);
    if left.is_empty() { Ok(()) } else { Err(format!("left behind: {left:?}")) }
}
