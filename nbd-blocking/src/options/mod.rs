//! How a connection is to be made.

mod connecting;

use crate::{
    Client, Error,
    haggling::{Greeted, Haggling},
    patience::Patience,
    pool::Pool,
    socket::Socket,
    stream::Stream,
};
use connecting::host;
#[cfg(feature = "tls-base")]
use nbd_io::tls::ClientTls;
use nbd_io::{
    client::{DialOptions, Target, TlsPolicy, greet, greet_secure, shared::Reconnect},
    transport::block_on_ready,
};
use nbd_proto::{
    ContextName, ExportName, Limits, Uri,
    client::{Encrypted, InfoSet, Tolerance},
};
use std::{
    fmt,
    io::{Read, Write},
    net::TcpStream,
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::Command,
    time::Duration,
};

/// How a connection is to be made: by default with everything that makes it better.
///
/// ```no_run
/// use nbd_blocking::{ConnectOptions, ContextName};
///
/// let client = ConnectOptions::new()
///     .context(ContextName::base_allocation())
///     .connect("nbd://localhost/disk")?;
/// # Ok::<(), nbd_blocking::Error>(())
/// ```
#[derive(Clone)]
pub struct ConnectOptions {
    target: Target,
    dial: DialOptions,
    negotiation_timeout: Option<Duration>,
    pub(crate) request_timeout: Option<Duration>,
    pub(crate) connections: usize,
    pub(crate) reconnect: Option<Reconnect>,
    pub(crate) lose_when_silent: Option<bool>,
    local_files: bool,
    #[cfg(feature = "tls-base")]
    tls: Option<ClientTls>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectOptions")
            .field("target", &self.target)
            .field("connections", &self.connections)
            .finish_non_exhaustive()
    }
}

impl ConnectOptions {
    /// Extended headers or structured replies if the server has them, no meta context, TLS exactly
    /// if the URI asks for it, one connection, 30 s to connect, 30 s to negotiate and 60 s for each
    /// request.
    #[must_use]
    pub fn new() -> Self {
        Self {
            target: Target::new(ExportName::default()),
            dial: DialOptions::default(),
            negotiation_timeout: Some(Duration::from_secs(30)),
            request_timeout: Some(Duration::from_secs(60)),
            connections: 1,
            reconnect: None,
            lose_when_silent: None,
            local_files: false,
            #[cfg(feature = "tls-base")]
            tls: Some(ClientTls::new()),
        }
    }

    /// The export to enter where there is no URI: over a stream that the program brings, or of a
    /// server that it starts. A URI always names one: without a path, the default export.
    #[must_use]
    pub fn export(mut self, name: ExportName) -> Self {
        self.target.export = name;
        self
    }

    /// Selects one more meta context. One that the server does not have is left out;
    /// [`Client::contexts`] tells which it has.
    #[must_use]
    pub fn context(mut self, name: ContextName) -> Self {
        self.target.contexts.push(name);
        self
    }

    /// Which information to ask for beside size, flags and block sizes. All by default.
    #[must_use]
    pub const fn infos(mut self, infos: InfoSet) -> Self {
        self.target.infos = infos;
        self
    }

    /// Whether to ask for extended headers. On by default.
    #[must_use]
    pub const fn extended_headers(mut self, ask: bool) -> Self {
        self.target.extended_headers = ask;
        self
    }

    /// Whether to ask for structured replies. On by default; extended headers imply them. Without
    /// them no meta context is selected.
    #[must_use]
    pub const fn structured_replies(mut self, ask: bool) -> Self {
        self.target.structured_replies = ask;
        self
    }

    /// How much the server may send, and how many requests may be in flight on each connection.
    #[must_use]
    pub const fn limits(mut self, limits: Limits) -> Self {
        self.target.config.limits = limits;
        self
    }

    /// Which deviations of the server's are overlooked.
    #[must_use]
    pub const fn tolerance(mut self, tolerance: Tolerance) -> Self {
        self.target.config.tolerance = tolerance;
        self
    }

