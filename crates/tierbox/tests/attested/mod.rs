//! What an attestation says, field by field.

mod conformance {
    use tierbox::verify::{Attestation, Verdict};
    use tierbox::{Overrides, Running, StartOptions};

    use crate::support::{Fixture, fixture, started};

    /// One with a folder of the host's, a limit of its own, and named programs.
    async fn start(fixture: &Fixture, shared: &std::path::Path) -> Option<Running> {
        let overrides = Overrides::new().mount(shared, "/mnt/shared", false).env("SEED", "7");
        let options = StartOptions::new().log().set("limits.pids", "77").allow_weaker().overrides(overrides);
        started(fixture.client.start_with("local-tools", options).await)
    }

    fn attested(running: &Running) -> Attestation {
        let run = running.logged_run().unwrap().expect("it is logged");
        assert!(run.attestation_matches);
        run.attestation.expect("it is written")
    }

    #[tokio::test]
    async fn every_field_says_what_is_there() {
        let fixture = fixture();
        let shared = tempfile::tempdir().unwrap();
        let Some(first) = start(&fixture, shared.path()).await else { return };
        let found = attested(&first);
        assert_eq!((found.environment.as_str(), found.tier.as_str()), (first.id(), "T1.H1.N2"));
        assert_eq!((found.profile.as_str(), found.backend.as_str(), found.locality.as_str()), ("local-tools", "local", "local"));
        assert_eq!((found.profile_sha256.len(), found.tierbox.as_str()), (64, env!("CARGO_PKG_VERSION")));

        let pids = found.limits.iter().find(|limit| limit.name == "pids").expect("a limit of pids");
        assert_eq!((pids.value.as_str(), pids.by.is_empty()), ("77", false), "{pids:?}");
        for limit in &found.limits {
            assert!(["enforced", "weaker", "absent"].contains(&limit.applied.as_str()), "{limit:?}");
        }
        let seccomp = found.mechanisms.iter().find(|mechanism| mechanism.name == "seccomp").expect("seccomp");
        assert_eq!(seccomp.applied, "enforced");

        let granted = &found.affordances;
        assert_eq!(granted.execution, "the named programs");
        assert!(granted.programs.contains(&"/usr/bin/cat".to_owned()) && !granted.programs.contains(&"/bin/sh".to_owned()));
        let mount = format!("{} -> /mnt/shared", shared.path().display());
        assert!(granted.mounts.iter().any(|each| each.starts_with(&mount)), "{:?}", granted.mounts);
        assert!(granted.variables.contains(&"SEED".to_owned()) && granted.network.is_empty() && !granted.approvals.is_empty());
        // The folder is the caller's doing, and not the profile's.
        assert!(found.weakened.iter().any(|each| each.contains("mount") && each.contains("code")), "{:?}", found.weakened);

        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        assert_eq!((found.host["kernel"].as_str(), found.host["boot-id"].as_str()), (kernel.as_str(), boot.trim()));
        assert!(
            !found.host["architecture"].is_empty() && !found.made_of["root"].is_empty() && !found.made_of["engine"].is_empty()
        );
        let link = found.log.expect("its place in the log");
        assert!(link.lines > 0 && link.hash.len() == 64);
        let looked = found.verification.expect("local is verified");
        assert_eq!((looked.reused, looked.verified, found.verdict), (false, true, Verdict::Verified));
        assert!(looked.time <= found.time && looked.machines == ["default"] && looked.unprobed.is_empty());
        first.stop().await.unwrap();

        // The next start rests on the first one's probes, and says of when they are; all else is its own.
        let second = start(&fixture, shared.path()).await.unwrap();
        let again = attested(&second);
        let reused = again.verification.expect("what the first one found");
        assert!(reused.reused && reused.time == looked.time && again.time > found.time);
        assert_eq!((again.profile_sha256, again.mechanisms.len()), (found.profile_sha256, found.mechanisms.len()));
        second.stop().await.unwrap();
        fixture.assert_empty().await;
    }
}
