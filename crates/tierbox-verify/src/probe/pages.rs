//! What canary names lead to: a listener that answers requests of HTTP with a page, and everything else with the nonce.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// How long a client may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Clients at once. Only this host's own processes reach the listener.
const MOST: usize = 64;
/// The longest request that is read.
const LONGEST: usize = 4096;

/// The listener. Gone when dropped.
pub(super) struct Pages {
    /// Where it listens.
    pub at: SocketAddr,
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Pages {
    /// Listens on loopback, and answers with this.
    pub(super) fn new(nonce: String) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let at = listener.local_addr()?;
        let over = Arc::<AtomicBool>::default();
        let ended = over.clone();
        let builder = std::thread::Builder::new().name("tierbox-canaries".into());
        let thread = Some(builder.spawn(move || serve(&listener, &ended, &nonce.into()))?);
        Ok(Self { at, over, thread })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // Wakes the thread.
        let _ = TcpStream::connect_timeout(&self.at, PATIENCE);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &TcpListener, over: &AtomicBool, nonce: &Arc<str>) {
    let clients = Arc::<AtomicUsize>::default();
    for stream in listener.incoming() {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let Ok(stream) = stream else { continue };
        if clients.fetch_add(1, Ordering::Relaxed) >= MOST {
            clients.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (nonce, own) = (nonce.clone(), clients.clone());
        let work = move || {
            let _ = answer(stream, &nonce);
            own.fetch_sub(1, Ordering::Relaxed);
        };
        if std::thread::Builder::new().spawn(work).is_err() {
            clients.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn answer(mut stream: TcpStream, nonce: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut got = Vec::new();
    let mut chunk = [0; 1024];
    while got.len() < LONGEST {
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            return Ok(());
        }
        got.extend_from_slice(&chunk[..count]);
        if !got[0].is_ascii_uppercase() {
            return stream.write_all(nonce.as_bytes());
        }
        if got.ends_with(b"\r\n\r\n") {
            break;
        }
    }
    let text = String::from_utf8_lossy(&got).to_ascii_lowercase();
    let host = text.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();
    let body = format!("{nonce} {host}");
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

#[cfg(test)]
mod unit {
    use super::*;

    fn ask(at: SocketAddr, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(at).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn a_page_names_its_host_and_other_bytes_get_the_nonce() {
        let pages = Pages::new("n0nce".into()).unwrap();
        let at = pages.at;
        assert!(ask(at, b"GET / HTTP/1.1\r\nHost: A.test\r\n\r\n").ends_with("n0nce a.test"));
        assert_eq!(ask(at, &[22, 3, 1]), "n0nce");
        drop(pages);
        assert!(TcpStream::connect(at).is_err());
    }
}
