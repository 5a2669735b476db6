//! Listening sockets.

use crate::{Socket, socket::register};
use nbd_io::server::Peer;
use std::{
    io,
    task::{Context, Poll, ready},
};
use tokio::io::unix::AsyncFd;

/// A listening stream socket of any family, for [`Server::serve`](nbd_io::server::Server::serve).
#[derive(Debug)]
pub struct Listener(AsyncFd<nbd_socket::Listener>);

impl Listener {
    /// Takes over a listening socket.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub fn new(listener: nbd_socket::Listener) -> io::Result<Self> {
        register(listener).map(Self)
    }
}

impl nbd_io::server::Listener for Listener {
    type Stream = Socket;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Socket, Peer)>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            if let Ok(accepted) = guard.try_io(|fd| fd.get_ref().accept()) {
                let (socket, peer) = accepted?;
                return Poll::Ready(Socket::new(socket).map(|socket| (socket, peer)));
            }
        }
    }
}
