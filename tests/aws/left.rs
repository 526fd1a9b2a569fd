//! What other state directories left in an account is found by its tags.

use std::time::Duration;

use libtest_mimic::Trial;
use tierbox_core::{ExecRequest, LeaseHandle, SandboxExt};
use tierbox_ec2::{Ec2Backend, Whose};

use super::world::{Outcome, World, ensure, text, trial};

pub fn all() -> Vec<Trial> {
    vec![trial("left::expired_instances_are_ended_by_their_tags_and_no_others", expired)]
}

/// A harness died with its whole state directory: only tags tell.
async fn expired(world: World) -> Outcome {
    let (backend, settings) = (Ec2Backend::new(), world.server.settings());
    let (dead, living) = (world.usual().await?, world.usual().await?);
    let name = dead.lease.id().to_owned();
    std::mem::forget(dead.environment);
    let mine = |left: &[tierbox_ec2::Left]| left.iter().map(|each| each.environment.clone()).collect::<Vec<_>>();
    let none = backend.left(&settings, &Whose::Expired).await.map_err(text)?;
    ensure!(!mine(&none).contains(&name), "what is renewed was taken for dead: {none:?}");
    let both = backend.left(&settings, &Whose::Of(vec![name.clone()])).await.map_err(text)?;
    ensure!(both.len() == 1, "{both:?}");
    let tag = format!(
        "Action=CreateTags&Version=2016-11-15&ResourceId.1={}&Tag.1.Key=ExpiresAt&Tag.1.Value=2026-01-01T00:00:00Z",
        both[0].instance
    );
    world.server.signed("POST", "/", "ec2", &tag);
    world.server.signed("PUT", &format!("/{}/tierbox/{name}/left", world.server.bucket()), "s3", "left behind");
    let found = backend.left(&settings, &Whose::Expired).await.map_err(text)?;
    ensure!(mine(&found).contains(&name) && !mine(&found).contains(&living.lease.id().to_owned()), "{found:?}");
    let ours: Vec<_> = found.into_iter().filter(|left| left.environment == name).collect();
    let report = backend.end(&settings, &ours, &Whose::Expired).await.map_err(text)?;
    ensure!(report.failed.is_empty() && report.removed.len() == 2, "{report:?}");
    ensure!(world.server.objects().iter().all(|key| !key.contains("left")), "{:?}", world.server.objects());
    world
        .until(Duration::from_secs(20), "it is gone", || {
            world.server.instances().get(&ours[0].instance).is_some_and(|state| state == "terminated")
        })
        .await?;
    let again = backend.end(&settings, &ours, &Whose::Expired).await.map_err(text)?;
    ensure!(again.failed.is_empty() && again.removed.is_empty(), "{again:?}");
    let alive = living.environment.primary().run(ExecRequest::new(["true"])).await.map_err(text)?;
    ensure!(alive.success(), "another run was disturbed: {alive:?}");
    living.environment.stop().await.map_err(text)
}
