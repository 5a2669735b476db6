//! The connections and listeners of a server on plain threads.

use super::bell::wait_for;
use crate::stream::Stream;
use nbd_io::{
    server::{Listener, Peer},
    transport::Transport,
};
use nbd_socket::Socket;
use rustix::{event::PollFlags, io::Errno};
use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    os::fd::AsFd,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

/// How long a thread that has nothing else to do waits in the call that moves bytes, rather than
/// in one that waits for everything.
const PATIENCE: Duration = Duration::from_millis(50);

/// A connection to a client.
#[derive(Debug)]
pub(super) enum Connection {
    Socket {
        socket: Arc<Socket>,
        /// The thread need not wait for anything else.
        alone: bool,
    },
    /// A stream that a program brought, which waits by itself.
    Any(Stream),
}

impl Connection {
    pub(super) fn any(stream: impl Read + Write + Send + 'static) -> Self {
        Self::Any(Stream::any(stream))
    }

    pub(super) fn socket(socket: Socket) -> io::Result<Self> {
        let socket = socket.blocking()?;
        socket.set_patience(Some(PATIENCE), Some(PATIENCE))?;
        Ok(Self::Socket {
            socket: Arc::new(socket),
            alone: false,
        })
    }

    fn read(&self, bufs: &mut [IoSliceMut<'_>]) -> Poll<io::Result<usize>> {
        match self {
            Self::Socket { socket, alone } => {
                unless_pending(socket.recv(bufs, *alone), socket, PollFlags::IN, *alone)
            }
            Self::Any(stream) => Poll::Ready(stream.read(bufs, true)),
        }
    }

    fn write(&self, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self {
            Self::Socket { socket, alone } => {
                unless_pending(socket.send(bufs, *alone), socket, PollFlags::OUT, *alone)
            }
            Self::Any(stream) => Poll::Ready(stream.write(bufs, true)),
        }
    }
}

fn unless_pending<R>(
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
        Poll::Ready(match self {
            Self::Socket { .. } => Ok(()),
            Self::Any(stream) => stream.flush(),
        })
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match self {
            Self::Socket { socket, .. } => socket.shutdown(),
            Self::Any(_) => Ok(()),
        })
    }

    fn set_alone(&mut self, now: bool) {
        if let Self::Socket { alone, .. } = self {
            *alone = now;
        }
    }

    fn waits(&self) -> bool {
        matches!(self, Self::Any(_))
    }

    fn parts_by_drop(&self) -> bool {
        matches!(self, Self::Socket { .. })
    }
}

/// A listening socket of any family, or a client that is there already.
#[derive(Debug)]
pub(super) enum Listening {
    Socket(Arc<nbd_socket::Listener>),
    Client(Option<(Connection, Peer)>),
}

impl Listening {
    pub(super) fn new(listener: nbd_socket::Listener) -> io::Result<Self> {
        Ok(match listener.into_connected()? {
            Ok((socket, peer)) => Self::Client(Some((Connection::socket(socket)?, peer))),
            Err(listener) => Self::Socket(Arc::new(listener)),
        })
    }
}

impl Listener for Listening {
    type Stream = Connection;

    fn poll_accept(&mut self, _: &mut Context<'_>) -> Poll<io::Result<(Connection, Peer)>> {
        let listener = match self {
            Self::Socket(listener) => listener,
            Self::Client(client) => {
                return client
                    .take()
                    .map_or(Poll::Pending, |client| Poll::Ready(Ok(client)));
            }
        };
        let accepted = listener.accept().and_then(|(socket, peer)| {
            // What cannot be set any more is the end of this connection, not of the listener.
            let connection = Connection::socket(socket);
            Ok((connection.map_err(|_| Errno::CONNABORTED)?, peer))
        });
        unless_pending(accepted, listener, PollFlags::IN, false)
    }

    fn is_exhausted(&self) -> bool {
        matches!(self, Self::Client(None))
    }
}
