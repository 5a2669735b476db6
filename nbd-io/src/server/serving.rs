//! A server: its settings, its connections, and how it stops.

#[cfg(feature = "tls")]
use super::TlsMode;
use super::{
    CloseReason, Event, Host, Listener, Peer, ServerOptions, Take,
    accept_error::AcceptErrorKind,
    authorizer::{Authorize, ClientIdentity},
    budget::Budget,
    buffers::Buffers,
    connection,
    registry::{Refused, Registration, Registry, Room},
    report::{OnRequest, Outcome},
    stopper::Stopper,
};
#[cfg(feature = "tls")]
use crate::tls::{ServerTls, TlsError};
use crate::{Export, Exports, NamedExports, runtime::Tasks, transport::Transport};
use nbd_proto::{ExportName, Limits};
use std::{
    fmt,
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Poll, ready},
    time::Duration,
};

/// How long to wait when there is no room for a connection: others have to end first.
const RETRY: Duration = Duration::from_millis(100);

/// So many connections in a row that could not be accepted are no coincidence: something lasts, such
/// as a filter of the system's that lets none through, and must not keep the processor busy.
const PASSING_AT_ONCE: u32 = 16;

/// How long connections take at most to close when the server stops.
const LAST_GRACE: Duration = Duration::from_secs(1);

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
                    idle: Some(Duration::from_secs(300)),
                },
                concurrency: 16,
                in_flight: 32 << 20,
                grace: Duration::from_secs(5),
                authorize: None,
                on_event: None,
                on_request: None,
                budget: Budget::new(256 << 20),
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

    /// See [`serve`](Self::serve).
    pub(super) async fn accept_from<L: Listener>(&self, mut listener: L) -> io::Result<()> {
        let mut passing = 0;
        let mut watch = self.registry.watch();
        loop {
            let accepted = poll_fn(|cx| {
                if watch.poll_stopping(cx).is_ready() {
                    return Poll::Ready(None);
                }
                listener.poll_accept(cx).map(Some)
            });
            let (stream, peer) = match accepted.await {
                None => break,
                Some(Ok(accepted)) => {
                    passing = 0;
                    accepted
                }
                Some(Err(error)) => {
                    passing += 1;
                    match AcceptErrorKind::of(&error) {
                        AcceptErrorKind::Passing if passing < PASSING_AT_ONCE => continue,
                        AcceptErrorKind::Passing | AcceptErrorKind::Shortage => {
                            self.settings.notify(&Event::AcceptFailed { error: &error });
                            self.pause(RETRY).await;
                            passing = 0;
                            continue;
                        }
                        AcceptErrorKind::Final => return Err(error),
                    }
                }
            };
            if let Ok(place) = self.enter(&peer) {
                self.start(stream, peer, place);
            }
            if listener.is_exhausted() {
                break;
            }
        }
        // No client can connect any more, and none waits to be accepted.
        drop(listener);
        let mut most = None;
        poll_fn(|cx| {
            if watch.poll_empty(cx).is_ready() {
                return Poll::Ready(());
            }
            ready!(watch.poll_stopping(cx));
            // An export that waits in the thread of its connection does not notice.
            let most = most.get_or_insert_with(|| {
                let most = self.settings.grace.saturating_add(LAST_GRACE);
                self.runtime.sleep(most)
            });
            Pin::new(most).poll(cx)
        })
        .await;
        self.runtime.release_idle();
        Ok(())
    }

    /// See [`serve_over`](Self::serve_over).
    pub(super) async fn serve_one<T: Transport>(
        &self,
        stream: T,
        peer: Peer,
    ) -> io::Result<CloseReason> {
        let place = self.enter(&peer).map_err(|refused| match refused {
            Refused::Full => io::Error::from(io::ErrorKind::ResourceBusy),
            Refused::Stopping => io::ErrorKind::ConnectionAborted.into(),
        })?;
        let ending = connection::serve(&self.settings, &self.runtime, stream, &peer, &place).await;
        if self.registry.is_stopping() {
            self.runtime.release_idle();
        }
        Ok(ending)
    }

    fn enter(&self, peer: &Peer) -> Result<Registration, Refused> {
        let entered = self.registry.enter(self.settings.room, self.runtime.now());
        if entered.is_err() {
            self.settings.notify(&Event::Refused { peer });
        }
        entered
    }

    /// Serves a client in a task of its own.
    fn start<T: Transport + Send + 'static>(&self, stream: T, peer: Peer, place: Registration) {
        let (settings, runtime) = (self.settings.clone(), self.runtime.clone());
        let unserved = Unserved(Some(settings.clone()));
        // Boxed, because it is long and a runtime moves it more than once.
        self.runtime.spawn(Box::pin(async move {
            unserved.served();
            connection::serve(&settings, &runtime, stream, &peer, &place).await;
        }));
    }

    async fn pause(&self, time: Duration) {
        let mut sleep = self.runtime.sleep(time);
        let mut watch = self.registry.watch();
        poll_fn(|cx| {
            if watch.poll_stopping(cx).is_ready() {
                return Poll::Ready(());
            }
            Pin::new(&mut sleep).poll(cx)
        })
        .await;
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

/// Tells of a connection whose task was dropped before it began.
struct Unserved(Option<Settings>);

impl Unserved {
    fn served(mut self) {
        self.0 = None;
    }
}

impl Drop for Unserved {
    fn drop(&mut self) {
        if let Some(settings) = &self.0 {
            let error = io::Error::other("no task could be started for the connection");
            settings.notify(&Event::AcceptFailed { error: &error });
        }
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
