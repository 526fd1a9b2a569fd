//! Every operation is recorded, whatever comes of it.
#![cfg(all(feature = "local", target_os = "linux"))]

mod support;

mod conformance {
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use tierbox::{
        Audit, AuditEntry, AuditOperation, AuditOutcome, Error, ErrorKind, ExecRequest, GuestPath, KillReason, Outcome,
        Principal, Result, Running, SandboxExt, StartOptions,
    };

    use crate::support::{Fixture, fixture, started};

    #[derive(Default)]
    struct Memory {
        entries: Mutex<Vec<AuditEntry>>,
        full: std::sync::atomic::AtomicBool,
    }

    impl Audit for Memory {
        fn record(&self, entry: AuditEntry) {
            self.entries.lock().unwrap().push(entry);
        }

        fn check(&self) -> Result<()> {
            if self.full.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(Error::new(ErrorKind::NoSpace, "record operation", "the log is full"));
            }
            Ok(())
        }
    }

    impl Memory {
        fn of(&self, operation: &AuditOperation) -> Vec<AuditEntry> {
            let entries = self.entries.lock().unwrap();
            entries.iter().filter(|entry| entry.operation == *operation).cloned().collect()
        }

        /// Waits for the n-th entry about an operation.
        async fn entry(&self, operation: AuditOperation, number: usize) -> AuditEntry {
            let deadline = Instant::now() + Duration::from_secs(20);
            loop {
                if let Some(entry) = self.of(&operation).into_iter().nth(number) {
                    return entry;
                }
                assert!(Instant::now() < deadline, "no entry {number} about {operation:?}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    async fn recorded(fixture: &Fixture) -> Option<(Running, Arc<Memory>)> {
        let memory = Arc::new(Memory::default());
        let options = StartOptions::new().audit(memory.clone());
        let running = started(fixture.client.start_with("local", options).await)?;
        Some((running, memory))
    }

    fn outcome(entry: &AuditEntry) -> Outcome {
        match &entry.outcome {
            AuditOutcome::Ended { completed } => completed.outcome,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_command_is_its_start_and_its_end_with_what_it_printed() {
        let fixture = fixture();
        let Some((running, memory)) = recorded(&fixture).await else { return };
        let request = ExecRequest::shell("cat; echo oops >&2; exit 3").stdin_bytes("hello").env("GREETING", "hi");
        running.run(request).await.unwrap();
        let execs = memory.of(&AuditOperation::Exec);
        assert_eq!(execs.len(), 2, "{execs:?}");
        assert_eq!((&execs[0].outcome, execs[0].exec), (&AuditOutcome::Started, execs[1].exec));
        assert!(execs[0].exec.is_some() && execs.iter().all(|entry| entry.environment == running.id()));
        assert_eq!(execs[0].arguments["argv"][2], "cat; echo oops >&2; exit 3");
        assert_eq!(execs[0].arguments["env"]["GREETING"], "hi");
        assert_eq!((&*execs[0].data[0].stream, &*execs[0].data[0].kept), ("stdin", b"hello".as_slice()));
        assert_eq!(outcome(&execs[1]), Outcome::Exited(3));
        let printed: Vec<_> = execs[1].data.iter().map(|data| (&*data.stream, &*data.kept, data.total)).collect();
        assert_eq!(printed, [("stdout", b"hello".as_slice(), 5), ("stderr", b"oops\n", 5)]);
        assert!(execs[1].duration.is_some());
        running.stop().await.unwrap();
        let steps: Vec<_> = memory
            .of(&AuditOperation::Lifecycle)
            .iter()
            .map(|entry| entry.arguments["step"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(steps, ["start", "ready", "stopped"]);
    }

    #[tokio::test]
    async fn big_output_is_counted_and_its_first_part_kept() {
        let fixture = fixture();
        let Some((running, memory)) = recorded(&fixture).await else { return };
        // Nobody takes the streams: they are recorded all the same.
        let mut handle = running.spawn(ExecRequest::shell("head -c 3000000 /dev/zero")).await.unwrap();
        handle.wait().await.unwrap();
        let end = memory.entry(AuditOperation::Exec, 1).await;
        assert_eq!((end.data[0].total, end.data[0].kept.len()), (3_000_000, tierbox::DEFAULT_KEEP));
        running.stop().await.unwrap();
        fixture.assert_empty().await;
    }

    #[tokio::test]
    async fn what_fails_is_killed_or_given_up_is_recorded() {
        let fixture = fixture();
        let Some((running, memory)) = recorded(&fixture).await else { return };
        running.run(ExecRequest::new(["/bin/sleep", "60"]).timeout(Duration::from_millis(50))).await.unwrap();
        assert_eq!(outcome(&memory.entry(AuditOperation::Exec, 1).await), Outcome::Killed(KillReason::Timeout));
        running.run(ExecRequest::new(Vec::<&str>::new())).await.unwrap_err();
        let refused = memory.entry(AuditOperation::Exec, 2).await;
        assert!(matches!(&refused.outcome, AuditOutcome::Failed { kind, .. } if kind == "invalid-input"), "{refused:?}");
        drop(running.spawn(ExecRequest::new(["/bin/sleep", "60"])).await.unwrap());
        assert_eq!(memory.entry(AuditOperation::Exec, 4).await.outcome, AuditOutcome::Abandoned);
        let collected = running.run(ExecRequest::new(["/bin/sleep", "60"]));
        assert!(tokio::time::timeout(Duration::from_millis(50), collected).await.is_err());
        assert_eq!(memory.entry(AuditOperation::Exec, 6).await.outcome, AuditOutcome::Abandoned);
        let mut cancelled = running.spawn(ExecRequest::new(["/bin/sleep", "60"])).await.unwrap();
        cancelled.kill(KillReason::Cancelled);
        cancelled.wait().await.unwrap();
        assert_eq!(outcome(&memory.entry(AuditOperation::Exec, 8).await), Outcome::Killed(KillReason::Cancelled));
        assert_eq!(memory.of(&AuditOperation::Kill).len(), 2);
        running.stop().await.unwrap();
        fixture.assert_empty().await;
    }

    #[tokio::test]
    async fn files_are_recorded_with_their_contents_and_failures() {
        let fixture = fixture();
        let Some((running, memory)) = recorded(&fixture).await else { return };
        running.write_bytes("a", "contents").await.unwrap();
        assert_eq!(&*memory.of(&AuditOperation::Write)[0].data[0].kept, b"contents");
        running.read_bytes("a", 100).await.unwrap();
        let read = memory.entry(AuditOperation::Read, 0).await;
        assert_eq!((&read.outcome, read.data[0].total), (&AuditOutcome::Done, 8));
        running.read_bytes("none", 100).await.unwrap_err();
        let missing = memory.entry(AuditOperation::Read, 1).await;
        assert!(matches!(&missing.outcome, AuditOutcome::Failed { kind, .. } if kind == "not-found"), "{missing:?}");
        running.make_dir(&GuestPath::from("d")).await.unwrap();
        running.stat(&GuestPath::from("d"), false).await.unwrap();
        running.list(&GuestPath::from(".")).await.unwrap();
        running.remove(&GuestPath::from("d"), false).await.unwrap();
        for operation in [AuditOperation::MakeDir, AuditOperation::Stat, AuditOperation::List, AuditOperation::Remove] {
            let entries = memory.of(&operation);
            assert_eq!((entries.len(), &entries[0].outcome), (1, &AuditOutcome::Done), "{operation:?}");
        }
        running.stop().await.unwrap();
        fixture.assert_empty().await;
    }

    #[tokio::test]
    async fn the_agent_is_told_from_the_harness() {
        let fixture = fixture();
        let Some((running, memory)) = recorded(&fixture).await else { return };
        running.agent().run(ExecRequest::new(["/bin/true"])).await.unwrap();
        running.run(ExecRequest::new(["/bin/true"])).await.unwrap();
        let principals: Vec<_> = memory.of(&AuditOperation::Exec).iter().map(|entry| entry.principal).collect();
        assert_eq!(principals, [Principal::Agent, Principal::Agent, Principal::Harness, Principal::Harness]);
        running.stop().await.unwrap();
        fixture.assert_empty().await;
    }

    #[tokio::test]
    async fn nothing_happens_unrecorded() {
        let fixture = fixture();
        let Some((running, memory)) = recorded(&fixture).await else { return };
        memory.full.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(running.run(ExecRequest::new(["/bin/true"])).await.unwrap_err().kind(), ErrorKind::NoSpace);
        assert_eq!(running.write_bytes("a", "b").await.unwrap_err().kind(), ErrorKind::NoSpace);
        memory.full.store(false, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(running.read_bytes("a", 9).await.unwrap_err().kind(), ErrorKind::NotFound);
        running.stop().await.unwrap();
        fixture.assert_empty().await;
    }
}
