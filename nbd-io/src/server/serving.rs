//! A server: its settings, its connections, and how it stops.

#[cfg(feature = "tls")]
use super::TlsMode;
use super::{
    CloseReason, Event, Listener, ServerOptions,
    authorizer::{Authorize, ClientIdentity},
    budget::Budget,
    buffers::Buffers,
    lookup::AnyExports,
    rate::{Rate, Rates},
    registry::{Registry, Room},
    report::{OnRequest, Outcome},
    stopper::Stopper,
};
#[cfg(feature = "tls")]
use crate::tls::{ServerTls, TlsError};
use crate::{
    AsyncExport, AsyncExports, Export, Exports, NamedExports, runtime::Tasks, transport::Transport,
};
use nbd_proto::{ExportName, server::Limits};
use std::{fmt, io, sync::Arc, time::Duration};

/// No server takes longer to stop. A time that far ahead is within any clock.
const LONGEST_GRACE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Serves exports to any number of clients, on any runtime.
///
/// Each driver has a `Server` of its own, made of this one, whose pages say all of each method.
pub struct Server<R> {
    pub(super) settings: Settings,
    pub(super) registry: Arc<Registry>,
    pub(super) runtime: R,
}

/// Settings of a server.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) exports: AnyExports,
    pub(super) options: ServerOptions,
    #[cfg(feature = "tls")]
    pub(super) tls: Option<Arc<rustls::ServerConfig>>,
    pub(super) handshake_timeout: Option<Duration>,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) room: Room,
    pub(super) concurrency: usize,
    pub(super) in_flight: u64,
    pub(super) grace: Duration,
    pub(super) authorize: Option<Authorize>,
    on_event: Option<OnEvent>,
    pub(super) on_request: Option<OnRequest>,
    pub(super) budget: Arc<Budget>,
    pub(super) rates: Arc<Rates>,
    pub(super) buffers: Arc<Buffers>,
}

