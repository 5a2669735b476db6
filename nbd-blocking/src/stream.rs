//! The byte stream under a connection: a socket, TLS over one, or a stream of a program's own.

use crate::dial_clock::DialClock;
#[cfg(feature = "tls-base")]
use crate::tls::TlsStream;
use nbd_io::transport::Transport;
#[cfg(feature = "tls-base")]
use nbd_io::{client::NegotiationError, tls::ClientTls, transport::TlsSession};
use nbd_socket::Socket;
use std::{
    fmt,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

/// Longest wait in the system for something to read before a thread looks at the clock.
pub(crate) const READ_IN_SYSTEM: Duration = Duration::from_secs(1);

/// Longest wait in the system to write before a thread looks whether there are replies to take.
const WRITE_IN_SYSTEM: Duration = Duration::from_millis(100);

/// A stream that a program brings.
pub trait ReadWrite: Read + Write + Send {}
impl<S: Read + Write + Send> ReadWrite for S {}

pub(crate) enum Stream {
    Socket(Socket),
    #[cfg(feature = "tls-base")]
    Tls(Box<TlsStream>),
    /// One thread at a time reads or writes, and both wait. With one request in flight this is
    /// enough.
    Any(Mutex<Box<dyn ReadWrite>>),
}

impl Stream {
    pub(crate) fn any(stream: impl Read + Write + Send + 'static) -> Self {
        Self::Any(Mutex::new(Box::new(stream)))
    }

    /// Reads into `bufs` in order. With `block` it may wait, but not much longer than
    /// [`READ_IN_SYSTEM`].
    #[inline]
    pub(crate) fn read(&self, bufs: &mut [IoSliceMut<'_>], block: bool) -> io::Result<usize> {
        match self {
            Self::Socket(socket) => socket.recv(bufs, block),
            #[cfg(feature = "tls-base")]
            Self::Tls(tls) => tls.recv(bufs, block),
            Self::Any(stream) => {
                let mut stream = lock(stream);
                loop {
                    match stream.read_vectored(bufs) {
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        done => return done.map_err(not_ready),
                    }
                }
            }
        }
    }

    /// Writes from `bufs` in order. With `block` it may wait, but not much longer than
    /// [`WRITE_IN_SYSTEM`]; no other thread may have to write meanwhile.
    #[inline]
    pub(crate) fn write(&self, bufs: &[IoSlice<'_>], block: bool) -> io::Result<usize> {
        match self {
            Self::Socket(socket) => socket.send(bufs, block),
            #[cfg(feature = "tls-base")]
            Self::Tls(tls) => tls.send(bufs),
            Self::Any(stream) => {
                let mut stream = lock(stream);
                loop {
                    match stream.write_vectored(bufs) {
                        Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        done => return done.map_err(not_ready),
                    }
                }
            }
        }
    }

    /// Sends bytes left in buffers, as many as fit without waiting.
    #[inline]
    pub(crate) fn flush(&self) -> io::Result<()> {
        match self {
            Self::Socket(_) => Ok(()),
            #[cfg(feature = "tls-base")]
            Self::Tls(tls) => tls.flush(),
            Self::Any(stream) => lock(stream).flush(),
        }
    }

    /// Waits until the stream can be read from or written to.
    pub(crate) fn wait(
        &self,
        read: bool,
        write: bool,
        deadline: Option<Instant>,
    ) -> io::Result<()> {
        match self.socket() {
            Some(socket) => socket.wait(read, write, deadline),
            None => Ok(()),
        }
    }

    /// Whether a read that waits keeps others from writing.
    pub(crate) const fn is_half_duplex(&self) -> bool {
        matches!(self, Self::Any(_))
    }

    /// Announces to the peer that no more bytes will come.
    pub(crate) fn shutdown(&self) {
        #[cfg(feature = "tls-base")]
        if let Self::Tls(tls) = self {
            tls.close_notify();
        }
        if let Some(socket) = self.socket() {
            let _ = socket.shutdown();
        }
    }

    /// Ends both directions at once; TLS sends its alert if that needs no waiting.
    pub(crate) fn close(&self) {
        #[cfg(feature = "tls-base")]
        if let Self::Tls(tls) = self {
            tls.close_notify();
        }
        if let Some(socket) = self.socket() {
            socket.close();
        }
    }

    pub(crate) fn socket(&self) -> Option<&Socket> {
        match self {
            Self::Socket(socket) => Some(socket),
            #[cfg(feature = "tls-base")]
            Self::Tls(tls) => Some(tls.socket()),
            Self::Any(_) => None,
        }
    }
}

/// A stream that a program brings has to wait by itself, or has a deadline of its own.
fn not_ready(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, error),
        _ => error,
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(socket) => socket.fmt(f),
            #[cfg(feature = "tls-base")]
            Self::Tls(tls) => tls.fmt(f),
            Self::Any(_) => f.write_str("Any"),
        }
    }
}

