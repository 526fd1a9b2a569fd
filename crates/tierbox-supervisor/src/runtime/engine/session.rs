//! What outlives a client's line: how far each side is, and what was sent and not acknowledged.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use super::Engine;
use super::connection::CHANNEL;
use super::timers::Timer;
use crate::protocol::{ACK_FRAMES, Failure, FromSupervisor, UNACKNOWLEDGED};

/// The longest that anything is kept for a client whose line dropped.
const LONGEST_GRACE: Duration = Duration::from_secs(24 * 60 * 60);

/// A client that may come back on another line.
#[derive(Debug)]
pub struct Session {
    /// Its name, which only its client knows.
    pub name: [u8; 16],
    /// Frames taken in.
    pub received: u64,
    grace: Duration,
    /// How often its line changed, so that an old deadline does not end it.
    lines: u32,
    told: u64,
    untold: usize,
    acknowledged: u64,
    kept: VecDeque<Rc<Vec<u8>>>,
    kept_bytes: usize,
}

/// Whether a frame belongs to the session rather than to its line.
pub fn is_counted(message: &FromSupervisor) -> bool {
    !matches!(message, FromSupervisor::Resumed { .. } | FromSupervisor::Ack { .. })
}

impl Session {
    /// A session that begins now.
    pub fn new(name: [u8; 16], grace_ms: u64) -> Self {
        let grace = Duration::from_millis(grace_ms).min(LONGEST_GRACE);
        Self { name, received: 0, grace, lines: 1, told: 0, untold: 0, acknowledged: 0, kept: VecDeque::new(), kept_bytes: 0 }
    }

    /// Whether so much waits for acknowledgement that output should wait.
    pub fn is_full(&self) -> bool {
        self.kept_bytes >= UNACKNOWLEDGED
    }

    /// Keeps a frame that is sent.
    pub fn sent(&mut self, frame: Rc<Vec<u8>>) {
        self.kept_bytes += frame.len();
        self.kept.push_back(frame);
    }

    /// Takes note of a frame that was taken in. What to acknowledge, if that is due.
    pub fn took(&mut self, bytes: usize) -> Option<u64> {
        self.received += 1;
        self.untold += bytes;
        if self.untold < UNACKNOWLEDGED / 4 && self.received - self.told < ACK_FRAMES {
            return None;
        }
        (self.told, self.untold) = (self.received, 0);
        Some(self.received)
    }

    /// Forgets what the other side has. False if it cannot have that many.
    pub fn acknowledged(&mut self, received: u64) -> bool {
        if received < self.acknowledged || received - self.acknowledged > self.kept.len() as u64 {
            return false;
        }
        for frame in self.kept.drain(..(received - self.acknowledged) as usize) {
            self.kept_bytes -= frame.len();
        }
        self.acknowledged = received;
        true
    }

    /// A new line: what the other side lacks.
    pub fn resume(&mut self, received: u64) -> Option<Vec<Rc<Vec<u8>>>> {
        self.lines = self.lines.wrapping_add(1);
        (self.told, self.untold) = (self.received, 0);
        self.acknowledged(received).then(|| self.kept.iter().cloned().collect())
    }
}

impl Engine {
    /// The line of a client is gone. A session waits for the next one, for as long as its client asked for.
    pub(super) fn lose_line(&mut self, id: u32) {
        if !self.connections.suspend(&self.poller, id) {
            return self.disconnect(id);
        }
        let Some(session) = self.connections.get(id).and_then(|connection| connection.session.as_ref()) else { return };
        let (grace, lines) = (session.grace, session.lines);
        self.timers.after(grace, Timer::Session(id, lines));
    }

    /// Nobody came back for a session in time.
    pub(super) fn end_session(&mut self, id: u32, lines: u32) {
        let Some(connection) = self.connections.get(id) else { return };
        let waits = !connection.is_connected() && connection.session.as_ref().is_some_and(|session| session.lines == lines);
        if waits {
            self.disconnect(id);
        }
    }

    /// A new line for a session. False if its client says what cannot be.
    pub(super) fn resume_session(&mut self, line: u32, name: &[u8; 16], received: u64) -> bool {
        let Some(session) = self.connections.session(name) else {
            self.fail_call(line, CHANNEL, Failure::NotFound, 0, "no such session, or nobody came back for it in time");
            self.connections.flush_one(&self.poller, line);
            return false;
        };
        if self.connections.resume(&self.poller, session, line, received).is_none() {
            self.disconnect(session);
            return false;
        }
        self.feed_client(session);
        true
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    fn frame(length: usize) -> Rc<Vec<u8>> {
        Rc::new(vec![0; length])
    }

    #[test]
    fn what_is_not_acknowledged_is_sent_again() {
        let mut session = Session::new([1; 16], 1000);
        (1..=3).for_each(|length| session.sent(frame(length)));
        assert!(session.acknowledged(1));
        let missing: Vec<usize> = session.resume(2).unwrap().iter().map(|frame| frame.len()).collect();
        assert_eq!(missing, [3]);
        assert!(session.resume(1).is_none(), "what was acknowledged is gone");
        assert!(session.resume(4).is_none(), "nobody can have what was not sent");
    }

    #[test]
    fn acknowledgements_are_due_after_bytes_and_after_frames() {
        let mut session = Session::new([1; 16], 1000);
        assert_eq!(session.took(UNACKNOWLEDGED / 4), Some(1));
        let due: Vec<u64> = (0..ACK_FRAMES).filter_map(|_| session.took(1)).collect();
        assert_eq!(due, [ACK_FRAMES + 1]);
    }

    #[test]
    fn a_full_session_lets_output_wait() {
        let mut session = Session::new([1; 16], 1000);
        session.sent(frame(UNACKNOWLEDGED));
        assert!(session.is_full());
        assert!(session.acknowledged(1) && !session.is_full());
    }
}
