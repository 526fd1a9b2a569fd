//! LXC as the second provider: quick, and a container that is none of H1.

use std::time::Duration;

use libtest_mimic::Trial;
use tierbox::{ErrorKind, ExecRequest, KillReason, Outcome as Ended, Sandbox, SandboxExt, StartOptions};

use crate::lifecycle::{cleaned, copied, cut, starting};
use crate::world::{Outcome, World, remains, text, tokens, trial, until};

/// All tests.
pub fn all() -> Vec<Trial> {
    vec![
        trial("lxc", "vm_required::lxc::a_container_works_and_is_called_what_it_is", works),
        trial("lxc", "vm_required::lxc::scripts_alone_serve_a_machine_without_a_supervisor", scripts),
        trial("lxc", "vm_required::lxc::an_error_that_vagrant_does_not_know_is_met_once_more_and_then_told", unforeseen),
        trial("lxc", "vm_required::lxc::two_at_once_share_what_lies_beside_their_vagrantfile", beside),
        trial("lxc", "vm_required::lxc::crash::killed_in_the_middle_of_up", killed),
    ]
}

async fn works(world: World) -> Outcome {
    let refused = world.start("vagrant-basic", &[("vagrant.provider", "lxc")]).await.err().ok_or("H3 was granted to LXC")?;
    if refused.kind() != ErrorKind::TierRefused || !refused.to_string().contains("T0.H0.N0") {
        return Err(format!("{refused}"));
    }
    let running = world.client.start_spec(world.spec("lxc-test", &[]), StartOptions::new()).await.map_err(text)?;
    let machine = running.sandbox();
    let said = machine.run(ExecRequest::shell("id -un; cat; pwd").stdin_bytes("in\n")).await.map_err(text)?;
    if said.stdout.text() != "vagrant\nin\n/home/vagrant\n" {
        return Err(format!("{said:?}"));
    }
    // Root's own programs are in root's path, though the one who logs in has another.
    let root = machine.run(ExecRequest::shell("id -u; echo $PATH").user("root")).await.map_err(text)?;
    if !root.stdout.text().starts_with("0\n") || !root.stdout.text().contains("/usr/sbin") {
        return Err(format!("{root:?}"));
    }
    comes_back(&*machine, "a b/$(id)").await?;
    let token = tokens(&world.client).pop().ok_or("no token")?;
    running.stop().await.map_err(text)?;
    let left = remains(&token);
    if left.is_empty() { Ok(()) } else { Err(format!("left behind: {left:?}")) }
}

/// A file of bytes that no line or text holds is read as it was written.
async fn comes_back(machine: &dyn Sandbox, name: &str) -> Outcome {
    let bytes: Vec<u8> = (0..300_000_u32).map(|number| (number * 7) as u8).collect();
    machine.write_bytes(name, bytes.clone()).await.map_err(text)?;
    if machine.read_bytes(name, 1 << 20).await.map_err(text)? == bytes {
        Ok(())
    } else {
        Err("a file came back changed".to_owned())
    }
}

/// The plain transport over real SSH. Its contract has a suite of its own; this is what only a machine shows.
async fn scripts(world: World) -> Outcome {
    let refused = world.start("vagrant-basic", &[("vagrant.supervisor", "never")]).await.err().ok_or("H3 without tree kill")?;
    if refused.kind() != ErrorKind::TierRefused {
        return Err(format!("{refused}"));
    }
    let mut spec = world.spec("lxc-test", &[]);
    spec.settings["supervisor"] = "never".into();
    let running = world.client.start_spec(spec, StartOptions::new()).await.map_err(text)?;
    if !running.report().notes.iter().any(|note| note.contains("no supervisor")) {
        return Err(format!("the report does not say how commands go: {:?}", running.report().notes));
    }
    let machine = running.sandbox();
    let odd = "it's \u{e9} $(id) `x` \\\"\n";
    let said = machine.run(ExecRequest::new(["printf", "%s|", odd, "b"]).env("A", "1")).await.map_err(text)?;
    if said.stdout.text() != format!("{odd}|b|") {
        return Err(format!("{said:?}"));
    }
    let users = machine.run(ExecRequest::shell("id -un; pwd; cat >&2").stdin_bytes("in")).await.map_err(text)?;
    let root = machine.run(ExecRequest::new(["id", "-u"]).user("root")).await.map_err(text)?;
    if users.stdout.text() != "vagrant\n/home/vagrant\n" || users.stderr.text() != "in" || root.stdout.text() != "0\n" {
        return Err(format!("{users:?} {root:?}"));
    }
    let late = machine.run(ExecRequest::new(["sleep", "60"]).timeout(Duration::from_secs(1))).await.map_err(text)?;
    if late.outcome() != Ended::Killed(KillReason::Timeout) {
        return Err(format!("{late:?}"));
    }
    comes_back(&*machine, "a b/$(id)'\\").await?;
    // The line goes in the middle: the command ran once, and its end is told all the same.
    let token = tokens(&world.client).pop().ok_or("no token")?;
    let mut counting = machine.spawn(ExecRequest::shell("echo once >>ran; sleep 3; echo done")).await.map_err(text)?;
    until("the command runs", Duration::from_secs(20), || async { machine.read_bytes("ran", 100).await.is_ok() }).await?;
    if cut(&world, &token) == 0 {
        return Err("there was no connection to cut".to_owned());
    }
    let ended = counting.wait().await.map_err(text)?;
    let ran = machine.read_bytes("ran", 100).await.map_err(text)?;
    if ended.outcome != Ended::Exited(0) || ran != b"once\n" {
        return Err(format!("{:?} after the cut, and it left {:?}", ended.outcome, String::from_utf8_lossy(&ran)));
    }
    running.stop().await.map_err(text)?;
    let left = remains(&token);
    if left.is_empty() { Ok(()) } else { Err(format!("left behind: {left:?}")) }
}

