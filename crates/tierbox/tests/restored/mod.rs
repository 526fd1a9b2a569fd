//! Machines that are put back are looked at anew.

mod conformance {
    use std::time::Duration;

    use tierbox::verify::ProbeStatus;
    use tierbox::{ErrorKind, Overrides, Running, Secret, StartOptions, Tierbox};

    use crate::sabotaged::{Harm, Restored, sabotaged};
    use crate::support::{Fixture, fixture, started};

    async fn start(fixture: &Fixture, restored: Restored) -> Option<(Tierbox, Running)> {
        let client = sabotaged("local", &fixture.state, Harm::Restored(restored));
        let running = started(client.start_with("local", StartOptions::new().log()).await)?;
        Some((client, running))
    }

    #[tokio::test]
    async fn what_was_put_back_is_verified_and_attested_anew() {
        let fixture = fixture();
        let Some((_, mut running)) = start(&fixture, Restored::Same).await else { return };
        let before = (running.verification().unwrap().clone(), running.attestation().unwrap());
        running.restore("clean").await.unwrap();
        let found = running.verification().unwrap();
        assert!(!found.reused && found.verification.verified && found.verification.time > before.0.verification.time);
        assert!(running.report().notes.iter().any(|note| note.starts_with("restored to clean")), "{:?}", running.report().notes);
        let run = running.logged_run().unwrap().unwrap();
        let attested = run.attestation.unwrap();
        assert!(run.attestation_matches && attested.time > before.1.time);
        assert_eq!(attested.verification.unwrap().time, found.verification.time);
        running.stop().await.unwrap();
        fixture.assert_empty().await;
    }

    #[tokio::test]
    async fn what_is_not_its_tier_any_more_or_cannot_be_probed_is_ended() {
        for restored in [Restored::WithoutSeccomp, Restored::Gone] {
            let fixture = fixture();
            let Some((client, mut running)) = start(&fixture, restored).await else { return };
            let error = running.restore("clean").await.unwrap_err();
            assert!(error.help().is_some_and(|help| help.contains("was ended")), "{error:?}");
            assert!(running.ended(Duration::from_secs(20)).await, "it lives on after {error}");
            if restored == Restored::WithoutSeccomp {
                assert_eq!(error.kind(), ErrorKind::TierRefused, "{error}");
                let attested = client.run(running.id()).unwrap().attestation.unwrap();
                assert!(attested.verification.is_some_and(|found| !found.verified), "the attestation tells of what was");
                let found = &running.verification().unwrap().verification;
                assert!(found.probes.iter().any(|probe| probe.status == ProbeStatus::Fail));
            }
            drop(running);
            assert!(tierbox::settle(Duration::from_secs(30)).await);
            fixture.assert_empty().await;
        }
    }

    /// What somebody else started from a profile that is not noted cannot be probed.
    #[tokio::test]
    async fn what_cannot_be_verified_again_is_not_put_back_or_says_so() {
        let fixture = fixture();
        let client = sabotaged("local", &fixture.state, Harm::Restored(Restored::Same));
        for always in [false, true] {
            // A secret that stands in the profile itself: it is then not noted.
            let shared = tempfile::tempdir().unwrap();
            let overrides =
                Overrides::new().secret_env("TOKEN", Secret::new(SECRET)).mount(shared.path(), format!("/mnt/{SECRET}"), false);
            let options = StartOptions::new().log().overrides(overrides).keepable();
            let options = if always { options.set("verify", "always") } else { options };
            let Some(mut started) = started(client.start_with("local", options).await) else { return };
            let id = started.keep().await.unwrap();
            drop(started);
            let mut found = client.attach(&id).await.unwrap();
            let restored = found.restore("clean").await;
            if always {
                assert_eq!(restored.unwrap_err().kind(), ErrorKind::Unsupported);
            } else {
                restored.unwrap();
                assert!(found.verification().is_none());
                let notes = &found.report().notes;
                assert!(notes.iter().any(|note| note.contains("could not be carried out again")), "{notes:?}");
            }
            found.stop().await.unwrap();
        }
        fixture.assert_empty().await;
    }

    const SECRET: &str = "a-value-that-is-secret";
}
