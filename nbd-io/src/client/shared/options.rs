//! How a connection is to be made.

use super::{
    client::Client,
    haggling::{Greeted, Haggling},
    link::Stream,
    plan::Plan,
    pool::Pool,
    timed::{Release, Timed},
};
#[cfg(feature = "tls")]
use crate::tls::ClientTls;
use crate::{
    client::{
        Connected, DialOptions, Error, NegotiationError, Reconnect, Target, TlsPolicy, greet,
        greet_secure, negotiate, server_name,
    },
    runtime::Network,
    transport::Transport,
};
use nbd_proto::{
    ContextName, ExportName, Limits, Uri,
    client::{Encrypted, InfoSet, Tolerance, Transmission},
    uri::{Address, Permissions},
};
use std::{fmt, time::Duration};

/// How a connection is to be made: by default with everything that makes it better.
#[derive(Clone)]
pub struct ConnectOptions<R> {
    pub(super) runtime: R,
    pub(super) target: Target,
    dial: DialOptions,
    negotiation_timeout: Option<Duration>,
    pub(super) request_timeout: Option<Duration>,
    pub(super) bytes_in_flight: u64,
    pub(super) connections: usize,
    pub(super) reconnect: Option<Reconnect>,
    pub(super) lose_when_silent: Option<bool>,
    local_files: bool,
    #[cfg(feature = "tls")]
    tls: Option<ClientTls>,
}

impl<R: Network + Default> Default for ConnectOptions<R> {
    fn default() -> Self {
        Self::new()
    }
}

impl<R> fmt::Debug for ConnectOptions<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectOptions")
            .field("target", &self.target)
            .field("connections", &self.connections)
            .finish_non_exhaustive()
    }
}

impl<R: Network + Default> ConnectOptions<R> {
    /// Extended headers or structured replies if the server has them, no meta context, TLS exactly
    /// if the URI asks for it, one connection, 30 s to connect, 30 s to negotiate and 60 s for each
    /// request.
    #[must_use]
    pub fn new() -> Self {
        Self::with_runtime(R::default())
    }
}

impl<R: Network> ConnectOptions<R> {
    /// Like [`new`](ConnectOptions::new), on this runtime.
    #[must_use]
    pub fn with_runtime(runtime: R) -> Self {
        Self {
            runtime,
            target: Target::new(ExportName::default()),
            dial: DialOptions::default(),
            negotiation_timeout: Some(Duration::from_secs(30)),
            request_timeout: Some(Duration::from_secs(60)),
            bytes_in_flight: 128 << 20,
            connections: 1,
            reconnect: None,
            lose_when_silent: None,
            local_files: false,
            #[cfg(feature = "tls")]
            tls: Some(ClientTls::new()),
        }
    }

    /// The runtime that connections are made on.
    #[must_use]
    pub const fn runtime(&self) -> &R {
        &self.runtime
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
    pub fn infos(mut self, infos: InfoSet) -> Self {
        self.target.infos = infos;
        self
    }

    /// Whether to ask for extended headers. On by default.
    #[must_use]
    pub fn extended_headers(mut self, ask: bool) -> Self {
        self.target.extended_headers = ask;
        self
    }

    /// Whether to ask for structured replies. On by default; extended headers imply them. Without
    /// them no meta context is selected.
    #[must_use]
    pub fn structured_replies(mut self, ask: bool) -> Self {
        self.target.structured_replies = ask;
        self
    }

    /// How much the server may send, and how many requests may be in flight on each connection.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.target.config.limits = limits;
        self
    }

    /// Which deviations of the server's are overlooked.
    #[must_use]
    pub fn tolerance(mut self, tolerance: Tolerance) -> Self {
        self.target.config.tolerance = tolerance;
        self
    }