type OnEvent = Arc<dyn Fn(&Event<'_>) + Send + Sync>;

impl Settings {
    pub(super) fn notify(&self, event: &Event<'_>) {
        #[cfg(feature = "tracing")]
        event.trace();
        if let Some(on_event) = &self.on_event {
            on_event(event);
        }
    }
}

impl<R: Tasks + Default> Server<R> {
    /// Serves a set of exports, without TLS, to 256 connections at once, each of which has 10 s for
    /// each step of the negotiation.
    #[must_use]
    pub fn new(exports: impl Exports + 'static) -> Self {
        Self::with_exports(Arc::new(exports))
    }

    /// Serves one export under the empty name, which is the default export's.
    #[must_use]
    pub fn single(export: Arc<dyn Export>) -> Self {
        Self::new(NamedExports::single(export))
    }

    /// Serves one asynchronous export under the empty name, which is the default export's.
    #[must_use]
    pub fn single_async(export: impl AsyncExport) -> Self {
        Self::new(NamedExports::single_async(export))
    }

    /// Like [`new`](Self::new), for exports that are looked up asynchronously.
    #[must_use]
    pub fn new_async(exports: impl AsyncExports) -> Self {
        Self::on_runtime_async(R::default(), exports)
    }

    /// Like [`new`](Self::new), for exports that others use too.
    #[must_use]
    pub fn with_exports(exports: Arc<dyn Exports>) -> Self {
        Self::on_runtime(R::default(), exports)
    }
}

impl<R: Tasks> Server<R> {
    /// Like [`with_exports`](Self::with_exports), on a certain runtime.
    #[must_use]
    pub fn on_runtime(runtime: R, exports: Arc<dyn Exports>) -> Self {
        Self::serving(runtime, AnyExports::Sync(exports))
    }

    /// Like [`on_runtime`](Self::on_runtime), for exports that are looked up asynchronously.
    #[must_use]
    pub fn on_runtime_async(runtime: R, exports: impl AsyncExports) -> Self {
        Self::serving(runtime, AnyExports::Async(Arc::new(exports)))
    }

    fn serving(runtime: R, exports: AnyExports) -> Self {
        let mut options = ServerOptions::default();
        // Their memory is bounded by `in_flight`.
        options.config.limits.accepted = 64;
        Self {
            settings: Settings {
                exports,
                options,
                #[cfg(feature = "tls")]
                tls: None,
                handshake_timeout: Some(Duration::from_secs(10)),
                idle_timeout: None,
                room: Room {
                    most: 256,
                    most_of_client: usize::MAX,
                    idle: Some(Duration::from_secs(300)),
                },
                concurrency: 16,
                in_flight: 32 << 20,
                grace: Duration::from_secs(5),
                authorize: None,
                on_event: None,
                on_request: None,
                budget: Budget::new(256 << 20),
                rates: Arc::default(),
                buffers: Arc::default(),
            },
            registry: Arc::default(),
            runtime,
        }
    }

    /// Lets clients start TLS, so that they get the exports that are for TLS only.
    #[cfg(feature = "tls")]
    pub fn offer_tls(self, tls: &ServerTls) -> Result<Self, TlsError> {
        self.tls(tls, TlsMode::Selective)
    }

    /// Makes clients start TLS before anything else.
    #[cfg(feature = "tls")]
    pub fn require_tls(self, tls: &ServerTls) -> Result<Self, TlsError> {
        self.tls(tls, TlsMode::Forced)
    }

    #[cfg(feature = "tls")]
    fn tls(mut self, tls: &ServerTls, mode: TlsMode) -> Result<Self, TlsError> {
        self.settings.tls = Some(tls.server()?);
        self.settings.options.tls = mode;
        Ok(self)
    }

    /// Asks `authorize` whether a client may know of and use an export, by its canonical name.
    #[must_use]
    pub fn authorize(
        mut self,
        authorize: impl Fn(&ClientIdentity<'_>, &ExportName) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.settings.authorize = Some(Arc::new(authorize));
        self
    }

    /// Limits of a client's requests.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.settings.options.config.limits = limits;
        self
    }

    /// Whether clients get extended headers if they ask.
    #[must_use]
    pub fn extended_headers(mut self, grant: bool) -> Self {
        self.settings.options.config.extended = grant;
        self
    }

    /// Whether clients get structured replies if they ask.
    #[must_use]
    pub fn structured_replies(mut self, grant: bool) -> Self {
        self.settings.options.config.structured = grant;
        self
    }

    /// Whether clients get a list of the exports if they ask.
    #[must_use]
    pub fn listing(mut self, grant: bool) -> Self {
        self.settings.options.config.listing = grant;
        self
    }

    /// Time limit of TLS, and of the wait for a client's next option; it may be twice as long
    /// before it is noticed.
    #[must_use]
    pub fn handshake_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.settings.handshake_timeout = timeout;
        self
    }

    /// Time for which a client that uses an export may neither send anything nor take the replies
    /// sent to it; it may be twice as long before it is noticed.
    #[must_use]
    pub fn idle_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.settings.idle_timeout = timeout;
        self
    }

    /// Limit of connections at once.
    #[must_use]
    pub fn max_connections(mut self, max: usize) -> Self {
        self.settings.room.most = max;
        self
    }

    /// Limit of connections at once of each client, which is a host or a virtual machine; of Unix
    /// sockets and other streams, each connection is a client.
    #[must_use]
    pub fn max_connections_per_client(mut self, max: usize) -> Self {
        self.settings.room.most_of_client = max;
        self
    }

    /// When there are [as many connections as may be](Self::max_connections), one that has been
    /// idle for so long is closed to make room for one more: of those that have not entered an
    /// export before those that have sent no request, and of these before others, the one that has
    /// been idle the longest.
    #[must_use]
    pub fn displace_idle(mut self, after: Option<Duration>) -> Self {
        self.settings.room.idle = after;
        self
    }

    /// Limit of requests of one connection that are carried out at once, where the export may wait.
    #[must_use]
    pub fn concurrency(mut self, most: usize) -> Self {
        self.settings.concurrency = most;
        self
    }

    /// Limit of payload of one connection in memory, in bytes: of writes that are carried out, of
    /// reads, and of replies that the client has not taken.
    #[must_use]
    pub fn in_flight(mut self, bytes: u64) -> Self {
        self.settings.in_flight = bytes.max(1);
        self
    }

    /// Limit of payload of all connections together in memory, in bytes, beside 1 MiB that each has
    /// in any case.
    #[must_use]
    pub fn memory(mut self, bytes: u64) -> Self {
        self.settings.budget = Budget::new(bytes);
        self
    }

    /// Limit of requests and bytes per second of all connections together.
    #[must_use]
    pub fn rate(mut self, rate: Rate) -> Self {
        self.settings.rates = Arc::new(self.settings.rates.with_server(rate));
        self
    }

    /// Limit of requests and bytes per second of each client: all connections of a host or of a
    /// virtual machine together; of Unix sockets and other streams, each connection is a client.
    #[must_use]
    pub fn client_rate(mut self, rate: Rate) -> Self {
        self.settings.rates = Arc::new(self.settings.rates.with_client(rate));
        self
    }

    /// Time that a connection in use has to come to an end when the server [stops](Stopper::stop).
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.settings.grace = grace.min(LONGEST_GRACE);
        self
    }

    /// Calls `on_event` whenever something happens that is worth a line in a log.
    #[must_use]
    pub fn on_event(mut self, on_event: impl Fn(&Event<'_>) + Send + Sync + 'static) -> Self {
        self.settings.on_event = Some(Arc::new(on_event));
        self
    }

    /// Calls `on_request` whenever an export has carried out a request, before the reply is sent.
    #[must_use]
    pub fn on_request(mut self, on_request: impl Fn(&Outcome<'_>) + Send + Sync + 'static) -> Self {
        self.settings.on_request = Some(Arc::new(on_request));
        self
    }

    /// A handle by which the server can be stopped while it serves.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper::new(Arc::clone(&self.registry))
    }
}

impl<R: Tasks> Server<R> {
    /// Serves clients that connect to `listener`, or to any of a `Vec` of them, until the server is
    /// [stopped](Stopper::stop), or until there will be no connection any more because the listener
    /// [is exhausted](Listener::is_exhausted).
    pub async fn serve<L: Listener>(&self, listener: L) -> io::Result<()> {
        self.accept_from(listener).await
    }

    /// Serves one client over a stream that the program brings.
    pub async fn serve_over<T: Transport>(&self, stream: T) -> io::Result<CloseReason> {
        let peer = stream.peer();
        self.serve_one(stream, peer).await
    }
}

impl<R: Clone> Clone for Server<R> {
    fn clone(&self) -> Self {
        Self {
            settings: self.settings.clone(),
            registry: Arc::clone(&self.registry),
            runtime: self.runtime.clone(),
        }
    }
}

impl<R> fmt::Debug for Server<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("options", &self.settings.options)
            .field("connections", &self.registry.len())
            .finish_non_exhaustive()
    }
}
