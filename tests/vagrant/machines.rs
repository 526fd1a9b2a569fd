//! The examples under `vagrantfiles/`, each with its profile.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::Trial;
use tierbox::{DialTarget, ErrorKind, ExecRequest, Sandbox, SandboxExt, StartOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::{Outcome, World, remains, rows, text, tokens, trial};

/// All tests.
pub fn all() -> Vec<Trial> {
    vec![
        trial("libvirt", "vm_required::machines::an_attacker_reaches_its_victim_and_nothing_else", pair),
        trial("libvirt", "vm_required::machines::two_environments_from_one_vagrantfile_at_once", two_at_once),
        trial("libvirt", "vm_required::machines::names_are_checked_before_anything_boots", names),
        trial("libvirt", "vm_required::machines::a_closed_network_refuses_what_would_open_it", opened),
    ]
}

/// A script that asks a web server for its page, with bash alone.
fn fetch(address: &str) -> ExecRequest {
    let script = "exec 3<>/dev/tcp/$0 || exit 1; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
    ExecRequest::new(["bash", "-c", script, address]).timeout(Duration::from_secs(15))
}

/// Fails if something on this host hears what a machine sends to one of its addresses.
pub async fn reaches_no_address_of_the_host(machine: &Arc<dyn Sandbox>) -> Outcome {
    let mut tries = tokio::task::JoinSet::new();
    for address in host_addresses() {
        // Others make and end networks on this host at the same time: an address may be gone already.
        if let Ok(listener) = tokio::net::TcpListener::bind((address.as_str(), 0)).await {
            tries.spawn(is_heard(machine.clone(), address, listener));
        }
    }
    if tries.is_empty() {
        return Err("this host has no address to try".to_owned());
    }
    while let Some(tried) = tries.join_next().await {
        tried.map_err(text)??;
    }
    Ok(())
}

async fn is_heard(machine: Arc<dyn Sandbox>, address: String, listener: tokio::net::TcpListener) -> Outcome {
    let port = listener.local_addr().map_err(text)?.port().to_string();
    // An address of one link is looked for on each of the machine's own: the host's zone says nothing there.
    let script = "case $0 in fe80:*) a=$(printf \"${0%\\%*}%%%s\\n\" $(ls /sys/class/net)) ;; *) a=$0 ;; esac
        for one in $a; do (: 3<>\"/dev/tcp/$one/$1\") && exit 0; done; exit 1";
    let request = ExecRequest::new(["bash", "-c", script, &address, &port]).timeout(Duration::from_secs(6));
    let (heard, tried) = tokio::join!(tokio::time::timeout(Duration::from_secs(8), listener.accept()), machine.run(request));
    if heard.is_ok() || tried.map_err(text)?.success() {
        return Err(format!("{} reaches this host at {address}", machine.name()));
    }
    Ok(())
}

/// Addresses of this host that something other than loopback could reach, those of one link with the name of it.
fn host_addresses() -> Vec<String> {
    let listed = crate::world::printed("ip", &["-o", "addr"]);
    let address = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (link, address) = (words.get(1)?, words.get(3)?.split('/').next()?);
        Some(if address.starts_with("fe80:") { format!("{address}%{link}") } else { address.to_owned() })
    };
    listed.lines().filter_map(address).filter(|address| !["127.0.0.1", "::1"].contains(&address.as_str())).collect()
}

async fn pair(world: World) -> Outcome {
    let mut running = world.client.start_spec(world.spec("vagrant-pair", &[]), StartOptions::new()).await.map_err(text)?;
    let names: Vec<String> = running.machines().iter().map(|machine| machine.name().to_owned()).collect();
    if names != ["attacker", "victim"] {
        return Err(format!("the machines are {names:?}"));
    }
    let (attacker, victim) = (running.machine("attacker").map_err(text)?, running.machine("victim").map_err(text)?);
    let page = attacker.run(fetch("192.168.57.20/8080")).await.map_err(text)?;
    if !page.stdout.text().contains("flag{reached}") {
        return Err(format!("the attacker found {page:?}"));
    }
    let who = victim.run(ExecRequest::shell("ip -4 -o addr")).await.map_err(text)?;
    if !who.stdout.text().contains("192.168.57.20/") {
        return Err(format!("the victim is {who:?}"));
    }
    every_machine_is_put_back(&mut running).await?;
    let missing = running.machine("gateway").err().ok_or("there is no gateway")?;
    if !missing.message().contains("attacker, victim") {
        return Err(format!("{missing}"));
    }
    tokio::try_join!(reaches_no_address_of_the_host(&attacker), reaches_no_address_of_the_host(&victim))?;
    // Not even with a route of its own making, as root.
    let routes =
        "ip route add default via $(ip -4 -o addr show eth0 | sed 's/.*inet \\([0-9]*\\.[0-9]*\\.[0-9]*\\).*/\\1.1/'); :";
    attacker.run(ExecRequest::shell(routes).user("root")).await.map_err(text)?;
    reaches_no_address_of_the_host(&attacker).await.map_err(|why| format!("with a route of its own {why}"))?;
    ends_without_remains(&world, running).await
}

/// A snapshot is of all machines, not of the first alone.
async fn every_machine_is_put_back(running: &mut tierbox::Running) -> Outcome {
    for machine in running.machines() {
        machine.write_bytes("kept", "before").await.map_err(text)?;
    }
    running.snapshot("clean").await.map_err(text)?;
    for machine in running.machines() {
        machine.write_bytes("kept", "after").await.map_err(text)?;
    }
    running.restore("clean").await.map_err(text)?;
    for machine in running.machines() {
        let kept = machine.read_bytes("kept", 100).await.map_err(text)?;
        if kept != b"before" {
            return Err(format!("{} was not put back: {:?}", machine.name(), String::from_utf8_lossy(&kept)));
        }
    }
    Ok(())
}

async fn ends_without_remains(world: &World, running: tierbox::Running) -> Outcome {
    let tokens = tokens(&world.client);
    if tokens.is_empty() {
        return Err("no lease names what was made".to_owned());
    }
    running.stop().await.map_err(text)?;
    let left: Vec<String> = tokens.iter().flat_map(|token| remains(token)).collect();
    if left.is_empty() { Ok(()) } else { Err(format!("left behind: {left:?}")) }
}

async fn page_of(machine: &dyn Sandbox) -> Result<String, String> {
    let mut stream = machine.dial(DialTarget::Tcp(8080)).await.map_err(text)?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.map_err(text)?;
    let mut page = Vec::new();
    stream.read_to_end(&mut page).await.map_err(text)?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

async fn two_at_once(world: World) -> Outcome {
    let spec = world.spec("vagrant-web", &[]);
    let (one, two) = tokio::join!(
        world.client.start_spec(spec.clone(), StartOptions::new()),
        world.client.start_spec(spec, StartOptions::new())
    );
    let (one, mut two) = (one.map_err(text)?, two.map_err(text)?);
    for running in [&one, &two] {
        let page = page_of(running.sandbox().as_ref()).await?;
        if !page.contains("served from a machine") {
            return Err(format!("{} serves {page:?}", running.id()));
        }
    }
    one.sandbox().write_bytes("only-here", "1").await.map_err(text)?;
    let there = two.sandbox().run(ExecRequest::shell("test -e only-here")).await.map_err(text)?;
    if there.success() {
        return Err("two environments share a machine".to_owned());
    }
    logs_in(&one).await?;
    put_back(&mut two).await?;
    // One ends while the other runs on.
    ends_without_remains_of_one(&world, one).await?;
    let alive = two.sandbox().run(ExecRequest::new(["true"])).await.map_err(text)?;
    if !alive.success() {
        return Err(format!("the other environment ended too: {alive:?}"));
    }
    if !rows().contains(&token(&world, &two)?) {
        return Err("Vagrant's list of machines lost the row of the other environment".to_owned());
    }
    ends_without_remains(&world, two).await
}

fn token(world: &World, running: &tierbox::Running) -> std::result::Result<String, String> {
    let record = world.client.journal().and_then(|journal| journal.get(running.id())).map_err(text)?.record;
    Ok(record.resources_of("vagrant").next().ok_or("no token")?.to_owned())
}

async fn ends_without_remains_of_one(world: &World, running: tierbox::Running) -> Outcome {
    let token = token(world, &running)?;
    running.stop().await.map_err(text)?;
    let left = remains(&token);
    if left.is_empty() { Ok(()) } else { Err(format!("left behind: {left:?}")) }
}

/// The command that a person is told really logs in.
async fn logs_in(running: &tierbox::Running) -> Outcome {
    let connection = running.connection("web").map_err(text)?;
    let mut command = Command::new(&connection.argv[0]);
    command.args(&connection.argv[1..]).arg("id -un").stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await.map_err(text)?.map_err(text)?;
    if output.stdout.trim_ascii() != b"vagrant" {
        return Err(format!("{:?} gave {output:?}", connection.argv));
    }
    if running.connection("nobody").is_ok() {
        return Err("there is a way to a machine that does not exist".to_owned());
    }
    Ok(())
}

/// A snapshot brings back files and processes; the handle stays valid, and the clock is right.
async fn put_back(running: &mut tierbox::Running) -> Outcome {
    let machine = running.sandbox();
    machine.write_bytes("kept", "before").await.map_err(text)?;
    running.snapshot("clean").await.map_err(text)?;
    let again = running.snapshot("clean").await.err().map(|error| error.kind());
    if again != Some(ErrorKind::AlreadyExists) {
        return Err(format!("a second snapshot of that name gave {again:?}"));
    }
    machine
        .run(ExecRequest::shell("echo after > kept; touch more; (setsid sleep 4242 >/dev/null 2>&1 &)"))
        .await
        .map_err(text)?;
    running.restore("clean").await.map_err(text)?;
    let kept = machine.read_bytes("kept", 100).await.map_err(text)?;
    let state = machine.run(ExecRequest::shell("test -e more; echo $?; pgrep -x sleep; date +%s")).await.map_err(text)?;
    let said = state.stdout.text();
    let mut lines = said.lines();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_err(text)?.as_secs();
    let is_gone = lines.next() == Some("1");
    let clock: u64 = lines.next_back().and_then(|line| line.parse().ok()).ok_or_else(|| format!("no clock in {said:?}"))?;
    if kept != b"before" || !is_gone || said.lines().count() != 2 || now.abs_diff(clock) > 5 {
        return Err(format!("after the restore: {kept:?}, {said:?}, and this host's clock says {now}"));
    }
    let missing = running.restore("never-saved").await.err().map(|error| error.kind());
    if missing == Some(ErrorKind::NotFound) { Ok(()) } else { Err(format!("a snapshot that is not there gave {missing:?}")) }
}

async fn refusal(world: &World, vagrantfile: &str, changes: &[(&str, &str)]) -> Result<tierbox::Error, String> {
    let dir = tempfile::tempdir().map_err(text)?;
    let path = dir.path().join("Vagrantfile");
    std::fs::write(&path, vagrantfile).map_err(text)?;
    let path = path.display().to_string();
    let refused = world.start("vagrant", &[&[("vagrant.vagrantfile", path.as_str())], changes].concat()).await;
    let left = world.client.list().await.map_err(text)?.environments.len();
    match refused {
        Ok(_) => Err("it started".to_owned()),
        Err(error) if left == 0 => Ok(error),
        Err(error) => Err(format!("{error}; and a lease is left")),
    }
}

async fn names(world: World) -> Outcome {
    // What it prints ends no line.
    let suffixed = "print 'x'; system('printf y')\nVagrant.configure('2') do |c|\n  c.vm.box = 'tierbox/debian12'\n  %w[attacker victim].each { |n| c.vm.define \
                    \"#{n}#{ENV.fetch('INSPECT_VM_SUFFIX')}\" }\nend\n";
    let missing = refusal(&world, suffixed, &[("vagrant.primary", "gateway")]).await?;
    if missing.kind() != ErrorKind::InvalidProfile || !missing.message().contains("attacker, victim") {
        return Err(format!("a primary that is not there: {missing}"));
    }
    let idle = "Vagrant.configure('2') do |c|\n  c.vm.box = 'tierbox/debian12'\n  c.vm.define 'one', autostart: false\n  \
                c.vm.define 'two'\nend\n";
    let asleep = refusal(&world, idle, &[("vagrant.primary", "one")]).await?;
    if asleep.kind() != ErrorKind::InvalidProfile || !asleep.message().contains("name it in vagrant.machines") {
        return Err(format!("a primary that does not start by itself: {asleep}"));
    }
    let broken = refusal(&world, "Vagrant.configure('2') do |c|\n  nonsense(\n", &[]).await?;
    if broken.kind() != ErrorKind::InvalidProfile {
        return Err(format!("a Vagrantfile with a mistake: {broken:?}"));
    }
    let boxless =
        refusal(&world, "Vagrant.configure('2') { |c| c.vm.box = 'tierbox/none'; c.vm.box_url = 'file:///none' }\n", &[]).await?;
    if boxless.kind() != ErrorKind::HostUnable || !boxless.message().contains("box") {
        return Err(format!("a box that is not there: {boxless:?}"));
    }
    Ok(())
}

async fn opened(world: World) -> Outcome {
    for (network, what) in [
        ("c.vm.network :public_network, dev: 'eth0'", "public_network"),
        ("c.vm.network :private_network, type: 'dhcp'", "fixed address"),
    ] {
        let vagrantfile = format!("Vagrant.configure('2') do |c|\n  c.vm.box = 'tierbox/debian12'\n  {network}\nend\n");
        let refused = refusal(&world, &vagrantfile, &[]).await?;
        if refused.kind() != ErrorKind::InvalidProfile || !refused.message().contains(what) {
            return Err(format!("{network}: {refused:?}"));
        }
    }
    Ok(())
}
