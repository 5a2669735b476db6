//! A socket of any family.

use async_io::Async;
use nbd_io::transport::Transport;
use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, BorrowedFd},
    task::{Context, Poll, ready},
};

/// A connected stream socket of any family. One system call reads into several buffers, or writes
/// from them.
///
/// If its peer is a child process, dropping it ends that process, without waiting for it.
#[derive(Debug)]
pub struct Socket(Async<nbd_socket::Socket>);

impl Socket {
    /// Takes over a socket that the program has made, or one to a server that it has started.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn new(socket: nbd_socket::Socket) -> io::Result<Self> {
        Ok(Self(Async::new_nonblocking(socket.nonblocking()?)?))
    }

    pub(crate) async fn writable(&self) -> io::Result<()> {
        self.0.writable().await
    }
}

impl Transport for Socket {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.0.get_ref().recv(bufs, false) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
            ready!(self.0.poll_readable(cx))?;
        }
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.0.get_ref().send(bufs, false) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
            ready!(self.0.poll_writable(cx))?;
        }
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.get_ref().shutdown())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
