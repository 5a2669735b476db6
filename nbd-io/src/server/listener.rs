//! Where connections come from.

use super::Peer;
use crate::transport::Transport;
use std::{
    io,
    task::{Context, Poll},
};

/// A listening socket of some runtime.
pub trait Listener {
    /// What a connection is.
    type Stream: Transport + Send + 'static;

    /// The next connection, and who is at its other end. TCP connections have `TCP_NODELAY` set.
    ///
    /// # Errors
    ///
    /// What the system said, unaltered: a server tells by its number whether to go on.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Self::Stream, Peer)>>;
}
