//! The two ways into a machine: a channel to a supervisor, and scripts alone.

use std::sync::Arc;

use tierbox_core::Sandbox;
use tierbox_guest::plain::PlainSandbox;
use tierbox_guest::{Channel, GuestSandbox};

/// A sandbox by one of the ways.
#[derive(Clone)]
pub enum Way {
    /// Over a channel.
    Channel(Arc<GuestSandbox>),
    /// Over a plain transport.
    Plain(Arc<PlainSandbox>),
}

impl Way {
    /// Commands and files.
    pub fn sandbox(&self) -> Arc<dyn Sandbox> {
        match self {
            Self::Channel(sandbox) => sandbox.clone(),
            Self::Plain(sandbox) => sandbox.clone(),
        }
    }

    /// The channel, if there is one.
    pub fn channel(&self) -> Option<&Channel> {
        match self {
            Self::Channel(sandbox) => Some(sandbox.channel()),
            Self::Plain(_) => None,
        }
    }

    /// Ends it: what is under way is lost.
    pub fn close(&self) {
        match self {
            Self::Channel(sandbox) => sandbox.channel().close(),
            Self::Plain(sandbox) => sandbox.close(),
        }
    }

    /// Whether both are the same one.
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Channel(one), Self::Channel(other)) => Arc::ptr_eq(one, other),
            (Self::Plain(one), Self::Plain(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}
