//! Output of a command while it runs: short scripts that wait in the machine until there is some, and bring it.

use std::future::pending;
use std::io;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tierbox_core::{Error, ErrorKind, Result};
use tokio::sync::{Notify, mpsc};

use super::PlainRun;
use super::exec::{PlainCall, Yard};
use super::script::{FOLLOW, PRELUDE};
use crate::errors::{lock, printable};

/// When output is first asked for, unless the transport is slower: most commands have ended by then, and bring it themselves.
const FIRST: Duration = Duration::from_secs(1);
/// Between two scripts of which the first brought something: a twentieth of the command's age, within these bounds.
const GAPS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));
/// How often a script looks, five times a second, before it comes back without anything.
const ROUNDS: u32 = 40;
/// How long a script may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How far a command may be ahead of who reads it.
pub(super) const WINDOW: u64 = 4 << 20;
/// Scripts that failed, one after the other, before nobody asks any more: the command's own end is then told as ever.
const FAILURES: u32 = 20;

/// Where output of a stream goes.
pub(super) type Sender = mpsc::Sender<io::Result<Bytes>>;

/// Who wants the output of a command that runs.
#[derive(Default)]
pub(super) struct Live {
    wanted: Mutex<Wanted>,
    changed: Notify,
}

#[derive(Default)]
struct Wanted {
    senders: [Option<Sender>; 2],
    /// Nobody takes what was not taken yet.
    drains: bool,
    over: bool,
}

impl Live {
    /// Gives a stream's output to somebody, or gives him back when the command has ended.
    pub(super) fn want(&self, index: usize, sender: Sender) -> Option<Sender> {
        let mut wanted = lock(&self.wanted);
        if wanted.over {
            return Some(sender);
        }
        wanted.senders[index] = Some(sender);
        drop(wanted);
        self.changed.notify_one();
        None
    }

    /// What nobody has taken is not wanted.
    pub(super) fn drain(&self) {
        lock(&self.wanted).drains = true;
        self.changed.notify_one();
    }
}

/// A stream, and how much of it has been delivered.
pub(super) struct Tail {
    pub(super) index: usize,
    pub(super) at: u64,
    pub(super) sender: Sender,
}

/// Follows a command to its end; then tells who is still to get the rest.
pub(super) async fn follow(call: &PlainCall, live: &Live) -> Vec<Tail> {
    let mut following = Following::default();
    if tokio::time::timeout(FIRST.max(call.usual()), call.told()).await.is_err() {
        following.until_it_ends(call, live).await;
    }
    let mut wanted = lock(&live.wanted);
    wanted.over = true;
    following.admit(&mut wanted);
    drop(wanted);
    let at = following.at;
    let rest = following.senders.into_iter().enumerate();
    rest.filter_map(|(index, sender)| Some(Tail { index, at: at[index], sender: sender? })).collect()
}

#[derive(Default)]
struct Following {
    senders: [Option<Sender>; 2],
    /// Delivered of each stream, and how far its copier was let go.
    at: [u64; 2],
    let_go: [u64; 2],
    drains: bool,
    drained: [bool; 2],
    /// How much was there when somebody looked last.
    sizes: [u64; 2],
    failures: u32,
}

impl Following {
    fn admit(&mut self, wanted: &mut Wanted) {
        for (mine, new) in self.senders.iter_mut().zip(&mut wanted.senders) {
            if let Some(new) = new.take() {
                *mine = Some(new);
            }
        }
        self.drains |= wanted.drains;
    }

    async fn until_it_ends(&mut self, call: &PlainCall, live: &Live) {
        let begun = Instant::now();
        let mut pause = Duration::ZERO;
        while self.failures < FAILURES {
            let rest = tokio::time::timeout(pause, call.told());
            if !pause.is_zero() && rest.await.is_ok() {
                return;
            }
            self.admit(&mut lock(&live.wanted));
            let room = self.room();
            let drain = self.undrained();
            if room == [false; 2] && drain.is_empty() {
                tokio::select! {
                    _ = call.told() => return,
                    () = self.more_room() => {}
                    () = live.changed.notified() => {}
                }
                pause = Duration::ZERO;
                continue;
            }
            let script = self.script(call.yard(), call.directory(), room, &drain);
            let looked = tokio::select! {
                _ = call.told() => return,
                looked = self.look(call.yard(), script) => looked,
            };
            pause = match looked {
                Ok(part) => self.deliver(part, begun.elapsed()),
                Err(_) => {
                    self.failures += 1;
                    GAPS.1
                }
            };
        }
    }

    /// Which streams somebody reads who has taken all he got.
    fn room(&self) -> [bool; 2] {
        [0, 1].map(|index| self.senders[index].as_ref().is_some_and(|sender| sender.capacity() > 0 && !sender.is_closed()))
    }

    /// The streams that nobody will read, and that were not let go yet.
    fn undrained(&self) -> Vec<usize> {
        let unread = |index: &usize| match &self.senders[*index] {
            Some(sender) => sender.is_closed(),
            None => self.drains,
        };
        (0..2).filter(unread).filter(|index| !self.drained[*index]).collect()
    }

