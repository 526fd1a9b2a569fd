//! Bytes that pass unread, and the look at the first of them.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::hello::{self, HelloError, named_hello};
use crate::opening::Opening;
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

/// What a client said first: the bytes read, of which the first are its hello.
pub(crate) struct Hello {
    pub(crate) bytes: Vec<u8>,
    pub(crate) length: usize,
    pub(crate) name: String,
}

/// Reads a client hello.
pub(crate) async fn read_hello(client: &mut (impl AsyncRead + Unpin)) -> Result<Hello, HelloError> {
    let mut bytes = Vec::with_capacity(2048);
    let read = async {
        loop {
            if let Some(found) = named_hello(&bytes)? {
                return Ok(found);
            }
            let mut chunk = [0; 2048];
            match client.read(&mut chunk).await {
                Ok(count @ 1..) => bytes.extend_from_slice(&chunk[..count]),
                _ => return Err(HelloError::Cut),
            }
        }
    };
    let (name, length) = timeout(OPENING, read).await.unwrap_or(Err(HelloError::Late))?;
    debug_assert!(bytes.len() <= hello::LONGEST + 2048);
    Ok(Hello { bytes, length, name })
}

/// Why a connection ended before its ends did.
enum Cut {
    Broken(io::Error),
    Refused(String),
}

impl From<io::Error> for Cut {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// Passes TLS both ways, as [`pass`] does. Until the server has taken a hello with this name the client's bytes are judged; what is
/// refused is on record, and the client is told.
pub(crate) async fn pass_tls<C>(mut client: C, hello: Hello, server: TcpStream, flow: &Flow) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let Hello { mut bytes, length, name } = hello;
    let mut opening = Opening::new(name);
    let passed = match opening.client(&bytes[length..]) {
        Ok(more) => {
            bytes.truncate(length);
            bytes.extend(more);
            carry(&mut client, &bytes, server, flow, Some(&Mutex::new(opening))).await
        }
        Err(why) => Err(Cut::Refused(why)),
    };
    match passed {
        Ok(()) => Ok(()),
        Err(Cut::Broken(error)) => Err(error),
        Err(Cut::Refused(why)) => {
            flow.refuse(why);
            timeout(OPENING, client.write_all(&ALERT)).await?
        }
    }
}

/// Passes bytes both ways until both ends are done, or silent for too long.
pub(crate) async fn pass<C>(client: C, server: TcpStream, flow: &Flow) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    match carry(client, &[], server, flow, None).await {
        Err(Cut::Broken(error)) => Err(error),
        _ => Ok(()),
    }
}

/// Passes bytes both ways. `first` was read already.
async fn carry<C>(
    client: C,
    first: &[u8],
    mut server: TcpStream,
    flow: &Flow,
    opening: Option<&Mutex<Opening>>,
) -> Result<(), Cut>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    server.write_all(first).await?;
    flow.sent(first.len());
    let (mut client_reads, mut client_writes) = tokio::io::split(client);
    let (mut server_reads, mut server_writes) = server.split();
    let busy = Mutex::new((Instant::now(), IDLE));
    let touch = || lock(&busy).0 = Instant::now();
    let half = || lock(&busy).1 = HALF_OPEN;
    let sent = |count| {
        flow.sent(count);
        touch();
    };
    let received = |count| {
        flow.received(count);
        touch();
    };
    let out = async {
        if judged(&mut client_reads, &mut server_writes, opening, Opening::client, sent).await? {
            return Ok(());
        }
        copy(&mut client_reads, &mut server_writes, sent).await
    };
    let back = async {
        if judged(&mut server_reads, &mut client_writes, opening, Opening::server, received).await? {
            return Ok(());
        }
        copy(&mut server_reads, &mut client_writes, received).await
    };
    let out = async { out.await.inspect(|()| half()) };
    let back = async { back.await.inspect(|()| half()) };
    let silent = async {
        loop {
            let (last, patience) = *lock(&busy);
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Passes bytes one way, as the opening allows, until it is over. True if the direction ended before.
async fn judged<R, W>(
    from: &mut R,
    to: &mut W,
    opening: Option<&Mutex<Opening>>,
    judge: fn(&mut Opening, &[u8]) -> Result<Vec<u8>, String>,
    moved: impl Fn(usize),
) -> Result<bool, Cut>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let Some(opening) = opening else { return Ok(false) };
    let mut chunk = vec![0; 4 << 10];
    while !lock(opening).is_over() {
        let count = from.read(&mut chunk).await?;
        if count == 0 {
            to.shutdown().await?;
            return Ok(true);
        }
        let passing = judge(&mut lock(opening), &chunk[..count]).map_err(Cut::Refused)?;
        moved(passing.len());
        to.write_all(&passing).await?;
    }
    Ok(false)
}

async fn copy<R, W>(from: &mut R, to: &mut W, moved: impl Fn(usize)) -> Result<(), Cut>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut chunk = vec![0; CHUNK];
    loop {
        let count = from.read(&mut chunk).await?;
        if count == 0 {
            return Ok(to.shutdown().await?);
        }
        moved(count);
        to.write_all(&chunk[..count]).await?;
    }
}
