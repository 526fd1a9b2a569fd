use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;

use tierbox_core::{
    Capabilities, ErrorKind, ExecId, ExecRequest, KillReason, NotStartedCause, Outcome, PtySize, Sandbox, SandboxExt, Signal,
    UserSupport,
};
use tierbox_supervisor::protocol::{
    End, Failure, FromSupervisor, Kill, NotStarted, OutputMode, STDERR, STDOUT, StdinMode, ToSupervisor,
};
use tierbox_supervisor::wire::Blob;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Peer, capabilities, done, pair, sandbox, sandbox_with, soon};

/// The ends that came with an exec: what the command would write to.
fn outputs(peer: &mut Peer) -> (std::fs::File, std::fs::File) {
    let stderr = peer.descriptors.pop().expect("stderr came");
    let stdout = peer.descriptors.pop().expect("stdout came");
    (stdout.into(), stderr.into())
}

fn exited(code: i32) -> FromSupervisor {
    done(End::Exited { code })
}

#[tokio::test]
async fn output_comes_through_passed_pipes() {
    let (mut peer, sandbox) = sandbox();
    let machine = std::thread::spawn(move || {
        let (call, exec) = peer.hear_exec();
        assert_eq!((exec.stdin, exec.output), (StdinMode::Null, OutputMode::Passed));
        let (mut stdout, mut stderr) = outputs(&mut peer);
        stdout.write_all(b"out").unwrap();
        stderr.write_all(b"err").unwrap();
        drop((stdout, stderr));
        peer.say(call, &FromSupervisor::Started { pid: 5 });
        peer.say(call, &exited(0));
        peer
    });
    let result = soon(sandbox.run(ExecRequest::new(["x"]))).await.unwrap();
    assert_eq!((result.outcome(), result.stdout.text(), result.stderr.text()), (Outcome::Exited(0), "out".into(), "err".into()));
    machine.join().unwrap();
}

#[tokio::test]
async fn the_end_of_the_command_is_the_end_of_its_output() {
    let (mut peer, sandbox) = sandbox();
    let mut handle = sandbox.spawn(ExecRequest::new(["x"])).await.unwrap();
    let (call, _) = peer.hear_exec();
    let (mut stdout, stderr) = outputs(&mut peer);
    stdout.write_all(b"said before the end").unwrap();
    peer.say(call, &exited(0));
    let mut reader = handle.take_stdout().unwrap();
    let mut text = String::new();
    soon(reader.read_to_string(&mut text)).await.unwrap();
    assert_eq!(text, "said before the end");
    // The background child that still holds the pipe is not killed by it: somebody reads on.
    assert_eq!(peer.hear(), (0, ToSupervisor::Linger { count: 1 }));
    assert_eq!(peer.descriptors.len(), 1);
    stdout.write_all(b"said after the end").unwrap();
    assert_eq!(soon(handle.wait()).await.unwrap().outcome, Outcome::Exited(0));
    assert_eq!(peer.hear(), (0, ToSupervisor::Linger { count: 1 }), "stderr was never taken, and is held too");
    drop(stderr);
}

#[tokio::test]
async fn waiting_drains_what_was_not_taken_and_may_be_repeated() {
    let (mut peer, sandbox) = sandbox();
    let mut handle = sandbox.spawn(ExecRequest::new(["x"])).await.unwrap();
    let (call, _) = peer.hear_exec();
    let (mut stdout, stderr) = outputs(&mut peer);
    assert!(tokio::time::timeout(Duration::from_millis(20), handle.wait()).await.is_err(), "it runs");
    let machine = std::thread::spawn(move || {
        for _ in 0..64 {
            stdout.write_all(&[0; 64 << 10]).unwrap();
        }
        drop((stdout, stderr));
        peer.say(call, &done(End::Signaled { signal: 9 }));
        peer
    });
    let first = soon(handle.wait()).await.unwrap();
    assert_eq!(first.outcome, Outcome::Signaled(9));
    assert_eq!(first.usage.wall, Duration::from_micros(1500));
    assert_eq!(soon(handle.wait()).await.unwrap(), first);
    assert!(handle.take_stdout().is_none());
    machine.join().unwrap();
}

