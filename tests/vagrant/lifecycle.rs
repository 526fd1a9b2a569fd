//! Deaths at bad moments: of the harness, of the machine, of the line between them; and starts that wait for each other.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, Stdio};
use std::time::Duration;

use libtest_mimic::Trial;
use tierbox::{CleanupOptions, ExecRequest, Outcome as Ended, SandboxExt, StartOptions};
use tokio::io::AsyncReadExt;

use crate::support::again;
use crate::world::{self, Outcome, World, printed, remains, text, tokens, trial, until};

/// All tests.
pub fn all() -> Vec<Trial> {
    vec![
        trial("libvirt", "vm_required::crash::early_points_leave_nothing", early_points),
        trial("libvirt", "vm_required::crash::killed_in_the_middle_of_up", killed),
        trial("libvirt", "vm_required::lifecycle::a_line_is_cut_and_a_machine_dies", cut_and_dead),
        trial("libvirt", "vm_required::lifecycle::starts_wait_for_each_other_across_processes", throttled),
    ]
}

fn word(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

/// A harness of its own process: it starts one environment.
pub fn starter() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let client = world::client(Path::new(&word("STARTER_STATE")));
    let mut spec = world::spec(&client, &word("STARTER_PROFILE"), &[]);
    spec.settings["vagrantfile"] = word("STARTER_VAGRANTFILE").into();
    if let Ok(count) = word("STARTER_MAX").parse::<u32>() {
        spec.settings["max-startups"] = count.into();
    }
    let started = runtime.block_on(client.start_spec(spec, StartOptions::new()));
    let said = match &started {
        Ok(running) => format!("started {}", running.id()),
        Err(error) => format!("failed {:?}", error.kind()),
    };
    let _ = writeln!(std::io::stdout(), "{said}");
    if let Ok(running) = started {
        let _ = runtime.block_on(running.stop());
    }
    ExitCode::SUCCESS
}

/// Starts such a harness. `at` is where it dies.
pub fn starting(world: &World, profile: &str, vagrantfile: &Path, at: Option<&str>) -> Result<Child, String> {
    let mut command = again::this_program_under(&[], "starter");
    command
        .env("STARTER_STATE", &world.state)
        .env("STARTER_PROFILE", profile)
        .env("STARTER_VAGRANTFILE", vagrantfile)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if let Some(at) = at {
        command.env("TIERBOX_CRASH_AT", at);
    }
    command.spawn().map_err(text)
}

/// A copy of an example, so that it can change or vanish.
pub fn copied(world: &World, example: &str) -> Result<PathBuf, String> {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../vagrantfiles").join(example).join("Vagrantfile");
    let to = world.files.join("copy");
    std::fs::create_dir_all(&to).map_err(text)?;
    std::fs::copy(from, to.join("Vagrantfile")).map_err(text)?;
    Ok(to.join("Vagrantfile"))
}

async fn dies(mut child: Child) -> Outcome {
    let status = tokio::task::spawn_blocking(move || child.wait()).await.map_err(text)?.map_err(text)?;
    if status.code().is_none() { Ok(()) } else { Err(format!("it did not die where it should: {status}")) }
}

/// Cleans up after the dead and looks for what is left.
pub async fn cleaned(world: &World) -> Outcome {
    let tokens = tokens(&world.client);
    if tokens.is_empty() {
        return Err("no lease tells of what was begun".to_owned());
    }
    let report = world.client.cleanup(CleanupOptions::default()).await.map_err(text)?;
    let left: Vec<String> = tokens.iter().flat_map(|token| remains(token)).collect();
    let leases = world.client.list().await.map_err(text)?.environments.len();
    if left.is_empty() && leases == 0 { Ok(()) } else { Err(format!("{left:?} and {leases} leases are left after {report:?}")) }
}

async fn early_points(world: World) -> Outcome {
    let vagrantfile = copied(&world, "basic")?;
    for point in ["lease", "rules", "written"] {
        dies(starting(&world, "vagrant", &vagrantfile, Some(point))?).await.map_err(|error| format!("{point}: {error}"))?;
        cleaned(&world).await.map_err(|error| format!("{point}: {error}"))?;
    }
    Ok(())
}

async fn killed(world: World) -> Outcome {
    let vagrantfile = copied(&world, "basic")?;
    // Another owner's machine-to-be must be left alone by the clean-up.
    let state = world.files.join("other");
    let other = World { client: world::client(&state), state, files: world.files.clone() };
    let mut bystander = starting(&other, "vagrant", &vagrantfile, None)?;
    until("the bystander's machine is made", Duration::from_secs(120), || async {
        tokens(&other.client).iter().any(|token| !machines(token).is_empty())
    })
    .await?;
    dies(starting(&world, "vagrant", &vagrantfile, Some("booting"))?).await?;
    std::fs::remove_file(&vagrantfile).map_err(text)?;
    cleaned(&world).await?;
    if tokens(&other.client).iter().all(|token| machines(token).is_empty()) {
        return Err("the clean-up took the machine of another owner".to_owned());
    }
    // Its Vagrantfile is gone too; what the death of this one leaves is removed all the same.
    bystander.kill().map_err(text)?;
    let _ = bystander.wait();
    cleaned(&other).await
}

