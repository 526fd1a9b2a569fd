use std::io::{Read, Write};

use tierbox_core::{ByteReader, DialTarget, Error, ErrorKind, ReadOptions, Sandbox, SandboxExt, WriteOptions};
use tierbox_supervisor::protocol::{Dial, Entry, Failure, FileOp, FromSupervisor, Kind, Meta, STDOUT, ToSupervisor};
use tierbox_supervisor::wire::Blob;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Peer, sandbox, soon};

fn meta(size: u64) -> Meta {
    Meta { kind: Kind::File, size, mode: 0o100_644, uid: 1, gid: 1, modified_ns: 5, target: None }
}

fn failed(failure: Failure) -> FromSupervisor {
    FromSupervisor::Failed { failure, errno: 0, detail: String::new() }
}

fn pipe(peer: &mut Peer) -> std::fs::File {
    peer.descriptors.pop().expect("a pipe came").into()
}

fn kind_inside(error: std::io::Error) -> ErrorKind {
    error.downcast::<Error>().expect("ours is inside").kind()
}

#[tokio::test]
async fn a_small_file_needs_one_answer() {
    let (mut peer, sandbox) = sandbox();
    let machine = std::thread::spawn(move || {
        let (call, op) = peer.hear_file();
        assert!(matches!(op, FileOp::Read { passed: true, max: Some(10), .. }));
        peer.say(call, &FromSupervisor::Contents { meta: meta(2), data: Blob(b"hi".to_vec()) });
        let (call, _) = peer.hear_file();
        peer.say(call, &FromSupervisor::Contents { meta: meta(2), data: Blob(b"too much".to_vec()) });
        peer
    });
    assert_eq!(soon(sandbox.read_bytes("f", 10)).await.unwrap(), b"hi");
    assert_eq!(soon(sandbox.read_bytes("f", 3)).await.unwrap_err().kind(), ErrorKind::Protocol, "the bound is checked here");
    machine.join().unwrap();
}

#[tokio::test]
async fn a_big_file_is_whole_only_when_the_machine_says_so() {
    for (end, expected) in [(FromSupervisor::Finished, None), (failed(Failure::Io), Some(ErrorKind::Io))] {
        let (mut peer, sandbox) = sandbox();
        let machine = std::thread::spawn(move || {
            let (call, _) = peer.hear_file();
            let mut data = pipe(&mut peer);
            peer.say(call, &FromSupervisor::Opened { meta: meta(200_000) });
            data.write_all(&[1; 200_000]).unwrap();
            drop(data);
            peer.say(call, &end);
            peer
        });
        let (meta, mut reader) = soon(sandbox.read(&"f".into(), ReadOptions::default())).await.unwrap();
        assert_eq!((meta.size, meta.mode), (200_000, 0o644));
        let mut got = Vec::new();
        let result = soon(reader.read_to_end(&mut got)).await;
        match expected {
            None => assert_eq!((result.unwrap(), got.len()), (200_000, 200_000)),
            Some(kind) => assert_eq!(kind_inside(result.unwrap_err()), kind),
        }
        machine.join().unwrap();
    }
}

#[tokio::test]
async fn a_reader_that_is_dropped_gives_the_operation_up() {
    let (mut peer, sandbox) = sandbox();
    let machine = std::thread::spawn(move || {
        let (call, _) = peer.hear_file();
        peer.say(call, &FromSupervisor::Opened { meta: meta(1) });
        assert_eq!(peer.hear(), (call, ToSupervisor::Abort));
        peer.say(call, &failed(Failure::Interrupted));
        peer
    });
    drop(soon(sandbox.pack(&"d".into())).await.unwrap());
    machine.join().unwrap();
}

#[tokio::test]
async fn a_stream_longer_than_asked_for_is_cut() {
    let (mut peer, sandbox) = sandbox();
    let machine = std::thread::spawn(move || {
        let (call, _) = peer.hear_file();
        peer.say(call, &FromSupervisor::Opened { meta: meta(100_000) });
        let mut data = pipe(&mut peer);
        let _ = data.write_all(&[0; 100_000]);
        peer
    });
    let options = ReadOptions { length: Some(70_000), ..Default::default() };
    let (_, mut reader) = soon(sandbox.read(&"f".into(), options)).await.unwrap();
    let mut got = Vec::new();
    assert_eq!(kind_inside(soon(reader.read_to_end(&mut got)).await.unwrap_err()), ErrorKind::TooLarge);
    drop(reader);
    machine.join().unwrap();
}

#[tokio::test]
async fn small_contents_travel_inside_the_request() {
    let (mut peer, sandbox) = sandbox();
    let machine = std::thread::spawn(move || {
        let (call, op) = peer.hear_file();
        assert!(matches!(op, FileOp::Write { inline: Some(Blob(contents)), passed: false, .. } if contents == b"abc"));
        peer.say(call, &FromSupervisor::Finished);
        let (call, _) = peer.hear_file();
        peer.say(call, &failed(Failure::Interrupted));
    });
    soon(sandbox.write_bytes("f", "abc")).await.unwrap();
    assert!(soon(sandbox.write_bytes("f", "abc")).await.unwrap_err().is_retryable());
    machine.join().unwrap();
}