#[tokio::test]
async fn dropping_the_handle_cancels_once_and_ended_commands_are_left_alone() {
    let (mut peer, sandbox) = sandbox();
    let handle = sandbox.spawn(ExecRequest::new(["x"])).await.unwrap();
    let (call, _) = peer.hear_exec();
    handle.kill(KillReason::OutputLimit);
    assert_eq!(peer.hear(), (call, ToSupervisor::Kill { reason: Kill::OutputLimit }));
    drop(handle);
    peer.say(call, &exited(1));
    let mut second = sandbox.spawn(ExecRequest::new(["x"])).await.unwrap();
    let (call, _) = peer.hear_exec();
    peer.descriptors.clear();
    peer.say(call, &exited(0));
    soon(second.wait()).await.unwrap();
    drop(second);
    let third = sandbox.spawn(ExecRequest::new(["x"])).await.unwrap();
    let (call, _) = peer.hear_exec();
    // From a thread that belongs to no runtime.
    std::thread::spawn(move || drop(third)).join().unwrap();
    assert_eq!(peer.hear(), (call, ToSupervisor::Kill { reason: Kill::Cancelled }));
}

#[tokio::test]
async fn a_handle_outlives_the_runtime_it_was_made_in() {
    let (mut peer, sandbox) = sandbox();
    let (mut handle, sandbox) = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        (runtime.block_on(sandbox.spawn(ExecRequest::new(["x"]))).unwrap(), sandbox)
    })
    .join()
    .unwrap();
    let (call, _) = peer.hear_exec();
    let (mut stdout, _) = outputs(&mut peer);
    let mut reader = handle.take_stdout().unwrap();
    let machine = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        stdout.write_all(b"late").unwrap();
        drop(stdout);
        peer.say(call, &exited(0));
        peer
    });
    let mut text = String::new();
    soon(reader.read_to_string(&mut text)).await.unwrap();
    assert_eq!(text, "late");
    assert_eq!(soon(handle.wait()).await.unwrap().outcome, Outcome::Exited(0));
    machine.join().unwrap();
    drop(sandbox);
}

#[tokio::test]
async fn big_input_needs_nobody_to_wait() {
    let (mut peer, sandbox) = sandbox();
    let input = vec![7; 1 << 20];
    let mut handle = sandbox.spawn(ExecRequest::new(["x"]).stdin_bytes(input.clone())).await.unwrap();
    let (call, exec) = peer.hear_exec();
    assert_eq!(exec.stdin, StdinMode::Passed);
    let (_, _) = outputs(&mut peer);
    let mut stdin: std::fs::File = peer.descriptors.pop().expect("stdin came").into();
    let mut got = Vec::new();
    stdin.read_to_end(&mut got).unwrap();
    assert!(got == input);
    peer.say(call, &exited(0));
    assert!(soon(handle.wait()).await.unwrap().outcome.success());
}

#[tokio::test]
async fn empty_input_is_a_pipe_at_its_end_and_small_input_is_there_at_once() {
    for input in [b"".as_slice(), b"abc"] {
        let (mut peer, sandbox) = sandbox();
        let _handle = sandbox.spawn(ExecRequest::new(["x"]).stdin_bytes(input)).await.unwrap();
        peer.hear_exec();
        let _outputs = outputs(&mut peer);
        let mut stdin: std::fs::File = peer.descriptors.pop().expect("stdin came").into();
        let mut got = Vec::new();
        stdin.read_to_end(&mut got).unwrap();
        assert_eq!(got, input);
    }
}

