//! The host's side against a peer that speaks the protocol by hand, well or badly.

mod commands;
mod files;
mod handshake;
mod hostile;
mod random;

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tierbox_core::{Capabilities, HostIsolation, Limits, Locality, Network};
use tierbox_supervisor::protocol::{Decoder, Done, End, Exec, FileOp, FromSupervisor, ToSupervisor, encode};

use crate::{Channel, GuestConfig, GuestSandbox};

/// No wait in these tests is longer.
const LIMIT: Duration = Duration::from_secs(10);

/// A supervisor by hand. It blocks, which is fine: the channel is read by the driver's thread.
struct Peer {
    socket: UnixStream,
    decoder: Decoder,
    descriptors: Vec<OwnedFd>,
}

impl Peer {
    /// The next frame; panics if none comes.
    fn hear(&mut self) -> (u32, ToSupervisor) {
        loop {
            if let Some(frame) = self.decoder.next_frame().expect("the host speaks well") {
                return (frame.call, frame.message);
            }
            let mut buffer = vec![0; 64 << 10];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC;
            let message =
                recvmsg(&self.socket, &mut [IoSliceMut::new(&mut buffer)], &mut ancillary, flags).expect("a frame comes");
            assert_ne!(message.bytes, 0, "the host hung up");
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    self.descriptors.extend(descriptors);
                }
            }
            self.decoder.push(&buffer[..message.bytes]);
        }
    }

    /// Asserts that the host says nothing for a moment.
    fn hear_nothing(&mut self) {
        self.socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut byte = [0];
        assert!(self.socket.read(&mut byte).is_err(), "the host said something");
        self.socket.set_read_timeout(Some(LIMIT)).unwrap();
    }

    fn hear_exec(&mut self) -> (u32, Exec) {
        match self.hear() {
            (call, ToSupervisor::Exec { exec }) => (call, exec),
            other => panic!("heard {other:?}"),
        }
    }

    fn hear_file(&mut self) -> (u32, FileOp) {
        match self.hear() {
            (call, ToSupervisor::File { op }) => (call, op),
            other => panic!("heard {other:?}"),
        }
    }

    fn say(&mut self, call: u32, message: &FromSupervisor) {
        self.say_bytes(&encode(call, message));
    }

    fn say_bytes(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).expect("the host listens");
    }

    fn say_with_descriptor(&mut self, bytes: &[u8]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = [self.socket.as_fd()];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::empty()).unwrap();
    }
}

fn pair_with(patience: Duration) -> (Peer, Channel) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(LIMIT)).unwrap();
    theirs.set_write_timeout(Some(LIMIT)).unwrap();
    let channel = Channel::socket_with(ours, patience).unwrap();
    (Peer { socket: theirs, decoder: Decoder::default(), descriptors: Vec::new() }, channel)
}

fn pair() -> (Peer, Channel) {
    pair_with(Duration::from_secs(10))
}

fn capabilities() -> Capabilities {
    Capabilities { networks: vec![Network::N0], ..crate::capabilities(HostIsolation::H0, Locality::Local) }
}

fn sandbox_with(channel: Channel, capabilities: Capabilities) -> GuestSandbox {
    let (name, agent) = ("main".to_owned(), "agent".to_owned());
    GuestSandbox::new(channel, GuestConfig { name, backend: "test", capabilities, limits: Limits::default(), agent })
}

fn sandbox() -> (Peer, GuestSandbox) {
    let (peer, channel) = pair();
    (peer, sandbox_with(channel, capabilities()))
}

fn done(end: End) -> FromSupervisor {
    let done = Done {
        end,
        cannot_execute: None,
        wall_us: 1500,
        user_us: Some(1),
        system_us: None,
        peak_memory: None,
        stdout_total: 0,
        stderr_total: 0,
    };
    FromSupervisor::Done { done }
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, work).await.expect("it ends in time")
}
