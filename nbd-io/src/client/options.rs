//! How a connection is to be made, and making it.

use super::{
    ClientEvent, Config, Connector, Driver, Error, Greeted, Negotiation, Observer, Reconnect,
    TlsPolicy,
    connector::{Server, after, shortest},
    driver::Adopt,
    exchange,
};
#[cfg(feature = "tls")]
use crate::tls::ClientTls;
use nbd_proto::{
    ContextName, ExportName, Uri,
    client::{Encrypted, InfoSet, Limits, Tolerance},
    uri::Permissions,
};
use std::{fmt, sync::Arc, time::Duration};

/// How a connection is to be made: by default with everything that makes it better.
///
/// What a call returns is up to the driver ([`Driver::Call`]): with `nbd-blocking` what has come of
/// it, with runtimes a future of that. A future that is dropped leaves no connection behind.
///
/// # How long it takes
///
/// | | what has to be done by then | default |
/// |---|---|---|
/// | [`connect_timeout`](Self::connect_timeout) | all of it: the lookup of a host, its addresses, TLS, the negotiation | 30 s |
/// | [`negotiation_timeout`](Self::negotiation_timeout) | of that, TLS and the negotiation | 30 s |
/// | [`request_timeout`](Self::request_timeout) | later, each request | 60 s |
///
/// So [`connect`](Self::connect) ends after the `connect_timeout`, whatever the server does. Each
/// further connection that is made for [`connections`](Self::connections) has as long. A policy by
/// which to [`reconnect`](Self::reconnect) counts attempts that end so, and has a time of its own for
/// all of them.
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
    /// server that it starts. A URI always names one: without a path, the default export.
    #[must_use]
    pub fn export(mut self, name: ExportName) -> Self {
        self.config_mut().negotiation.export = name;
        self
    }

    /// Selects one more meta context. One that the server does not have is left out; the client's
    /// `has_context` tells whether it has one.
    #[must_use]
    pub fn context(mut self, name: ContextName) -> Self {
        self.config_mut().negotiation.contexts.push(name);
        self
    }

    /// Selects one more meta context, without which the export is of no use: connecting fails if the
    /// server does not have it.
    #[must_use]
    pub fn require_context(mut self, name: ContextName) -> Self {
        let negotiation = &mut self.config_mut().negotiation;
        negotiation.contexts.push(name.clone());
        negotiation.required_contexts.push(name);
        self
    }

    /// Which information to ask for beside size, flags and block sizes. All by default.
    #[must_use]
    pub fn infos(mut self, infos: InfoSet) -> Self {
        self.config_mut().negotiation.infos = infos;
        self
    }

    /// Whether to ask for extended headers. On by default.
    #[must_use]
    pub fn extended_headers(mut self, ask: bool) -> Self {
        self.config_mut().negotiation.extended_headers = ask;
        self
    }

    /// Whether to ask for structured replies. On by default; extended headers imply them. Without
    /// them no meta context is selected.
    #[must_use]
    pub fn structured_replies(mut self, ask: bool) -> Self {
        self.config_mut().negotiation.structured_replies = ask;
        self
    }

    /// How much the server may send, and how many requests may be in flight on each connection.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.config_mut().negotiation.protocol.limits = limits;
        self
    }

    /// Which deviations of the server's are overlooked.
    #[must_use]
    pub fn tolerance(mut self, tolerance: Tolerance) -> Self {
        self.config_mut().negotiation.protocol.tolerance = tolerance;
        self
    }

    /// How long connecting may take as a whole: the lookup of a host, its addresses, which are tried
    /// side by side, TLS and the negotiation. 30 s by default; `None` waits as long as the system
    /// does. Step by step, it is until the server has greeted, or TLS is up.
    ///
    /// Hosts are looked up by a thread of their own, because the system's resolver knows no
    /// deadlines. It ends with the lookup, which may be later than the call.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.config_mut().dial.timeout = timeout;
        self
    }

    /// How much of the [`connect_timeout`](Self::connect_timeout) TLS and the negotiation may take,
    /// together and from when the server is reached. 30 s by default; `None` is all of it. Step by
    /// step, it is for all steps together, and what [`connect_timeout`](Self::connect_timeout) says
    /// does not count any more.
    #[must_use]
    pub fn negotiation_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.config_mut().negotiation_timeout = timeout;
        self
    }

    /// For how long a TCP connection may be quiet until the system asks whether the server is still
    /// there (`SO_KEEPALIVE`); if it does not answer for three times that time, the connection is
    /// lost. 30 s by default. It is about the connections that these options make.
    #[must_use]
    pub fn tcp_keepalive(mut self, idle: Option<Duration>) -> Self {
        self.config_mut().dial.tcp_keepalive = idle;
        self
    }

    /// For how long the server's system may take in nothing of what was sent over TCP until the
    /// connection is lost (`TCP_USER_TIMEOUT`), on systems that have that. That is also so if the
    /// server reads nothing for that long, so it has to be longer than a request may take. 90 s by
    /// default; `None` leaves it to the system, and may be a quarter of an hour.
    #[must_use]
    pub fn tcp_user_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.config_mut().dial.tcp_user_timeout = timeout;
        self
    }

    /// How long each request may take, from when its connection begins to send it until its reply is
    /// there. It may wait as long again until there is room for it, as long again for others that change the
    /// same bytes, and as long again for a new connection. Each piece of a long read or write is a
    /// request of its own. 60 s by default; `None` waits for ever.
    ///
    /// A write that the server has taken only a part of by then ends the connection of a client that
    /// waits in place, because no other request can follow.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.config_mut().request_timeout = timeout;
        self
    }

    /// How many connections to share the requests between, if the server says that it keeps
    /// several of one client's consistent
    /// ([`can_multi_conn`](nbd_proto::ExportInfo::can_multi_conn)); otherwise there is one. 1 by
    /// default; 0 counts as 1. Only [`connect`](Self::connect) and [`connect_uri`](Self::connect_uri)
    /// make more than one. A request uses the one that has the least to do.
    #[must_use]
    pub fn connections(mut self, connections: usize) -> Self {
        self.config_mut().connections = connections.max(1);
        self
    }

    /// Whether and how to make a new connection when one is lost, which [`connect`](Self::connect)
    /// and [`connect_uri`](Self::connect_uri) can. Not by default: then every request fails with the
    /// cause.
    #[must_use]
    pub fn reconnect(mut self, policy: Option<Reconnect>) -> Self {
        self.config_mut().reconnect = policy;
        self
    }

    /// Whether a connection is lost when a request has taken too long and the server has sent nothing
    /// at all since that was sent. A server or a network that falls silent without closing would
    /// otherwise have one request after the other take too long. By default exactly if a new connection
    /// is made then, as [`reconnect`](Self::reconnect) says.
    #[must_use]
    pub fn lose_when_silent(mut self, lose: bool) -> Self {
        self.config_mut().lose_when_silent = Some(lose);
        self
    }

    /// Calls `on_event` when a connection is made or lost, when an attempt to replace one fails, and
    /// when the client gives up; in the order in which that happens, for each client that these
    /// options make. With [`slow_request`](Self::slow_request) also when a request was slow.
    ///
    /// It is called by the thread or task that notices, with no lock held, so that it may use the
    /// client. It must not wait: it holds up other requests.
    ///
    /// A blocking client has no thread of its own, so that a loss is noticed and reported by the next
    /// call.
    #[must_use]
    pub fn on_event(mut self, on_event: impl Fn(&ClientEvent) + Send + Sync + 'static) -> Self {
        self.config_mut().observer = Observer::new(on_event);
        self
    }

    /// Reports each request that takes at least `threshold`, from when it is submitted until its
    /// reply is read or it is given up, waiting for a connection included. Not by default, because
    /// it costs two readings of the clock for each request. Without
    /// [`on_event`](Self::on_event) it has no effect.
    #[must_use]
    pub fn slow_request(mut self, threshold: Option<Duration>) -> Self {
        self.config_mut().slow_request = threshold;
        self
    }

    /// Lets a URI name files of this machine (`tls-certificates`, `tls-psk-file`). To be allowed
    /// only for URIs that come from a trusted place. Off by default. It is about
    /// [`connect`](Self::connect); a [`Uri`] was parsed with permissions of its own.
    #[must_use]
    pub fn local_files(mut self, allow: bool) -> Self {
        self.config_mut().local_files = allow;
        self
    }

    /// Whom to trust on TLS connections and what to show. It does not switch TLS on; see
    /// [`tls_policy`](Self::tls_policy).
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(mut self, tls: ClientTls) -> Self {
        self.config_mut().tls = tls;
        self
    }

    /// Whether to start TLS where the URI does not demand it; not by default. A URI that does
    /// always gets it.
    #[must_use]
    pub fn tls_policy(mut self, policy: TlsPolicy) -> Self {
        self.config_mut().negotiation.tls = policy;
        self
    }

    /// Connects to what a URI names and enters its export.
    ///
    /// # Errors
    ///
    /// When the URI is wrong, the server cannot be reached, or the export cannot be entered.
    pub fn connect<'a>(&'a self, uri: &'a str) -> D::Call<'a, Result<D::Client, Error>> {
        D::call(async move {
            let mut permissions = Permissions::default();
            if self.config.local_files {
                permissions = permissions.local_files();
            }
            self.enter(&Uri::parse_with(uri, permissions)?).await
        })
    }

    /// Connects to what a URI names and enters its export.
    ///
    /// # Errors
    ///
    /// Like [`connect`](Self::connect).
    pub fn connect_uri<'a>(&'a self, uri: &'a Uri) -> D::Call<'a, Result<D::Client, Error>> {
        D::call(self.enter(uri))
    }

    pub(super) fn config_mut(&mut self) -> &mut Config {
        Arc::make_mut(&mut self.config)
    }

    async fn enter(&self, uri: &Uri) -> Result<D::Client, Error> {
        let connector = self.connector(uri).await?;
        let first = connector.connect(&self.driver, None).await?;
        D::enter(connector, first).await
    }

    /// Enters the export over a stream that the program brings: a type that the driver can
    /// [adopt](Adopt). `host` is the name that a certificate is checked against unless
    /// `ClientTls` has another one.
    ///
    /// # Errors
    ///
    /// When the export cannot be entered; or with [`reconnect`](Self::reconnect) or more than one of
    /// [`connections`](Self::connections), because there is no address to make another one to.
    pub fn connect_over<'a, S: Send + 'a>(
        &'a self,
        stream: S,
        host: Option<&str>,
    ) -> D::Call<'a, Result<D::Client, Error>>
    where
        D: Adopt<S>,
    {
        let server = Server::Host(host.map(str::to_owned));
        D::call(async move {
            self.check_single()?;
            let mut config = Config::clone(&self.config);
            let stream = self.driver.adopt(stream, &mut config);
            let stream = stream.map_err(|error| Error::connect(&server, error))?;
            let connector = Connector::new(self.driver.clone(), Arc::new(config), server);
            Self::enter_once(connector, stream).await
        })
    }

    /// Options that need an address to connect to again are an error where there is none.
    pub(super) fn check_single(&self) -> Result<(), Error> {
        if self.config.reconnect.is_some() {
            return Err(Error::Unsupported {
                what: "`reconnect` needs an address to connect to again: use `connect` or `connect_uri`",
            });
        }
        if self.config.connections > 1 {
            return Err(Error::Unsupported {
                what: "`connections` needs an address to connect to again: use `connect` or `connect_uri`",
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

    /// Connects to what a URI names and stops before any option is sent, to go on step by step.
    /// Not for URIs that demand TLS: see [`start_secure`](Self::start_secure).
    ///
    /// What these options would have asked for, such as meta contexts, is then the caller's to ask
    /// for. The client that comes of it has one connection: the steps are not known here, so that no
    /// other one can be made like it.
    ///
    /// # Errors
    ///
    /// When the URI is wrong or demands TLS, the server cannot be reached, or is none; or with
    /// [`reconnect`](Self::reconnect) or more than one of [`connections`](Self::connections).
    pub fn start<'a>(&'a self, uri: &'a Uri) -> D::Call<'a, Result<Greeted<D>, Error>> {
        D::call(async move {
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
        })
    }

    /// Connects to what a URI names and starts TLS, to go on step by step as after
    /// [`start`](Self::start).
    ///
    /// # Errors
    ///
    /// When the URI is wrong, the server cannot be reached, is none, or TLS cannot be started.
    pub fn start_secure<'a>(
        &'a self,
        uri: &'a Uri,
    ) -> D::Call<'a, Result<Negotiation<D, Encrypted>, Error>> {
        D::call(async move {
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
        })
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
