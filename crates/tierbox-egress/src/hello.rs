//! The server name of a TLS client hello, and nothing else of it.

use std::fmt;

use tierbox_core::host_name;

/// The longest client hello, records included. Those with post-quantum keys and every usual extension have 2 KiB.
pub(crate) const LONGEST: usize = 32 << 10;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const LONGEST_RECORD: usize = 1 << 14;
/// The most records that a hello is spread over. Clients need one or two.
const MOST_RECORDS: usize = 32;
const SERVER_NAME: u16 = 0;
const ENCRYPTED_HELLO: u16 = 0xfe0d;
/// An older form of the same.
const ENCRYPTED_NAME: u16 = 0xffce;

/// Why no server name was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HelloError {
    /// The bytes are no TLS.
    NotTls,
    /// It is TLS, and does not keep to the format.
    Malformed,
    /// It is longer, or spread over more records, than any client's.
    TooLong,
    /// It did not come in time.
    Late,
    /// The connection ended before it was whole.
    Cut,
    /// It names no server, or names an address.
    NoName,
    /// It has an encrypted part, which could name another server.
    Encrypted,
}

impl fmt::Display for HelloError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotTls => "not TLS",
            Self::Malformed => "a malformed client hello",
            Self::TooLong => "a client hello that is too long",
            Self::Late => "no whole client hello in time",
            Self::Cut => "a connection that ended before its client hello",
            Self::NoName => "TLS without a server name",
            Self::Encrypted => "TLS with an encrypted client hello",
        })
    }
}

/// The server name in the first bytes of a connection, in the form in which rules compare it; `None` if more bytes are needed.
///
/// # Errors
/// Why there is none, as soon as that is certain.
pub fn server_name(bytes: &[u8]) -> Result<Option<String>, HelloError> {
    Ok(named_hello(bytes)?.map(|(name, _)| name))
}

/// The same, and how many bytes the hello's records have.
pub(crate) fn named_hello(bytes: &[u8]) -> Result<Option<(String, usize)>, HelloError> {
    let Some((hello, length)) = handshake(bytes)? else {
        return if bytes.len() < LONGEST { Ok(None) } else { Err(HelloError::TooLong) };
    };
    Ok(Some((read_hello(&hello)?, length)))
}

/// The body of the first handshake message, which may be spread over several records, and the length of these. Nothing is copied
/// before it is whole, and few records are looked at: this is done again for every byte that comes.
fn handshake(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, HelloError> {
    let (mut parts, mut length) = (Vec::new(), 0);
    let mut rest = bytes;
    for _ in 0..MOST_RECORDS {
        let Some(first) = record(rest)? else { return Ok(None) };
        parts.push(first.part);
        length += first.part.len();
        let mut start = parts.iter().copied().flatten();
        if start.next().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(HelloError::Malformed);
        }
        if let (Some(a), Some(b), Some(c)) = (start.next(), start.next(), start.next()) {
            let wanted = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            if wanted > LONGEST {
                return Err(HelloError::TooLong);
            }
            // A server would read what follows in the same record as the next message, which could be another hello.
            let announced = length - first.part.len() + first.length;
            if announced > 4 + wanted {
                return Err(HelloError::Malformed);
            }
            if length == 4 + wanted {
                return Ok(Some((parts.concat().split_off(4), bytes.len() - first.rest.len())));
            }
        }
        if first.part.len() < first.length {
            return Ok(None);
        }
        rest = first.rest;
    }
    Err(HelloError::TooLong)
}

/// A record, as far as it came.
struct Record<'a> {
    part: &'a [u8],
    /// As its header says.
    length: usize,
    rest: &'a [u8],
}

/// The first record; `None` if its header is not there yet.
fn record(bytes: &[u8]) -> Result<Option<Record<'_>>, HelloError> {
    // As early as possible: a client of another protocol may wait for an answer.
    if bytes.first().is_some_and(|kind| *kind != HANDSHAKE) || bytes.get(1).is_some_and(|major| *major != 3) {
        return Err(HelloError::NotTls);
    }
    let Some((header, after)) = bytes.split_at_checked(5) else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    if length == 0 || length > LONGEST_RECORD {
        return Err(HelloError::Malformed);
    }
    let (part, rest) = after.split_at(length.min(after.len()));
    Ok(Some(Record { part, length, rest }))
}

/// What is left to read of a message.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], HelloError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(HelloError::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn short(&mut self) -> Result<u16, HelloError> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// Bytes behind a length of one or two bytes.
    fn counted(&mut self, width: usize) -> Result<&'a [u8], HelloError> {
        let length = self.take(width)?.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        self.take(length)
    }
}

fn read_hello(body: &[u8]) -> Result<String, HelloError> {
    let mut fields = Fields(body);
    fields.take(2 + 32)?; // Version and random.
    fields.counted(1)?; // Session.
    fields.counted(2)?; // Ciphers.
    fields.counted(1)?; // Compression.
    if fields.0.is_empty() {
        return Err(HelloError::NoName);
    }
    let mut extensions = Fields(fields.counted(2)?);
    if !fields.0.is_empty() {
        return Err(HelloError::Malformed);
    }
    let mut seen = Vec::new();
    let mut name = None;
    while !extensions.0.is_empty() {
        let kind = extensions.short()?;
        let data = extensions.counted(2)?;
        if seen.contains(&kind) {
            return Err(HelloError::Malformed);
        }
        seen.push(kind);
        match kind {
            ENCRYPTED_HELLO | ENCRYPTED_NAME => return Err(HelloError::Encrypted),
            SERVER_NAME => name = Some(read_name(data)?),
            _ => {}
        }
    }
    name.ok_or(HelloError::NoName)
}

