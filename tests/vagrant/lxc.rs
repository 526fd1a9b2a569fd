//! LXC as the second provider: quick, and a container that is none of H1.

use libtest_mimic::Trial;
use tierbox::{ErrorKind, ExecRequest, SandboxExt, StartOptions};

use crate::lifecycle::{cleaned, copied, starting};
use crate::world::{Outcome, World, remains, text, tokens, trial};

/// All tests.
pub fn all() -> Vec<Trial> {
    vec![
        trial("lxc", "vm_required::lxc::a_container_works_and_is_called_what_it_is", works),
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
    let root = machine.run(ExecRequest::new(["id", "-u"]).user("root")).await.map_err(text)?;
    if root.stdout.text() != "0\n" {
        return Err(format!("{root:?}"));
    }
    let bytes: Vec<u8> = (0..300_000_u32).map(|number| (number * 7) as u8).collect();
    machine.write_bytes("a b/$(id)", bytes.clone()).await.map_err(text)?;
    if machine.read_bytes("a b/$(id)", 1 << 20).await.map_err(text)? != bytes {
        return Err("a file came back changed".to_owned());
    }
    let token = tokens(&world.client).pop().ok_or("no token")?;
    running.stop().await.map_err(text)?;
    let left = remains(&token);
    if left.is_empty() { Ok(()) } else { Err(format!("left behind: {left:?}")) }
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
