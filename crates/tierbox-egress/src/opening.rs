//! What follows a client hello that was judged, until the server has taken it: a server may ask for a second hello
//! (HelloRetryRequest, RFC 8446 section 4.1.4), and goes by the name in that one.

use crate::hello::named_hello;

const CHANGE_CIPHER: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;

const SERVER_HELLO: u8 = 2;

/// Kind, length and version of a server hello stand before its random.
const BEFORE_RANDOM: usize = 1 + 3 + 2;

/// The random of a server hello that asks for another client hello.
const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2, 0xa2, 0x11, 0x16, 0x7a,
    0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

/// Kind, version and length of a record.
const HEADER: usize = 5;

/// The longest record, with room for what encryption adds.
const LONGEST_RECORD: usize = (1 << 14) + 2048;

/// Handshake bytes before the server's answer. A program that waits for the answer has none to send, and a server could take them for
/// the second hello that it asks for.
const TOO_EARLY: &str = "a handshake record before the server's answer to the client hello";

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The first hello went to the server.
    Unanswered,
    /// The server wants another one.
    Retry,
    /// The server has a hello that was judged.
    Over,
}

/// The opening of one TLS connection.
#[derive(Debug)]
pub(crate) struct Opening {
    name: String,
    stage: Stage,
    from_client: Records,
    from_server: Records,
    /// The first bytes of the server's first message.
    answer: Vec<u8>,
    /// A second hello that is not whole yet.
    held: Vec<u8>,
}

impl Opening {
    /// After a hello with this server name.
    pub(crate) fn new(name: String) -> Self {
        Self {
            name,
            stage: Stage::Unanswered,
            from_client: Records::default(),
            from_server: Records::default(),
            answer: Vec::new(),
            held: Vec::new(),
        }
    }

    /// Whether there is nothing more to judge.
    pub(crate) fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// What goes on of the client's bytes, which follow its first hello.
    ///
    /// # Errors
    /// Why the connection must end.
    pub(crate) fn client(&mut self, bytes: &[u8]) -> Result<Vec<u8>, String> {
        if self.is_over() {
            return Ok(bytes.to_vec());
        }
        // Early data, which a server that wants another hello leaves unread, is no handshake and passes.
        let passing = if self.held.is_empty() { self.from_client.until_handshake(bytes)? } else { 0 };
        let (passing, handshake) = bytes.split_at(passing);
        if handshake.is_empty() {
            return Ok(passing.to_vec());
        }
        if self.stage == Stage::Unanswered {
            return Err(TOO_EARLY.to_owned());
        }
        self.held.extend(handshake);
        let mut on = passing.to_vec();
        if self.is_named_again()? {
            on.append(&mut self.held);
            self.stage = Stage::Over;
        }
        Ok(on)
    }

    /// Whether the second hello is whole.
    fn is_named_again(&self) -> Result<bool, String> {
        match named_hello(&self.held) {
            Ok(None) => Ok(false),
            Ok(Some((name, _))) if name == self.name => Ok(true),
            Ok(Some((name, _))) => Err(format!("the first client hello names {}, and the second {name}", self.name)),
            Err(error) => Err(format!("the second client hello: {error}")),
        }
    }

    /// The server's bytes: all of them go on.
    ///
    /// # Errors
    /// Why the connection must end.
    pub(crate) fn server(&mut self, bytes: &[u8]) -> Result<Vec<u8>, String> {
        if self.stage == Stage::Unanswered
            && let Some(stage) = self.answered(bytes)
        {
            self.stage = stage;
        }
        Ok(bytes.to_vec())
    }

