//! Listening sockets.

use crate::Socket;
use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

/// A listening stream socket that does not wait, for an event loop.
#[derive(Debug)]
pub struct Listener(socket2::Socket);

impl Listener {
    /// Takes over a listening socket, such as one of the standard library's, which becomes a
    /// non-blocking one.
    ///
    /// # Errors
    ///
    /// When its mode cannot be changed.
    pub fn new(listener: impl Into<OwnedFd>) -> io::Result<Self> {
        let listener = socket2::Socket::from(listener.into());
        listener.set_nonblocking(true)?;
        Ok(Self(listener))
    }

    /// The next connection, as a non-blocking socket, and over TCP the address of its other end.
    /// `TCP_NODELAY` is set.
    ///
    /// # Errors
    ///
    /// What the system says, unaltered; of the kind [`io::ErrorKind::WouldBlock`] if there is no
    /// connection.
    pub fn accept(&self) -> io::Result<(Socket, Option<SocketAddr>)> {
        let (socket, peer) = self.0.accept()?;
        let peer = peer.as_socket();
        if peer.is_some() {
            // Some systems refuse it when the client is gone, which is no failure of the listener.
            let _ = socket.set_tcp_nodelay(true);
        }
        let socket = Socket::new(OwnedFd::from(socket))?.nonblocking()?;
        Ok((socket, peer))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
