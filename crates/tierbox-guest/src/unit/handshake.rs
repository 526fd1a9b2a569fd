use std::time::Duration;

use tierbox_core::{Applied, ErrorKind, KillDomain};
use tierbox_supervisor::protocol::{FromSupervisor, Mechanism, TOO_MANY, ToSupervisor, VERSION};
use tierbox_supervisor::setup::{Agent, Mode, Setup};
use tierbox_supervisor::wire::{Blob, Wire};

use super::{LIMIT, Peer, pair, soon};
use crate::{Ready, SetupReply};

fn setup() -> Setup {
    let agent = Agent { name: "agent".to_owned(), uid: 1, gid: 1, home: Blob::from(b"/".as_slice()) };
    Setup::new(Mode::Guest, "m", agent, Blob::from(b"/".as_slice()))
}

fn ready() -> FromSupervisor {
    let mechanism = Mechanism { name: "seccomp".to_owned(), applied: 0, detail: "a\nb".to_owned() };
    FromSupervisor::Ready { mechanisms: vec![mechanism], kill_domain: 2, memory_outcome: true, users: false }
}

/// Takes the first frame as what it is: a set-up, which no other message looks like.
fn hear_setup(peer: &mut Peer) {
    let mut header = [0; 8];
    std::io::Read::read_exact(&mut peer.socket, &mut header).unwrap();
    let length = u32::from_le_bytes(header[..4].try_into().unwrap()) as usize - 4;
    let mut body = vec![0; length];
    std::io::Read::read_exact(&mut peer.socket, &mut body).unwrap();
    assert_eq!(Setup::from_bytes(&body), Ok(setup()));
}

#[tokio::test]
async fn a_machine_gets_ready_through_its_network() {
    let (mut peer, channel) = pair();
    peer.say(0, &FromSupervisor::Ready { mechanisms: vec![], kill_domain: 0, memory_outcome: false, users: false });
    assert_eq!(channel.closed().await.kind(), ErrorKind::Protocol, "an answer that nobody asked for");

    let (mut peer, channel) = pair();
    let machine = std::thread::spawn(move || {
        hear_setup(&mut peer);
        peer.say(0, &FromSupervisor::NetworkWanted { pid: 7 });
        assert_eq!(peer.hear(), (0, ToSupervisor::NetworkReady));
        peer.say(0, &ready());
        assert!(matches!(peer.hear(), (0, ToSupervisor::Hello { grace_ms: 1000, .. })));
        peer.say(0, &FromSupervisor::Welcome { version: VERSION });
        assert_eq!(peer.hear(), (0, ToSupervisor::Ping));
        peer.say(0, &FromSupervisor::Pong);
    });
    assert_eq!(channel.setup(&setup(), LIMIT).await.unwrap(), SetupReply::NetworkWanted { pid: 7 });
    let SetupReply::Ready(Ready { mechanisms, kill_domain, .. }) = channel.network_ready(LIMIT).await.unwrap() else {
        panic!("not ready")
    };
    assert_eq!((mechanisms[0].applied, mechanisms[0].detail.as_str()), (Applied::Enforced, "a\\nb"));
    assert_eq!(kill_domain, KillDomain::Cgroup);
    channel.hello(Duration::from_secs(1)).unwrap();
    channel.ping(LIMIT).await.unwrap();
    machine.join().unwrap();
}

#[tokio::test]
async fn a_refusal_tells_the_step() {
    let (mut peer, channel) = pair();
    let machine = std::thread::spawn(move || {
        hear_setup(&mut peer);
        peer.say(0, &FromSupervisor::Refused { step: "uid map".to_owned(), errno: 1, detail: "\x1b[2J".to_owned() });
    });
    let reply = channel.setup(&setup(), LIMIT).await.unwrap();
    assert_eq!(reply, SetupReply::Refused { step: "uid map".to_owned(), errno: 1, detail: "\\u{1b}[2J".to_owned() });
    machine.join().unwrap();
}

#[tokio::test]
async fn a_silent_or_vanishing_supervisor_ends_the_set_up() {
    let (peer, channel) = pair();
    let error = channel.setup(&setup(), Duration::from_millis(30)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    drop(peer);
    let (peer, channel) = pair();
    drop(peer);
    assert_eq!(soon(channel.setup(&setup(), LIMIT)).await.unwrap_err().kind(), ErrorKind::Lost);
}

#[tokio::test]
async fn another_version_closes_the_channel() {
    let (mut peer, channel) = pair();
    channel.hello(Duration::ZERO).unwrap();
    peer.say(0, &FromSupervisor::Welcome { version: VERSION + 1 });
    assert_eq!(soon(channel.closed()).await.kind(), ErrorKind::Protocol);
}

#[tokio::test]
async fn the_line_ends_with_its_last_handle() {
    let (mut peer, channel) = pair();
    let copy = channel.clone();
    drop(channel);
    copy.shutdown();
    drop(copy);
    assert_eq!(peer.hear(), (0, ToSupervisor::Shutdown));
    let mut rest = Vec::new();
    assert_eq!(std::io::Read::read_to_end(&mut peer.socket, &mut rest).unwrap(), 0);
}

fn too_many() -> FromSupervisor {
    FromSupervisor::Refused { step: TOO_MANY.to_owned(), errno: 0, detail: "256 are\nconnected".to_owned() }
}

/// Whoever is turned away has asked for nothing, and may come again: whether it was heard before or after it greeted.
#[tokio::test]
async fn a_client_that_is_turned_away_may_come_again() {
    for greets_first in [false, true] {
        let (mut peer, channel) = pair();
        peer.say(0, &too_many());
        if greets_first {
            assert!(channel.hello(Duration::ZERO).is_ok() || channel.is_closed());
        }
        drop(peer);
        let error = soon(channel.meet(Duration::ZERO, LIMIT)).await.unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::LimitReached, true), "{error}");
        assert!(error.message().contains("256 are\\nconnected"), "{error}");
    }
    // Who was let in is not turned away: nobody may be told that nothing was asked of a machine that was asked.
    let (mut peer, channel) = pair();
    channel.hello(Duration::ZERO).unwrap();
    peer.say(0, &FromSupervisor::Welcome { version: VERSION });
    peer.say(0, &too_many());
    assert_eq!(soon(channel.closed()).await.kind(), ErrorKind::Protocol);
}
