//! What other state directories left in an account is found by its tags.

use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::json;
use tierbox_core::{ExecRequest, LeaseHandle, SandboxExt};
use tierbox_ec2::{Ec2Backend, Whose};
use tierbox_lease::CleanupOptions;

use super::world::{Outcome, World, ensure, text, trial};

pub fn all() -> Vec<Trial> {
    vec![
        trial("left::expired_instances_are_ended_by_their_tags_and_no_others", expired),
        trial("left::what_has_many_pages_goes_to_the_last", pages),
    ]
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

/// More objects than one listing tells, and instances over several pages.
async fn pages(world: World) -> Outcome {
    const OBJECTS: usize = 2100;
    world.server.set(json!({"page": 2}));
    let spec = world.spec(|spec| spec.settings["machines"] = json!(["a", "b", "c", "d", "e"]));
    let dead = world.start(&spec).await.map_err(text)?;
    let name = dead.lease.id().to_owned();
    let server = world.server.clone();
    let prefix = format!("/{}/tierbox/{name}", world.server.bucket());
    let put = move || (0..OBJECTS).for_each(|number| drop(server.signed("PUT", &format!("{prefix}/{number}"), "s3", "x")));
    tokio::task::spawn_blocking(put).await.map_err(text)?;
    let backend = Ec2Backend::new();
    let settings = world.server.settings();
    let mine = backend.left(&settings, &Whose::Of(vec![name.clone()])).await.map_err(text)?;
    ensure!(mine.len() == 5, "{mine:?}");
    // Its owner dies: the lock is free, and nothing was undone.
    std::mem::forget(dead.environment);
    drop(dead.lease);
    let report = tierbox_lease::cleanup(&world.journal, &world.registry(), CleanupOptions::default()).await.map_err(text)?;
    ensure!(report.failed.is_empty() && report.removed.iter().any(|line| line.contains(&name)), "{report:?}");
    world.until(Duration::from_secs(20), "all of it is gone", || world.is_clean()).await?;
    let left = backend.left(&settings, &Whose::Of(vec![name])).await.map_err(text)?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}
