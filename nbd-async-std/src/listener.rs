//! Listening sockets.

use crate::Socket;
use async_io::Async;
use nbd_io::server::Peer;
use std::{
    io,
    task::{Context, Poll, ready},
};

/// A listening stream socket of any family, for [`Server::serve`](nbd_io::server::Server::serve).
#[derive(Debug)]
pub struct Listener(Async<nbd_socket::Listener>);

impl Listener {
    /// Takes over a listening socket.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn new(listener: nbd_socket::Listener) -> io::Result<Self> {
        Async::new_nonblocking(listener).map(Self)
    }
}

impl nbd_io::server::Listener for Listener {
    type Stream = Socket;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Socket, Peer)>> {
        loop {
            match self.0.get_ref().accept() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                accepted => {
                    let (socket, peer) = accepted?;
                    return Poll::Ready(Socket::new(socket).map(|socket| (socket, peer)));
                }
            }
            ready!(self.0.poll_readable(cx))?;
        }
    }
}
