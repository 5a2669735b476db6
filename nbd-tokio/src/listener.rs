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
pub struct Listener(Source);

#[derive(Debug)]
enum Source {
    Listening(AsyncFd<nbd_socket::Listener>),
    /// A client that is there already, until it is taken.
    Client(Option<(Socket, Peer)>),
}

impl Listener {
    /// Takes over a listening socket, or the client that the process was
    /// [started with](nbd_socket::Listener::inherited).
    ///
    /// # Errors
    ///
    /// When the system refuses.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub fn new(listener: nbd_socket::Listener) -> io::Result<Self> {
        Ok(Self(match listener.into_connected()? {
            Ok((socket, peer)) => Source::Client(Some((Socket::new(socket)?, peer))),
            Err(listener) => Source::Listening(register(listener)?),
        }))
    }
}

impl nbd_io::server::Listener for Listener {
    type Stream = Socket;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Socket, Peer)>> {
        let listener = match &mut self.0 {
            Source::Listening(listener) => listener,
            Source::Client(client) => {
                return client
                    .take()
                    .map_or(Poll::Pending, |client| Poll::Ready(Ok(client)));
            }
        };
        loop {
            let mut guard = ready!(listener.poll_read_ready(cx))?;
            if let Ok(accepted) = guard.try_io(|fd| fd.get_ref().accept()) {
                let (socket, peer) = accepted?;
                return Poll::Ready(Socket::new(socket).map(|socket| (socket, peer)));
            }
        }
    }

    fn is_exhausted(&self) -> bool {
        matches!(self.0, Source::Client(None))
    }
}
