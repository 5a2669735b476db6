//! Serving exports: a thread for each connection.

mod accept;
mod connection;
mod event;
mod registry;

pub use event::{Ending, Event, Peer};

use crate::{socket::Socket, stream::Stream};
use nbd_io::{Export, Exports, NamedExports, server::ServerOptions};
#[cfg(feature = "tls-base")]
use nbd_io::{
    server::TlsMode,
    tls::{ServerTls, TlsError},
};
use nbd_proto::Limits;
use registry::{Refused, Registry};
use std::{
    fmt,
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    sync::Arc,
    time::Duration,
};

/// Serves exports to any number of clients.
///
/// Its settings are made first; then it serves from as many listeners and streams as there are,
/// each in a thread of the program's. A clone is another handle to the same server.
///
/// The requests of one connection are carried out one after the other, in the thread of that
/// connection.
///
/// ```
/// use nbd_blocking::{ConnectOptions, server::Server};
/// use nbd_io::Memory;
/// use std::{os::unix::net::UnixStream, sync::Arc, thread};
///
/// let server = Server::single(Arc::new(Memory::new(1 << 20)));
/// let (ours, theirs) = UnixStream::pair()?;
/// let serving = thread::spawn(move || server.serve_unix_stream(theirs));
///
/// let client = ConnectOptions::new().connect_unix(ours)?;
/// client.write_at(b"hello", 4096)?;
/// client.disconnect()?;
/// serving.join().expect("the server does not panic")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Server {
    settings: Settings,
    registry: Arc<Registry>,
}

#[derive(Clone)]
struct Settings {
    exports: Arc<dyn Exports>,
    options: ServerOptions,
    #[cfg(feature = "tls-base")]
    tls: Option<Arc<rustls::ServerConfig>>,
    handshake_timeout: Option<Duration>,
    max_connections: usize,
    grace: Duration,
    #[expect(clippy::type_complexity, reason = "it is the type that it is")]
    on_event: Option<Arc<dyn Fn(&Event<'_>) + Send + Sync>>,
}

impl Settings {
    fn tell(&self, event: &Event<'_>) {
        if let Some(on_event) = &self.on_event {
            on_event(event);
        }
    }
}

impl Server {
    /// Serves a set of exports, without TLS, to 256 connections at once, each of which has 10 s to
    /// negotiate.
    #[must_use]
    pub fn new(exports: impl Exports + 'static) -> Self {
        Self::with_exports(Arc::new(exports))
    }

    /// Serves one export under the empty name, which is the default export's.
    #[must_use]
    pub fn single(export: Arc<dyn Export>) -> Self {
        Self::new(NamedExports::single(export))
    }

    /// Like [`new`](Self::new), for exports that others use too.
    #[must_use]
    pub fn with_exports(exports: Arc<dyn Exports>) -> Self {
        let mut options = ServerOptions::default();
        // The requests of a connection are carried out in order, so that many cost no more memory
        // than few, and their replies can be sent at once.
        options.config.limits.accepted = 64;
        Self {
            settings: Settings {
                exports,
                options,
                #[cfg(feature = "tls-base")]
                tls: None,
                handshake_timeout: Some(Duration::from_secs(10)),
                max_connections: 256,
                grace: Duration::from_secs(5),
                on_event: None,
            },
            registry: Arc::new(Registry::default()),
        }
    }

    /// Lets clients start TLS, so that they get the exports that are for TLS only.
    ///
    /// # Errors
    ///
    /// When what was given cannot be used.
    #[cfg(feature = "tls-base")]
    pub fn offer_tls(self, tls: &ServerTls) -> Result<Self, TlsError> {
        self.tls(tls, TlsMode::Selective)
    }

    /// Makes clients start TLS before anything else.
    ///
    /// # Errors
    ///
    /// When what was given cannot be used.
    #[cfg(feature = "tls-base")]
    pub fn require_tls(self, tls: &ServerTls) -> Result<Self, TlsError> {
        self.tls(tls, TlsMode::Forced)
    }

    #[cfg(feature = "tls-base")]
    fn tls(mut self, tls: &ServerTls, mode: TlsMode) -> Result<Self, TlsError> {
        self.settings.tls = Some(tls.server()?);
        self.settings.options.tls = mode;
        Ok(self)
    }

    /// How much a client may ask for.
    #[must_use]
    pub const fn limits(mut self, limits: Limits) -> Self {
        self.settings.options.config.limits = limits;
        self
    }

    /// Whether clients get extended headers if they ask. On by default.
    #[must_use]
    pub const fn extended_headers(mut self, grant: bool) -> Self {
        self.settings.options.config.extended = grant;
        self
    }

    /// Whether clients get structured replies if they ask. On by default.
    #[must_use]
    pub const fn structured_replies(mut self, grant: bool) -> Self {
        self.settings.options.config.structured = grant;
        self
    }

    /// Whether clients get a list of the exports if they ask. On by default.
    #[must_use]
    pub const fn listing(mut self, grant: bool) -> Self {
        self.settings.options.config.listing = grant;
        self
    }

    /// How long TLS and the negotiation may take together. `None` waits for ever.
    #[must_use]
    pub const fn handshake_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.settings.handshake_timeout = timeout;
        self
    }