    /// What the server's answer leads to, once enough of it is there. One that begins with anything but a server hello takes no part
    /// in TLS, and will not take another hello either.
    fn answered(&mut self, bytes: &[u8]) -> Option<Stage> {
        let mut rest = bytes;
        while let Some((kind, part)) = self.from_server.part(&mut rest).unwrap_or(Some((DATA, &[]))) {
            match kind {
                HANDSHAKE => self.answer.extend(part),
                // A warning, before the hello.
                ALERT | CHANGE_CIPHER => {}
                _ => return Some(Stage::Over),
            }
            if self.answer.first().is_some_and(|kind| *kind != SERVER_HELLO) {
                return Some(Stage::Over);
            }
            if let Some(random) = self.answer.get(BEFORE_RANDOM..BEFORE_RANDOM + RETRY.len()) {
                return Some(if random == RETRY { Stage::Retry } else { Stage::Over });
            }
        }
        None
    }
}

/// Where in its records a stream is.
#[derive(Debug, Default)]
struct Records {
    header: Vec<u8>,
    /// Of the body behind a whole header.
    left: usize,
}

impl Records {
    /// The next part of a record's body, with the record's kind; `None` when the bytes are used up.
    fn part<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<(u8, &'a [u8])>, String> {
        if self.is_between() {
            self.header.clear();
        }
        while self.header.len() < HEADER {
            let Some((first, rest)) = bytes.split_first() else { return Ok(None) };
            self.header.push(*first);
            *bytes = rest;
            match self.header[..] {
                [kind, ..] if !(CHANGE_CIPHER..=DATA).contains(&kind) => {
                    return Err("what follows the client hello is not TLS".to_owned());
                }
                [.., high, low] if self.header.len() == HEADER => self.left = usize::from(u16::from_be_bytes([high, low])),
                _ => continue,
            }
            if self.left > LONGEST_RECORD {
                return Err("a record that is too long follows the client hello".to_owned());
            }
            // Also one without a body.
            return Ok(Some((self.header[0], &[])));
        }
        if bytes.is_empty() {
            return Ok(None);
        }
        let (part, rest) = bytes.split_at(self.left.min(bytes.len()));
        self.left -= part.len();
        *bytes = rest;
        Ok(Some((self.header[0], part)))
    }

    /// Whether the next byte begins a record.
    fn is_between(&self) -> bool {
        self.left == 0 && matches!(self.header.len(), 0 | HEADER)
    }

