//! Verification on the local backend: it passes where all is well, and fails where it must.
#![cfg(all(feature = "local", target_os = "linux"))]

mod support;

mod conformance {
    use tierbox::verify::ProbeStatus;
    use tierbox::{SandboxExt, StartOptions};

    use crate::support::{fixture, started};

    #[tokio::test]
    async fn an_isolated_container_is_verified_and_the_record_is_reused() {
        let fixture = fixture();
        let Some(running) = started(fixture.client.start("local").await) else { return };
        let verified = running.verification().expect("local verifies once").clone();
        for probe in &verified.verification.probes {
            println!("{:?} {} {} [{:?}]", probe.status, probe.id, probe.detail, probe.control);
        }
        println!("{} ms", verified.verification.took_ms);
        let open: Vec<_> = verified.verification.probes.iter().filter(|probe| probe.status != ProbeStatus::Pass).collect();
        assert!(open.is_empty(), "{open:#?}");
        assert!(verified.verification.verified && !verified.reused);
        running.stop().await.unwrap();
        let again = started(fixture.client.start("local").await).unwrap();
        let reused = again.verification().unwrap();
        assert!(reused.reused);
        assert_eq!(reused.verification, verified.verification);
        assert!(again.run(tierbox::ExecRequest::new(["/bin/true"])).await.unwrap().success());
        again.stop().await.unwrap();
        let other = started(fixture.client.start_with("local", StartOptions::new().set("limits.pids", "512")).await).unwrap();
        assert!(!other.verification().unwrap().reused);
        other.stop().await.unwrap();
        fixture.assert_empty().await;
    }
}
