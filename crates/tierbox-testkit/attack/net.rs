//! Servers and clients.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::ExitCode;
use std::time::Duration;

use crate::sys;

fn failed(what: &str, error: &std::io::Error) -> ExitCode {
    eprintln!("{what}: {error}");
    ExitCode::FAILURE
}

fn copy(mut from: impl Read, mut to: impl Write) {
    let mut chunk = vec![0; 64 << 10];
    while let Ok(count) = from.read(&mut chunk) {
        if count == 0 || to.write_all(&chunk[..count]).is_err() {
            return;
        }
    }
}

/// Echoes what comes to a port of its own on loopback, and prints the port.
pub fn echo_tcp() -> ExitCode {
    let listener = match TcpListener::bind("127.0.0.1:0") {
        Ok(listener) => listener,
        Err(error) => return failed("bind", &error),
    };
    println!("listening {}", listener.local_addr().map(|addr| addr.port()).unwrap_or(0));
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || copy(&stream, &stream));
    }
    ExitCode::SUCCESS
}

fn echo(listener: std::io::Result<UnixListener>) -> ExitCode {
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => return failed("bind", &error),
    };
    println!("listening");
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || copy(&stream, &stream));
    }
    ExitCode::SUCCESS
}

/// Echoes what comes to a Unix socket.
pub fn echo_unix(path: &str) -> ExitCode {
    echo(UnixListener::bind(path))
}

/// Echoes what comes to a socket without a path.
pub fn echo_abstract(name: &str) -> ExitCode {
    echo(SocketAddr::from_abstract_name(name).and_then(|addr| UnixListener::bind_addr(&addr)))
}

/// Says when the first client has gone.
pub fn until_closed(path: &str) -> ExitCode {
    let listener = match UnixListener::bind(path) {
        Ok(listener) => listener,
        Err(error) => return failed("bind", &error),
    };
    println!("listening");
    if let Ok((stream, _)) = listener.accept() {
        copy(stream, std::io::sink());
        println!("closed");
    }
    ExitCode::SUCCESS
}

/// Tries to connect to each `host:port`, for at most a second.
pub fn connect_tcp(targets: &[&str]) -> ExitCode {
    for target in targets {
        let tried = format!("connect {target}");
        let addresses = match target.to_socket_addrs() {
            Ok(addresses) => addresses,
            Err(error) => {
                sys::report(&tried, error.raw_os_error().unwrap_or(0), false, "no address");
                continue;
            }
        };
        for address in addresses {
            match TcpStream::connect_timeout(&address, Duration::from_secs(1)) {
                Ok(_) => sys::report(&tried, 0, true, "connected"),
                Err(error) => sys::report(&tried, error.raw_os_error().unwrap_or(110), false, &error.kind().to_string()),
            }
        }
    }
    ExitCode::SUCCESS
}

/// Sends a datagram to each `host:port`. Sending is no leak by itself: the host's canary tells.
pub fn send_udp(targets: &[&str]) -> ExitCode {
    for target in targets {
        let sent = UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.send_to(b"tierbox", target));
        match sent {
            Ok(_) => sys::report(&format!("send {target}"), 0, true, "sent"),
            Err(error) => sys::report(&format!("send {target}"), error.raw_os_error().unwrap_or(0), false, ""),
        }
    }
    ExitCode::SUCCESS
}

/// Tries to connect to a socket without a path.
pub fn connect_abstract(name: &str) -> ExitCode {
    match SocketAddr::from_abstract_name(name).and_then(|addr| UnixStream::connect_addr(&addr)) {
        Ok(_) => sys::report("abstract socket", 0, true, "connected"),
        Err(error) => sys::report("abstract socket", error.raw_os_error().unwrap_or(0), false, ""),
    }
    ExitCode::SUCCESS
}