    /// How many of the bytes come before the first record with a handshake.
    fn until_handshake(&mut self, bytes: &[u8]) -> Result<usize, String> {
        let mut rest = bytes;
        loop {
            if self.is_between() && rest.first() == Some(&HANDSHAKE) {
                return Ok(bytes.len() - rest.len());
            }
            if self.part(&mut rest)?.is_none() {
                return Ok(bytes.len());
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod unit {
    use proptest::prelude::*;

    use super::*;
    use crate::hello::unit::{hello, named};

    fn record(kind: u8, body: &[u8]) -> Vec<u8> {
        [&[kind, 3, 3][..], &(body.len() as u16).to_be_bytes(), body].concat()
    }

    fn server_hello(random: [u8; 32]) -> Vec<u8> {
        [&[SERVER_HELLO, 0, 0, 40, 3, 3][..], &random, &[0; 6]].concat()
    }

    /// What a server sends that wants another hello.
    pub(crate) fn retry_request() -> Vec<u8> {
        record(HANDSHAKE, &server_hello(RETRY))
    }

    fn opening() -> Opening {
        Opening::new("a.test".to_owned())
    }

    /// An opening in which the server asked for another hello.
    fn asked_again() -> Opening {
        let mut opening = opening();
        opening.server(&retry_request()).unwrap();
        assert_eq!(opening.stage, Stage::Retry);
        opening
    }

    fn in_pieces(opening: &mut Opening, bytes: &[u8], size: usize) -> Result<Vec<u8>, String> {
        bytes.chunks(size).try_fold(Vec::new(), |mut all, piece| {
            all.extend(opening.client(piece)?);
            Ok(all)
        })
    }

    #[test]
    fn the_server_s_answer_is_read_however_it_is_cut() {
        for (random, stage) in [(RETRY, Stage::Retry), ([7; 32], Stage::Over)] {
            let message = server_hello(random);
            let whole = record(HANDSHAKE, &message);
            let in_two = [record(HANDSHAKE, &message[..3]), record(HANDSHAKE, &message[3..])].concat();
            let warned = [record(ALERT, &[1, 112]), record(ALERT, &[]), whole.clone()].concat();
            for bytes in [whole, in_two, warned] {
                for size in [1, 7, 4096] {
                    let mut opening = opening();
                    for piece in bytes.chunks(size) {
                        assert_eq!(opening.server(piece).unwrap(), piece);
                    }
                    assert_eq!(opening.stage, stage, "{bytes:?} in {size}");
                }
            }
        }
    }

    #[test]
    fn a_second_hello_names_the_same_server() {
        let second = hello(&[(43, vec![2, 3, 4]), named("A.test")], 50);
        let before = [record(DATA, &[HANDSHAKE; 300]), record(CHANGE_CIPHER, &[1]), record(DATA, &[])].concat();
        let after = record(DATA, b"x");
        let bytes = [before.clone(), second, after].concat();
        for size in [1, 5, 64, 4096] {
            let mut opening = asked_again();
            assert_eq!(in_pieces(&mut opening, &bytes, size).unwrap(), bytes);
            assert!(opening.is_over());
        }
        // Nothing of it goes on before it is whole.
        let mut opening = asked_again();
        assert_eq!(opening.client(&bytes[..before.len() + 20]).unwrap(), before);
    }

    #[test]
    fn a_second_hello_that_names_another_or_hides_it_is_refused() {
        let cases = [
            (hello(&[named("evil.test")], 4096), "the second evil.test"),
            (hello(&[named("b.a.test")], 4096), "the second b.a.test"),
            (hello(&[], 4096), "without a server name"),
            (hello(&[named("a.test"), (0xfe0d, vec![1])], 4096), "encrypted client hello"),
            ([&hello(&[named("evil.test")], 40)[..45], &record(DATA, b"x")].concat(), "not TLS"),
            (record(HANDSHAKE, &[11, 0, 0, 0]), "malformed"),
        ];
        for (bytes, why) in cases {
            for size in [1, 4096] {
                let error = in_pieces(&mut asked_again(), &bytes, size).unwrap_err();
                assert!(error.contains(why), "{error}");
            }
        }
    }

    #[test]
    fn a_handshake_before_the_answer_is_refused() {
        let early = record(DATA, &[HANDSHAKE; 40]);
        let second = hello(&[named("evil.test")], 4096);
        for size in [1, 4096] {
            let mut opening = opening();
            assert_eq!(in_pieces(&mut opening, &early, size).unwrap(), early);
            assert_eq!(in_pieces(&mut opening, &second, size).unwrap_err(), TOO_EARLY);
        }
        // Nor behind a record without a body.
        let hidden = [record(CHANGE_CIPHER, &[]), second].concat();
        assert_eq!(opening().client(&hidden).unwrap_err(), TOO_EARLY);
        assert!(opening().client(b"GET / HTTP/1.1\r\n").unwrap_err().contains("not TLS"));
        assert!(opening().client(&[DATA, 3, 3, 0xff, 0xff]).unwrap_err().contains("too long"));
    }

    #[test]
    fn a_handshake_goes_on_when_the_server_took_the_hello() {
        let mut opening = opening();
        opening.server(&record(HANDSHAKE, &server_hello([7; 32]))).unwrap();
        let key = record(HANDSHAKE, &[16, 0, 0, 0]);
        assert_eq!(opening.client(&key).unwrap(), key);
    }

    proptest! {
        #[test]
        fn any_bytes_get_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..600), size in 1usize..100) {
            let (mut opening, mut again) = (opening(), asked_again());
            for piece in bytes.chunks(size) {
                let _ = opening.server(piece);
                let _ = again.client(piece);
            }
        }
    }
}