    /// How long connecting may take: the lookup of a host and all of its addresses, which are
    /// tried side by side. 30 s by default; `None` waits as long as the system does.
    ///
    /// Hosts are looked up by a thread of their own, because the system's resolver knows no
    /// deadlines. It ends with the lookup, which may be later than the call.
    #[must_use]
    pub const fn connect_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.dial.timeout = timeout;
        self
    }

    /// For how long a TCP connection may be quiet until the system asks whether the server is still
    /// there (`SO_KEEPALIVE`); if it does not answer for three times that time, the connection is
    /// lost. 30 s by default. It is about the connections that these options make.
    #[must_use]
    pub const fn tcp_keepalive(mut self, idle: Option<Duration>) -> Self {
        self.dial.tcp_keepalive = idle;
        self
    }

    /// For how long the server's system may take in nothing of what was sent over TCP until the
    /// connection is lost (`TCP_USER_TIMEOUT`), on systems that have that. That is also so if the
    /// server reads nothing for that long, so it has to be longer than a request may take. 90 s by
    /// default; `None` leaves it to the system, and may be a quarter of an hour.
    #[must_use]
    pub const fn tcp_user_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.dial.tcp_user_timeout = timeout;
        self
    }

    /// How long TLS and the negotiation may take together. 30 s by default; `None` waits for ever.
    #[must_use]
    pub const fn negotiation_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.negotiation_timeout = timeout;
        self
    }

    /// How long each request may take, from when it is submitted to its reply, sending it included.
    /// It may wait as long again until there is room for it, as long again for others that change the
    /// same bytes, and as long again for a new connection. Each piece of a long read or write is a
    /// request of its own. 60 s by default; `None` waits for ever.
    ///
    /// A write that the server has taken only a part of by then ends the connection, because no
    /// other request can follow.
    #[must_use]
    pub const fn request_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// How many connections to share the requests between, if the server says that it keeps
    /// several of one client's consistent
    /// ([`can_multi_conn`](nbd_proto::ExportInfo::can_multi_conn)); otherwise there is one. 1 by
    /// default; 0 counts as 1. Only [`connect`] and [`connect_uri`] make more than one. A call uses
    /// the one that has the least to do, with all the pieces of its request.
    ///
    /// [`connect`]: ConnectOptions::connect
    /// [`connect_uri`]: ConnectOptions::connect_uri
    #[must_use]
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections.max(1);
        self
    }

    /// Whether and how to make a new connection when one is lost, which [`connect`] and
    /// [`connect_uri`] can. Not by default: then every request fails with the cause.
    ///
    /// There is no thread behind a client. A loss is noticed by the next call, whichever connection
    /// that uses, and calls make the new connection: attempts go on only while there are calls, and
    /// the first that comes late is made all the same. A call that has no connection to use waits
    /// for one as long as a request may take. One that has dials for the sake of others, for 1 ms at
    /// most, and all of them together for no more than a tenth of the time. A
    /// [`Queue`](crate::Queue) ends with its connection.
    ///
    /// [`connect`]: ConnectOptions::connect
    /// [`connect_uri`]: ConnectOptions::connect_uri
    #[must_use]
    pub fn reconnect(mut self, policy: Option<Reconnect>) -> Self {
        self.reconnect = policy;
        self
    }

    /// Whether a connection is lost when a request has taken too long and the server has sent nothing
    /// at all since that was sent. A server or a network that falls silent without closing would
    /// otherwise have one request after the other take too long. By default exactly if a new connection
    /// is made then, as [`reconnect`](ConnectOptions::reconnect) says.
    #[must_use]
    pub const fn lose_when_silent(mut self, lose: bool) -> Self {
        self.lose_when_silent = Some(lose);
        self
    }

    /// Lets a URI name files of this machine (`tls-certificates`, `tls-psk-file`). To be allowed
    /// only for URIs that come from a trusted place. Off by default. It is about
    /// [`connect`](ConnectOptions::connect); a [`Uri`] was parsed with permissions of its own.
    #[must_use]
    pub const fn local_files(mut self, allow: bool) -> Self {
        self.local_files = allow;
        self
    }

    /// Whom to trust on TLS connections and what to show. It does not switch TLS on; see
    /// [`tls_policy`](ConnectOptions::tls_policy).
    #[cfg(feature = "tls-base")]
    #[must_use]
    pub fn tls(mut self, tls: ClientTls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Whether to start TLS where the URI does not demand it; not by default. A URI that does
    /// always gets it.
    #[must_use]
    pub const fn tls_policy(mut self, policy: TlsPolicy) -> Self {
        self.target.tls = policy;
        self
    }

    /// Connects to what a URI names and enters its export.
    ///
    /// # Errors
    ///
    /// When the URI is wrong, the server cannot be reached, or the export cannot be entered.
    pub fn connect(&self, uri: &str) -> Result<Client, Error> {
        let mut permissions = nbd_proto::uri::Permissions::default();
        if self.local_files {
            permissions = permissions.local_files();
        }
        self.connect_uri(&Uri::parse_with(uri, permissions)?)
    }

    /// Connects to what a URI names and enters its export.
    ///
    /// # Errors
    ///
    /// Like [`connect`](ConnectOptions::connect).
    pub fn connect_uri(&self, uri: &Uri) -> Result<Client, Error> {
        let options = self.clone().with_uri(uri)?;
        let first = block_on_ready(options.open(uri, None, Patience::endless()))?;
        Ok(Client::new(Pool::open(options, uri.clone(), first)?))
    }

    /// Enters the export over a TCP connection that the program has made.
    ///
    /// # Errors
    ///
    /// When the export cannot be entered.
    pub fn connect_tcp(&self, stream: TcpStream) -> Result<Client, Error> {
        stream.set_nodelay(true).map_err(Error::lost)?;
        let peer = stream
            .peer_addr()
            .map(|address| address.ip().to_string())
            .ok();
        let socket = Socket::new(stream.into()).map_err(Error::lost)?;
        self.enter_once(Stream::Socket(socket), peer.as_deref())
    }

    /// Enters the export over a Unix connection that the program has made.
    ///
    /// # Errors
    ///
    /// When the export cannot be entered.
    pub fn connect_unix(&self, stream: UnixStream) -> Result<Client, Error> {
        let socket = Socket::new(OwnedFd::from(stream)).map_err(Error::lost)?;
        self.enter_once(Stream::Socket(socket), None)
    }

    /// Enters the export over any stream.
    ///
    /// It is used by one thread at a time with one request in flight, because nothing is known of
    /// it but that it reads and writes. It has to be blocking. The deadlines of these options
    /// cannot be kept on it, and TLS cannot be started; both are the stream's own business.
    ///
    /// # Errors
    ///
    /// When the export cannot be entered, or TLS is demanded.
    pub fn connect_stream(
        &self,
        stream: impl Read + Write + Send + 'static,
    ) -> Result<Client, Error> {
        let mut options = self.clone();
        options.target.config.limits.in_flight = 1;
        options.enter_once(Stream::any(stream), None)
    }

    /// Starts a server that serves one connection on its standard input and output, such as
    /// `nbdkit -s`, and enters its export. The server is told to end by the end of the connection,
    /// and killed if it does not within 5 s of the last use.
    ///
    /// # Errors
    ///
    /// When the program cannot be started, or the export cannot be entered.
    pub fn connect_command(&self, command: Command) -> Result<Client, Error> {
        let to = format!("{:?}", command.get_program());
        let socket = Socket::spawn(command).map_err(|source| Error::Connect {
            to,
            source: std::sync::Arc::new(source),
        })?;
        self.enter_once(Stream::Socket(socket), None)
    }

    /// Starts a server that takes a listening socket from its parent by the environment variables
    /// `LISTEN_FDS` and `LISTEN_PID`, such as `qemu-nbd` and `nbdkit` do, and enters its export.
    ///
    /// # Errors
    ///
    /// Like [`connect_command`](ConnectOptions::connect_command).
    pub fn connect_activated(&self, command: &Command) -> Result<Client, Error> {
        let to = format!("{:?}", command.get_program());
        let socket = Socket::activate(command).map_err(|source| Error::Connect {
            to,
            source: std::sync::Arc::new(source),
        })?;
        self.enter_once(Stream::Socket(socket), None)
    }

    /// Connects to what a URI names and stops before any option is sent, to go on step by step.
    /// Not for URIs that demand TLS: see [`start_secure`](ConnectOptions::start_secure).
    ///
    /// What these options would have asked for, such as meta contexts, is then the caller's to ask
    /// for. The client that comes of it has one connection, and makes no new one if that is lost.
    ///
    /// # Errors
    ///
    /// When the URI is wrong or demands TLS, the server cannot be reached, or is none.
    pub fn start(&self, uri: &Uri) -> Result<Greeted, Error> {
        let options = self.clone().with_uri(uri)?;
        if options.target.tls == TlsPolicy::Always {
            return Err(Error::Unsupported {
                what: "this URI demands TLS: use `start_secure`",
            });
        }
        let socket = options.dial(uri.address())?;
        let config = options.target.config;
        let greeted = block_on_ready(greet(options.negotiating(Stream::Socket(socket)), config))?;
        Ok(Greeted::new(greeted, options, host(uri.address())))
    }

    /// Connects to what a URI names and starts TLS, to go on step by step.
    ///
    /// # Errors
    ///
    /// When the URI is wrong, the server cannot be reached, is none, or TLS cannot be started.
    pub fn start_secure(&self, uri: &Uri) -> Result<Haggling<Encrypted>, Error> {
        let options = self.clone().with_uri(uri)?;
        let socket = options.dial(uri.address())?;
        let host = host(uri.address());
        let config = options.target.config;
        let haggling = block_on_ready(async {
            let only = greet_secure(options.negotiating(Stream::Socket(socket)), config).await?;
            only.start_tls(|transport| options.upgrade(transport, host))
                .await
        })?;
        Ok(Haggling::new(haggling, options, host))
    }
}

#[cfg(all(test, not(feature = "tls-base")))]
mod tests {
    use super::*;

    #[test]
    fn a_uri_that_demands_tls_is_an_error_in_a_build_without() {
        // U-044
        for uri in ["nbds://localhost", "nbds+unix:///?socket=/nowhere"] {
            let error = ConnectOptions::new().connect(uri).unwrap_err();
            assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
            assert!(error.to_string().contains("TLS"), "{error}");
        }
    }
}
