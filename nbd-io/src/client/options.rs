//! Settings for making a connection, and making it.

use super::{
    ClientEvent, Config, Connector, Driver, Error, Greeted, Negotiation, Observer, Reconnect,
    TlsPolicy,
    connector::{Server, after, shortest},
    exchange,
};
#[cfg(feature = "tls")]
use crate::tls::ClientTls;
use nbd_proto::{
    ContextName, ExportName, Uri,
    client::{Encrypted, InfoSet, Limits, Tolerance},
    uri::Permissions,
};
use std::{fmt, io, sync::Arc, time::Duration};

/// Settings for making a connection: by default with every feature that makes it better.
///
/// This is for programs over any driver. Each driver has a `ConnectOptions` of its own, made of this
/// one, whose pages say all of each method.
#[derive(Clone)]
pub struct ConnectOptions<D> {
    pub(super) driver: D,
    /// Clones share it until one is changed.
    pub(super) config: Arc<Config>,
}

impl<D: Driver + Default> Default for ConnectOptions<D> {
    fn default() -> Self {
        Self::new()
    }
}

impl<D> fmt::Debug for ConnectOptions<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectOptions")
            .field("negotiation", &self.config.negotiation)
            .field("connections", &self.config.connections)
            .finish_non_exhaustive()
    }
}

impl<D: Driver + Default> ConnectOptions<D> {
    /// Extended headers or structured replies if the server has them, no meta context, TLS exactly
    /// if the URI asks for it, one connection, 30 s to connect and 60 s for each request.
    #[must_use]
    pub fn new() -> Self {
        Self {
            driver: D::default(),
            config: Arc::default(),
        }
    }
}

impl<D: Driver> ConnectOptions<D> {
    /// The export to enter where there is no URI: over a stream that the program brings, or of a
    /// server that it starts.
    #[must_use]
    pub fn export(mut self, name: ExportName) -> Self {
        self.config_mut().negotiation.export = name;
        self
    }

    /// Selects one more meta context.
    #[must_use]
    pub fn context(mut self, name: ContextName) -> Self {
        self.config_mut().negotiation.contexts.push(name);
        self
    }

    /// Selects one more meta context, without which the export is of no use: connecting fails if
    /// the server does not have it.
    #[must_use]
    pub fn require_context(mut self, name: ContextName) -> Self {
        let negotiation = &mut self.config_mut().negotiation;
        negotiation.contexts.push(name.clone());
        negotiation.required_contexts.push(name);
        self
    }

    /// The information to ask for beside size, flags and block sizes.
    #[must_use]
    pub fn infos(mut self, infos: InfoSet) -> Self {
        self.config_mut().negotiation.infos = infos;
        self
    }

    /// Whether to ask for extended headers.
    #[must_use]
    pub fn extended_headers(mut self, ask: bool) -> Self {
        self.config_mut().negotiation.extended_headers = ask;
        self
    }

    /// Whether to ask for structured replies.
    #[must_use]
    pub fn structured_replies(mut self, ask: bool) -> Self {
        self.config_mut().negotiation.structured_replies = ask;
        self
    }

