//! N1 on libvirt: the network part of the escape corpus in a machine whose gateway knows the world's names, and what the corpus
//! does not ask for.
//!
//! Libvirt's networks are this host's, and so is the gateway: names are the world's by a mount namespace, in which this program runs
//! once more. Its two machines boot at the same time.

use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use libtest_mimic::{Arguments, Trial};
use tierbox::{Connection, Decision, Environment, ExecRequest, Hold, Report, Result, Running, Sandbox, SandboxExt, StartOptions};
use tierbox_testkit::world::{ATTACKS, SERVER, allowed_at_usual_ports, run_beside};
use tierbox_testkit::{Absence, Adjust, Factory, Suite, minimum, run_with};

use crate::machines::reaches_no_address_of_the_host;
use crate::support::{self, again};
use crate::world::{self, Outcome, World, remains, text, tokens, trial};

const NAME: &str = "escape::vm_required::n1::named_hosts_are_reached_and_nothing_else";

/// All tests.
pub fn all() -> Vec<Trial> {
    vec![trial("libvirt", NAME, named)]
}

async fn named(world: World) -> Outcome {
    if let Some(absence) = tierbox_testkit::world::absent() {
        return support::skip("vagrant", NAME, &absence);
    }
    let mut command = again::this_program_under(&[], "named");
    command.env("NAMED_STATE", &world.state).env("NAMED_FILES", &world.files).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = tokio::task::spawn_blocking(move || command.output()).await.map_err(text)?.map_err(text)?;
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    if output.status.success() { Ok(()) } else { Err(said) }
}

/// That process.
pub fn main() -> ExitCode {
    run_beside(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let path = |name: &str| std::path::PathBuf::from(std::env::var_os(name).unwrap_or_default());
        let (state, files) = (path("NAMED_STATE"), path("NAMED_FILES"));
        let world = World { client: world::client(&state), state, files };
        match judged(&runtime, &world) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                use std::io::Write;
                let _ = writeln!(std::io::stdout(), "{why}");
                ExitCode::FAILURE
            }
        }
    })
}

fn judged(runtime: &tokio::runtime::Runtime, world: &World) -> Outcome {
    let machines = runtime.block_on(start(world))?;
    let factory = Arc::new(Two { environments: machines.clone().map(Lent), is_first_taken: AtomicBool::new(false) });
    // A flood takes all that its sandbox may have, so one case at a time.
    let suite = Suite::escape(minimum::vagrant_libvirt(), factory).only(ATTACKS).variant("vm_required::n1").by_area(1);
    let alone = Arguments { test_threads: Some(1), ..Arguments::default() };
    if run_with(&alone, &[suite.required(support::REQUIRED)], Vec::new()).has_failed() {
        return Err("an attack of the corpus got through: see above".to_owned());
    }
    runtime.block_on(beside_the_corpus(world, machines))
}

/// The machine that is attacked from, and another that must not notice.
async fn start(world: &World) -> std::result::Result<[Arc<Running>; 2], String> {
    let mut spec = world.spec("vagrant-basic", &[("tier", "T0.H3.N1")]);
    // The gateway is at an address of this host's, which may have servers of its own at other ports.
    spec.network.allow = allowed_at_usual_ports();
    let mut detached = spec.clone();
    detached.hold = Hold::Kept;
    if world.client.start_spec(detached, StartOptions::new().hold(Hold::Kept)).await.is_ok() {
        return Err("a machine was let go whose gateway ends with this process".to_owned());
    }
    let start = || world.client.start_spec(spec.clone(), StartOptions::new());
    let (one, other) = tokio::join!(start(), start());
    Ok([Arc::new(one.map_err(text)?), Arc::new(other.map_err(text)?)])
}

async fn beside_the_corpus(world: &World, machines: [Arc<Running>; 2]) -> Outcome {
    let machine = machines[0].sandbox();
    // With a route of its own making, too, and on the gateway's own address at another port.
    let route = "ip route replace default via $(sed -n 's/^nameserver //p' /etc/resolv.conf)";
    machine.run(ExecRequest::shell(route).user("root")).await.map_err(text)?;
    if page(machine.as_ref(), "index.test").await? != "hello" {
        return Err("the named host is not reached".to_owned());
    }
    if page(machine.as_ref(), SERVER).await?.contains("hello") {
        return Err("a route of its own leads out".to_owned());
    }
    reaches_no_address_of_the_host(&machine).await?;
    let proxy = machine.run(ExecRequest::shell("echo $http_proxy")).await.map_err(text)?.stdout.text();
    if !proxy.starts_with("http://10.") || !proxy.contains(":3128") {
        return Err(format!("programs that take proxies are told {proxy:?}"));
    }
    let tokens = tokens(&world.client);
    if tokens.len() != machines.len() {
        return Err(format!("the tokens of {} environments are {tokens:?}", machines.len()));
    }
    for machine in &machines {
        machine.end().await.map_err(text)?;
    }
    let left: Vec<String> = tokens.iter().flat_map(|token| remains(token)).collect();
    if left.is_empty() { Ok(()) } else { Err(format!("left behind: {left:?}")) }
}

/// Asks for the world's page, with bash alone.
async fn page(machine: &dyn Sandbox, host: &str) -> std::result::Result<String, String> {
    let script =
        "exec 3<>/dev/tcp/$0/80 || exit 1; printf 'GET /x HTTP/1.0\\r\\nHost: index.test\\r\\n\\r\\n' >&3; tail -n 1 <&3";
    let request = ExecRequest::new(["bash", "-c", script, host]).timeout(Duration::from_secs(10));
    Ok(machine.run(request).await.map_err(text)?.stdout.text().trim().to_owned())
}

/// Two machines that run. The corpus asks for the one that its cases share first.
struct Two {
    environments: [Lent; 2],
    is_first_taken: AtomicBool,
}

#[async_trait]
impl Factory for Two {
    fn engine(&self) -> &str {
        "vagrant"
    }

    fn absent(&self) -> Option<Absence> {
        world::absent("libvirt")
    }

    fn case_limit(&self) -> Duration {
        Duration::from_secs(300)
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }

    async fn start(&self, _: Adjust<'_>) -> Result<Arc<dyn Environment>> {
        let [first, other] = &self.environments;
        let is_first = !self.is_first_taken.swap(true, Ordering::AcqRel);
        Ok(Arc::new(if is_first { first.clone() } else { other.clone() }))
    }
}

/// An environment for as long as a case takes: its end is not the environment's.
#[derive(Clone)]
struct Lent(Arc<Running>);

#[async_trait]
impl Environment for Lent {
    fn id(&self) -> &str {
        self.0.id()
    }

    fn machines(&self) -> Vec<Arc<dyn Sandbox>> {
        self.0.machines()
    }

    fn report(&self) -> &Report {
        self.0.report()
    }

    fn connection(&self, machine: &str) -> Result<Connection> {
        self.0.connection(machine)
    }

    async fn decisions(&self) -> Result<Vec<Decision>> {
        let mut decisions = self.0.decisions().await?;
        // Verification asks a resolver for every name that is listed.
        decisions.retain(|one| !one.verification);
        Ok(decisions)
    }

    async fn stop(&self) -> Result<()> {
        Ok(())
    }

    async fn ended(&self, limit: Duration) -> bool {
        self.0.ended(limit).await
    }
}