#[tokio::test]
async fn streamed_input_ends_with_its_writer_and_with_the_command() {
    let (mut peer, sandbox) = sandbox();
    let mut handle = sandbox.spawn(ExecRequest::new(["x"]).stdin_stream()).await.unwrap();
    let (call, _) = peer.hear_exec();
    let _outputs = outputs(&mut peer);
    let mut stdin: std::fs::File = peer.descriptors.pop().expect("stdin came").into();
    let mut writer = handle.take_stdin().unwrap();
    assert!(handle.take_stdin().is_none());
    writer.write_all(b"abc").await.unwrap();
    let mut got = [0; 3];
    stdin.read_exact(&mut got).unwrap();
    // A background child holds the pipe and does not read: the writer is told all the same.
    peer.say(call, &exited(0));
    soon(handle.wait()).await.unwrap();
    let full = vec![0; 1 << 20];
    assert_eq!(soon(writer.write_all(&full)).await.unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn a_terminal_is_framed_and_resized() {
    let (mut peer, sandbox) = sandbox();
    let request = ExecRequest::new(["x"]).pty(PtySize { rows: 24, cols: 80 }).stdin_stream();
    let mut handle = sandbox.spawn(request).await.unwrap();
    let (call, exec) = peer.hear_exec();
    assert_eq!((exec.output, exec.pty.map(|size| size.cols)), (OutputMode::Framed, Some(80)));
    handle.resize(PtySize { rows: 1, cols: 2 }).await.unwrap();
    assert!(matches!(peer.hear(), (_, ToSupervisor::Resize { size }) if size.cols == 2));
    handle.take_stdin().unwrap().write_all(b"ls\n").await.unwrap();
    assert_eq!(peer.hear(), (call, ToSupervisor::Input { data: Blob(b"ls\n".to_vec()) }));
    assert_eq!(peer.hear(), (call, ToSupervisor::InputEnd));
    peer.say(call, &FromSupervisor::Output { stream: STDOUT, offset: 0, data: Blob(b"a b".to_vec()) });
    peer.say(call, &FromSupervisor::OutputEnd { stream: STDOUT });
    peer.say(call, &FromSupervisor::OutputEnd { stream: STDERR });
    peer.say(call, &exited(0));
    let mut text = String::new();
    handle.take_stdout().unwrap().read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "a b");
    let plain = sandbox.spawn(ExecRequest::new(["x"])).await.unwrap();
    assert_eq!(plain.resize(PtySize { rows: 1, cols: 1 }).await.unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn consumed_output_is_granted_again() {
    let (mut peer, sandbox) = sandbox();
    let mut handle = sandbox.spawn(ExecRequest::new(["x"]).idle_timeout(Duration::from_secs(9))).await.unwrap();
    let (call, _) = peer.hear_exec();
    let machine = std::thread::spawn(move || {
        let total: u32 = 8 << 20;
        let (mut sent, mut window) = (0, 1 << 20);
        let piece = Blob(vec![b'x'; 32 << 10]);
        while sent < total {
            while window < 32 << 10 {
                match peer.hear() {
                    (_, ToSupervisor::Credit { stream: STDOUT, bytes }) => window += bytes,
                    other => panic!("heard {other:?}"),
                }
            }
            peer.say(call, &FromSupervisor::Output { stream: STDOUT, offset: u64::from(sent), data: piece.clone() });
            sent += 32 << 10;
            window -= 32 << 10;
        }
        peer.say(call, &exited(0));
        peer
    });
    let mut all = Vec::new();
    soon(handle.take_stdout().unwrap().read_to_end(&mut all)).await.unwrap();
    assert_eq!(all.len(), 8 << 20);
    assert!(soon(handle.wait()).await.unwrap().outcome.success());
    machine.join().unwrap();
}

#[tokio::test]
async fn what_cannot_run_says_why() {
    let causes = [
        (NotStarted::BadCwd, NotStartedCause::BadCwd, false),
        (NotStarted::UnknownUser, NotStartedCause::UnknownUser, false),
        (NotStarted::NoResources, NotStartedCause::NoResources, true),
        (NotStarted::NotAdmitted, NotStartedCause::NotAdmitted, false),
    ];
    for (cause, expected, again) in causes {
        let (mut peer, sandbox) = sandbox();
        let mut handle = sandbox.spawn(ExecRequest::new(["x"])).await.unwrap();
        let (call, _) = peer.hear_exec();
        peer.say(call, &done(End::NotStarted { cause }));
        let outcome = soon(handle.wait()).await.unwrap().outcome;
        assert_eq!(outcome, Outcome::NotStarted { cause: expected, retryable: again });
    }
}

#[tokio::test]
async fn a_request_beyond_the_longest_frame_never_leaves() {
    let (mut peer, sandbox) = sandbox();
    let mut handle = sandbox.spawn(ExecRequest::new(["x".to_owned(), "y".repeat(5 << 20)])).await.unwrap();
    let outcome = soon(handle.wait()).await.unwrap().outcome;
    assert_eq!(outcome, Outcome::NotStarted { cause: NotStartedCause::TooBig, retryable: false });
    assert!(handle.take_stdout().is_none());
    peer.hear_nothing();
}

#[tokio::test]
async fn what_is_not_declared_is_refused_before_anything_is_sent() {
    let (mut peer, channel) = pair();
    let none = Capabilities {
        streaming_stdin: false,
        pty: false,
        signals: false,
        idle_timeout: false,
        detached_exec: false,
        users: UserSupport::DefaultOnly,
        files: false,
        archives: false,
        dial: false,
        ..capabilities()
    };
    let sandbox = sandbox_with(channel, none);
    let path = "x".into();
    let request = || ExecRequest::new(["x"]);
    let size = PtySize { rows: 1, cols: 1 };
    let refused = [
        sandbox.spawn(request().stdin_stream()).await.err(),
        sandbox.spawn(request().pty(size)).await.err(),
        sandbox.spawn(request().idle_timeout(Duration::from_secs(1))).await.err(),
        sandbox.spawn(request().user("root")).await.err(),
        sandbox.spawn_detached(request()).await.err(),
        sandbox.execs().await.err(),
        sandbox.attach(ExecId([0; 16]), 0, 0).await.err(),
        sandbox.signal(ExecId([0; 16]), Signal::TERM).await.err(),
        sandbox.stat(&path, false).await.err(),
        sandbox.read(&path, Default::default()).await.err(),
        sandbox.pack(&path).await.err(),
        sandbox.dial(tierbox_core::DialTarget::Tcp(1)).await.err(),
    ];
    for error in refused {
        assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::Unsupported));
    }
    assert_eq!(sandbox.spawn(ExecRequest::new::<&str>([])).await.err().unwrap().kind(), ErrorKind::InvalidInput);
    peer.hear_nothing();
}

#[tokio::test]
async fn a_detached_command_is_left_alone_and_found_again() {
    let (mut peer, sandbox) = sandbox();
    let machine = std::thread::spawn(move || {
        let (call, exec) = peer.hear_exec();
        assert!(exec.detached);
        peer.say(call, &FromSupervisor::Started { pid: 5 });
        assert_eq!(peer.hear(), (call, ToSupervisor::Detach));
        // What was on its way is no fault.
        peer.say(call, &FromSupervisor::Output { stream: STDOUT, offset: 0, data: Blob(b"x".to_vec()) });
        let (call, ToSupervisor::Attach { id, stdout_from: 3, .. }) = peer.hear() else { panic!("no attach") };
        assert_eq!(id, exec.id);
        assert_eq!(peer.hear(), (0, ToSupervisor::Ping));
        peer.say(call, &FromSupervisor::Attached { stdout: 2, stderr: 0 });
        peer.say(call, &FromSupervisor::Started { pid: 5 });
        peer.say(0, &FromSupervisor::Pong);
        peer.say(call, &FromSupervisor::Output { stream: STDOUT, offset: 10, data: Blob(b"rest".to_vec()) });
        peer.say(call, &exited(0));
        let (call, ToSupervisor::Attach { .. }) = peer.hear() else { panic!("no attach") };
        peer.hear();
        peer.say(call, &FromSupervisor::Failed { failure: Failure::NotFound, errno: 0, detail: String::new() });
        peer.say(0, &FromSupervisor::Pong);
        peer
    });
    let id = soon(sandbox.spawn_detached(ExecRequest::new(["x"]))).await.unwrap();
    let mut handle = soon(sandbox.attach(id, 3, 0)).await.unwrap();
    assert_eq!(handle.retained(), Some([2, 0]));
    let mut text = String::new();
    soon(handle.take_stdout().unwrap().read_to_string(&mut text)).await.unwrap();
    assert_eq!(text, "rest");
    assert!(soon(handle.wait()).await.unwrap().outcome.success());
    assert_eq!(soon(sandbox.attach(ExecId([9; 16]), 0, 0)).await.err().unwrap().kind(), ErrorKind::NotFound);
    machine.join().unwrap();
}

#[tokio::test]
async fn pipes_of_an_exec_close_on_this_side() {
    let (mut peer, sandbox) = sandbox();
    let mut handle = sandbox.spawn(ExecRequest::new(["x"])).await.unwrap();
    peer.hear_exec();
    let (mut stdout, _stderr) = outputs(&mut peer);
    drop(handle.take_stdout());
    // As in a pipeline whose reader went away.
    assert_eq!(stdout.write_all(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    let _: Vec<OwnedFd> = std::mem::take(&mut peer.descriptors);
}

/// A reader and then its handle are dropped: the command may die of its closed pipe first, and what it left behind goes too.
#[tokio::test]
async fn a_command_whose_pipe_was_closed_is_cancelled_with_all_it_left() {
    let (mut peer, sandbox) = sandbox();
    let mut handle = sandbox.spawn(ExecRequest::new(["x"])).await.unwrap();
    let (call, exec) = peer.hear_exec();
    drop(handle.take_stdout());
    peer.say(call, &done(End::Signaled { signal: 13 }));
    let mut stderr = String::new();
    drop(std::mem::take(&mut peer.descriptors));
    soon(handle.take_stderr().unwrap().read_to_string(&mut stderr)).await.unwrap();
    drop(handle);
    let (call, id) = loop {
        match peer.hear() {
            // Its end may not have been heard yet when the handle went.
            (_, ToSupervisor::Kill { reason: Kill::Cancelled }) => {}
            (call, ToSupervisor::KillById { id, reason: Kill::Cancelled }) => break (call, id),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(id, exec.id);
    peer.say(call, &FromSupervisor::Finished);
    // One that was waited for keeps what it left.
    let mut handle = sandbox.spawn(ExecRequest::new(["x"])).await.unwrap();
    let (call, _) = peer.hear_exec();
    drop(handle.take_stdout());
    drop(std::mem::take(&mut peer.descriptors));
    peer.say(call, &exited(0));
    soon(handle.wait()).await.unwrap();
    drop(handle);
    peer.hear_nothing();
}
