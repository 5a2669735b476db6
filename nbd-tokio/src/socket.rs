//! A socket of any family.

use crate::Tokio;
use nbd_io::{runtime::Farewell, server::Peer, transport::Transport};
use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    task::{Context, Poll, ready},
    time::Instant,
};
use tokio::io::{
    Interest,
    unix::{AsyncFd, AsyncFdReadyGuard},
};

/// What is no longer than this, in bytes, is sent without asking first whether there is room.
const SHORT: usize = 16 << 10;

/// A connected stream socket of any family. One system call reads into several buffers, or writes
/// from them.
///
/// A client uses it by [`connect_over`](crate::ConnectOptions::connect_over), a server by
/// [`serve_over`](crate::Server::serve_over).
///
/// If its peer is a child process, dropping it ends that process, without waiting for it.
#[derive(Debug)]
pub struct Socket {
    fd: AsyncFd<nbd_socket::Socket>,
    /// See [`nbd_socket::Socket::moves_all`].
    moves_all: bool,
    farewell: Farewell<Tokio>,
}

impl Socket {
    /// Takes over a socket that the program has made, or one to a server that it has started.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub fn new(socket: nbd_socket::Socket) -> io::Result<Self> {
        let moves_all = socket.moves_all();
        let fd = register(socket.nonblocking()?)?;
        Ok(Self {
            fd,
            moves_all,
            farewell: Farewell::new(Tokio::current()),
        })
    }

    /// Takes over a connected stream socket of the standard library's, or any other. Over TCP,
    /// `TCP_NODELAY` is set.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub fn from_std(stream: impl Into<OwnedFd>) -> io::Result<Self> {
        Self::new(nbd_socket::Socket::from_std(stream)?)
    }

    /// Waits until a socket that is being connected is, or turns out to be broken.
    pub(crate) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.fd.poll_write_ready(cx))?;
            let wait = self.fd.get_ref().wait(false, true, Some(Instant::now()));
            match wait {
                // The event was about something else.
                Err(error) if error.kind() == io::ErrorKind::TimedOut => guard.clear_ready(),
                done => return Poll::Ready(done),
            }
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.fd.poll_read_ready(cx))?;
            if let Ok(done) = guard.try_io(|fd| fd.get_ref().recv(bufs, false)) {
                let room = || bufs.iter().map(|buf| buf.len()).sum();
                self.note(guard, &done, room);
                return Poll::Ready(done);
            }
        }
    }

    /// Takes note of how many of the bytes were moved that there was room for.
    fn note(
        &self,
        mut guard: AsyncFdReadyGuard<'_, nbd_socket::Socket>,
        done: &io::Result<usize>,
        room: impl FnOnce() -> usize,
    ) {
        // The next attempt would be in vain. Nothing at all is the end, which stays.
        if self.moves_all && matches!(*done, Ok(n) if n > 0 && n < room()) {
            guard.clear_ready();
        }
    }
}

impl Transport for Socket {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let read = self.poll_recv(cx, bufs);
        self.farewell.limit(cx, read)
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // There is room nearly always: the event loop is asked only when there is none.
        match self.fd.get_ref().send(bufs, false) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return Poll::Ready(done),
        }
        let room = bufs.iter().map(|buf| buf.len()).sum();
        // What is short has room most of the time. What is not may be sent in part, and then nothing
        // more is to be tried.
        if room <= SHORT {
            let send = |socket: &nbd_socket::Socket| socket.send(bufs, false);
            match self.fd.try_io(Interest::WRITABLE, send) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
        loop {
            let mut guard = ready!(self.fd.poll_write_ready(cx))?;
            if let Ok(done) = guard.try_io(|fd| fd.get_ref().send(bufs, false)) {
                self.note(guard, &done, || room);
                return Poll::Ready(done);
            }
        }
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.farewell.say();
        Poll::Ready(self.fd.get_ref().shutdown())
    }
    fn parts_by_drop(&self) -> bool {
        true
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

/// Has the event loop watch a descriptor.
#[expect(
    deprecated,
    reason = "what replaces it is unsafe code; each caller's type owns its descriptor and keeps it"
)]
pub(crate) fn register<T: AsRawFd>(owner: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::new(owner)
}
