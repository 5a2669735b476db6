//! A socket of any family.

use crate::Tokio;
use nbd_io::{server::Peer, transport::Transport};
use nbd_socket::Family;
use std::{
    io::{self, IoSlice, IoSliceMut},
    mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::OnceLock,
    task::{Context, Poll, ready},
    time::Instant,
};
use tokio::io::{Interest, unix::AsyncFd};

/// Longest send, in bytes, that is tried without asking first whether there is room.
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
    /// A Unix socket once more, watched for room, since a first send has found none. The event loop
    /// would be woken whenever the peer has taken something if every Unix socket was watched for
    /// that: twice for a request. Other sockets report room only after there was none.
    room: OnceLock<AsyncFd<OwnedFd>>,
    fd: AsyncFd<nbd_socket::Socket>,
    /// The event loop was asked whether there is something to read since the last read.
    read_asked: bool,
    family: Family,
    runtime: Tokio,
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
        let family = socket.family();
        let interest = match family {
            Family::Unix => Interest::READABLE,
            _ => Interest::READABLE | Interest::WRITABLE,
        };
        let runtime = Tokio::current();
        Ok(Self {
            room: OnceLock::new(),
            fd: register(socket.nonblocking()?, interest)?,
            read_asked: false,
            family,
            runtime,
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
        if self.family == Family::Unix {
            // It never takes time to be connected.
            return Poll::Ready(Ok(()));
        }
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

    /// A Unix socket as it is watched for room.
    fn room(&self) -> io::Result<&AsyncFd<OwnedFd>> {
        if let Some(room) = self.room.get() {
            return Ok(room);
        }
        let fd = self.fd.as_fd().try_clone_to_owned()?;
        let _entered = self.runtime.enter();
        let room = register(fd, Interest::WRITABLE)?;
        Ok(self.room.get_or_init(|| room))
    }

    /// Sends when there is room; `watched` reports when that is.
    fn poll_send<T: AsRawFd>(
        &self,
        watched: &AsyncFd<T>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let send = || self.fd.get_ref().send(bufs, false);
        let len = bufs.iter().map(|buf| buf.len()).sum();
        // Mostly there is room for a short send. A longer one may be accepted in part, and then
        // nothing more is to be tried.
        if len <= SHORT {
            match watched.try_io(Interest::WRITABLE, |_| send()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
        loop {
            let mut guard = ready!(watched.poll_write_ready(cx))?;
            if let Ok(done) = guard.try_io(|_| send()) {
                if matches!(done, Ok(n) if self.is_last(n, len)) {
                    guard.clear_ready();
                }
                return Poll::Ready(done);
            }
        }
    }

    /// Asks the event loop before each read, which counts towards the budget of a task before
    /// others run. A task that has been woken for the answer does not ask again.
    fn poll_ask(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if mem::replace(&mut self.read_asked, true) {
            return Poll::Ready(Ok(()));
        }
        self.fd.poll_read_ready(cx).map_ok(drop)
    }

    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_ask(cx))?;
            self.read_asked = false;
            if let Some(received) = self.try_recv(bufs) {
                return Poll::Ready(received);
            }
        }
    }

    /// Receives if the event loop knows of something.
    fn try_recv(&self, bufs: &mut [IoSliceMut<'_>]) -> Option<io::Result<usize>> {
        let mut received = None;
        let left = self.fd.try_io(Interest::READABLE, |fd| {
            let n = fd.recv(bufs, false)?;
            received = Some(n);
            let room: usize = bufs.iter().map(|buf| buf.len()).sum();
            match self.is_last(n, room) {
                // This has the event loop drop its knowledge of readiness.
                true => Err(io::ErrorKind::WouldBlock.into()),
                false => Ok(n),
            }
        });
        match (received, left) {
            (Some(n), _) => Some(Ok(n)),
            (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => None,
            (None, left) => Some(left),
        }
    }

    /// Whether another attempt to move bytes would be in vain, after so many that there was room for
    /// have been moved. None at all are the end, which stays.
    fn is_last(&self, n: usize, room: usize) -> bool {
        self.family.moves_all() && n > 0 && n < room
    }
}

impl Transport for Socket {
    fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_ask(cx)
    }

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
        // There is room nearly always: the event loop is asked only when there is none.
        match self.fd.get_ref().send(bufs, false) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return Poll::Ready(done),
        }
        match self.family {
            Family::Unix => self.poll_send(self.room()?, cx, bufs),
            _ => self.poll_send(&self.fd, cx, bufs),
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

/// Has the event loop watch a descriptor for some of its events.
#[expect(
    deprecated,
    reason = "what replaces it is unsafe code; each caller's type owns its descriptor and keeps it"
)]
pub(crate) fn register<T: AsRawFd>(owner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(owner, interest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{future::poll_fn, io::Read, os::unix::net::UnixStream, thread};

    #[tokio::test]
    async fn a_unix_socket_is_watched_for_room_once_there_was_none() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut socket = Socket::new(nbd_socket::Socket::new(ours.into()).unwrap()).unwrap();
        let bytes = vec![7; SHORT / 2];
        let bufs = [IoSlice::new(&bytes)];
        let mut sent = poll_fn(|cx| socket.poll_write(cx, &bufs)).await.unwrap();
        assert!(socket.room.get().is_none());
        poll_fn(|cx| {
            while let Poll::Ready(n) = socket.poll_write(cx, &bufs) {
                sent += n.unwrap();
            }
            Poll::Ready(())
        })
        .await;
        assert!(socket.room.get().is_some());
        let reader = thread::spawn(move || theirs.read_exact(&mut vec![0; sent]).map(|()| theirs));
        poll_fn(|cx| socket.poll_write(cx, &bufs)).await.unwrap();
        drop(reader.join().unwrap().unwrap());
    }
}