/// The one host name of the extension.
fn read_name(data: &[u8]) -> Result<String, HelloError> {
    let mut fields = Fields(data);
    let mut list = Fields(fields.counted(2)?);
    let kind = list.take(1)?[0];
    let name = list.counted(2)?;
    if kind != 0 || !list.0.is_empty() || !fields.0.is_empty() {
        return Err(HelloError::Malformed);
    }
    std::str::from_utf8(name).ok().and_then(host_name).ok_or(HelloError::NoName)
}

#[cfg(test)]
pub(crate) mod unit {
    use proptest::prelude::*;

    use super::*;

    /// A client hello with these extensions, in records of at most `record` bytes.
    pub(crate) fn hello(extensions: &[(u16, Vec<u8>)], record: usize) -> Vec<u8> {
        let mut all = Vec::new();
        for (kind, data) in extensions {
            all.extend(kind.to_be_bytes());
            all.extend((data.len() as u16).to_be_bytes());
            all.extend(data);
        }
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
        body.extend((all.len() as u16).to_be_bytes());
        body.extend(all);
        let mut message = vec![CLIENT_HELLO];
        message.extend(&(body.len() as u32).to_be_bytes()[1..]);
        message.extend(body);
        message
            .chunks(record)
            .flat_map(|part| {
                let mut framed = vec![HANDSHAKE, 3, 1];
                framed.extend((part.len() as u16).to_be_bytes());
                framed.extend(part);
                framed
            })
            .collect()
    }

    /// The extension that names a server.
    pub(crate) fn named(name: &str) -> (u16, Vec<u8>) {
        let mut data = ((name.len() + 3) as u16).to_be_bytes().to_vec();
        data.push(0);
        data.extend((name.len() as u16).to_be_bytes());
        data.extend(name.as_bytes());
        (SERVER_NAME, data)
    }

    #[test]
    fn the_name_is_found_however_the_records_are_cut() {
        for record in [5, 17, 4096] {
            let bytes = hello(&[(43, vec![2, 3, 4]), named("Index.Example.ORG")], record);
            for end in 0..bytes.len() {
                assert_eq!(server_name(&bytes[..end]), Ok(None), "{record} {end}");
            }
            assert_eq!(server_name(&bytes), Ok(Some("index.example.org".into())));
        }
    }

    #[test]
    fn what_hides_the_name_is_refused() {
        let cases = [
            (vec![], HelloError::NoName),
            (vec![named("192.0.2.1")], HelloError::NoName),
            (vec![named("a\0.example.org")], HelloError::NoName),
            (vec![named("")], HelloError::NoName),
            (vec![named("a.test"), named("b.test")], HelloError::Malformed),
            (vec![named("a.test"), (ENCRYPTED_HELLO, vec![0])], HelloError::Encrypted),
            (vec![(ENCRYPTED_NAME, vec![]), named("a.test")], HelloError::Encrypted),
        ];
        for (extensions, error) in cases {
            assert_eq!(server_name(&hello(&extensions, 4096)), Err(error), "{extensions:?}");
        }
        for other in [&b"GET / HTTP/1.1\r\n"[..], b"SSH-2.0-x\r\n", b"\x16\x02", b"\x80\x2e\x01"] {
            assert_eq!(server_name(other), Err(HelloError::NotTls), "{other:?}");
        }
        assert_eq!(server_name(&[22, 3, 1, 0, 0]), Err(HelloError::Malformed));
        assert_eq!(server_name(&[22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff]), Err(HelloError::TooLong));
        assert_eq!(server_name(&[22, 3, 1, 0, 1, 2]), Err(HelloError::Malformed));
    }

    #[test]
    fn a_hello_ends_where_its_record_ends() {
        let mut early = hello(&[named("a.test")], 4096);
        let length = early.len();
        early.extend([23, 3, 3, 0, 1, 9]);
        assert_eq!(named_hello(&early), Ok(Some(("a.test".into(), length))));
        let mut two = hello(&[named("a.test")], 4096);
        let other = hello(&[named("b.test")], 4096);
        two.extend(&other[5..]);
        let record = (two.len() - 5) as u16;
        two[3..5].copy_from_slice(&record.to_be_bytes());
        assert_eq!(server_name(&two), Err(HelloError::Malformed));
        assert_eq!(server_name(&two[..length]), Err(HelloError::Malformed));
    }

    #[test]
    fn many_records_are_refused_before_they_cost_anything() {
        let bytes = hello(&[named("index.example.org")], 1);
        assert_eq!(server_name(&bytes[..6 * MOST_RECORDS - 1]), Ok(None));
        assert_eq!(server_name(&bytes), Err(HelloError::TooLong));
    }

    proptest! {
        #[test]
        fn any_bytes_get_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = server_name(&bytes);
        }

        #[test]
        fn a_changed_hello_gets_an_answer(at in 0usize..200, with in any::<u8>(), cut in 0usize..200) {
            let mut bytes = hello(&[named("index.example.org"), (43, vec![2, 3, 4])], 64);
            let length = bytes.len();
            bytes[at % length] = with;
            bytes.truncate(length - cut % length);
            if let Ok(Some(name)) = server_name(&bytes) {
                prop_assert!(host_name(&name).is_some());
            }
        }
    }
}
