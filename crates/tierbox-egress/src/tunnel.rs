//! Bytes that pass unread, and the look at the first of them.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::hello::{self, HelloError, server_name};
use crate::room::Flow;

/// How long the first bytes may take.
pub(crate) const OPENING: Duration = Duration::from_secs(if cfg!(test) { 5 } else { 10 });

/// How long a connection may be silent.
pub(crate) const IDLE: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 300 });

/// How long the other direction may go on, silent, after one has ended.
const HALF_OPEN: Duration = Duration::from_secs(30);

const CHUNK: usize = 64 << 10;

/// What a client that is refused is told: a fatal alert, `unrecognized_name`.
pub(crate) const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// Reads a client hello: the bytes read, and the server name in them.
pub(crate) async fn read_hello(client: &mut (impl AsyncRead + Unpin)) -> Result<(Vec<u8>, String), HelloError> {
    let mut bytes = Vec::with_capacity(2048);
    let read = async {
        loop {
            if let Some(name) = server_name(&bytes)? {
                return Ok(name);
            }
            let mut chunk = [0; 2048];
            match client.read(&mut chunk).await {
                Ok(count @ 1..) => bytes.extend_from_slice(&chunk[..count]),
                _ => return Err(HelloError::Cut),
            }
        }
    };
    let name = timeout(OPENING, read).await.unwrap_or(Err(HelloError::Late))?;
    debug_assert!(bytes.len() <= hello::LONGEST + 2048);
    Ok((bytes, name))
}

/// Passes bytes both ways until both ends are done, or silent for too long. `first` was read already.
pub(crate) async fn pass<C>(client: C, first: &[u8], mut server: TcpStream, flow: &Flow) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    server.write_all(first).await?;
    flow.sent(first.len());
    let (mut client_reads, mut client_writes) = tokio::io::split(client);
    let (mut server_reads, mut server_writes) = server.split();
    let busy = std::sync::Mutex::new((Instant::now(), IDLE));
    let touch = || busy.lock().unwrap_or_else(std::sync::PoisonError::into_inner).0 = Instant::now();
    let half = || busy.lock().unwrap_or_else(std::sync::PoisonError::into_inner).1 = HALF_OPEN;
    let out = copy(&mut client_reads, &mut server_writes, |count| {
        flow.sent(count);
        touch();
    });
    let back = copy(&mut server_reads, &mut client_writes, |count| {
        flow.received(count);
        touch();
    });
    let out = async { out.await.inspect(|()| half()) };
    let back = async { back.await.inspect(|()| half()) };
    let silent = async {
        loop {
            let (last, patience) = *busy.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let until = last + patience;
            if Instant::now() >= until {
                return;
            }
            // A direction that ends makes the patience shorter, so look again before long.
            tokio::time::sleep_until(until.min(Instant::now() + HALF_OPEN)).await;
        }
    };
    tokio::select! {
        both = async { tokio::try_join!(out, back) } => both.map(drop),
        () = silent => Ok(()),
    }
}

async fn copy<R, W>(from: &mut R, to: &mut W, moved: impl Fn(usize)) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut chunk = vec![0; CHUNK];
    loop {
        let count = from.read(&mut chunk).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        moved(count);
        to.write_all(&chunk[..count]).await?;
    }
}
