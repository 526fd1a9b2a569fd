use std::time::Duration;

use tierbox_core::{ErrorKind, ExecHandle, ExecRequest, Outcome, Sandbox};
use tierbox_supervisor::protocol::{CHUNK, End, Failure, FromSupervisor, STDOUT, ToSupervisor, WINDOW, encode};
use tierbox_supervisor::wire::Blob;
use tokio::io::AsyncReadExt;

use super::{Peer, capabilities, done, pair_with, sandbox, sandbox_with, soon};
use crate::GuestSandbox;

fn request() -> ExecRequest {
    ExecRequest::new(["/bin/true"])
}

/// A request whose streams travel in frames.
fn framed() -> ExecRequest {
    request().idle_timeout(Duration::from_secs(60))
}

async fn running(request: ExecRequest) -> (Peer, GuestSandbox, Box<dyn ExecHandle>, u32) {
    let (mut peer, sandbox) = sandbox();
    let handle = sandbox.spawn(request).await.unwrap();
    let (call, _) = peer.hear_exec();
    (peer, sandbox, handle, call)
}

/// Everything pending is lost, and what comes later is refused for the machine's fault.
async fn assert_broken(sandbox: &GuestSandbox, mut handle: Box<dyn ExecHandle>) {
    assert_eq!(soon(handle.wait()).await.unwrap().outcome, Outcome::Lost);
    assert_eq!(sandbox.spawn(request()).await.err().unwrap().kind(), ErrorKind::Protocol);
    assert_eq!(sandbox.stat(&"x".into(), true).await.unwrap_err().kind(), ErrorKind::Protocol);
}

#[tokio::test]
async fn what_is_no_frame_breaks_the_channel() {
    for garbage in [b"\xff\xff\xff\xff\0\0\0\0".as_slice(), b"\x05\0\0\0\x01\0\0\0\xee", b"\x04\0\0\0\0\0\0\0", b"\x01\0\0\0\0"] {
        let (mut peer, sandbox, handle, _) = running(request()).await;
        peer.say_bytes(garbage);
        assert_broken(&sandbox, handle).await;
    }
}

#[tokio::test]
async fn messages_out_of_place_break_the_channel() {
    type Bad = fn(u32) -> Vec<u8>;
    let cases: [Bad; 9] = [
        |call| encode(call, &FromSupervisor::Output { stream: STDOUT, offset: 0, data: Blob(b"x".to_vec()) }),
        |call| encode(call, &FromSupervisor::OutputEnd { stream: 3 }),
        |call| encode(call, &FromSupervisor::InputCredit { bytes: 1 }),
        |call| encode(call, &FromSupervisor::Dialed),
        |call| encode(call, &done(End::Exited { code: 256 })),
        |call| encode(call, &done(End::Signaled { signal: 0 })),
        |_| encode(0, &FromSupervisor::Pong),
        |_| encode(0, &FromSupervisor::Welcome { version: 1 }),
        |_| encode(0, &FromSupervisor::Started { pid: 1 }),
    ];
    for bad in cases {
        let (mut peer, sandbox, handle, call) = running(request()).await;
        peer.say_bytes(&bad(call));
        assert_broken(&sandbox, handle).await;
    }
}

#[tokio::test]
async fn a_descriptor_breaks_the_channel() {
    let (mut peer, sandbox, handle, call) = running(request()).await;
    peer.say_with_descriptor(&encode(call, &FromSupervisor::Started { pid: 1 }));
    assert_broken(&sandbox, handle).await;
}

#[tokio::test]
async fn output_beyond_the_window_breaks_the_channel_and_what_came_stands() {
    let (mut peer, sandbox, mut handle, call) = running(framed()).await;
    let mut stdout = handle.take_stdout().unwrap();
    let piece = vec![b'x'; CHUNK];
    let count = WINDOW as usize / CHUNK;
    for index in 0..=count {
        let offset = (index * CHUNK) as u64;
        peer.say(call, &FromSupervisor::Output { stream: STDOUT, offset, data: Blob(piece.clone()) });
    }
    assert_broken(&sandbox, handle).await;
    let mut held = Vec::new();
    let error = soon(stdout.read_to_end(&mut held)).await.unwrap_err();
    assert_eq!(held.len(), WINDOW as usize, "no more than a window is held");
    assert_eq!(error.downcast::<tierbox_core::Error>().unwrap().kind(), ErrorKind::Protocol);
}

