//! How a machine is spoken with.

use std::sync::Arc;

use futures_util::StreamExt;
use tierbox_core::Sandbox;
use tierbox_guest::plain::PlainSandbox;
use tierbox_guest::{Channel, GuestSandbox};
use tokio::sync::{oneshot, watch};

use crate::stream::{Input, Output};

/// How a machine is spoken with.
pub enum Way {
    /// Over the stream of its first process, or of one that joined that: its supervisor.
    Channel(Channel, Arc<GuestSandbox>),
    /// By scripts, while its first process is kept.
    Scripts(Arc<PlainSandbox>, Kept),
}

impl Way {
    /// By scripts, for as long as the first process lives. To be called on the driver.
    pub fn scripts(sandbox: PlainSandbox, kept: Kept) -> Self {
        let (mut over, ending) = (kept.over.clone(), sandbox.clone());
        tokio::spawn(async move {
            // Nobody need ask any more what became of a command.
            let _ = over.wait_for(|over| *over).await;
            ending.close();
        });
        Self::Scripts(Arc::new(sandbox), kept)
    }

    /// The handle for everybody else.
    pub fn sandbox(&self) -> Arc<dyn Sandbox> {
        match self {
            Self::Channel(_, sandbox) => sandbox.clone(),
            Self::Scripts(sandbox, _) => sandbox.clone(),
        }
    }

    /// Its channel, if it has one.
    pub fn channel(&self) -> Option<&Channel> {
        match self {
            Self::Channel(channel, _) => Some(channel),
            Self::Scripts(..) => None,
        }
    }

    /// Nothing is run any more.
    pub fn close(&self) {
        match self {
            Self::Channel(channel, _) => channel.close(),
            Self::Scripts(sandbox, _) => sandbox.close(),
        }
    }

    /// Waits for the machine's end.
    pub async fn ended(&self) {
        match self {
            Self::Channel(channel, _) => drop(channel.closed().await),
            Self::Scripts(_, kept) => kept.over().await,
        }
    }
}

/// The first process of a machine without a supervisor: it ends when this is dropped.
pub struct Kept {
    _held: oneshot::Sender<()>,
    over: watch::Receiver<bool>,
}

impl Kept {
    /// Keeps the process behind these streams. To be called on the driver.
    pub fn new(mut output: Output, input: Input) -> Self {
        let (ends, over) = watch::channel(false);
        let (held, dropped) = oneshot::channel();
        tokio::spawn(async move {
            // It says nothing; whoever could make it say something is not listened to.
            let silence = async { while output.next().await.is_some_and(|part| part.is_ok()) {} };
            tokio::select! {
                () = silence => {}
                _ = dropped => {}
            }
            drop(input);
            let _ = ends.send(true);
        });
        Self { _held: held, over }
    }

    async fn over(&self) {
        let mut over = self.over.clone();
        // An end without a word is one too.
        let _ = over.wait_for(|over| *over).await;
    }
}
