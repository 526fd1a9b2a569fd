//! Hostile profiles: a typed error before anything exists.

use std::path::PathBuf;

use tierbox_core::{EnvironmentSpec, ErrorKind, MountSpec};

use super::{Canary, attacks};
use crate::case::{Verdict, ensure, ensure_eq};
use crate::subject::Subject;

attacks! { "control":
    e52_hostile_mounts [Isolation] "Mounts of the root, of homes, of key directories and of engine sockets are refused.";
    e52_hostile_values [] "Names, directories, users and variables that no machine can have are refused.";
    e52_nothing_is_run [] "A value of a profile is never run as a command.";
}

const REFUSALS: &[ErrorKind] = &[
    ErrorKind::InvalidProfile,
    ErrorKind::InvalidInput,
    ErrorKind::Unsupported,
    ErrorKind::TierRefused,
    ErrorKind::PolicyDenied,
    ErrorKind::NotFound,
];

async fn refused(s: &Subject, what: &str, adjust: &(dyn Fn(&mut EnvironmentSpec) + Send + Sync)) -> Verdict {
    match s.factory.start(adjust).await {
        Ok(environment) => {
            environment.stop().await?;
            Err(crate::case::Fail::Broken(format!("{what} was accepted")))
        }
        Err(error) => {
            ensure!(REFUSALS.contains(&error.kind()), "{what}: expected a refusal, got {error:?}");
            Ok(())
        }
    }
}

async fn e52_hostile_mounts(s: Subject, canary: Canary) -> Verdict {
    let host = |path: &str| PathBuf::from(path);
    let own = PathBuf::from(canary.directory());
    let hostile: Vec<(PathBuf, &str)> = vec![
        (host("/"), "/mnt/x"),
        (host("/root"), "/mnt/x"),
        (host("/home"), "/mnt/x"),
        (host("/etc"), "/mnt/x"),
        (host("/root/.ssh"), "/mnt/x"),
        (host("/var/run/docker.sock"), "/mnt/x"),
        (host("/run"), "/mnt/x"),
        (host("/proc"), "/mnt/x"),
        (host("/sys"), "/mnt/x"),
        (host("/dev"), "/mnt/x"),
        (host("/tmp/../root"), "/mnt/x"),
        (host("relative"), "/mnt/x"),
        (host("/no/such/directory"), "/mnt/x"),
        (own.clone(), "relative"),
        (own.clone(), "/mnt/../../etc"),
        (own.clone(), "/"),
        (own.clone(), "/proc"),
        (own, "/mnt/a\0b"),
    ];
    for (host, guest) in hostile {
        let mount = MountSpec { host: host.clone(), guest: guest.to_owned(), writable: true };
        refused(&s, &format!("a mount of {} at {guest:?}", host.display()), &|spec| spec.mounts.push(mount.clone())).await?;
    }
    Ok(())
}

async fn e52_hostile_values(s: Subject, _: Canary) -> Verdict {
    let own_root: &[&str] = if s.can(crate::case::Need::Isolation) { &["/proc/1", "/../.."] } else { &[] };
    for workdir in ["", "relative", "/a\0b"].iter().chain(own_root) {
        refused(&s, &format!("the workdir {workdir:?}"), &|spec| spec.workdir = Some((*workdir).to_owned())).await?;
    }
    for user in ["", "a:b", "a\nb", "a\0b"] {
        refused(&s, &format!("the user {user:?}"), &|spec| spec.user = Some(user.to_owned())).await?;
    }
    for (name, value) in [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "x\0")] {
        refused(&s, &format!("the variable {name:?}"), &|spec| drop(spec.env.insert(name.to_owned(), value.to_owned()))).await?;
    }
    Ok(())
}

async fn e52_nothing_is_run(s: Subject, canary: Canary) -> Verdict {
    let touch = format!("$(touch {}/made);`touch {}/made`;touch {0}/made", canary.directory(), canary.directory());
    for change in 0..4 {
        let started = s
            .factory
            .start(&|spec| match change {
                0 => spec.profile = touch.clone(),
                1 => drop(spec.env.insert("HOSTILE".into(), touch.clone())),
                2 => spec.reason = Some(touch.clone()),
                _ => spec.programs = vec![touch.clone()],
            })
            .await;
        if let Ok(environment) = started {
            let ran = tierbox_core::SandboxExt::run(&*environment.primary(), tierbox_core::ExecRequest::new(["/bin/true"])).await;
            environment.stop().await?;
            ensure_eq!(ran?.success(), true, "a command in the environment");
        }
        canary.check()?;
    }
    Ok(())
}
