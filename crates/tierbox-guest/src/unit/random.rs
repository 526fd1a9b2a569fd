use proptest::collection::vec;
use proptest::prelude::*;
use tierbox_core::{DialTarget, ExecRequest, ReadOptions, Sandbox};
use tierbox_supervisor::protocol::{
    Done, End, Entry, ExecInfo, Failure, FromSupervisor, Killed, Kind, Mechanism, Meta, NotStarted, encode,
};
use tierbox_supervisor::wire::Blob;

use super::{LIMIT, pair, sandbox, soon};

fn blob() -> impl Strategy<Value = Blob> {
    vec(any::<u8>(), 0..64).prop_map(Blob)
}

fn meta() -> impl Strategy<Value = Meta> {
    (any::<u64>(), any::<u32>(), proptest::option::of(blob())).prop_map(|(size, mode, target)| {
        let kind = [Kind::File, Kind::Directory, Kind::Symlink, Kind::Other][mode as usize % 4].clone();
        Meta { kind, size, mode, uid: 0, gid: mode, modified_ns: size as i64, target }
    })
}

fn done() -> impl Strategy<Value = Done> {
    let end = prop_oneof![
        any::<i32>().prop_map(|code| End::Exited { code }),
        (-2..300).prop_map(|code| End::Exited { code }),
        any::<i32>().prop_map(|signal| End::Signaled { signal }),
        Just(End::Killed { reason: Killed::Memory }),
        Just(End::NotStarted { cause: NotStarted::BadCwd }),
    ];
    (end, any::<u64>(), any::<Option<u64>>()).prop_map(|(end, wall_us, other)| Done {
        end,
        cannot_execute: None,
        wall_us,
        user_us: other,
        system_us: other,
        peak_memory: other,
        stdout_total: wall_us,
        stderr_total: wall_us,
    })
}

fn message() -> impl Strategy<Value = FromSupervisor> {
    use FromSupervisor as From;
    prop_oneof![
        (any::<u8>(), blob()).prop_map(|(applied, detail)| From::Ready {
            mechanisms: vec![Mechanism { name: String::new(), applied, detail: String::from_utf8_lossy(&detail.0).into_owned() }],
            kill_domain: applied,
            memory_outcome: true,
            users: true
        }),
        any::<u32>().prop_map(|version| From::Welcome { version }),
        (0..4_u8, 0..200_u64, blob()).prop_map(|(stream, offset, data)| From::Output { stream, offset, data }),
        (0..4_u8, any::<u64>(), blob()).prop_map(|(stream, offset, data)| From::Output { stream, offset, data }),
        (0..4_u8).prop_map(|stream| From::OutputEnd { stream }),
        any::<u32>().prop_map(|bytes| From::InputCredit { bytes }),
        Just(From::InputClosed),
        any::<u32>().prop_map(|pid| From::Started { pid }),
        done().prop_map(|done| From::Done { done }),
        done().prop_map(|done| From::Execs {
            execs: vec![ExecInfo {
                id: [0; 16],
                argv: vec![],
                pid: None,
                detached: true,
                age_ms: done.wall_us,
                done: Some(done)
            }]
        }),
        meta().prop_map(|meta| From::Meta { meta }),
        (meta(), blob()).prop_map(|(meta, data)| From::Contents { meta, data }),
        meta().prop_map(|meta| From::Opened { meta }),
        vec((blob(), meta()), 0..4).prop_map(|entries| From::Entries {
            entries: entries.into_iter().map(|(name, meta)| Entry { name, meta }).collect()
        }),
        Just(From::Finished),
        any::<i32>().prop_map(|errno| From::Failed { failure: Failure::Io, errno, detail: "d".to_owned() }),
        Just(From::Dialed),
        Just(From::Pong),
    ]
}

/// Frames for calls that are open, for the channel, and for calls that never were; now and then no frame at all.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let frame = (0..12_u32, message()).prop_map(|(call, message)| encode(call, &message));
    let frames = prop_oneof![20 => frame, 1 => vec(any::<u8>(), 1..40)];
    vec(frames, 0..40).prop_map(|frames| frames.concat())
}

/// One of everything, whatever comes of it.
async fn use_everything(sandbox: &dyn Sandbox) {
    let framed = ExecRequest::new(["x"]).idle_timeout(LIMIT).stdin_stream();
    let detached = sandbox.spawn_detached(ExecRequest::new(["x"]));
    let plain = async {
        if let Ok(mut handle) = sandbox.spawn(ExecRequest::new(["x"])).await {
            let _ = handle.wait().await;
        }
    };
    let streamed = async {
        let Ok(mut handle) = sandbox.spawn(framed).await else { return };
        let mut sink = tokio::io::sink();
        if let Some(mut stdout) = handle.take_stdout() {
            let _ = tokio::io::copy(&mut stdout, &mut sink).await;
        }
        let _ = handle.wait().await;
    };
    let read = async {
        if let Ok((_, mut reader)) = sandbox.read(&"f".into(), ReadOptions::default()).await {
            let _ = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await;
        }
    };
    let dialled = async {
        if let Ok(mut stream) = sandbox.dial(DialTarget::Tcp(1)).await {
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        }
    };
    let path = "d".into();
    let _ = tokio::join!(
        plain,
        streamed,
        detached,
        sandbox.stat(&path, true),
        sandbox.list(&path),
        read,
        dialled,
        sandbox.execs(),
        sandbox.wait(tierbox_core::ExecId([0; 16])),
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a machine says, everything ends when it goes, nothing panics, and other machines are not touched.
    #[test]
    fn whatever_a_machine_says_ends_with_it(said in bytes()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut peer, sandbox) = sandbox();
            let machine = std::thread::spawn(move || {
                // After the first request, so that calls are open. The channel may be closed before all is said.
                let _ = peer.hear();
                let _ = std::io::Write::write_all(&mut peer.socket, &said);
                let _ = peer.socket.shutdown(std::net::Shutdown::Write);
                let _ = std::io::copy(&mut peer.socket, &mut std::io::sink());
            });
            soon(use_everything(&sandbox)).await;
            drop(sandbox);
            machine.join().unwrap();
            let (mut other, channel) = pair();
            other.say(0, &FromSupervisor::Started { pid: 1 });
            assert_eq!(soon(channel.closed()).await.kind(), tierbox_core::ErrorKind::Protocol);
        });
    }
}