#[tokio::test]
async fn big_contents_are_committed_at_their_end() {
    let (mut peer, sandbox) = sandbox();
    let machine = std::thread::spawn(move || {
        let (call, op) = peer.hear_file();
        assert!(matches!(op, FileOp::Write { inline: None, passed: true, .. }));
        let mut got = Vec::new();
        pipe(&mut peer).read_to_end(&mut got).unwrap();
        assert_eq!(peer.hear(), (call, ToSupervisor::Commit));
        peer.say(call, &FromSupervisor::Finished);
        got
    });
    soon(sandbox.write_bytes("f", vec![3; 300_000])).await.unwrap();
    assert_eq!(machine.join().unwrap(), vec![3; 300_000]);
}

#[tokio::test]
async fn contents_that_cannot_be_read_are_never_committed() {
    let (mut peer, sandbox) = sandbox();
    let broken = failing_reader(200_000);
    let machine = std::thread::spawn(move || {
        let (call, _) = peer.hear_file();
        let mut got = Vec::new();
        pipe(&mut peer).read_to_end(&mut got).unwrap();
        assert_eq!(peer.hear(), (call, ToSupervisor::Abort));
    });
    let error = soon(sandbox.write(&"f".into(), broken, WriteOptions::default())).await.unwrap_err();
    assert_eq!((error.kind(), error.message().contains("disk on fire")), (ErrorKind::Io, true));
    machine.join().unwrap();
}

/// A reader that fails after some bytes.
fn failing_reader(count: u64) -> ByteReader {
    struct Fails;
    impl tokio::io::AsyncRead for Fails {
        fn poll_read(
            self: std::pin::Pin<&mut Self>,
            _cx: &mut std::task::Context<'_>,
            _buf: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Err(std::io::Error::other("disk on fire")))
        }
    }
    Box::new(tokio::io::repeat(1).take(count).chain(Fails))
}

#[tokio::test]
async fn a_write_that_the_machine_ends_early_stops() {
    let (mut peer, sandbox) = sandbox();
    let machine = std::thread::spawn(move || {
        let (call, _) = peer.hear_file();
        peer.say(call, &failed(Failure::NoSpace));
        // The pipe stays open and unread: the answer alone ends it.
        peer
    });
    let endless: ByteReader = Box::new(tokio::io::repeat(1));
    let error = soon(sandbox.write(&"f".into(), endless, WriteOptions::default())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    machine.join().unwrap();
}

#[tokio::test]
async fn names_that_lead_elsewhere_break_the_channel() {
    for name in [b"../x".as_slice(), b"..", b"", b"a\0b"] {
        let (mut peer, sandbox) = sandbox();
        let machine = std::thread::spawn(move || {
            let (call, _) = peer.hear_file();
            peer.say(call, &FromSupervisor::Entries { entries: vec![Entry { name: name.into(), meta: meta(0) }] });
            peer.say(call, &FromSupervisor::Finished);
            peer
        });
        assert_eq!(soon(sandbox.list(&"d".into())).await.unwrap_err().kind(), ErrorKind::Protocol);
        machine.join().unwrap();
    }
}

#[tokio::test]
async fn entries_are_sorted() {
    let (mut peer, sandbox) = sandbox();
    let machine = std::thread::spawn(move || {
        let (call, _) = peer.hear_file();
        for name in [b"b", b"\xff", b"a"] {
            peer.say(call, &FromSupervisor::Entries { entries: vec![Entry { name: name.as_slice().into(), meta: meta(0) }] });
        }
        peer.say(call, &FromSupervisor::Finished);
    });
    let names: Vec<Vec<u8>> = soon(sandbox.list(&"d".into())).await.unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, [b"a".to_vec(), b"b".to_vec(), b"\xff".to_vec()]);
    machine.join().unwrap();
}

#[tokio::test]
async fn paths_are_checked_before_anything_is_sent() {
    let (mut peer, sandbox) = sandbox();
    for bad in ["", "a\0b", &"x".repeat(5000)] {
        assert_eq!(sandbox.stat(&bad.into(), true).await.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    peer.hear_nothing();
}

#[tokio::test]
async fn a_dialled_stream_closes_each_direction_by_itself() {
    let (mut peer, sandbox) = sandbox();
    let machine = std::thread::spawn(move || {
        let (call, message) = peer.hear();
        assert_eq!(message, ToSupervisor::Dial { target: Dial::Tcp { port: 80 } });
        peer.say(call, &FromSupervisor::Dialed);
        assert_eq!(peer.hear(), (call, ToSupervisor::Input { data: Blob(b"ping".to_vec()) }));
        assert_eq!(peer.hear(), (call, ToSupervisor::InputEnd));
        peer.say(call, &FromSupervisor::Output { stream: STDOUT, offset: 0, data: Blob(b"pong".to_vec()) });
        peer.say(call, &FromSupervisor::OutputEnd { stream: STDOUT });
        assert_eq!(peer.hear(), (call, ToSupervisor::Abort));
        let (call, _) = peer.hear();
        peer.say(call, &failed(Failure::NotFound));
        peer
    });
    let mut stream = soon(sandbox.dial(DialTarget::Tcp(80))).await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut text = String::new();
    soon(stream.read_to_string(&mut text)).await.unwrap();
    assert_eq!(text, "pong");
    drop(stream);
    let error = soon(sandbox.dial(DialTarget::Unix("/s".into()))).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    machine.join().unwrap();
}
