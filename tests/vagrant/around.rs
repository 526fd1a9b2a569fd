//! What is around the machines: the variables and directories that decide what is started, names and boxes that environments share, and
//! machines that are kept for the next.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use libtest_mimic::Trial;
use tierbox::{ErrorKind, ExecRequest, Outcome as Ended, SandboxExt, StartOptions, Tierbox};

use crate::lifecycle::{SLOW, cleaned, cut, starting};
use crate::support::again;
use crate::world::{Outcome, World, printed, remains, text, tokens, trial, until};

/// All tests.
pub fn all() -> Vec<Trial> {
    vec![
        trial("lxc", "vm_required::around::variables_and_directories_decide_as_they_are_documented", surroundings),
        trial("lxc", "vm_required::around::starts_are_throttled_by_either_variable", throttled),
        trial("lxc", "vm_required::around::one_vagrant_tells_of_its_machines_and_starts_those_that_are_chosen", chosen),
        trial("lxc", "slow::vm_required::around::a_part_of_a_vagrantfile_that_changes_and_keeps_its_secrets", part),
        trial("lxc", "vm_required::around::crash::late_points_leave_nothing", late_points),
        trial("libvirt", "vm_required::around::libvirt_is_this_hosts_own", own_libvirt),
        trial("libvirt", "vm_required::around::half_a_volume_is_replaced_by_one_of_two_starts", half_a_volume),
        trial("libvirt", "slow::vm_required::around::a_kept_machine_is_clean_and_only_the_same_is_taken", kept),
    ]
}

/// A harness of its own process that starts what its surroundings say, and prints what came of it.
pub fn main() -> ExitCode {
    use std::io::Write;
    let word = |name: &str| std::env::var(name).unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    // Variables are layers here, as for everybody.
    let client = Tierbox::builder().state_dir(word("AROUND_STATE")).build().expect("the facade");
    let changes: Vec<(String, String)> = serde_json::from_str(&word("AROUND_CHANGES")).expect("changes");
    let changes: Vec<(&str, &str)> = changes.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let options = changes.iter().fold(StartOptions::new().allow_weaker(), |options, (key, value)| options.set(*key, *value));
    let said = match runtime.block_on(client.start_with(PathBuf::from(word("AROUND_PROFILE")), options)) {
        Ok(running) => {
            let _ = runtime.block_on(running.stop());
            "started".to_owned()
        }
        Err(error) => format!("{:?}: {error}", error.kind()),
    };
    let _ = writeln!(std::io::stdout(), "{said}");
    ExitCode::SUCCESS
}

