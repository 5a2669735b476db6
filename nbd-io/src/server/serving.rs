//! A server: its settings, its connections, and how it stops.

#[cfg(feature = "tls")]
use super::TlsMode;
use super::{
    CloseReason, Event, Host, Listener, ServerOptions, Take,
    authorizer::{Authorize, ClientIdentity},
    budget::Budget,
    buffers::Buffers,
    rate::{Rate, Rates},
    registry::{Registry, Room},
    report::{OnRequest, Outcome},
    stopper::Stopper,
};
#[cfg(feature = "tls")]
use crate::tls::{ServerTls, TlsError};
use crate::{Export, Exports, NamedExports, runtime::Tasks};
use nbd_proto::{ExportName, server::Limits};
use std::{fmt, sync::Arc, time::Duration};

/// No server takes longer to stop. A time that far ahead is within any clock.
const LONGEST_GRACE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Serves exports to any number of clients.
///
/// Its settings are made first; then it serves from as many listeners and streams as there are. A
/// clone is another handle to the same server.
///
/// The requests of one connection are carried out several at a time, and answered in whatever
/// order they are done. Where an export [never waits](Export::may_block), and where it has been
/// quick for a while on a runtime whose threads serve one connection each, they are carried out
/// one after the other, with many replies to a system call.
pub struct Server<R> {
    pub(super) settings: Settings,
    pub(super) registry: Arc<Registry>,
    pub(super) runtime: R,
}

