//! Stopping a server.

use super::registry::Registry;
use std::{fmt, future::poll_fn, sync::Arc};

/// Stops a [`Server`](super::Server), from anywhere.
#[derive(Clone)]
pub struct Stopper {
    registry: Arc<Registry>,
}

impl Stopper {
    pub(super) const fn new(registry: Arc<Registry>) -> Self {
        Self { registry }
    }

    /// Begins to stop the server, and does not wait for it.
    ///
    /// No more connections are accepted. On open connections, requests that were begun are finished
    /// and new ones are answered with [`Errno::Shutdown`](nbd_proto::Errno::Shutdown), until the
    /// client disconnects or sends nothing more for a moment. A connection that is still open after
    /// the [grace](super::Server::grace) is closed.
    ///
    /// [`Server::serve`](super::Server::serve) ends when all this is done. A server that was stopped takes no connections
    /// any more.
    pub fn stop(&self) {
        self.registry.stop();
    }

    /// Waits until the server was stopped and the last of its connections is closed, however
    /// long that takes.
    ///
    /// # Cancel safety
    ///
    /// It only waits: dropping it changes nothing.
    pub async fn stopped(&self) {
        let mut watch = self.registry.watch();
        poll_fn(|cx| watch.poll_stopping(cx)).await;
        poll_fn(|cx| watch.poll_empty(cx)).await;
    }

    /// Number of connections.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.registry.len()
    }
}

impl fmt::Debug for Stopper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stopper")
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}