    /// How many connections there may be at once; more are closed at once.
    #[must_use]
    pub const fn max_connections(mut self, max: usize) -> Self {
        self.settings.max_connections = max;
        self
    }

    /// How long a connection in use has to come to an end when the server
    /// [stops](Stopper::stop). Default 5 s.
    #[must_use]
    pub const fn grace(mut self, grace: Duration) -> Self {
        self.settings.grace = grace;
        self
    }

    /// Calls `on_event` whenever something happens that is worth a line in a log. It is called in
    /// the thread where it happened, which waits for it.
    #[must_use]
    pub fn on_event(mut self, on_event: impl Fn(&Event<'_>) + Send + Sync + 'static) -> Self {
        self.settings.on_event = Some(Arc::new(on_event));
        self
    }

    /// A handle by which the server can be stopped while it serves.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper {
            registry: Arc::clone(&self.registry),
        }
    }

    /// Serves clients that connect to a TCP socket, until the server is
    /// [stopped](Stopper::stop). Returns when the last of its connections is closed.
    ///
    /// # Errors
    ///
    /// When the listener fails for good. What goes wrong with one connection is an
    /// [event](Self::on_event) and no error.
    pub fn serve_tcp(&self, listener: TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let accept = |listener: &TcpListener| {
            let (stream, address) = listener.accept()?;
            // Some systems refuse it when the client is gone, which is no failure of the listener.
            let _ = stream.set_nodelay(true);
            Ok((stream.into(), Peer::Tcp(address)))
        };
        accept::serve(self, listener, accept)
    }

    /// Serves clients that connect to a Unix socket; see [`serve_tcp`](Self::serve_tcp). The
    /// socket's file stays behind.
    ///
    /// # Errors
    ///
    /// Like [`serve_tcp`](Self::serve_tcp).
    pub fn serve_unix(&self, listener: UnixListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let accept = |listener: &UnixListener| {
            let (stream, _) = listener.accept()?;
            Ok((stream.into(), Peer::Unix))
        };
        accept::serve(self, listener, accept)
    }

    /// Serves one client over a TCP connection, in this thread.
    ///
    /// # Errors
    ///
    /// When the server has as many connections as it may, is stopping, or the socket cannot be
    /// used. How the connection ended is no error of the server's.
    pub fn serve_tcp_stream(&self, stream: TcpStream) -> io::Result<Ending> {
        stream.set_nodelay(true)?;
        let peer = Peer::Tcp(stream.peer_addr()?);
        self.serve_socket(OwnedFd::from(stream), peer)
    }

    /// Serves one client over a Unix connection, in this thread.
    ///
    /// # Errors
    ///
    /// Like [`serve_tcp_stream`](Self::serve_tcp_stream).
    pub fn serve_unix_stream(&self, stream: UnixStream) -> io::Result<Ending> {
        self.serve_socket(OwnedFd::from(stream), Peer::Unix)
    }

    /// Serves one client over any stream, in this thread.
    ///
    /// The stream has to be blocking. Deadlines cannot be kept on it, TLS cannot be started, and
    /// when the server stops, nobody wakes it while it waits; all that is the stream's own
    /// business.
    ///
    /// # Errors
    ///
    /// Like [`serve_tcp_stream`](Self::serve_tcp_stream).
    pub fn serve_stream(&self, stream: impl Read + Write + Send + 'static) -> io::Result<Ending> {
        self.serve_here(Stream::any(stream), Peer::Other, None)
    }

    fn serve_socket(&self, fd: OwnedFd, peer: Peer) -> io::Result<Ending> {
        let handle = Socket::new(fd.try_clone()?)?;
        let stream = Stream::Socket(Socket::new(fd)?);
        self.serve_here(stream, peer, Some(handle))
    }

    fn serve_here(&self, stream: Stream, peer: Peer, handle: Option<Socket>) -> io::Result<Ending> {
        match self.registry.enter(handle, self.settings.max_connections) {
            Ok(place) => Ok(connection::serve(&self.settings, stream, &peer, &place)),
            Err(refused) => {
                self.settings.tell(&Event::Refused { peer: &peer });
                Err(match refused {
                    Refused::Full => io::ErrorKind::ResourceBusy.into(),
                    Refused::Stopping => io::ErrorKind::ConnectionAborted.into(),
                })
            }
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("options", &self.settings.options)
            .field("connections", &self.registry.len())
            .finish_non_exhaustive()
    }
}

/// Stops a [`Server`], from any thread.
#[derive(Clone)]
pub struct Stopper {
    registry: Arc<Registry>,
}

impl Stopper {
    /// Begins to stop the server, and does not wait for it.
    ///
    /// No more connections are accepted, and those on which nothing is going on are closed. On the
    /// others, what was begun is finished, and new requests are answered with
    /// [`Errno::Shutdown`](nbd_proto::Errno::Shutdown), until the client disconnects or sends
    /// nothing more for a moment. What is still there after the [grace](Server::grace) is closed.
    ///
    /// [`serve_tcp`](Server::serve_tcp) and [`serve_unix`](Server::serve_unix) return when all
    /// this is done; it is they who close what is left after the grace. Without a listener, a
    /// connection in the middle of a request stays until its client goes on or leaves.
    pub fn stop(&self) {
        self.registry.stop();
    }

    /// How many connections there are.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.registry.len()
    }
}

impl fmt::Debug for Stopper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stopper")
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}