    /// How long connecting may take: the lookup of a host and all of its addresses, which are
    /// tried side by side. 30 s by default; `None` waits as
    /// long as the system does.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.dial.timeout = timeout;
        self
    }

    /// For how long a TCP connection may be quiet until the system asks whether the server is still
    /// there (`SO_KEEPALIVE`); if it does not answer for three times that time, the connection is
    /// lost. 30 s by default. It is about the connections that these options make.
    #[must_use]
    pub fn tcp_keepalive(mut self, idle: Option<Duration>) -> Self {
        self.dial.tcp_keepalive = idle;
        self
    }

    /// For how long the server's system may take in nothing of what was sent over TCP until the
    /// connection is lost (`TCP_USER_TIMEOUT`), on systems that have that. That is also so if the
    /// server reads nothing for that long, so it has to be longer than a request may take. 90 s by
    /// default; `None` leaves it to the system, and may be a quarter of an hour.
    #[must_use]
    pub fn tcp_user_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.dial.tcp_user_timeout = timeout;
        self
    }

    /// How long TLS and the negotiation may take together. 30 s by default; `None` waits for ever.
    #[must_use]
    pub fn negotiation_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.negotiation_timeout = timeout;
        self
    }

    /// How long each request may take, from when it is submitted to its reply, sending it included.
    /// It may wait as long again until there is room for it, as long again for others that change the
    /// same bytes, and as long again for a new connection. Each piece of a long read or write is a
    /// request of its own. 60 s by default; `None` waits for ever.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// How many bytes of payload, of reads and writes together, may be in flight on each
    /// connection. A single request may always be. 128 MiB by default.
    #[must_use]
    pub fn bytes_in_flight(mut self, bytes: u64) -> Self {
        self.bytes_in_flight = bytes;
        self
    }

    /// How many connections to share the requests between, if the server says that it keeps
    /// several of one client's consistent
    /// ([`can_multi_conn`](nbd_proto::ExportInfo::can_multi_conn)); otherwise there is one. 1 by
    /// default; 0 counts as 1. Only [`connect`] and [`connect_uri`] make more than one.
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
    pub fn local_files(mut self, allow: bool) -> Self {
        self.local_files = allow;
        self
    }

    /// Whom to trust on TLS connections and what to show. It does not switch TLS on; see
    /// [`tls_policy`](ConnectOptions::tls_policy).
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(mut self, tls: ClientTls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Whether to start TLS where the URI does not demand it; not by default. A URI that does
    /// always gets it.
    #[must_use]
    pub fn tls_policy(mut self, policy: TlsPolicy) -> Self {
        self.target.tls = policy;
        self
    }

    /// Connects to what a URI names and enters its export.
    ///
    /// # Errors
    ///
    /// When the URI is wrong, the server cannot be reached, or the export cannot be entered.
    ///
    /// # Cancel safety
    ///
    /// A future that is dropped leaves no connection behind.
    pub async fn connect(&self, uri: &str) -> Result<Client<R>, Error> {
        let mut permissions = Permissions::default();
        if self.local_files {
            permissions = permissions.local_files();
        }
        self.connect_uri(&Uri::parse_with(uri, permissions)?).await
    }

    /// Connects to what a URI names and enters its export.
    ///
    /// # Errors
    ///
    /// Like [`connect`](ConnectOptions::connect).
    ///
    /// # Cancel safety
    ///
    /// Like [`connect`](ConnectOptions::connect).
    pub async fn connect_uri(&self, uri: &Uri) -> Result<Client<R>, Error> {
        let options = self.clone().with_uri(uri).await?;
        let first = options.open(uri).await?;
        let plan = Plan::new(options, Some(uri.clone()), &first);
        Pool::open(plan, first).await.map(Client::new)
    }

    /// Enters the export over a stream that the program brings. `host` is the name that a
    /// certificate is checked against unless [`tls`](ConnectOptions::tls) has another one. If this
    /// connection is lost, no new one is made.
    ///
    /// # Errors
    ///
    /// When the export cannot be entered.
    ///
    /// # Cancel safety
    ///
    /// A future that is dropped leaves no connection behind.
    pub async fn connect_over(
        &self,
        stream: impl Transport + Send + 'static,
        host: Option<&str>,
    ) -> Result<Client<R>, Error> {
        let first = self.enter(stream, host, host).await?;
        let plan = Plan::new(self.clone(), None, &first);
        Pool::open(plan, first).await.map(Client::new)
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
    ///
    /// # Cancel safety
    ///
    /// A future that is dropped leaves no connection behind.
    pub async fn start(&self, uri: &Uri) -> Result<Greeted<R>, Error> {
        let options = self.clone().with_uri(uri).await?;
        if options.target.tls == TlsPolicy::Always {
            return Err(Error::Unsupported {
                what: "this URI demands TLS: use `start_secure`",
            });
        }
        let socket = options.dial(uri).await?;
        let config = options.target.config;
        let (stream, release) = options.negotiating(socket);
        let greeted = greet(stream, config).await?;
        Ok(Greeted::new(greeted, options, host(uri.address()), release))
    }

    /// Connects to what a URI names and starts TLS, to go on step by step as after
    /// [`start`](ConnectOptions::start).
    ///
    /// # Errors
    ///
    /// When the URI is wrong, the server cannot be reached, is none, or TLS cannot be started.
    ///
    /// # Cancel safety
    ///
    /// A future that is dropped leaves no connection behind.
    pub async fn start_secure(&self, uri: &Uri) -> Result<Haggling<R, Encrypted>, Error> {
        let options = self.clone().with_uri(uri).await?;
        let socket = options.dial(uri).await?;
        let host = host(uri.address());
        let config = options.target.config;
        let (stream, release) = options.negotiating(socket);
        let only = greet_secure(stream, config).await?;
        let haggling = only
            .start_tls(|stream| options.upgrade(stream, host))
            .await?;
        Ok(Haggling::new(haggling, options, host, release))
    }

    /// These options and what a URI says.
    async fn with_uri(mut self, uri: &Uri) -> Result<Self, Error> {
        self.target.export = uri.export().clone();
        let Some(tls) = uri.tls() else {
            return Ok(self);
        };
        self.target.tls = TlsPolicy::Always;
        self.trust(tls).await?;
        Ok(self)
    }

    #[cfg(feature = "tls")]
    async fn trust(&mut self, uri: &nbd_proto::uri::Tls) -> Result<(), Error> {
        let tls = self.tls.take().unwrap_or_default();
        self.tls = Some(tls.with_uri_on(&self.runtime, uri).await?);
        Ok(())
    }

    #[cfg(not(feature = "tls"))]
    async fn trust(&mut self, _: &nbd_proto::uri::Tls) -> Result<(), Error> {
        Err(Error::Unsupported {
            what: "this URI demands TLS, which is not in this build",
        })
    }

    /// Makes one more connection, with everything that belongs to it.
    pub(super) async fn open(&self, uri: &Uri) -> Result<Connected<Stream>, Error> {
        let socket = self.dial(uri).await?;
        let server = server_name(uri.address());
        self.enter(socket, Some(&server), host(uri.address())).await
    }

    async fn dial(&self, uri: &Uri) -> Result<R::Stream, Error> {
        let connected = self.runtime.connect(uri.address(), &self.dial).await;
        connected.map_err(|error| Error::connect(uri.address(), error))
    }

    fn negotiating(&self, stream: impl Transport + Send + 'static) -> (Stream, Release) {
        let release = Release::default();
        let time = self.negotiation_timeout;
        let timed = Timed::new(stream, self.runtime.clone(), time, release.clone());
        (Box::new(timed), release)
    }

    async fn enter(
        &self,
        stream: impl Transport + Send + 'static,
        server: Option<&str>,
        host: Option<&str>,
    ) -> Result<Connected<Stream>, Error> {
        let (stream, release) = self.negotiating(stream);
        let upgrade = |stream| self.upgrade(stream, host);
        let connected = negotiate(stream, &self.target, upgrade)
            .await
            .map_err(|error| Error::entering(&self.target.export, server, error))?;
        release.release();
        Ok(connected)
    }

    /// An export that was entered step by step.
    pub(super) async fn entered(
        self,
        transport: Stream,
        transmission: Transmission,
        encrypted: bool,
        release: &Release,
    ) -> Result<Client<R>, Error> {
        release.release();
        let first = Connected {
            transport,
            transmission,
            encrypted,
        };
        let plan = Plan::new(self, None, &first);
        Pool::open(plan, first).await.map(Client::new)
    }

    /// Does the TLS handshake.
    #[cfg(feature = "tls")]
    pub(super) async fn upgrade(
        &self,
        stream: Stream,
        host: Option<&str>,
    ) -> Result<Stream, NegotiationError> {
        let tls = self.tls.clone().unwrap_or_default();
        let (config, name) = tls.client_on(&self.runtime, host).await?;
        let tls = crate::tls::TlsTransport::connect(stream, config, name).await?;
        Ok(Box::new(tls))
    }

    /// Does the TLS handshake.
    #[cfg(not(feature = "tls"))]
    pub(super) async fn upgrade(
        &self,
        _: Stream,
        _: Option<&str>,
    ) -> Result<Stream, NegotiationError> {
        Err(NegotiationError::Tls("TLS is not in this build".into()))
    }
}

/// The name that a certificate is checked against unless another one is given.
fn host(address: &Address) -> Option<&str> {
    match address {
        Address::Tcp { host, .. } => Some(host.as_str()),
        _ => None,
    }
}