#[tokio::test]
async fn calls_that_never_were_are_tolerated_for_a_while() {
    let (mut peer, sandbox, mut handle, call) = running(request()).await;
    for stray in 0..10 {
        peer.say(1000 + stray, &FromSupervisor::Started { pid: 1 });
    }
    peer.say(call, &done(End::Exited { code: 3 }));
    assert_eq!(soon(handle.wait()).await.unwrap().outcome, Outcome::Exited(3));
    let handle = sandbox.spawn(request()).await.unwrap();
    for _ in 0..100 {
        peer.say_bytes(&encode(9999, &FromSupervisor::Started { pid: 1 }));
    }
    assert_broken(&sandbox, handle).await;
}

#[tokio::test]
async fn a_silent_machine_is_lost() {
    let (mut peer, channel) = pair_with(Duration::from_millis(10));
    let sandbox = sandbox_with(channel, capabilities());
    let mut handle = sandbox.spawn(request()).await.unwrap();
    assert_eq!(soon(handle.wait()).await.unwrap().outcome, Outcome::Lost);
    assert_eq!(sandbox.spawn(request()).await.err().unwrap().kind(), ErrorKind::Lost);
    peer.hear_exec();
    assert_eq!(peer.hear(), (0, ToSupervisor::Ping), "it was asked for a sign of life");
}

#[tokio::test]
async fn a_machine_that_answers_pings_is_waited_for() {
    let (mut peer, channel) = pair_with(Duration::from_millis(10));
    let sandbox = sandbox_with(channel, capabilities());
    let mut handle = sandbox.spawn(request()).await.unwrap();
    let (call, _) = peer.hear_exec();
    for _ in 0..5 {
        assert_eq!(peer.hear(), (0, ToSupervisor::Ping));
        peer.say(0, &FromSupervisor::Pong);
    }
    peer.say(call, &done(End::Exited { code: 0 }));
    assert_eq!(soon(handle.wait()).await.unwrap().outcome, Outcome::Exited(0));
}

#[tokio::test]
async fn a_machine_that_reads_nothing_makes_requests_wait() {
    let (peer, sandbox) = sandbox();
    let big = "x".repeat(200 << 10);
    let mut handles = Vec::new();
    let stuck = loop {
        let next = sandbox.spawn(ExecRequest::new(["/bin/true", &big]));
        match tokio::time::timeout(Duration::from_millis(100), next).await {
            Ok(handle) => handles.push(handle.unwrap()),
            Err(_) => break handles.len(),
        }
        assert!(handles.len() < 20, "requests pile up");
    };
    assert!(stuck >= 2);
    // Cancelling does not wait for anybody.
    drop(handles);
    drop(peer);
    assert_eq!(soon(sandbox.channel().closed()).await.kind(), ErrorKind::Lost);
}

#[tokio::test]
async fn a_listing_without_end_is_given_up_and_the_channel_lives() {
    use tierbox_supervisor::protocol::{Entry, Kind, Meta};
    let (mut peer, sandbox) = sandbox();
    let machine = std::thread::spawn(move || {
        let (call, _) = peer.hear_file();
        let meta = Meta { kind: Kind::File, size: 0, mode: 0, uid: 0, gid: 0, modified_ns: 0, target: None };
        let entry = Entry { name: Blob(vec![b'n'; 255]), meta };
        let frame = encode(call, &FromSupervisor::Entries { entries: vec![entry; 4000] });
        // 64 MiB are held at most; the rest is let pass.
        for _ in 0..80 {
            peer.say_bytes(&frame);
        }
        peer.say(call, &FromSupervisor::Finished);
        let call = loop {
            if let (call, ToSupervisor::File { .. }) = peer.hear() {
                break call;
            }
        };
        peer.say(call, &FromSupervisor::Failed { failure: Failure::NotFound, errno: 2, detail: String::new() });
    });
    assert_eq!(soon(sandbox.list(&"d".into())).await.unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(soon(sandbox.stat(&"d".into(), true)).await.unwrap_err().kind(), ErrorKind::NotFound);
    machine.join().unwrap();
}
