//! A socket of any family.

use async_io::Async;
use nbd_io::{server::Peer, transport::Transport};
use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    task::{Context, Poll, ready},
};

/// A connected stream socket of any family. One system call reads into several buffers, or writes
/// from them.
///
/// A client uses it by [`connect_over`](crate::ConnectOptions::connect_over), a server by
/// [`serve_over`](crate::Server::serve_over).
///
/// If its peer is a child process, dropping it ends that process, without waiting for it.
#[derive(Debug)]
pub struct Socket {
    fd: Async<nbd_socket::Socket>,
}

impl Socket {
    /// Takes over a socket that the program has made, or one to a server that it has started.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn new(socket: nbd_socket::Socket) -> io::Result<Self> {
        Ok(Self {
            fd: Async::new_nonblocking(socket.nonblocking()?)?,
        })
    }

    /// Takes over a connected stream socket of the standard library's, or any other. Over TCP,
    /// `TCP_NODELAY` is set.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn from_std(stream: impl Into<OwnedFd>) -> io::Result<Self> {
        Self::new(nbd_socket::Socket::from_std(stream)?)
    }

    /// Waits until a socket that is being connected is, or turns out to be broken.
    pub(crate) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.fd.poll_writable(cx)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.fd.get_ref().recv(bufs, false) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
            ready!(self.fd.poll_readable(cx))?;
        }
    }
}

impl Transport for Socket {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_recv(cx, bufs)
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.fd.get_ref().send(bufs, false) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
            ready!(self.fd.poll_writable(cx))?;
        }
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.fd.get_ref().shutdown())
    }
    fn closes_gracefully_on_drop(&self) -> bool {
        self.fd.get_ref().closes_gracefully_on_drop()
    }

    fn peer(&self) -> Peer {
        self.fd.get_ref().peer()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
