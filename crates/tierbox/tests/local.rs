//! The facade on the local backend.
#![cfg(all(feature = "local", target_os = "linux"))]

mod processes;
mod support;

mod conformance {
    use std::time::{Duration, SystemTime};

    use tierbox::{CleanupOptions, ErrorKind, ExecRequest, Outcome, Overrides, Profile, SandboxExt, Standing, StartOptions};

    use crate::processes::{gone, here};
    use crate::support::{client, fixture, started};

    #[tokio::test]
    async fn a_profile_by_name_runs_a_command_and_leaves_nothing() {
        let fixture = fixture();
        let Some(running) = started(fixture.client.start("local").await) else { return };
        let result = running.run(ExecRequest::shell("echo $((6 * 7)); echo oops >&2; exit 3")).await.unwrap();
        assert_eq!(result.outcome(), Outcome::Exited(3));
        assert_eq!((result.stdout.text().as_str(), result.stderr.text().as_str()), ("42\n", "oops\n"));
        assert!(running.report().summary().starts_with("T0.H1.N2 on local, enforced by user namespace"));
        let listing = fixture.client.list().await.unwrap();
        assert_eq!((listing.environments[0].standing, listing.environments[0].alive), (Standing::Held, true));
        running.stop().await.unwrap();
        fixture.assert_empty().await;
    }

    #[tokio::test]
    async fn what_is_dropped_ends() {
        let fixture = fixture();
        let Some(running) = started(fixture.client.start("local").await) else { return };
        let mark = "4242.173";
        let _command = running.spawn(ExecRequest::new(["/bin/sleep", mark])).await.unwrap();
        here(mark).await;
        drop(running);
        assert!(tierbox::settle(Duration::from_secs(20)).await);
        gone(mark).await;
        fixture.assert_empty().await;
    }

    #[tokio::test]
    async fn a_collected_command_that_is_given_up_takes_its_children_along() {
        let fixture = fixture();
        let Some(running) = started(fixture.client.start("local").await) else { return };
        for round in 10..40 {
            let mark = format!("4242.2{round}7");
            let chatty = running.run(ExecRequest::shell(format!("/bin/sleep {mark} & exec yes")));
            tokio::select! {
                ended = chatty => panic!("it ended by itself: {ended:?}"),
                () = here(&mark) => {}
            }
            gone(&mark).await;
        }
        running.stop().await.unwrap();
        fixture.assert_empty().await;
    }

    #[tokio::test]
    async fn a_start_that_is_given_up_is_undone() {
        let fixture = fixture();
        if started(fixture.client.start("local").await).is_none() {
            return;
        }
        for micros in [0, 50, 500, 1000, 2000, 3000, 5000] {
            let start = fixture.client.start("local");
            drop(tokio::time::timeout(Duration::from_micros(micros), start).await);
        }
        assert!(tierbox::settle(Duration::from_secs(20)).await);
        fixture.assert_empty().await;
    }