const BESIDE: [(&str, &str); 4] = [
    (
        "Vagrantfile",
        "load File.expand_path('more.rb', __dir__)\nVagrant.configure('2') do |c|\n  c.vm.box = 'tierbox/debian12'\n  \
         c.vm.synced_folder '.', '/vagrant', disabled: true\n  c.vm.synced_folder 'shared', '/shared'\n  \
         c.vm.provision 'shell', path: 'setup.sh'\nend\n",
    ),
    ("more.rb", "Vagrant.configure('2') { |c| c.vm.provision 'shell', inline: 'echo loaded >/loaded' }\n"),
    ("setup.sh", "#!/bin/sh\ncp /shared/in /provisioned\n"),
    ("shared/in", "of this host\n"),
];

/// Paths beside the Vagrantfile mean the same in every environment that is made from it.
async fn beside(world: World) -> Outcome {
    let directory = world.files.join("beside");
    std::fs::create_dir_all(directory.join("shared")).map_err(text)?;
    for (name, contents) in BESIDE {
        std::fs::write(directory.join(name), contents).map_err(text)?;
    }
    let mut spec = world.spec("lxc-test", &[]);
    spec.settings["vagrantfile"] = directory.join("Vagrantfile").display().to_string().into();
    let start = || world.client.start_spec(spec.clone(), StartOptions::new());
    let (one, two) = tokio::join!(start(), start());
    let both = [one.map_err(text)?, two.map_err(text)?];
    for (number, running) in both.iter().enumerate() {
        let script = format!("cat /loaded /provisioned; echo {number} >/shared/out-{number}");
        let said = running.sandbox().run(ExecRequest::shell(script).user("root")).await.map_err(text)?;
        if said.stdout.text() != "loaded\nof this host\n" {
            return Err(format!("environment {number}: {said:?}"));
        }
    }
    // Each sees what the other wrote, and this host both.
    let seen = both[0].sandbox().run(ExecRequest::shell("cat /shared/out-1")).await.map_err(text)?;
    for running in both {
        running.stop().await.map_err(text)?;
    }
    let here = ["in", "out-0", "out-1"].map(|name| std::fs::read_to_string(directory.join("shared").join(name)).ok());
    let expected = ["of this host\n", "0\n", "1\n"].map(|text| Some(text.to_owned()));
    if seen.stdout.text() == "1\n" && here == expected { Ok(()) } else { Err(format!("{seen:?}, and here {here:?}")) }
}

/// As libvirt's plugin has them, where something goes between a list and a look.
async fn unforeseen(world: World) -> Outcome {
    let vagrantfile = copied(&world, "basic")?;
    let plain = std::fs::read_to_string(&vagrantfile).map_err(text)?;
    let accident = |times: u32| {
        format!(
            "{plain}\nrequire \"vagrant-lxc/action/create\"\nVagrant::LXC::Action::Create.prepend(Module.new do\n  def call(env)\n    \
             met = File.join(File.dirname(ENV.fetch(\"MET\")), \"met\")\n    File.write(met, \"x\", mode: \"a\")\n    \
             raise Errno::ENOLINK, \"gone meanwhile\" if File.size(met) <= {times}\n    super\n  end\nend)\n"
        )
    };
    let mut spec = world.spec("lxc-test", &[]);
    spec.settings["vagrantfile"] = vagrantfile.display().to_string().into();
    spec.settings["env"] = serde_json::json!({ "MET": vagrantfile });
    let met = world.files.join("copy/met");

    std::fs::write(&vagrantfile, accident(1)).map_err(text)?;
    world.client.start_spec(spec.clone(), StartOptions::new()).await.map_err(text)?.stop().await.map_err(text)?;
    let tries = std::fs::read(&met).map_err(text)?.len();
    if tries != 2 {
        return Err(format!("{tries} tries with one accident"));
    }
    std::fs::remove_file(&met).map_err(text)?;
    std::fs::write(&vagrantfile, accident(9)).map_err(text)?;
    let failed = world.client.start_spec(spec, StartOptions::new()).await.err().ok_or("it started")?;
    let tries = std::fs::read(&met).map_err(text)?.len();
    let is_told = failed.message().contains("gone meanwhile (Errno::ENOLINK)") && !failed.message().contains("warden.rb");
    if tries == 2 && is_told { Ok(()) } else { Err(format!("{tries} tries, and then {failed}")) }
}

async fn killed(world: World) -> Outcome {
    let vagrantfile = copied(&world, "basic")?;
    let mut child = starting(&world, "lxc-test", &vagrantfile, Some("booting"))?;
    let status = tokio::task::spawn_blocking(move || child.wait()).await.map_err(text)?.map_err(text)?;
    if status.code().is_some() {
        return Err(format!("it did not die where it should: {status}"));
    }
    cleaned(&world).await
}