/// Time in which the peer has to answer NBD_OPT_ABORT, or to close after NBD_CMD_DISC.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A stream that negotiates until a deadline. As a [`Transport`] it pends only where a dial is
/// suspended.
#[derive(Debug)]
pub struct Negotiating {
    pub(crate) stream: Stream,
    pub(crate) deadline: Option<Instant>,
    pub(crate) clock: DialClock,
}

impl Negotiating {
    pub(crate) fn new(stream: Stream, clock: DialClock) -> io::Result<Self> {
        if let Some(socket) = stream.socket() {
            socket.set_timeouts(Some(READ_IN_SYSTEM), Some(WRITE_IN_SYSTEM))?;
        }
        Ok(Self {
            stream,
            deadline: None,
            clock,
        })
    }

    /// Whether a read may wait in the system, which takes one call instead of three but knows no
    /// deadline.
    fn reads_in_system(&self) -> bool {
        let soon = || Instant::now() + READ_IN_SYSTEM;
        !self.clock.suspends() && self.deadline.is_none_or(|deadline| soon() <= deadline)
    }

    /// Does something until it need not wait, or until the deadline. `attempt` may wait in the system
    /// if it is said so.
    fn by_deadline<R>(
        &self,
        read: bool,
        mut attempt: impl FnMut(&Stream, bool) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        loop {
            let in_system = read && self.reads_in_system();
            match attempt(&self.stream, in_system) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && in_system => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if let Some(socket) = self.stream.socket() {
                        ready!(self.clock.poll(socket, read, !read, self.deadline))?;
                    }
                }
                done => return Poll::Ready(done),
            }
        }
    }
}

#[cfg(feature = "tls-base")]
impl Negotiating {
    /// Does the TLS handshake.
    pub(crate) async fn start_tls(
        self,
        tls: &ClientTls,
        host: Option<&str>,
    ) -> Result<Self, NegotiationError> {
        let Self {
            stream,
            deadline,
            clock,
        } = self;
        let Stream::Socket(socket) = stream else {
            return Err(NegotiationError::Tls(
                "TLS can only be started over a socket".into(),
            ));
        };
        let (config, name) = tls.client(host)?;
        let tls = TlsStream::connect(socket, config, &name, deadline, &clock).await?;
        Ok(Self {
            stream: Stream::Tls(Box::new(tls)),
            deadline,
            clock,
        })
    }
}

impl Transport for Negotiating {
    fn poll_read(
        &mut self,
        _: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        self.by_deadline(true, |stream, block| stream.read(bufs, block))
    }

    fn poll_write(&mut self, _: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.by_deadline(false, |stream, _| stream.write(bufs, false))
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.by_deadline(false, |stream, _| stream.flush())
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.shutdown();
        if self.stream.socket().is_none() {
            return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
        }
        let disconnect_by = self.clock.now() + DISCONNECT_TIMEOUT;
        self.deadline = self.deadline.map(|deadline| deadline.min(disconnect_by));
        self.deadline.get_or_insert(disconnect_by);
        Poll::Ready(Ok(()))
    }

    #[cfg(feature = "tls-base")]
    fn tls_session(&self) -> Option<TlsSession> {
        match &self.stream {
            Stream::Tls(tls) => tls.session(),
            _ => None,
        }
    }

    fn fail_instead_of_waiting(&mut self) {
        self.deadline = Some(self.clock.now());
    }
}
