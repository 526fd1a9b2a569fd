//! Accepts what a sandbox sends to the gateway's sockets.

use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tierbox_core::{AllowScheme, Protocol};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::dns;
use crate::http::{self, Entry};
use crate::room::{Room, Target};
use crate::tenant::{Tenant, Tenants};
use crate::tunnel::{self, ALERT, OPENING};

/// How long to wait when accepting fails for want of descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// Why a query is not answered at all.
const NO_QUERY: &str = "a query that cannot be read";

/// Ends what it guards when the gateway closes.
#[derive(Debug, Clone)]
pub(crate) struct Guard(watch::Receiver<bool>);

impl Guard {
    /// A guard, and what ends it when it is dropped or set.
    pub(crate) fn new() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Self(receiver))
    }

    /// Does the work until it is done or the gateway closes.
    pub(crate) async fn until_closed<F: Future>(&self, work: F) -> Option<F::Output> {
        let mut closed = self.0.clone();
        tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => None,
            output = work => Some(output),
        }
    }
}

/// What a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The proxy.
    Proxy,
    /// An allowed port, as if it were the server's.
    Port(u16),
    /// Queries.
    Dns,
}

/// Answers queries in datagrams. More than a program needs are dropped.
pub(crate) async fn datagrams(tenants: Tenants, socket: UdpSocket) {
    let mut buffer = [0; dns::LONGEST + 1];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let Some(tenant) = tenants.at(from.ip()).filter(|tenant| tenant.may_ask()) else { continue };
        let room = &tenant.room;
        let Some(answer) = dns::answer(&buffer[..length], &room.rules, room.address) else {
            room.refuse(Protocol::Dns, "", 53, NO_QUERY);
            continue;
        };
        if room.answered(&answer.name, answer.rule) {
            let _ = socket.send_to(&answer.bytes, from).await;
        }
    }
}

/// Accepts connections until it is dropped. Who is nobody's sandbox is cut off.
pub(crate) async fn connections(tenants: Tenants, listener: TcpListener, role: Role) {
    loop {
        let (client, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(_) => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(tenant) = tenants.at(from.ip()) else { continue };
        let place = match tenant.place() {
            Ok(place) => Arc::new(place),
            Err(to_record) => {
                if to_record {
                    refuse_more(&tenant.room, role);
                }
                continue;
            }
        };
        let _ = client.set_nodelay(true);
        let (room, guard) = (tenant.room.clone(), tenant.guard.clone());
        // What is served must not keep its tenant: its connections end with it.
        let tenant = Arc::downgrade(&tenant);
        tokio::spawn(async move {
            match role {
                Role::Proxy => http::serve(room, Entry::Proxy, client, guard, place).await,
                Role::Port(port) => arrival(room, port, client, guard, place).await,
                Role::Dns => drop(guard.until_closed(queries(tenant, room, client)).await),
            }
        });
    }
}

fn refuse_more(room: &Room, role: Role) {
    let port = match role {
        Role::Proxy => crate::sockets::PROXY_PORT,
        Role::Port(port) => port,
        Role::Dns => 53,
    };
    room.refuse(Protocol::Tcp, "", port, "too many connections at once");
}

/// A client at an allowed port: HTTP or TLS, as the first byte says.
async fn arrival(room: Arc<Room>, port: u16, mut client: TcpStream, guard: Guard, place: Arc<crate::budget::Place>) {
    let mut first = [0];
    match guard.until_closed(timeout(OPENING, client.peek(&mut first))).await {
        Some(Ok(Ok(1))) => {}
        _ => return,
    }
    if first[0].is_ascii_uppercase() {
        return http::serve(room, Entry::Port(port), client, guard, place).await;
    }
    let pass = async {
        let hello = match tunnel::read_hello(&mut client).await {
            Ok(found) => found,
            Err(error) => {
                room.refuse(Protocol::Tls, "", port, error.to_string());
                return client.write_all(&ALERT).await;
            }
        };
        let target = Target { name: hello.name.clone(), port, scheme: AllowScheme::Https };
        match room.connect(&target).await {
            Ok((server, flow)) => tunnel::pass_tls(&mut client, hello, server, &flow).await,
            Err(_) => client.write_all(&ALERT).await,
        }
    };
    let _ = guard.until_closed(pass).await;
}

/// Queries over a stream, each behind its length.
async fn queries(tenant: Weak<Tenant>, room: Arc<Room>, mut client: TcpStream) {
    loop {
        let read = async {
            let length = usize::from(client.read_u16().await?);
            let mut query = vec![0; length.min(dns::LONGEST)];
            client.read_exact(&mut query).await?;
            std::io::Result::Ok((length, query))
        };
        let Ok(Ok((length, query))) = timeout(OPENING, read).await else { return };
        if !tenant.upgrade().is_some_and(|tenant| tenant.may_ask()) {
            return;
        }
        let answer = if length > dns::LONGEST { None } else { dns::answer(&query, &room.rules, room.address) };
        let Some(answer) = answer else {
            room.refuse(Protocol::Dns, "", 53, NO_QUERY);
            return;
        };
        if !room.answered(&answer.name, answer.rule) {
            return;
        }
        let mut framed = (answer.bytes.len() as u16).to_be_bytes().to_vec();
        framed.extend(answer.bytes);
        if !matches!(timeout(OPENING, client.write_all(&framed)).await, Ok(Ok(()))) {
            return;
        }
    }
}
