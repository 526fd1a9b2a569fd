//! What a program tries at an egress gateway. "Leaked" means that a server answered.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs, UdpSocket};
use std::process::ExitCode;
use std::time::Duration;

use crate::sys;

const PATIENCE: Duration = Duration::from_secs(5);

fn open(target: &str) -> std::io::Result<TcpStream> {
    let address = target.to_socket_addrs()?.next().ok_or(std::io::ErrorKind::NotFound)?;
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A text that can stand in a report as it is.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || c == '"' || c == '\\' { '?' } else { c }).collect()
}

fn told(tried: &str, answer: std::io::Result<bool>) {
    match answer {
        Ok(leaked) => sys::report(tried, 0, leaked, if leaked { "answered" } else { "" }),
        Err(error) => sys::report(tried, error.raw_os_error().unwrap_or(0), false, &error.kind().to_string()),
    }
}

/// Sends requests as they are written, with `|` for the end of a line, each over a connection of its own. With several
/// requests in one text the last answer counts.
pub fn http(target: &str, requests: &[&str]) -> ExitCode {
    for request in requests {
        let ask = || {
            let mut stream = open(target)?;
            stream.write_all(request.replace('|', "\r\n").as_bytes())?;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            let text = String::from_utf8_lossy(&answer).into_owned();
            Ok(text.rsplit("HTTP/1.1 ").next().is_some_and(|last| last.starts_with('2')) && text.contains("HTTP/1.1 "))
        };
        told(&plain(request), ask());
    }
    ExitCode::SUCCESS
}

/// Says hello to a server as `NAME`, `NAME,ech` or nothing, or as `FIRST>SECOND` when it asks for a second hello, or `FIRST>>SECOND` at
/// once; `via` is a name and port to ask the proxy at `target` for first.
pub fn tls(target: &str, via: Option<&str>, names: &[&str]) -> ExitCode {
    for name in names {
        let ask = || {
            let mut stream = open(target)?;
            if let Some(via) = via {
                write!(stream, "CONNECT {via} HTTP/1.1\r\nHost: {via}\r\n\r\n")?;
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    if stream.read(&mut byte)? == 0 {
                        return Ok(false);
                    }
                    head.push(byte[0]);
                }
                if !head.starts_with(b"HTTP/1.1 200") {
                    return Ok(false);
                }
            }
            match name.split_once('>') {
                Some((first, second)) => says_again(&mut stream, first, second),
                None => {
                    stream.write_all(&hello(name))?;
                    Ok(record(&mut stream)?.0 == HANDSHAKE)
                }
            }
        };
        told(&plain(&format!("hello '{name}' by way of {}", via.unwrap_or("nobody"))), ask());
    }
    ExitCode::SUCCESS
}

const CHANGE_CIPHER: u8 = 20;
const HANDSHAKE: u8 = 22;

/// Offers no key, so that the server must ask for another hello, and says the other name in that one. Leaked means that the server went
/// on with it.
fn says_again(stream: &mut TcpStream, first: &str, second: &str) -> std::io::Result<bool> {
    let (second, at_once) = second.strip_prefix('>').map_or((second, false), |second| (second, true));
    let (first, second) = (newer_hello(first, &[]), newer_hello(second, &[0, 29, 0, 32]));
    if at_once {
        stream.write_all(&[first, second].concat())?;
        record(stream)?;
    } else {
        stream.write_all(&first)?;
        let (kind, body) = record(stream)?;
        // What makes a server hello a request for another one begins so.
        if kind != HANDSHAKE || body.get(6..10) != Some(&[0xcf, 0x21, 0xad, 0x74]) {
            return Ok(false);
        }
        stream.write_all(&second)?;
    }
    Ok(record(stream)?.0 == HANDSHAKE)
}

/// The next record of a server that means something: its kind and body.
fn record(stream: &mut TcpStream) -> std::io::Result<(u8, Vec<u8>)> {
    loop {
        let mut header = [0; 5];
        stream.read_exact(&mut header)?;
        let mut body = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
        stream.read_exact(&mut body)?;
        if header[0] != CHANGE_CIPHER {
            return Ok((header[0], body));
        }
    }
}

