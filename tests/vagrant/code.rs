//! Code tasks on a virtual machine: the cases that every backend has to pass.

use libtest_mimic::Trial;
use tierbox::StartOptions;

use crate::world::{Outcome, World, text, trial};
use crate::{cases, keeper};

/// All tests.
pub fn all() -> Vec<Trial> {
    vec![trial("libvirt", "vm_required::conformance::code_tasks", tasks)]
}

async fn tasks(world: World) -> Outcome {
    let mut spec = world.spec("vagrant-basic", &[]);
    // The cases begin and end with an empty directory, which no home is.
    spec.workdir = Some("/tmp/code-tasks".to_owned());
    let running = world.client.start_spec(spec, StartOptions::new()).await.map_err(text)?;
    let environment = keeper::shown(running);
    let own = environment.clone();
    // A case that fails must not keep the machine from being ended.
    let done = tokio::spawn(async move { cases::run_all(&own, true).await }).await;
    environment.stop().await.map_err(text)?;
    done.map_err(|_| "a case failed, and said above which and why".to_owned())
}
