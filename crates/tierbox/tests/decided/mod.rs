//! What the gateway decided, in the log of a run.

mod conformance {
    use std::time::{Duration, Instant};

    use tierbox::verify::log::read;
    use tierbox::{ExecRequest, SandboxExt, StartOptions, Verdict};

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
}