fn short(value: usize) -> [u8; 2] {
    (value as u16).to_be_bytes()
}

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &short(data.len()), data].concat()
}

/// The extension that names the server; nothing for no name.
fn names(name: &str) -> Vec<u8> {
    if name.is_empty() {
        return Vec::new();
    }
    let entry = [&[0], &short(name.len())[..], name.as_bytes()].concat();
    extension(0, &[&short(entry.len())[..], &entry].concat())
}

/// A client hello of TLS 1.2 that common servers answer.
fn hello(name: &str) -> Vec<u8> {
    let (name, encrypted) = name.strip_suffix(",ech").map_or((name, false), |name| (name, true));
    let mut extensions = names(name);
    extensions.extend(extension(10, &[0, 4, 0, 29, 0, 23]));
    extensions.extend(extension(11, &[1, 0]));
    extensions.extend(extension(13, &[0, 8, 8, 4, 4, 1, 4, 3, 5, 3]));
    if encrypted {
        extensions.extend(extension(0xfe0d, &[0, 0, 1, 0, 1, 7, 0, 0, 0, 0]));
    }
    framed(&[0xc0, 0x2f, 0xc0, 0x2b], &extensions)
}

/// A client hello of TLS 1.3 with this key behind its group and length, or none.
fn newer_hello(name: &str, group: &[u8]) -> Vec<u8> {
    let mut extensions = names(name);
    extensions.extend(extension(10, &[0, 2, 0, 29]));
    extensions.extend(extension(13, &[0, 8, 8, 4, 4, 1, 4, 3, 5, 3]));
    extensions.extend(extension(43, &[2, 3, 4]));
    // Any number is a key of this group.
    let key = if group.is_empty() { Vec::new() } else { [group, &[9; 32]].concat() };
    extensions.extend(extension(51, &[&short(key.len())[..], &key].concat()));
    framed(&[0x13, 0x01, 0x13, 0x02], &extensions)
}

/// A client hello in one record.
fn framed(ciphers: &[u8], extensions: &[u8]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([42; 32]);
    body.push(0);
    body.extend(short(ciphers.len()));
    body.extend(ciphers);
    body.extend([1, 0]);
    body.extend(short(extensions.len()));
    body.extend(extensions);
    let mut message = vec![1, 0];
    message.extend(short(body.len()));
    message.extend(body);
    [&[HANDSHAKE, 3, 1][..], &short(message.len()), &message].concat()
}

/// Asks for records: `KIND:NAME`, with the kind's number. Leaked means that there was one.
pub fn dns(server: &str, questions: &[&str]) -> ExitCode {
    for question in questions {
        let (kind, name) = question.split_once(':').unwrap_or(("1", question));
        let ask = || {
            let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            for label in name.split('.') {
                query.push(label.len() as u8);
                query.extend(label.as_bytes());
            }
            query.push(0);
            query.extend(kind.parse::<u16>().unwrap_or(1).to_be_bytes());
            query.extend([0, 1]);
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send_to(&query, server)?;
            let mut answer = [0; 2048];
            let length = socket.recv(&mut answer)?;
            Ok(length >= 8 && answer[6..8] != [0, 0])
        };
        told(question, ask());
    }
    ExitCode::SUCCESS
}

/// Opens many connections, begins a request on each and goes no further.
pub fn half_open(target: &str, count: &str) -> ExitCode {
    let mut kept = Vec::new();
    for _ in 0..count.parse().unwrap_or(100) {
        if let Ok(mut stream) = open(target) {
            let _ = stream.write_all(b"GET / HTTP/1.1\r\nX: ");
            kept.push(stream);
        }
    }
    sys::report("half-open connections", 0, false, &kept.len().to_string());
    println!();
    std::thread::sleep(Duration::from_secs(600));
    ExitCode::SUCCESS
}