    #[tokio::test]
    async fn a_start_that_takes_too_long_is_undone() {
        let fixture = fixture();
        let hurry = Overrides::new().limits(|limits| limits.startup = Duration::from_micros(10));
        let error = fixture.client.start_with("local", StartOptions::new().overrides(hurry)).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Timeout | ErrorKind::HostUnable), "{error}");
        fixture.assert_empty().await;
    }

    #[tokio::test]
    async fn the_end_of_a_lifetime_is_a_reason_of_its_own() {
        let fixture = fixture();
        let options = StartOptions::new().lifetime(Duration::from_secs(2));
        let Some(running) = started(fixture.client.start_with("local", options).await) else { return };
        let ended = running.run(ExecRequest::shell("echo begun; exec sleep 60")).await.unwrap();
        assert_eq!(ended.outcome(), Outcome::Killed(tierbox::KillReason::Lifetime));
        // What it printed until then is there.
        assert_eq!(ended.stdout.text(), "begun\n");
        assert!(running.ended(Duration::from_secs(20)).await);
        let late = running.run(ExecRequest::new(["/bin/true"])).await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::Expired, "{late}");
        assert_eq!(running.read_bytes("/etc/hostname", 100).await.unwrap_err().kind(), ErrorKind::Expired);
        running.stop().await.unwrap();
        fixture.assert_empty().await;
    }

    #[tokio::test]
    async fn a_kept_sandbox_is_found_again_by_name_and_ended() {
        let fixture = fixture();
        let options = StartOptions::new().name("box").keepable().env("GREETING", "hi");
        let Some(mut running) = started(fixture.client.start_with("local", options).await) else { return };
        assert!(running.is_attached());
        let id = running.keep().await.unwrap();
        assert!(!running.is_attached());
        running.write_bytes("file", "kept").await.unwrap();
        drop(running);

        let other = client(&fixture.state);
        let found = other.attach("box").await.unwrap();
        assert_eq!(found.id(), id);
        let result = found.agent().run(ExecRequest::shell("echo $GREETING; cat file")).await.unwrap();
        assert_eq!(result.stdout.text(), "hi\nkept");
        let report = other.cleanup(CleanupOptions::default()).await.unwrap();
        assert_eq!((report.removed.len(), report.kept.len()), (0, 1), "{report:?}");
        let taken = other.start_with("local", StartOptions::new().name("box")).await.unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
        drop(found);
        other.down("box").await.unwrap();
        assert_eq!(other.attach("box").await.unwrap_err().kind(), ErrorKind::NotFound);
        let shaped = other.start_with("local", StartOptions::new().name("local-7f3k2m")).await.map(drop).unwrap_err();
        assert_eq!(shaped.kind(), ErrorKind::InvalidInput, "a name like an id could come to mean another");
        fixture.assert_empty().await;
    }

    #[tokio::test]
    async fn a_detached_sandbox_ends_by_stop_too() {
        let fixture = fixture();
        let hold = tierbox::Hold::Until(SystemTime::now() + Duration::from_secs(60));
        let Some(running) = started(fixture.client.start_with("local", StartOptions::new().hold(hold)).await) else { return };
        assert!(!running.is_attached());
        let found = client(&fixture.state).attach(running.id()).await.unwrap();
        found.stop().await.unwrap();
        assert!(running.run(ExecRequest::new(["/bin/true"])).await.map_or(true, |result| !result.success()));
        fixture.assert_empty().await;
    }

    #[tokio::test]
    async fn an_attached_sandbox_cannot_be_taken_away() {
        let fixture = fixture();
        let Some(running) = started(fixture.client.start("local").await) else { return };
        assert_eq!(client(&fixture.state).down(running.id()).await.unwrap_err().kind(), ErrorKind::LimitReached);
        let report = client(&fixture.state).cleanup(CleanupOptions { kept: true, all: true }).await.unwrap();
        assert_eq!((report.removed.len(), report.kept.len()), (0, 1), "{report:?}");
        running.stop().await.unwrap();
    }

    #[tokio::test]
    async fn count_limits_name_what_runs() {
        let fixture = fixture();
        let one = || StartOptions::new().overrides(Overrides::new().limits(|limits| limits.max_environments = Some(1)));
        let Some(running) = started(fixture.client.start_with("local", one()).await) else { return };
        let error = client(&fixture.state).start_with("local", one()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LimitReached);
        assert!(error.message().contains(running.id()), "{error}");
        running.stop().await.unwrap();
        fixture.client.start_with("local", one()).await.unwrap().stop().await.unwrap();
    }

    #[tokio::test]
    async fn what_is_only_kept_for_the_next_start_makes_room_and_what_somebody_detached_does_not() {
        use tierbox_core::{Hold, LeaseHandle, Resource};
        let fixture = fixture();
        let left = |kind: &str| {
            let journal = fixture.client.journal().unwrap();
            let lease = journal.create(tierbox_lease::NewLease::new("local", "local", "T0.H1.N2")).unwrap();
            lease.record(&[Resource { kind: kind.to_owned(), id: "x".to_owned() }]).unwrap();
            lease.set_hold(Hold::Until(SystemTime::now() + Duration::from_secs(600))).unwrap();
            lease.release().unwrap();
        };
        let one = || StartOptions::new().overrides(Overrides::new().limits(|limits| limits.max_environments = Some(1)));
        left("spare");
        let Some(running) = started(fixture.client.start_with("local", one()).await) else { return };
        assert_eq!(fixture.client.list().await.unwrap().environments.len(), 1);
        running.stop().await.unwrap();
        left("another");
        assert_eq!(fixture.client.start_with("local", one()).await.unwrap_err().kind(), ErrorKind::LimitReached);
    }

    #[tokio::test]
    async fn the_tooling_axis_binds_the_agent_and_not_the_harness() {
        let fixture = fixture();
        let none = Profile::builder("none", "T2.H1.N2".parse().unwrap());
        let Some(running) = started(fixture.client.start_with(none, StartOptions::new()).await) else { return };
        assert!(running.run(ExecRequest::new(["/bin/true"])).await.unwrap().success());
        let agent = running.agent();
        assert_eq!(agent.run(ExecRequest::new(["/bin/true"])).await.unwrap_err().kind(), ErrorKind::PolicyDenied);
        assert_eq!(agent.read_bytes("/etc/passwd", 100).await.unwrap_err().kind(), ErrorKind::PolicyDenied);
        running.stop().await.unwrap();

        let named = Profile::builder("named", "T1.H1.N2".parse().unwrap()).programs(["/usr/bin/wc"]);
        let running = fixture.client.start_with(named, StartOptions::new()).await.unwrap();
        let agent = running.agent();
        running.write_bytes("text", "a b").await.unwrap();
        assert_eq!(agent.run(ExecRequest::new(["/usr/bin/wc", "-w", "text"])).await.unwrap().stdout.text(), "2 text\n");
        assert_eq!(agent.read_bytes("text", 100).await.unwrap(), b"a b");
        for denied in [ExecRequest::shell("true"), ExecRequest::new(["wc"])] {
            assert_eq!(agent.spawn(denied.clone()).await.err().unwrap().kind(), ErrorKind::PolicyDenied);
            assert_eq!(agent.spawn_detached(denied).await.unwrap_err().kind(), ErrorKind::PolicyDenied);
        }
        assert_eq!(agent.write_bytes("text", Vec::new()).await.unwrap_err().kind(), ErrorKind::PolicyDenied);
        running.stop().await.unwrap();
    }

    #[tokio::test]
    async fn a_tier_that_cannot_be_kept_is_refused_before_anything_exists() {
        let fixture = fixture();
        let machine = Profile::builder("machine", "T0.H3.N2".parse().unwrap()).backend("local");
        let error = fixture.client.start_with(machine, StartOptions::new()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TierRefused, "{error}");
        assert!(error.to_string().contains("H3"), "{error}");
        let error = fixture.client.start("no-such-profile").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnknownProfile);
        assert!(!fixture.state.path().join("tierbox/leases").exists(), "a refusal touches nothing");
    }

    #[tokio::test]
    async fn files_are_copied_in_and_reported() {
        let fixture = fixture();
        let source = tempfile::tempdir().unwrap();
        std::fs::create_dir(source.path().join("sub")).unwrap();
        std::fs::write(source.path().join("sub/file"), "x").unwrap();
        std::fs::write(source.path().join("single"), "y").unwrap();
        let options = StartOptions::new().copy_in(source.path(), "in").copy_in(source.path().join("single"), "/tmp/one");
        let Some(running) = started(fixture.client.start_with("local", options).await) else { return };
        let result = running.run(ExecRequest::shell("cat in/sub/file in/single /tmp/one")).await.unwrap();
        assert_eq!(result.stdout.text(), "xyy");
        assert_eq!(running.report().copied_in.len(), 2, "{:?}", running.report().copied_in);
        running.stop().await.unwrap();
    }

    #[tokio::test]
    async fn samples_run_at_once_with_values_of_their_own() {
        let fixture = fixture();
        if started(fixture.client.start("local").await).is_none() {
            return;
        }
        let sample = |number: usize| {
            let client = fixture.client.clone();
            async move {
                let running = client.start_with("local", StartOptions::new().env("SAMPLE", number.to_string())).await?;
                let result = running.run(ExecRequest::shell("echo $SAMPLE")).await?;
                running.stop().await?;
                Ok::<_, tierbox::Error>(result.stdout.text())
            }
        };
        let tasks: Vec<_> = (0..8).map(|number| tokio::spawn(sample(number))).collect();
        for (number, task) in tasks.into_iter().enumerate() {
            assert_eq!(task.await.unwrap().unwrap(), format!("{number}\n"));
        }
        assert!(tierbox::settle(Duration::from_secs(20)).await);
        fixture.assert_empty().await;
    }
}
