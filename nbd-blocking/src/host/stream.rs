//! The connections and listeners of a server on plain threads.

use super::wakeup::wait_for;
use crate::stream::Stream;
use nbd_io::transport::Transport;
use nbd_socket::Socket;
use rustix::event::PollFlags;
use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    os::fd::AsFd,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

/// Longest wait of an otherwise idle thread in the call that moves bytes. It saves the call that
/// waits for every event, but nothing can wake it.
const WAIT_IN_SYSTEM: Duration = Duration::from_millis(50);

/// A connection to a client.
#[derive(Debug)]
pub struct Connection(Kind);

#[derive(Debug)]
enum Kind {
    Socket {
        socket: Arc<Socket>,
        /// The thread need not wait for anything else.
        alone: bool,
    },
    /// A stream that a program brought, which waits by itself.
    Any(Stream),
}

impl Connection {
    pub(crate) fn any(stream: impl Read + Write + Send + 'static) -> Self {
        Self(Kind::Any(Stream::any(stream)))
    }

    pub(crate) fn socket(socket: Socket) -> io::Result<Self> {
        let socket = socket.blocking()?;
        socket.set_timeouts(Some(WAIT_IN_SYSTEM), Some(WAIT_IN_SYSTEM))?;
        Ok(Self(Kind::Socket {
            socket: Arc::new(socket),
            alone: false,
        }))
    }

    fn read(&self, bufs: &mut [IoSliceMut<'_>]) -> Poll<io::Result<usize>> {
        match &self.0 {
            Kind::Socket { socket, alone } => {
                unless_pending(socket.recv(bufs, *alone), socket, PollFlags::IN, *alone)
            }
            Kind::Any(stream) => Poll::Ready(stream.read(bufs, true)),
        }
    }

    fn write(&self, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match &self.0 {
            Kind::Socket { socket, alone } => {
                unless_pending(socket.send(bufs, *alone), socket, PollFlags::OUT, *alone)
            }
            Kind::Any(stream) => Poll::Ready(stream.write(bufs, true)),
        }
    }
}

pub(super) fn unless_pending<R>(
    done: io::Result<R>,
    fd: &Arc<impl AsFd + Send + Sync + 'static>,
    events: PollFlags,
    alone: bool,
) -> Poll<io::Result<R>> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            wait_for(Arc::clone(fd) as _, events, alone);
            Poll::Pending
        }
        done => Poll::Ready(done),
    }
}

impl Transport for Connection {
    fn poll_read(
        &mut self,
        _: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        self.read(bufs)
    }

    fn poll_write(&mut self, _: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.write(bufs)
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match &self.0 {
            Kind::Socket { .. } => Ok(()),
            Kind::Any(stream) => stream.flush(),
        })
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match &self.0 {
            Kind::Socket { socket, .. } => socket.shutdown(),
            Kind::Any(_) => Ok(()),
        })
    }

    fn set_exclusive(&mut self, now: bool) {
        if let Kind::Socket { alone, .. } = &mut self.0 {
            *alone = now;
        }
    }

    fn is_blocking(&self) -> bool {
        matches!(self.0, Kind::Any(_))
    }

    fn closes_gracefully_on_drop(&self) -> bool {
        match &self.0 {
            Kind::Socket { socket, .. } => socket.closes_gracefully_on_drop(),
            Kind::Any(_) => false,
        }
    }
}