    async fn more_room(&self) {
        let room = |index: usize| async move {
            match &self.senders[index] {
                Some(sender) if !sender.is_closed() => drop(sender.reserve().await),
                _ => pending().await,
            }
        };
        tokio::select! { () = room(0) => {}, () = room(1) => {} }
    }

    fn script(&self, yard: &Yard, directory: String, room: [bool; 2], drain: &[usize]) -> String {
        let at = [0, 1].map(|index| if room[index] { self.at[index].to_string() } else { String::new() });
        let drain: Vec<&str> = drain.iter().map(|index| ["1", "2"][*index]).collect();
        format!(
            "{PRELUDE}D={directory}; O={}; E={}; OA={}; EA={}; DRAIN='{}'; WINDOW={WINDOW}; ROUNDS={ROUNDS}; INLINE={}\n{FOLLOW}",
            at[0],
            at[1],
            self.let_go[0],
            self.let_go[1],
            drain.join(" "),
            yard.caller.piece(),
        )
    }

    async fn look(&self, yard: &Yard, script: String) -> Result<Part> {
        let there: u64 = [0, 1].map(|index| self.sizes[index].saturating_sub(self.at[index])).iter().sum();
        let expects = usize::try_from(there).unwrap_or(usize::MAX).min(yard.caller.piece());
        let run = PlainRun::new(script, Bytes::new(), LIMIT).yielding().expecting(expects);
        let output = yard.caller.run_here(run, "exec").await?;
        Part::read(&output.stdout).ok_or_else(|| {
            let said = String::from_utf8_lossy(&output.stdout[..output.stdout.len().min(200)]).into_owned();
            Error::new(ErrorKind::Protocol, "exec", format!("the machine's answer makes no sense: {:?}", printable(&said, 200)))
        })
    }

    /// Hands out what came; tells how long to wait before the next look.
    fn deliver(&mut self, part: Part, age: Duration) -> Duration {
        self.failures = 0;
        let mut came = false;
        for (index, bytes) in part.bytes.into_iter().enumerate() {
            self.let_go[index] = self.let_go[index].max(part.let_go[index]);
            self.sizes[index] = part.sizes[index];
            self.drained[index] |= part.drained[index];
            if bytes.is_empty() {
                continue;
            }
            came = true;
            // Nobody else sends: there is room. Who has gone meanwhile misses nothing.
            let count = bytes.len() as u64;
            if self.senders[index].as_ref().is_some_and(|sender| sender.try_send(Ok(bytes)).is_ok()) {
                self.at[index] += count;
            }
        }
        match (part.over, came) {
            (true, _) => GAPS.1,
            (false, true) => (age / 20).clamp(GAPS.0, GAPS.1),
            (false, false) => Duration::ZERO,
        }
    }
}

/// What one script brought.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    bytes: [Bytes; 2],
    sizes: [u64; 2],
    let_go: [u64; 2],
    drained: [bool; 2],
    over: bool,
}

impl Part {
    /// Reads an answer. The machine may say anything.
    fn read(stdout: &[u8]) -> Option<Self> {
        let end = stdout.iter().take(300).position(|byte| *byte == b'\n')?;
        let header = std::str::from_utf8(&stdout[..end]).ok()?.strip_prefix("tierbox-live 1 ")?;
        let field = |key: &str| header.split(';').find_map(|field| field.trim().strip_prefix(key)?.strip_prefix('='));
        let pair = |key: &str| {
            let (first, second) = field(key)?.split_once(' ')?;
            Some([first.parse::<u64>().ok()?, second.parse::<u64>().ok()?])
        };
        let body = Bytes::copy_from_slice(&stdout[end + 1..]);
        let (first, second): (usize, usize) = (field("out")?.parse().ok()?, field("err")?.parse().ok()?);
        if body.len() != first.checked_add(second)? {
            return None;
        }
        let drained = field("drained")?;
        Some(Self {
            bytes: [body.slice(..first), body.slice(first..)],
            sizes: pair("sizes")?,
            let_go: pair("let")?,
            drained: [drained.contains('1'), drained.contains('2')],
            over: field("over")? == "1",
        })
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn answers_are_taken_apart_and_nonsense_is_refused() {
        let part = Part::read(b"tierbox-live 1 out=2; err=1; sizes=9 1; let=0 0; drained=2; over=;\nabc").unwrap();
        assert_eq!((part.bytes[0].as_ref(), part.bytes[1].as_ref()), (b"ab".as_slice(), b"c".as_slice()));
        assert_eq!((part.sizes, part.drained, part.over), ([9, 1], [false, true], false));
        for nonsense in [
            b"".as_slice(),
            b"hello\n",
            b"tierbox-live 1 out=2; err=1; sizes=9 1; let=0 0; drained=; over=;\nab",
            b"tierbox-live 1 out=18446744073709551615; err=1; sizes=9 1; let=0 0; drained=; over=;\n",
            b"tierbox-live 1 out=0; err=0; sizes=9; let=0 0; drained=; over=;\n",
            b"tierbox-live 1 out=0; err=0; sizes=-1 0; let=0 0; drained=; over=;\n",
        ] {
            assert_eq!(Part::read(nonsense), None, "{}", nonsense.escape_ascii());
        }
    }
}
