//! Commands, files and streams on a real supervisor, over both kinds of channel.

mod support;

mod unit {
    use std::time::Duration;

    use tierbox_core::{
        DialTarget, ErrorKind, ExecRequest, ExecState, KillReason, NotStartedCause, Outcome, PtySize, ReadOptions, Sandbox,
        SandboxExt, Signal,
    };
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::support::{Line, machine, soon};

    /// Defines a test for each kind of channel.
    macro_rules! on_both {
        ($($(#[$meta:meta])* async fn $name:ident($machine:ident) $body:block)+) => {
            mod passed { use super::*; $($(#[$meta])* #[tokio::test] async fn $name() { super::$name(Line::Socket).await }  )+ }
            mod framed { use super::*; $($(#[$meta])* #[tokio::test] async fn $name() { super::$name(Line::Pipes).await }  )+ }
            $(async fn $name(line: Line) { let $machine = machine(line).await; $body })+
        };
    }

    on_both! {
        async fn output_status_and_environment(m) {
            let request = ExecRequest::shell("printf %s \"$GREETING\"; pwd >&2; exit 3").env("GREETING", "hi");
            let result = soon(m.sandbox.run(request)).await.unwrap();
            assert_eq!(result.outcome(), Outcome::Exited(3));
            assert_eq!(result.stdout.text(), "hi");
            assert_eq!(result.stderr.text().trim(), m.dir.path().to_str().unwrap());
            assert!(result.completed.usage.wall > Duration::ZERO);
        }

        async fn input_small_big_and_none(m) {
            for size in [0, 5, 70_000, 3 << 20] {
                let input = vec![b'x'; size];
                let mut request = ExecRequest::new(["cat"]).stdin_bytes(input.clone()).output_limit(8 << 20, Default::default());
                request.timeout = Some(Duration::from_secs(15));
                let result = soon(m.sandbox.run(request)).await.unwrap();
                assert_eq!((result.outcome(), result.stdout.total), (Outcome::Exited(0), size as u64));
                assert!(result.stdout.bytes() == input, "{size} bytes came back changed");
            }
            let none = soon(m.sandbox.run(ExecRequest::new(["readlink", "/proc/self/fd/0"]))).await.unwrap();
            assert_eq!(none.stdout.text(), "/dev/null\n");
        }

        async fn streamed_input_and_output(m) {
            let mut handle = m.sandbox.spawn(ExecRequest::new(["cat"]).stdin_stream()).await.unwrap();
            let (mut stdin, mut stdout) = (handle.take_stdin().unwrap(), handle.take_stdout().unwrap());
            for word in ["one", "two"] {
                stdin.write_all(word.as_bytes()).await.unwrap();
                let mut echo = [0; 3];
                soon(stdout.read_exact(&mut echo)).await.unwrap();
                assert_eq!(echo, word.as_bytes());
            }
            drop(stdin);
            assert_eq!(soon(stdout.read(&mut [0; 1])).await.unwrap(), 0);
            assert!(soon(handle.wait()).await.unwrap().outcome.success());
        }

        async fn much_output_is_bounded_and_counted(m) {
            let request = ExecRequest::shell("head -c 30000000 /dev/zero; echo end").output_limit(1000, Default::default());
            let result = soon(m.sandbox.run(request)).await.unwrap();
            assert_eq!((result.outcome(), result.stdout.total), (Outcome::Exited(0), 30_000_004));
            assert!(result.stdout.tail.ends_with(b"end\n"));
        }

        async fn output_beyond_its_limit_can_kill(m) {
            let request = ExecRequest::new(["yes"]).output_limit(100_000, tierbox_core::OnExceed::Kill);
            let result = soon(m.sandbox.run(request)).await.unwrap();
            assert_eq!((result.outcome(), result.stdout.head.len()), (Outcome::Killed(KillReason::OutputLimit), 100_000));
        }

        async fn a_background_child_does_not_hold_the_call(m) {
            let script = "(until [ -e go ]; do sleep 0.01; done; echo late; touch written; exec sleep 100) & echo now";
            let result = soon(m.sandbox.run(ExecRequest::shell(script))).await.unwrap();
            assert_eq!((result.outcome(), result.stdout.text().as_str()), (Outcome::Exited(0), "now\n"));
            // It does not die of writing to a pipe that this side no longer reads.
            let script = "touch go; until [ -e written ]; do sleep 0.01; done";
            assert!(soon(m.sandbox.run(ExecRequest::shell(script))).await.unwrap().success());
        }

        async fn timeout_cancel_and_signal(m) {
            let request = ExecRequest::new(["sleep", "60"]).timeout(Duration::from_millis(50));
            assert_eq!(soon(m.sandbox.run(request)).await.unwrap().outcome(), Outcome::Killed(KillReason::Timeout));
            let mut handle = m.sandbox.spawn(ExecRequest::new(["sleep", "61"])).await.unwrap();
            soon(handle.signal(Signal::TERM)).await.unwrap();
            assert_eq!(soon(handle.wait()).await.unwrap().outcome, Outcome::Signaled(15));
            assert_eq!(handle.signal(Signal::TERM).await.unwrap_err().kind(), ErrorKind::NotFound);
            let mut handle = m.sandbox.spawn(ExecRequest::new(["sleep", "62"])).await.unwrap();
            handle.kill(KillReason::Cancelled);
            assert_eq!(soon(handle.wait()).await.unwrap().outcome, Outcome::Killed(KillReason::Cancelled));
        }

        async fn a_dropped_handle_leaves_nothing(m) {
            let marker = m.dir.path().join("marker");
            std::fs::write(&marker, "").unwrap();
            let script = "setsid tail -f marker & setsid tail -f \"$PWD/marker\" & echo; wait";
            let mut handle = m.sandbox.spawn(ExecRequest::shell(script)).await.unwrap();
            soon(handle.take_stdout().unwrap().read(&mut [0])).await.unwrap();
            drop(handle);
            // The kernel tells whether anybody still has the file open.
            let in_use = || ExecRequest::shell("ls -l /proc/[0-9]*/fd 2>/dev/null | grep -q \"$PWD/marker\"");
            let gone = async { while m.sandbox.run(in_use()).await.unwrap().success() {} };
            tokio::time::timeout(Duration::from_secs(10), gone).await.expect("the tree is killed");
        }

        async fn what_cannot_run(m) {
            let missing = soon(m.sandbox.run(ExecRequest::new(["no-such-program"]))).await.unwrap();
            assert_eq!((missing.outcome(), missing.completed.cannot_execute), (Outcome::Exited(127), Some(2)));
            assert!(missing.stderr.total > 0);
            let nowhere = soon(m.sandbox.run(ExecRequest::new(["true"]).cwd("/no/such/dir"))).await.unwrap();
            assert_eq!(nowhere.outcome(), Outcome::NotStarted { cause: NotStartedCause::BadCwd, retryable: false });
        }

        async fn terminals(m) {
            let request = ExecRequest::shell("stty size; read x; echo got $x; stty size").pty(PtySize { rows: 30, cols: 90 });
            let mut handle = m.sandbox.spawn(request.stdin_stream()).await.unwrap();
            let (mut stdin, mut stdout) = (handle.take_stdin().unwrap(), handle.take_stdout().unwrap());
            let mut text = String::new();
            while !text.contains("30 90") {
                let mut piece = [0; 256];
                let count = soon(stdout.read(&mut piece)).await.unwrap();
                text.push_str(std::str::from_utf8(&piece[..count]).unwrap());
            }
            handle.resize(PtySize { rows: 31, cols: 91 }).await.unwrap();
            stdin.write_all(b"word\n").await.unwrap();
            soon(stdout.read_to_string(&mut text)).await.unwrap();
            assert!(text.contains("got word") && text.contains("31 91"), "{text}");
            assert!(soon(handle.wait()).await.unwrap().outcome.success());
        }

        async fn detached_commands(m) {
            let id = soon(m.sandbox.spawn_detached(ExecRequest::shell("echo a; sleep 0.2; echo b; exit 4"))).await.unwrap();
            let listed = soon(m.sandbox.execs()).await.unwrap();
            let info = listed.iter().find(|info| info.id == id).expect("it is listed");
            assert!(info.detached && info.state == ExecState::Running);
            let mut handle = soon(m.sandbox.attach(id, 2, 0)).await.unwrap();
            let mut text = String::new();
            soon(handle.take_stdout().unwrap().read_to_string(&mut text)).await.unwrap();
            assert_eq!(text, "b\n");
            assert_eq!(soon(m.sandbox.wait(id)).await.unwrap().outcome, Outcome::Exited(4));
            drop(handle);
            let mut again = soon(m.sandbox.attach(id, 0, 0)).await.unwrap();
            let mut text = String::new();
            soon(again.take_stdout().unwrap().read_to_string(&mut text)).await.unwrap();
            assert_eq!((text.as_str(), soon(again.wait()).await.unwrap().outcome), ("a\nb\n", Outcome::Exited(4)));
            let unknown = tierbox_core::ExecId([1; 16]);
            assert_eq!(soon(m.sandbox.wait(unknown)).await.unwrap_err().kind(), ErrorKind::NotFound);
            assert_eq!(soon(m.sandbox.kill(unknown, KillReason::Cancelled)).await.unwrap_err().kind(), ErrorKind::NotFound);
            assert_eq!(soon(m.sandbox.attach(unknown, 0, 0)).await.err().unwrap().kind(), ErrorKind::NotFound);
        }

        async fn a_machine_that_dies_loses_what_ran(m) {
            let mut handle = m.sandbox.spawn(ExecRequest::new(["sleep", "63"])).await.unwrap();
            m.sandbox.channel().shutdown();
            let outcome = soon(handle.wait()).await.unwrap().outcome;
            assert!(matches!(outcome, Outcome::Lost | Outcome::Killed(KillReason::Cancelled)), "{outcome:?}");
            soon(m.sandbox.channel().closed()).await;
            assert_eq!(m.sandbox.spawn(ExecRequest::new(["true"])).await.err().unwrap().kind(), ErrorKind::Lost);
        }

        async fn files_small_and_big(m) {
            for size in [0_usize, 10, 64 << 10, (64 << 10) + 1, 5 << 20] {
                let contents: Vec<u8> = (0..size).map(|index| (index % 251) as u8).collect();
                soon(m.sandbox.write_bytes("new/dir/f", contents.clone())).await.unwrap();
                assert!(soon(m.sandbox.read_bytes("new/dir/f", 8 << 20)).await.unwrap() == contents, "{size}");
            }
            assert_eq!(soon(m.sandbox.read_bytes("new/dir/f", 100)).await.unwrap_err().kind(), ErrorKind::TooLarge);
            let options = ReadOptions { offset: 251 * 4, length: Some(3), max: None };
            let (meta, mut reader) = soon(m.sandbox.read(&"new/dir/f".into(), options)).await.unwrap();
            let mut part = Vec::new();
            soon(reader.read_to_end(&mut part)).await.unwrap();
            assert_eq!((meta.size, part), (5 << 20, vec![0, 1, 2]));
            let names: Vec<_> = soon(m.sandbox.list(&"new/dir".into())).await.unwrap().into_iter().map(|e| e.name).collect();
            assert_eq!(names, [b"f"]);
            soon(m.sandbox.remove(&"new".into(), true)).await.unwrap();
            assert_eq!(soon(m.sandbox.stat(&"new".into(), false)).await.unwrap_err().kind(), ErrorKind::NotFound);
        }

        async fn archives_go_out_and_in(m) {
            soon(m.sandbox.write_bytes("a/b/f", vec![9; 200_000])).await.unwrap();
            let tar = soon(m.sandbox.pack(&"a".into())).await.unwrap();
            soon(m.sandbox.unpack(&"copy".into(), tar)).await.unwrap();
            assert!(soon(m.sandbox.read_bytes("copy/b/f", 1 << 20)).await.unwrap() == vec![9; 200_000]);
        }

        async fn streams_into_the_machine(m) {
            let path = m.dir.path().join("socket");
            let listener = tokio::net::UnixListener::bind(&path).unwrap();
            let echo = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await.unwrap();
            });
            let stream = soon(m.sandbox.dial(DialTarget::Unix("socket".into()))).await.unwrap();
            let (mut read, mut write) = tokio::io::split(stream);
            let sent = vec![5; 3 << 20];
            let expected = sent.clone();
            let sender = tokio::spawn(async move {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
                write
            });
            let mut got = Vec::new();
            soon(read.read_to_end(&mut got)).await.unwrap();
            assert!(got == expected);
            sender.await.unwrap();
            echo.await.unwrap();
            assert_eq!(soon(m.sandbox.dial(DialTarget::Tcp(1))).await.err().unwrap().kind(), ErrorKind::NotFound);
        }
    }
}