/// How a server serves.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) exports: Arc<dyn Exports>,
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
    ///
    /// # Errors
    ///
    /// When what was given cannot be used.
    #[cfg(feature = "tls")]
    pub fn offer_tls(self, tls: &ServerTls) -> Result<Self, TlsError> {
        self.tls(tls, TlsMode::Selective)
    }

    /// Makes clients start TLS before anything else.
    ///
    /// # Errors
    ///
    /// When what was given cannot be used.
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
    /// What it may not use is not there for it.
    ///
    /// It is asked whenever a client names an export, and for each export of a list; for an export
    /// that is for TLS only, not before TLS is up. It runs where the exports are asked for, and must
    /// not wait for anything slow unless they [may](Exports::may_block).
    ///
    /// ```
    /// # use nbd_io::{Exports, runtime::Tasks, server::Server};
    /// # fn f<R: Tasks + Default>(exports: impl Exports + 'static) -> Server<R> {
    /// Server::new(exports).authorize(|client, export| match export.as_str() {
    ///     "public" => true,
    ///     _ => client.encrypted,
    /// })
    /// # }
    /// ```
    #[must_use]
    pub fn authorize(
        mut self,
        authorize: impl Fn(&ClientIdentity<'_>, &ExportName) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.settings.authorize = Some(Arc::new(authorize));
        self
    }

    /// How much a client may ask for. By default the [usual limits](Limits::default), but 64
    /// requests at once, whose memory [`in_flight`](Self::in_flight) bounds.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.settings.options.config.limits = limits;
        self
    }

    /// Whether clients get extended headers if they ask. On by default.
    #[must_use]
    pub fn extended_headers(mut self, grant: bool) -> Self {
        self.settings.options.config.extended = grant;
        self
    }

    /// Whether clients get structured replies if they ask. On by default. Extended headers, which
    /// have [a switch of their own](Self::extended_headers), bring the same replies with them.
    #[must_use]
    pub fn structured_replies(mut self, grant: bool) -> Self {
        self.settings.options.config.structured = grant;
        self
    }

    /// Whether clients get a list of the exports if they ask. On by default.
    #[must_use]
    pub fn listing(mut self, grant: bool) -> Self {
        self.settings.options.config.listing = grant;
        self
    }

    /// How long a client may take for TLS, and for the next option; it may be twice as long before
    /// it is noticed. Altogether the negotiation takes no more than 180 times as long. 10 s by
    /// default; `None` waits for ever.
    #[must_use]
    pub fn handshake_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.settings.handshake_timeout = timeout;
        self
    }

    /// How long a client that uses an export may neither send anything nor take what it is sent;
    /// it may be twice as long before it is noticed. While requests are carried out it does not
    /// count. By default `None`, which waits for ever: an idle disk is nothing unusual, and where it
    /// is in the way of others, it [has to go](Self::displace_idle).
    #[must_use]
    pub fn idle_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.settings.idle_timeout = timeout;
        self
    }

    /// How many connections there may be at once. Default 256. One more takes the place of one that
    /// [is idle](Self::displace_idle), or else is closed at once.
    #[must_use]
    pub fn max_connections(mut self, max: usize) -> Self {
        self.settings.room.most = max;
        self
    }

    /// How many connections each client may have at once, which is a host or a virtual machine; of Unix
    /// sockets and other streams, each connection is a client. One more is closed at once. By default
    /// any number.
    #[must_use]
    pub fn max_connections_per_client(mut self, max: usize) -> Self {
        self.settings.room.most_of_client = max;
        self
    }

    /// When there are [as many connections as may be](Self::max_connections), one that has been idle
    /// for so long is closed for the sake of one more: of those that have not entered an export
    /// before those that have sent no request, and of these before others, the one that has been
    /// idle the longest. After two seconds, or after this time if it is shorter, a connection that
    /// has sent no request is idle. So clients that fall silent shut out no others.
    ///
    /// It was ended as with a [stop](Stopper::stop), and counts no more; an eighth of all
    /// connections, and one, can be closing like that beside the others. By default five minutes;
    /// `None` closes none.
    #[must_use]
    pub fn displace_idle(mut self, after: Option<Duration>) -> Self {
        self.settings.room.idle = after;
        self
    }

    /// How many requests of one connection may be carried out at once, where the export may wait.
    /// Default 16; 0 counts as 1.
    #[must_use]
    pub fn concurrency(mut self, most: usize) -> Self {
        self.settings.concurrency = most;
        self
    }

    /// How much payload one connection may have in memory, in bytes: of writes that are carried
    /// out, of reads, and of replies that the client has not taken. No more requests are taken
    /// beyond that, except that one may always be. Default 32 MiB.
    #[must_use]
    pub fn in_flight(mut self, bytes: u64) -> Self {
        self.settings.in_flight = bytes.max(1);
        self
    }

    /// How much payload all connections together may have in memory, in bytes, beside 1 MiB that each
    /// has in any case. Default 256 MiB.
    ///
    /// A connection gets no more of it than it leaves to others, so that clients that ask for much
    /// and take nothing keep no client out that needs little. A request for which there is no
    /// memory waits, 10 s at most, and then fails with [`Errno::NoMem`](nbd_proto::Errno::NoMem);
    /// so does one for which the system has none.
    #[must_use]
    pub fn memory(mut self, bytes: u64) -> Self {
        self.settings.budget = Budget::new(bytes);
        self
    }

    /// How many requests and bytes per second all connections together may have. By default any number.
    ///
    /// A request is carried out whole. A connection that has had more than the rate allows takes the
    /// next one when the rest is paid for by time, and so leaves the client waiting.
    #[must_use]
    pub fn rate(mut self, rate: Rate) -> Self {
        self.settings.rates = Arc::new(self.settings.rates.with_server(rate));
        self
    }

    /// How many requests and bytes per second each client may have: all connections of a host or of a
    /// virtual machine together; of Unix sockets and other streams, each connection is a client. By
    /// default any number.
    #[must_use]
    pub fn client_rate(mut self, rate: Rate) -> Self {
        self.settings.rates = Arc::new(self.settings.rates.with_client(rate));
        self
    }

    /// How long a connection in use has to come to an end when the server
    /// [stops](Stopper::stop). Default 5 s.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.settings.grace = grace.min(LONGEST_GRACE);
        self
    }

    /// Calls `on_event` whenever something happens that is worth a line in a log. It is called
    /// where it happened, and must not wait for anything slow.
    #[must_use]
    pub fn on_event(mut self, on_event: impl Fn(&Event<'_>) + Send + Sync + 'static) -> Self {
        self.settings.on_event = Some(Arc::new(on_event));
        self
    }

    /// Calls `on_request` whenever an export has carried out a request, before the reply is sent.
    /// It is called where that happened, and holds up the reply. Requests that never came to an
    /// export, because the protocol or the export's flags forbid them, are not reported.
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

impl<R: Host> Server<R> {
    /// Serves clients that connect to `listener`, or to any of a `Vec` of them, until the server is
    /// [stopped](Stopper::stop), or until there will be no connection any more because the listener
    /// [is exhausted](Listener::is_exhausted). With `nbd-blocking` this waits in place; else it is a
    /// future. It ends when the last of all its connections is closed, or 1 s after the
    /// [grace](Self::grace) if an export still holds one of them up.
    ///
    /// # Errors
    ///
    /// When the listener fails for good; connections that there are go on. What goes wrong with one
    /// of them is an [event](Self::on_event) and no error.
    ///
    /// # Cancel safety
    ///
    /// Dropping it closes the listener, and leaves the connections as they are.
    pub fn serve<'a, L: Listener + Send + 'a>(&'a self, listener: L) -> R::Serving<'a, ()> {
        R::serving(self.accept_from(listener))
    }

    /// Serves one client over a stream that the program brings: a type that the driver can
    /// [take](Take). With `nbd-blocking` this waits in place; else it is a future.
    ///
    /// # Errors
    ///
    /// When the server has as many connections as it may, is stopping, or the stream cannot be used.
    /// How the connection ended is no error of the server's.
    ///
    /// # Cancel safety
    ///
    /// Dropping it closes the connection.
    pub fn serve_over<'a, S: Send + 'a>(&'a self, stream: S) -> R::Serving<'a, CloseReason>
    where
        R: Take<S>,
    {
        R::serving(async {
            let (stream, peer) = self.runtime.take(stream)?;
            self.serve_one(stream, peer).await
        })
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