    /// Limits of the server's messages, and of requests in flight on each connection.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.config_mut().negotiation.protocol.limits = limits;
        self
    }

    /// The deviations of the server's that are overlooked.
    #[must_use]
    pub fn tolerance(mut self, tolerance: Tolerance) -> Self {
        self.config_mut().negotiation.protocol.tolerance = tolerance;
        self
    }

    /// Time limit of connecting as a whole: the lookup of a host, its addresses, which are tried
    /// side by side, TLS and the negotiation.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.config_mut().dial.timeout = timeout;
        self
    }

    /// Time limit of TLS and the negotiation together, as a part of the
    /// [`connect_timeout`](Self::connect_timeout), from when the server is reached.
    #[must_use]
    pub fn negotiation_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.config_mut().negotiation_timeout = timeout;
        self
    }

    /// For how long a TCP connection may be quiet until the system asks whether the server is still
    /// there (`SO_KEEPALIVE`); if it does not answer for three times that time, the connection is
    /// lost.
    #[must_use]
    pub fn tcp_keepalive(mut self, idle: Option<Duration>) -> Self {
        self.config_mut().dial.tcp_keepalive = idle;
        self
    }

    /// Time for which the server's system may acknowledge no sent data over TCP until the
    /// connection is lost (`TCP_USER_TIMEOUT`), on systems that have that.
    #[must_use]
    pub fn tcp_user_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.config_mut().dial.tcp_user_timeout = timeout;
        self
    }

    /// Time limit of each request, from when its connection begins to send it until its reply is
    /// there.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.config_mut().request_timeout = timeout;
        self
    }

    /// Number of connections that share the requests, if the server says that it keeps several of
    /// one client's consistent ([`can_multi_conn`](nbd_proto::ExportInfo::can_multi_conn));
    /// otherwise there is one.
    #[must_use]
    pub fn connections(mut self, connections: usize) -> Self {
        self.config_mut().connections = connections.max(1);
        self
    }

    /// Whether and how to make a new connection when one is lost, which [`connect`](Self::connect)
    /// and [`connect_uri`](Self::connect_uri) can.
    #[must_use]
    pub fn reconnect(mut self, policy: Option<Reconnect>) -> Self {
        self.config_mut().reconnect = policy;
        self
    }

    /// Limit of payload in flight on each connection, in bytes, of reads and writes together.
    #[must_use]
    pub fn bytes_in_flight(mut self, bytes: u64) -> Self {
        self.config_mut().bytes_in_flight = bytes;
        self
    }

    /// Whether a connection is lost when a request has taken too long and the server has sent
    /// nothing at all since that was sent.
    #[must_use]
    pub fn lose_when_silent(mut self, lose: bool) -> Self {
        self.config_mut().lose_when_silent = Some(lose);
        self
    }

    /// Calls `on_event` when a connection is made or lost, when an attempt to replace one fails,
    /// and when the client gives up; in the order in which that happens, for each client that these
    /// options make.
    #[must_use]
    pub fn on_event(mut self, on_event: impl Fn(&ClientEvent) + Send + Sync + 'static) -> Self {
        self.config_mut().observer = Observer::new(on_event);
        self
    }

    /// Reports each request that takes at least `threshold`, from when it is submitted until its
    /// reply is read or it is given up, waiting for a connection included.
    #[must_use]
    pub fn slow_request(mut self, threshold: Option<Duration>) -> Self {
        self.config_mut().slow_request = threshold;
        self
    }

    /// Lets a URI name files of this machine (`tls-certificates`, `tls-psk-file`).
    #[must_use]
    pub fn local_files(mut self, allow: bool) -> Self {
        self.config_mut().local_files = allow;
        self
    }

    /// The trusted authorities of TLS connections, and the client's own certificate.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(mut self, tls: ClientTls) -> Self {
        self.config_mut().tls = tls;
        self
    }

    /// Whether to start TLS where the URI does not demand it; not by default.
    #[must_use]
    pub fn tls_policy(mut self, policy: TlsPolicy) -> Self {
        self.config_mut().negotiation.tls = policy;
        self
    }

    /// Connects to the server of a URI and enters its export.
    pub async fn connect<'a>(&'a self, uri: &'a str) -> Result<D::Client, Error> {
        let mut permissions = Permissions::default();
        if self.config.local_files {
            permissions = permissions.local_files();
        }
        self.enter(&Uri::parse_with(uri, permissions)?).await
    }

    /// Connects to the server of a URI and enters its export.
    pub fn connect_uri<'a>(
        &'a self,
        uri: &'a Uri,
    ) -> impl Future<Output = Result<D::Client, Error>> + Send {
        self.enter(uri)
    }

    pub(super) fn config_mut(&mut self) -> &mut Config {
        Arc::make_mut(&mut self.config)
    }

    async fn enter(&self, uri: &Uri) -> Result<D::Client, Error> {
        let connector = self.connector(uri).await?;
        self.enter_by(connector).await
    }

    pub(super) async fn enter_by(&self, connector: Connector<D>) -> Result<D::Client, Error> {
        let first = connector.connect(&self.driver, None).await?;
        D::enter(connector, first).await
    }

    /// Enters the export over a stream that the program brings. `host` is the name that a
    /// certificate is checked against unless `ClientTls` has another one.
    pub fn enter_over(
        &self,
        stream: io::Result<D::Stream>,
        host: Option<&str>,
    ) -> impl Future<Output = Result<D::Client, Error>> + Send {
        let server = Server::Host(host.map(str::to_owned));
        async move {
            self.check_single()?;
            let stream = stream.map_err(|error| Error::connect(&server, error))?;
            let connector = Connector::new(self.driver.clone(), self.config.clone(), server);
            Self::enter_once(connector, stream).await
        }
    }

    /// For a stream on which nothing can be sent while a reply is waited for.
    #[must_use]
    pub fn one_in_flight(mut self) -> Self {
        self.config_mut().negotiation.protocol.limits.in_flight = 1;
        self
    }

    /// Options that need an address to connect to again are an error where there is none.
    pub(super) fn check_single(&self) -> Result<(), Error> {
        if self.config.reconnect.is_some() {
            return Err(Error::Unsupported {
                what: "`reconnect` needs an address to connect to again: use `connect`, `connect_uri` or, where there is one, `connect_with`",
            });
        }
        if self.config.connections > 1 {
            return Err(Error::Unsupported {
                what: "`connections` needs an address to connect to again: use `connect`, `connect_uri` or, where there is one, `connect_with`",
            });
        }
        Ok(())
    }

    /// A client with this connection alone.
    pub(super) async fn enter_once(
        connector: Connector<D>,
        stream: D::Stream,
    ) -> Result<D::Client, Error> {
        let driver = &connector.driver;
        let deadline = after(driver.now(), connector.config.dial.timeout);
        let first = connector.negotiate(driver, stream, deadline).await?;
        D::enter(connector, first).await
    }

    /// Connects to the server of a URI and stops before any option is sent, to go on step by step.
    pub async fn start<'a>(&'a self, uri: &'a Uri) -> Result<Greeted<D>, Error> {
        self.check_single()?;
        let connector = self.connector(uri).await?;
        if connector.config.negotiation.tls == TlsPolicy::Always {
            return Err(Error::Unsupported {
                what: "this URI demands TLS: use `start_secure`",
            });
        }
        let (stream, steps_end) = self.dial(&connector).await?;
        let greeted = exchange::greet(stream, connector.config.negotiation.protocol).await;
        match greeted {
            Ok(greeted) => Ok(Greeted::new(connector.only(), greeted, steps_end)),
            Err(error) => Err(connector.failed("negotiate with", error)),
        }
    }

    /// Connects to the server of a URI and starts TLS, to go on step by step as after
    /// [`start`](Self::start).
    pub async fn start_secure<'a>(
        &'a self,
        uri: &'a Uri,
    ) -> Result<Negotiation<D, Encrypted>, Error> {
        self.check_single()?;
        let connector = self.connector(uri).await?;
        let (stream, steps_end) = self.dial(&connector).await?;
        let config = connector.config.negotiation.protocol;
        let secured = async {
            let only = exchange::greet_secure(stream, config).await?;
            let upgrade = |stream| connector.upgrade(&connector.driver, stream);
            only.start_tls(upgrade).await
        };
        match secured.await {
            Ok(exchange) => Ok(Negotiation::new(connector.only(), exchange, steps_end)),
            Err(error) => Err(connector.failed("start TLS with", error)),
        }
    }

    /// Reaches a server that is to be negotiated with step by step, and says until when.
    async fn dial(&self, connector: &Connector<D>) -> Result<(D::Stream, Option<Duration>), Error> {
        let driver = &connector.driver;
        let timeout = connector.config.dial.timeout;
        let deadline = after(driver.now(), timeout);
        let mut stream = connector.dial(driver, timeout).await?;
        let steps_end = connector.negotiation_deadline(driver);
        driver.set_deadline(&mut stream, shortest(deadline, steps_end));
        Ok((stream, steps_end))
    }

    async fn connector(&self, uri: &Uri) -> Result<Connector<D>, Error> {
        Connector::to(self.driver.clone(), self.config.clone(), uri).await
    }
}