/// What such a harness prints, in a directory and with variables.
async fn said(world: &World, directory: &Path, variables: &[(&str, &str)], changes: &[(&str, &str)]) -> Result<String, String> {
    // A profile that names neither a Vagrantfile nor a provider.
    let profile = world.files.join("bare.toml");
    let bare = "tier = \"T0.H3.N0\"\nbackend = \"vagrant\"\nreason = \"a test\"\n[limits]\nstartup = \"8m\"\n";
    // Another that runs at the same time may read it by now.
    if !profile.exists() {
        std::fs::write(&profile, bare).map_err(text)?;
    }
    let mut command = again::this_program_under(&[], "around");
    command.env("AROUND_PROFILE", profile).env("XDG_CONFIG_HOME", world.files.join("no-config"));
    command.current_dir(directory).env_remove("VAGRANT_DEFAULT_PROVIDER").env_remove("VAGRANTFILE_PATH");
    command.env("AROUND_STATE", &world.state).env("AROUND_CHANGES", serde_json::to_string(changes).map_err(text)?);
    command.envs(variables.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await.map_err(text)?.map_err(text)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn write(directory: &Path, contents: &str) -> Result<PathBuf, String> {
    std::fs::create_dir_all(directory).map_err(text)?;
    let path = directory.join("Vagrantfile");
    std::fs::write(&path, contents).map_err(text)?;
    Ok(path)
}

const H0: [(&str, &str); 2] = [("tier", "T0.H0.N0"), ("reason", "a test")];

async fn surroundings(world: World) -> Outcome {
    let here = world.files.join("here");
    write(&here, "raise \"read here, provider #{ENV['VAGRANT_DEFAULT_PROVIDER']}\"\n")?;
    let there = write(&world.files.join("there"), "raise \"read there, #{ENV.fetch('API', 'nothing').reverse}\"\n")?;
    let there = there.to_str().ok_or("a path")?;
    let lxc = ("VAGRANT_DEFAULT_PROVIDER", "lxc");
    for (what, variables, changes, wanted) in [
        ("the Vagrantfile of the working directory", vec![lxc], H0.to_vec(), vec!["read here, provider lxc"]),
        ("VAGRANTFILE_PATH", vec![lxc, ("VAGRANTFILE_PATH", there)], H0.to_vec(), vec!["read there, gnihton"]),
        (
            "the profile's own variables",
            vec![lxc, ("VAGRANTFILE_PATH", there), ("API", "wrong")],
            [H0.as_slice(), &[("vagrant.env.API", "hunter2")]].concat(),
            vec!["read there, 2retnuh"],
        ),
        ("no provider at all", vec![], H0.to_vec(), vec!["InvalidProfile", "no provider is named"]),
        ("a provider that cannot hold the tier", vec![lxc], vec![], vec!["TierRefused", "lxc"]),
    ] {
        let said = said(&world, &here, &variables, &changes).await?;
        if let Some(missing) = wanted.iter().find(|wanted| !said.contains(*wanted)) {
            return Err(format!("{what}: {missing:?} is not in {said:?}"));
        }
    }
    let left = world.client.list().await.map_err(text)?.environments.len();
    if left == 0 { Ok(()) } else { Err(format!("{left} leases are left")) }
}

async fn throttled(world: World) -> Outcome {
    for (number, variable) in ["INSPECT_MAX_VAGRANT_STARTUPS", "TIERBOX_MAX_VAGRANT_STARTUPS"].into_iter().enumerate() {
        let directory = world.files.join(number.to_string());
        write(&directory, SLOW)?;
        let places = directory.join("places");
        let variables =
            [("VAGRANT_DEFAULT_PROVIDER", "lxc"), (variable, "1"), ("TIERBOX_STATE_DIR", places.to_str().ok_or("a path")?)];
        let one = || said(&world, &directory, &variables, &H0);
        let (first, second) = tokio::join!(one(), one());
        let times = std::fs::read_to_string(directory.join("times")).unwrap_or_default();
        if times != "begin\nend\n".repeat(2) {
            return Err(format!("{variable}: the starts ran as {times:?}: {first:?} {second:?}"));
        }
    }
    Ok(())
}

/// It notes who evaluates it, what there is to read, and which machine is started; and fails before it makes anything.
const NOTED: &str = "
note = ->(what) { File.open(File.join(__dir__, 'noted'), 'a') { |f| f.puts(what) } }
note.call(\"#{ARGV.first} #{$$} #{$stdin.read.inspect} #{ENV['TIERBOX_VAGRANT_ASKS'].inspect}\")
Vagrant.configure('2') do |config|
  config.vm.box = 'tierbox/debian12'
  %w[one two three].each { |name| config.vm.define name }
  config.trigger.before(:up) do |trigger|
    trigger.ruby do |_env, machine|
      note.call(\"starts #{machine.name}\")
      raise 'far enough'
    end
  end
end
";

async fn chosen(world: World) -> Outcome {
    let directory = world.files.join("noted");
    let mut spec = world.spec("lxc-test", &[]);
    spec.settings["vagrantfile"] = write(&directory, NOTED)?.to_str().into();
    spec.settings["machines"] = serde_json::json!(["two", "three"]);
    // Where it had to wait for others, a second process would start them.
    spec.settings["max-startups"] = serde_json::json!(64);
    if world.client.start_spec(spec, StartOptions::new()).await.is_ok() {
        return Err("it started, though its Vagrantfile fails".to_owned());
    }
    let noted = std::fs::read_to_string(directory.join("noted")).map_err(text)?;
    let (started, mut evaluations): (Vec<&str>, Vec<&str>) = noted.lines().partition(|line| line.starts_with("starts"));
    evaluations.dedup();
    let is_one = matches!(evaluations.as_slice(), [one] if one.starts_with("up ") && one.ends_with(" \"\" nil"));
    // They start at the same time, and the first that fails may end the other.
    let are_chosen = !started.is_empty() && started.iter().all(|line| ["starts two", "starts three"].contains(line));
    if is_one && are_chosen { Ok(()) } else { Err(format!("it went so: {noted}")) }
}

/// Three machines, of which two are wanted; it writes down the secret that it is given, each time that it is evaluated.
const THREE: &str = "
File.open(File.join(__dir__, 'secrets'), 'a') { |f| f.puts(\"#{ARGV.first} #{ENV['API']}\") }
Vagrant.configure('2') do |config|
  config.vm.box = 'tierbox/debian12'
  config.vm.provider(:lxc) { |lxc| lxc.container_name = 'always-the-same' }
  %w[one two three].each { |name| config.vm.define name }
  config.vm.provision 'shell', inline: 'env >/tmp/provisioned'
end
";

async fn part(world: World) -> Outcome {
    let directory = world.files.join("three");
    let path = write(&directory, THREE)?;
    let mut spec = world.spec("lxc-test", &[]);
    spec.settings["env"] = serde_json::json!({"API": "hunter2"});
    spec.settings["vagrantfile"] = path.to_str().into();
    spec.settings["machines"] = serde_json::json!(["two", "three"]);
    let running = world.client.start_spec(spec, StartOptions::new()).await.map_err(text)?;
    let names: Vec<String> = running.machines().iter().map(|machine| machine.name().to_owned()).collect();
    let notes = running.report().notes.join("\n");
    if names != ["two", "three"] || !notes.contains("no primary machine is named; commands go to the first, \"two\"") {
        return Err(format!("{names:?}, and the report notes {notes:?}"));
    }
    let token = tokens(&world.client).pop().ok_or("no token")?;
    let listed = printed("lxc-ls", &["-1"]);
    if listed.contains("always-the-same") || !listed.contains(&format!("tbx-{token}-two")) || listed.contains("-one") {
        return Err(format!("containers are {listed:?}"));
    }
    let machine = running.sandbox();
    // Neither what provisioned it, nor a command, nor a log of the guest's has the secret.
    let search = "env; cat /tmp/provisioned; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'";
    let seen = machine.run(ExecRequest::shell(search).user("root")).await.map_err(text)?.stdout.text();
    if seen.contains("hunter2") || !seen.contains("PATH=") {
        return Err(format!("inside is seen {seen:?}"));
    }
    changed_key(&running, &world, &token).await?;
    // The Vagrantfile names other machines now, and its secret is asked for all the same.
    std::fs::write(&path, THREE.replace("one two three", "four")).map_err(text)?;
    running.stop().await.map_err(text)?;
    let secrets = std::fs::read_to_string(directory.join("secrets")).map_err(text)?;
    let is_asked = |verb: &str| secrets.lines().any(|line| line == format!("{verb} hunter2"));
    if !is_asked("up") || !is_asked("destroy") || secrets.lines().any(|line| !line.ends_with(" hunter2")) {
        return Err(format!("the Vagrantfile was evaluated with {secrets:?}"));
    }
    // What it names now are none of these machines: they are removed without it.
    if secrets.lines().filter(|line| line.starts_with("destroy")).count() != 1 {
        return Err(format!("a Vagrantfile of other machines was evaluated again: {secrets:?}"));
    }
    let left = remains(&token);
    if left.is_empty() { Ok(()) } else { Err(format!("left behind: {left:?}")) }
}

/// Whoever answers with another host key is refused.
async fn changed_key(running: &tierbox::Running, world: &World, token: &str) -> Outcome {
    let machine = running.machine("three").map_err(text)?;
    let change = "rm -f /etc/ssh/ssh_host_*; ssh-keygen -q -A; pkill -HUP -o -x sshd";
    machine.run(ExecRequest::shell(change).user("root")).await.map_err(text)?;
    let connection = running.connection("three").map_err(text)?;
    let refused = || {
        let mut command = Command::new(&connection.argv[0]);
        command.args(["-o", "BatchMode=yes"]).args(&connection.argv[1..]).arg("true").stdin(Stdio::null());
        let output = command.output().map_err(text)?;
        Ok::<_, String>(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let mut last = String::new();
    for _ in 0..50 {
        last = refused()?;
        if last.contains("Host key verification failed") {
            let known = std::fs::read_to_string(world.state.join("vagrant").join(token).join("known_hosts")).map_err(text)?;
            let of_three = known.lines().filter(|line| line.starts_with("three ")).count();
            return if of_three == 1 {
                is_not_worked_in(running, world, token).await
            } else {
                Err(format!("{of_three} keys are known of the machine"))
            };
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(format!("a machine with another host key was let in: {last:?}"))
}

/// Nor does a command go to it, once the connection of before is gone.
async fn is_not_worked_in(running: &tierbox::Running, world: &World, token: &str) -> Outcome {
    cut(world, token);
    let machine = running.machine("three").map_err(text)?;
    let run = || machine.run(ExecRequest::new(["true"]));
    // Nobody knows of a command under way; the next one hears why none goes there.
    let first = run().await.map(|result| result.outcome());
    if !matches!(first, Ok(Ended::Lost) | Err(_)) {
        return Err(format!("behind another host key a command ended as {first:?}"));
    }
    let told = run().await.map(|result| result.outcome()).map_err(|error| error.to_string());
    match &told {
        Err(why) if why.to_lowercase().contains("host key") => Ok(()),
        _ => Err(format!("a changed host key is told as {told:?}")),
    }
}

async fn late_points(world: World) -> Outcome {
    for point in ["up", "connected", "destroy"] {
        let vagrantfile = write(&world.files.join("late"), "Vagrant.configure('2') { |c| c.vm.box = 'tierbox/debian12' }\n")?;
        let mut child = starting(&world, "lxc-test", &vagrantfile, Some(point))?;
        let status = tokio::task::spawn_blocking(move || child.wait()).await.map_err(text)?.map_err(text)?;
        if status.code().is_some() {
            return Err(format!("it did not die at {point}: {status}"));
        }
        cleaned(&world).await.map_err(|error| format!("{point}: {error}"))?;
    }
    Ok(())
}

async fn own_libvirt(world: World) -> Outcome {
    let provider = |line: &str| {
        format!(
            "Vagrant.configure('2') do |c|\n  c.vm.box = 'tierbox/debian12'\n  c.vm.provider(:libvirt) {{ |v| {line} }}\nend\n"
        )
    };
    let directory = world.files.join("elsewhere");
    for line in [
        "v.uri = 'qemu+ssh://elsewhere.test/system'",
        "v.host = 'elsewhere.test'",
        "v.driver = 'esx'",
        "v.qemu_use_session = true",
    ] {
        write(&directory, &provider(line))?;
        let said = said(&world, &directory, &[("VAGRANT_DEFAULT_PROVIDER", "libvirt")], &[]).await?;
        if !said.contains("InvalidProfile") || !said.contains("this host's own libvirt") {
            return Err(format!("{line}: {said:?}"));
        }
    }
    // A variable of libvirt's leads nowhere else: the box that is not there is looked for, and nothing is connected to before that.
    write(
        &directory,
        "Vagrant.configure('2') do |c|\n  c.vm.box = 'tierbox/debian12'\n  c.trigger.before(:up) { |t| t.ruby { |_, m| raise TierboxShim::Refused, \"uri #{m.provider_config.uri} #{m.provider_config.random_hostname}\" } }\n  c.vm.provider(:libvirt) { |v| v.random_hostname = true }\nend\n",
    )?;
    let variables = [("VAGRANT_DEFAULT_PROVIDER", "libvirt"), ("LIBVIRT_DEFAULT_URI", "test:///default")];
    let said = said(&world, &directory, &variables, &[("tier", "T0.H3.N0"), ("reason", "a test")]).await?;
    if !said.contains("uri qemu:///system false") {
        return Err(format!("with LIBVIRT_DEFAULT_URI: {said:?}"));
    }
    let log = std::fs::read_to_string(world.state.join("vagrant/last-failed-up.log")).map_err(text)?;
    if log.contains("uri qemu:///system") && said.contains("uri qemu:///system") {
        Ok(())
    } else {
        Err(format!("kept is {log:?}"))
    }
}

/// A box whose disk is no system: its machine is made, and never answers.
fn empty_box(directory: &Path, name: &str) -> Result<u64, String> {
    std::fs::create_dir_all(directory).map_err(text)?;
    let vagrantfile = "Vagrant.configure('2') do |c|
  c.vm.synced_folder '.', '/vagrant', disabled: true
  c.vm.provider(:libvirt) { |v| v.driver = 'qemu'; v.memory = 64; v.graphics_type = 'none'; v.video_type = 'none' }
end
";
    std::fs::write(directory.join("Vagrantfile"), vagrantfile).map_err(text)?;
    let metadata = r#"{"provider":"libvirt","format":"qcow2","virtual_size":1}"#;
    std::fs::write(directory.join("metadata.json"), metadata).map_err(text)?;
    let script = "set -e; head -c 6000000 /dev/urandom >disk; qemu-img convert -f raw -O qcow2 disk box.img; rm disk; \
                  tar -cf test.box metadata.json Vagrantfile box.img; \
                  vagrant box add --force --provider libvirt --name \"$0\" test.box >/dev/null";
    let output = Command::new("sh").args(["-c", script, name]).current_dir(directory).output().map_err(text)?;
    if !output.status.success() {
        return Err(format!("no box could be made: {}", String::from_utf8_lossy(&output.stderr)));
    }
    std::fs::metadata(directory.join("box.img")).map(|found| found.len()).map_err(text)
}

fn virsh(words: &[&str]) -> String {
    printed("virsh", &[["-q", "-c", "qemu:///system"].as_slice(), words].concat())
}

async fn half_a_volume(world: World) -> Outcome {
    let name = format!("tierbox-test-{}", std::process::id());
    let own = world.files.join("box");
    let size = empty_box(&own, &name)?;
    let mut starts = Vec::new();
    let mut outcome = replaced(&world, &name, &own.join("box.img"), size, &mut starts).await;
    for mut start in starts {
        let _ = start.kill();
        let _ = start.wait();
    }
    if outcome.is_ok() {
        outcome = cleaned(&world).await;
    }
    printed("vagrant", &["box", "remove", "--force", "--all", &name]);
    for volume in volumes(&name) {
        virsh(&["vol-delete", "--pool", "default", &volume]);
    }
    outcome
}

fn volumes(name: &str) -> Vec<String> {
    let listed = virsh(&["vol-list", "default"]);
    let names = listed.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|volume| volume.contains(name)).map(str::to_owned).collect()
}

/// Two starts at once find a volume of the right name with a part of the bytes, as a killed upload leaves it.
async fn replaced(world: &World, name: &str, image: &Path, size: u64, starts: &mut Vec<Child>) -> Outcome {
    let vagrantfile = write(&world.files.join("half"), &format!("Vagrant.configure('2') {{ |c| c.vm.box = '{name}' }}\n"))?;
    let added = std::fs::metadata(boxes(name)?.join("libvirt/box.img")).and_then(|found| found.modified()).map_err(text)?;
    let added = added.duration_since(std::time::UNIX_EPOCH).map_err(text)?.as_secs();
    let volume = format!("{name}_vagrant_box_image_0_{added}_box.img");
    virsh(&["vol-create-as", "default", &volume, "1G", "--format", "qcow2"]);
    if volumes(name) != [volume.as_str()] {
        return Err("no half volume could be made".to_owned());
    }
    for _ in 0..2 {
        starts.push(starting(world, "vagrant", &vagrantfile, None)?);
    }
    until("both machines run", Duration::from_secs(150), || async {
        let (tokens, running) = (tokens(&world.client), virsh(&["list", "--name"]));
        tokens.len() == 2 && tokens.iter().all(|token| running.contains(token.as_str()))
    })
    .await?;
    let xml = virsh(&["vol-dumpxml", &volume, "default"]);
    let path = xml.split_once("<path>").and_then(|(_, rest)| rest.split_once("</path>")).ok_or("no path")?.0.to_owned();
    let there = std::fs::metadata(&path).map_err(text)?.len();
    let same = Command::new("cmp").args(["-s", "-n", &size.to_string()]).arg(&path).arg(image).status().map_err(text)?;
    if volumes(name).len() == 1 && there >= size && same.success() {
        Ok(())
    } else {
        Err(format!("the volume has {there} bytes of {size}, and those are the box's: {}", same.success()))
    }
}

fn boxes(name: &str) -> Result<PathBuf, String> {
    let home = std::env::var_os("VAGRANT_HOME").ok_or("VAGRANT_HOME is not set")?;
    Ok(Path::new(&home).join("boxes").join(name).join("0"))
}

/// A machine at N0, so that one is seen to boot there, too.
async fn kept(world: World) -> Outcome {
    let directory = world.files.join("kept");
    let box_of = |more: &str| format!("load File.join(__dir__, '..', 'loaded.rb')\n{more}");
    let loaded = "Vagrant.configure('2') { |c| c.vm.box = ENV.fetch('BOX', 'tierbox/debian12') }\n";
    std::fs::write(world.files.join("loaded.rb"), loaded).map_err(text)?;
    let path = write(&directory, &box_of(""))?;
    let path = path.to_str().ok_or("a path")?.to_owned();
    let changes = [
        ("tier", "T0.H3.N0"),
        ("reason", "a test"),
        ("vagrant.provider", "libvirt"),
        ("vagrant.vagrantfile", path.as_str()),
        ("vagrant.pool", "1"),
        ("limits.startup", "8m"),
    ];
    let first = world.start("vagrant", &changes).await.map_err(text)?;
    let token = tokens(&world.client).pop().ok_or("no token")?;
    first.sandbox().write_bytes("left", "by the former").await.map_err(text)?;
    first.snapshot("formers").await.map_err(text)?;
    if first.snapshot("tierbox-first").await.err().map(|error| error.kind()) != Some(ErrorKind::InvalidInput) {
        return Err("a name of tierbox's own could be taken".to_owned());
    }
    first.stop().await.map_err(text)?;
    // A call that comes late does not touch what somebody else may have by now.
    let mut second = world.start("vagrant", &changes).await.map_err(text)?;
    if tokens(&world.client) != [token.as_str()] {
        return Err(format!("the kept machine {token} was not taken: {:?}", tokens(&world.client)));
    }
    let left = second.sandbox().run(ExecRequest::shell("test -e left")).await.map_err(text)?;
    let former = second.restore("formers").await.err().map(|error| error.kind());
    if left.success() || former != Some(ErrorKind::NotFound) {
        return Err(format!("the next finds what the former left: {left:?}, its snapshot gives {former:?}"));
    }
    second.stop().await.map_err(text)?;
    // One that dies as it takes it: nobody else can take what it had, and all of it goes.
    let said = said(&world, &directory, &[("TIERBOX_CRASH_AT", "taken")], &changes).await?;
    if !said.is_empty() {
        return Err(format!("it did not die where it should: {said:?}"));
    }
    let listed = world.client.journal().and_then(|journal| journal.list()).map_err(text)?;
    let takeable = listed.entries.iter().filter(|entry| matches!(entry.record.hold, tierbox::Hold::Until(_))).count();
    if listed.entries.len() != 2 || takeable != 0 {
        return Err(format!("{} leases name it, and {takeable} of them could be taken", listed.entries.len()));
    }
    cleaned(&world).await?;
    pooled_folders(&world, &directory, &changes).await
}

/// A folder of this host's is not put back, so a pool with one is refused before anything boots.
async fn pooled_folders(world: &World, directory: &Path, changes: &[(&str, &str)]) -> Outcome {
    let shared = "Vagrant.configure('2') do |c|\n  c.vm.box = 'tierbox/debian12'\n  c.vm.synced_folder '.', '/shared', type: 'rsync'\nend\n";
    write(directory, shared)?;
    let refused = said(world, directory, &[], changes).await?;
    if refused.contains("InvalidProfile") && refused.contains("/shared") { Ok(()) } else { Err(format!("it gave {refused:?}")) }
}
