//! Sources of connections.

use super::Peer;
use crate::transport::Transport;
use std::{
    io,
    task::{Context, Poll},
};

/// A listening socket of some runtime.
pub trait Listener {
    /// A connection.
    type Stream: Transport + Send + 'static;

    /// The next connection, and the peer at its other end. TCP connections have `TCP_NODELAY` set.
    ///
    /// # Errors
    ///
    /// The system's error, unaltered: a server sees by its number whether to go on.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Self::Stream, Peer)>>;

    /// Whether no connection will come any more, so that a server ends with those that it has.
    fn is_exhausted(&self) -> bool {
        false
    }
}

/// Several sockets that are one to a server: connections are taken from them in turn, and if one of
/// them fails for good, all do. From none at all there comes no connection.
impl<L: Listener> Listener for Vec<L> {
    type Stream = L::Stream;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Self::Stream, Peer)>> {
        for at in 0..self.len() {
            let accepted = self[at].poll_accept(cx);
            if accepted.is_ready() {
                // It is the last to be asked again.
                self.rotate_left(at + 1);
                return accepted;
            }
        }
        Poll::Pending
    }

    fn is_exhausted(&self) -> bool {
        !self.is_empty() && self.iter().all(L::is_exhausted)
    }
}
