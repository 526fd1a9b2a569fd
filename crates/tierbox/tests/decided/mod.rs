//! What the gateway decided, in the log of a run.

mod conformance {
    use std::time::{Duration, Instant};

    use tierbox::verify::log::read;
    use tierbox::{ErrorKind, ExecRequest, SandboxExt, StartOptions, Verdict};

    use crate::sabotaged::{Harm, sabotaged};
    use crate::support::{fixture, started};

    /// Names that nobody lists: nothing leaves this host.
    const REFUSED: &str = "not-listed.tierbox.test";

    #[tokio::test]
    async fn decisions_are_lines_of_the_log_before_and_after_the_end() {
        let fixture = fixture();
        for is_dropped in [false, true] {
            let Some(running) = started(fixture.client.start_with("local-web", StartOptions::new().log()).await) else { return };
            let id = running.id().to_owned();
            running.run(ExecRequest::new(["/usr/bin/getent", "hosts", REFUSED])).await.unwrap();
            let asked = || {
                let decisions = fixture.client.run(&id).unwrap().decisions;
                decisions.into_iter().filter(|one| one.name == REFUSED).collect::<Vec<_>>()
            };
            let deadline = Instant::now() + Duration::from_secs(20);
            while asked().is_empty() {
                assert!(Instant::now() < deadline, "a run that goes on does not show what was decided");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert!(asked().iter().all(|one| one.verdict == Verdict::Refused && !one.verification), "{:?}", asked());
            let living = running.decisions().await.unwrap();
            if is_dropped {
                drop(running);
                assert!(tierbox::settle(Duration::from_secs(30)).await);
            } else {
                running.stop().await.unwrap();
            }
            let run = fixture.client.run(&id).unwrap();
            assert_eq!(run.decisions, living, "each is there once");
            let standing = run.check(None).unwrap();
            assert!(standing.is_intact() && standing.ended, "{standing:?}");
            let records = read(&run.directory).unwrap();
            let last = records.iter().rfind(|record| record.value["operation"] == "egress").unwrap();
            assert_eq!(last.value["arguments"]["decisions"], living.len(), "{last:?}");
            fixture.assert_empty().await;
        }
    }

    #[tokio::test]
    async fn a_start_that_fails_leaves_its_decisions_and_what_its_probes_found() {
        let fixture = fixture();
        let client = sabotaged("local", &fixture.state, Harm::Names(&["unasked.test"]));
        let error = match client.start_with("local-web", StartOptions::new().log()).await {
            Err(error) if error.kind() == ErrorKind::HostUnable => return drop(started(Err(error))),
            started => started.expect_err("its gateway lists other names"),
        };
        assert_eq!(error.kind(), ErrorKind::TierRefused);
        let runs: Vec<_> = std::fs::read_dir(fixture.state.path().join("tierbox/runs")).unwrap().flatten().collect();
        assert_eq!(runs.len(), 1);
        let run = client.run(runs[0].path().to_str().unwrap()).unwrap();
        assert!(run.decisions.iter().any(|one| one.verification && one.verdict == Verdict::Refused), "{:?}", run.decisions);
        let records = read(&run.directory).unwrap();
        let of = |operation: &str| records.iter().rfind(|record| record.value["operation"] == operation).unwrap();
        let found = &of("verification").value["arguments"];
        assert_eq!(found["verified"], false, "{found}");
        let failed = found["not-passed"].as_array().unwrap();
        assert!(failed.iter().any(|id| error.message().contains(id.as_str().unwrap())), "{found}");
        assert_eq!(of("egress").value["arguments"]["decisions"], run.decisions.len());
        let standing = tierbox::verify::log::check(&run.directory).unwrap();
        assert!(standing.is_intact(), "{standing:?}");
        fixture.assert_empty().await;
    }

    /// One that fails before there is a gateway says nothing of one.
    #[tokio::test]
    async fn a_start_without_a_gateway_has_no_decisions() {
        let fixture = fixture();
        let client = sabotaged("local", &fixture.state, Harm::Unable);
        client.start_with("local-web", StartOptions::new().log()).await.expect_err("nothing can start");
        let run = std::fs::read_dir(fixture.state.path().join("tierbox/runs")).unwrap().flatten().next().unwrap();
        let records = read(&run.path()).unwrap();
        assert!(records.iter().all(|record| record.value["operation"] != "egress"), "{records:?}");
        fixture.assert_empty().await;
    }
}
