//! `tierbox forward`.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tierbox::{DialTarget, Error, ErrorKind, Result, Running, Sandbox};
use tokio::net::{TcpListener, TcpStream};

use crate::args::ForwardArgs;
use crate::interrupt::Failure;
use crate::parse::ForwardArg;
use crate::{Context, output};

pub(crate) async fn forward(context: &mut Context, args: ForwardArgs) -> Result<u8, Failure> {
    let json = context.global.json;
    let client = context.client.clone();
    let work = async {
        let running = client.attach(&args.sandbox).await?;
        tokio::select! {
            served = serve(running.sandbox(), &args.target, json) => served,
            () = end(&running) => Err(Error::new(ErrorKind::Lost, "forward", format!("the sandbox {} has ended", args.sandbox))),
        }
    };
    match context.interrupts.guard(work).await {
        // Ctrl-C is how it is meant to end.
        Err(Failure::Interrupted(2)) => Ok(0),
        other => other,
    }
}

/// Waits until it has ended.
async fn end(running: &Running) {
    while !running.ended(Duration::from_secs(60)).await {}
}

async fn serve(sandbox: Arc<dyn Sandbox>, wanted: &ForwardArg, json: bool) -> Result<u8> {
    // Only this host's loopback: a sandbox is never offered to the network.
    let failed = |error| Error::io("listen on loopback", error);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, wanted.port)).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    if json {
        output::json(&json!({ "address": address.to_string() }));
    } else {
        output::line(address.to_string());
    }
    loop {
        let (client, peer) = listener.accept().await.map_err(failed)?;
        tracing::info!(target: "tierbox::op", %peer, target = ?wanted.target, "forward");
        tokio::spawn(connect(sandbox.clone(), wanted.target.clone(), client));
    }
}

async fn connect(sandbox: Arc<dyn Sandbox>, target: DialTarget, mut client: TcpStream) {
    match sandbox.dial(target).await {
        // A broken connection is the business of the two ends.
        Ok(mut inside) => drop(tokio::io::copy_bidirectional(&mut client, &mut inside).await),
        Err(error) => output::remark(&format!("forward: {}", error.message())),
    }
}