fn machines(token: &str) -> Vec<String> {
    let listed = printed("virsh", &["-q", "-c", "qemu:///system", "list", "--all", "--name"]);
    listed.lines().filter(|name| name.contains(token)).map(str::to_owned).collect()
}

/// Ends the connection to a machine, as a network that went away would.
pub fn cut(world: &World, token: &str) -> usize {
    let home = world.state.join("vagrant").join(token);
    let mut count = 0;
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let is_ssh = std::fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name.trim() == "ssh");
        if is_ssh && std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == home) {
            let pid = entry.file_name().to_str().and_then(|pid| pid.parse().ok()).and_then(rustix::process::Pid::from_raw);
            if let Some(pid) = pid {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                count += 1;
            }
        }
    }
    count
}

async fn cut_and_dead(world: World) -> Outcome {
    let running = world.client.start_spec(world.spec("vagrant-basic", &[]), StartOptions::new()).await.map_err(text)?;
    let token = tokens(&world.client).pop().ok_or("no token")?;
    let machine = running.sandbox();

    let script = "echo once >> ran; for i in $(seq 1 60); do echo line $i; sleep 0.1; done";
    let mut counting = machine.spawn(ExecRequest::shell(script)).await.map_err(text)?;
    let mut stdout = counting.take_stdout().ok_or("no output")?;
    let mut seen = vec![0; 64];
    let mut count = stdout.read(&mut seen).await.map_err(text)?;
    seen.truncate(count);
    if cut(&world, &token) == 0 {
        return Err("there was no connection to cut".to_owned());
    }
    let mut rest = Vec::new();
    count += stdout.read_to_end(&mut rest).await.map_err(text)?;
    seen.extend(rest);
    let ended = counting.wait().await.map_err(text)?;
    let wanted: String = (1..=60).map(|number| format!("line {number}\n")).collect();
    if seen != wanted.as_bytes() || ended.outcome != Ended::Exited(0) {
        return Err(format!("{count} bytes and {:?} came through the cut", ended.outcome));
    }
    let ran = machine.read_bytes("ran", 100).await.map_err(text)?;
    if ran != b"once\n" {
        return Err(format!("the command left {:?}", String::from_utf8_lossy(&ran)));
    }

    let mut sleeping = machine.spawn(ExecRequest::new(["sleep", "1000"])).await.map_err(text)?;
    machine.run(ExecRequest::new(["true"])).await.map_err(text)?;
    let domain = machines(&token).pop().ok_or("no domain")?;
    printed("virsh", &["-q", "-c", "qemu:///system", "destroy", &domain]);
    let lost = tokio::time::timeout(Duration::from_secs(100), sleeping.wait()).await;
    match lost {
        Ok(Ok(completed)) if completed.outcome == Ended::Lost => {}
        other => return Err(format!("of a machine that died: {other:?}")),
    }
    if !running.ended(Duration::from_secs(10)).await {
        return Err("the environment is not told to have ended".to_owned());
    }
    running.stop().await.map_err(text)?;
    let left = remains(&token);
    if left.is_empty() { Ok(()) } else { Err(format!("left behind: {left:?}")) }
}

/// Vagrant runs, tells when, and fails before it makes anything.
pub const SLOW: &str = "
Vagrant.configure('2') do |config|
  config.vm.box = 'tierbox/debian12'
  config.trigger.before :up do |trigger|
    trigger.ruby do |_env, _machine|
      note = ->(what) { File.open(File.join(__dir__, 'times'), 'a') { |f| f.write(\"#{what}\\n\") } }
      note.call('begin')
      sleep 1.5
      note.call('end')
      raise 'far enough'
    end
  end
end
";

async fn throttled(world: World) -> Outcome {
    let vagrantfile = world.files.join("slow").join("Vagrantfile");
    std::fs::create_dir_all(world.files.join("slow")).map_err(text)?;
    std::fs::write(&vagrantfile, SLOW).map_err(text)?;
    let mut starters = Vec::new();
    for _ in 0..3 {
        let mut command = again::this_program_under(&[], "starter");
        command
            .env("STARTER_STATE", &world.state)
            .env("STARTER_PROFILE", "vagrant")
            .env("STARTER_VAGRANTFILE", &vagrantfile)
            .env("STARTER_MAX", "1")
            // The places are a user's; these are this test's own.
            .env("TIERBOX_STATE_DIR", world.files.join("places"))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        starters.push(command.spawn().map_err(text)?);
    }
    for mut starter in starters {
        let status = tokio::task::spawn_blocking(move || starter.wait()).await.map_err(text)?.map_err(text)?;
        if !status.success() {
            return Err(format!("a starter ended with {status}"));
        }
    }
    let times = std::fs::read_to_string(world.files.join("slow").join("times")).map_err(text)?;
    let wanted = "begin\nend\n".repeat(3);
    if times == wanted { Ok(()) } else { Err(format!("the starts ran as {times:?}")) }
}
