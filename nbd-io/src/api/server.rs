//! The `Server` of each driver.

/// Defines the `Server` of a driver: one that waits as `$wait` and `$await` say.
#[doc(hidden)]
#[macro_export]
macro_rules! driver_server {
    (
        $(#[$about:meta])*
        runtime: $runtime:ty,
        waiting: [$($async:tt)?] $wait:path, [$($await:tt)*],
        examples: $begin:literal, $dot_await:literal, $end:literal,
    ) => {
        $(#[$about])*
        ///
        /// Its settings are made first; then it serves from as many listeners and streams as there
        /// are. A clone is another handle to the same server.
        ///
        /// The requests of one connection are carried out several at a time, and answered in
        /// the order in which they are done. Where an export [never
        /// waits](exports::Export::may_block), and where it has been quick for a while on a runtime
        /// whose threads serve one connection each, they are carried out one after the other, with
        /// many replies to a system call.
        #[derive(Clone, Debug)]
        pub struct Server($crate::server::Server<$runtime>);

        impl From<$crate::server::Server<$runtime>> for Server {
            fn from(server: $crate::server::Server<$runtime>) -> Self {
                Self(server)
            }
        }

        impl AsRef<$crate::server::Server<$runtime>> for Server {
            fn as_ref(&self) -> &$crate::server::Server<$runtime> {
                &self.0
            }
        }

        impl Server {
            /// Serves a set of exports, without TLS, to 256 connections at once, each of which has
            /// 10 s for each step of the negotiation.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let exports = NamedExports::new()
            ///     .with("scratch".parse()?, Arc::new(Memory::new(1 << 30)))
            ///     .with("more".parse()?, Arc::new(Memory::new(1 << 20)));
            /// let server = Server::new(exports);
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn new(exports: impl $crate::Exports + 'static) -> Self {
                Self($crate::server::Server::new(exports))
            }

            /// Serves one export under the empty name, which is the default export's.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let server = Server::single(Arc::new(Memory::new(1 << 30)));
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn single(export: std::sync::Arc<dyn $crate::Export>) -> Self {
                Self($crate::server::Server::single(export))
            }

            /// Serves one [asynchronous](exports::AsyncExport) export under the empty name, which is the
            /// default export's.
            ///
            /// ```no_run
            #[doc = $begin]
            /// /// Every byte is zero.
            /// struct Zeroes;
            ///
            /// impl AsyncExport for Zeroes {
            ///     fn size(&self) -> u64 {
            ///         1 << 30
            ///     }
            ///
            ///     async fn read(&self, _: u64, len: usize) -> Result<ReadData, Failure> {
            ///         Ok(ReadData::zeroes(len))
            ///     }
            /// }
            ///
            /// let server = Server::single_async(Zeroes);
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn single_async(export: impl $crate::AsyncExport) -> Self {
                Self($crate::server::Server::single_async(export))
            }

            /// Like [`new`](Self::new), for exports that are looked up asynchronously.
            ///
            /// ```no_run
            #[doc = $begin]
            /// /// Finds exports in a catalogue on another host.
            /// struct Catalogue;
            ///
            /// impl AsyncExports for Catalogue {
            ///     async fn find(&self, name: &ExportName) -> Result<Offer, Unavailable> {
            ///         // Here it would be asked, and the answer awaited.
            ///         Err(Unavailable::unknown())
            ///     }
            /// }
            ///
            /// let server = Server::new_async(Catalogue);
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn new_async(exports: impl $crate::AsyncExports) -> Self {
                Self($crate::server::Server::new_async(exports))
            }

            /// Like [`new`](Self::new), for exports that others use too.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let exports = Arc::new(NamedExports::new());
            /// let public = Server::with_exports(exports.clone());
            /// let local = Server::with_exports(exports);
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn with_exports(exports: std::sync::Arc<dyn $crate::Exports>) -> Self {
                Self($crate::server::Server::with_exports(exports))
            }

            /// Like [`with_exports`](Self::with_exports), on a certain runtime.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let exports = Arc::new(NamedExports::single(Arc::new(Memory::new(1 << 30))));
            /// let server = Server::on_runtime(runtime, exports);
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn on_runtime(
                runtime: $runtime,
                exports: std::sync::Arc<dyn $crate::Exports>,
            ) -> Self {
                Self($crate::server::Server::on_runtime(runtime, exports))
            }

            /// Like [`new_async`](Self::new_async), on a certain runtime.
            ///
            /// ```no_run
            #[doc = $begin]
            /// # struct Catalogue;
            /// # impl AsyncExports for Catalogue {
            /// #     async fn find(&self, _: &ExportName) -> Result<Offer, Unavailable> {
            /// #         Err(Unavailable::unknown())
            /// #     }
            /// # }
            /// let server = Server::on_runtime_async(runtime, Catalogue);
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn on_runtime_async(
                runtime: $runtime,
                exports: impl $crate::AsyncExports,
            ) -> Self {
                Self($crate::server::Server::on_runtime_async(runtime, exports))
            }

            /// Lets clients start TLS, so that they get the exports that are for TLS only.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let tls = ServerTls::from_files("server.pem", "server.key")?;
            /// let server = server.offer_tls(&tls)?;
            #[doc = $end]
            /// ```
            ///
            /// # Errors
            ///
            /// When the certificate or another part of `tls` cannot be used.
            #[cfg(feature = "tls-base")]
            pub fn offer_tls(self, tls: &$crate::tls::ServerTls) -> Result<Self, $crate::tls::TlsError> {
                self.0.offer_tls(tls).map(Self)
            }

            /// Makes clients start TLS before anything else.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let tls = ServerTls::from_files("server.pem", "server.key")?;
            /// let server = server.require_tls(&tls)?;
            #[doc = $end]
            /// ```
            ///
            /// # Errors
            ///
            /// When the certificate or another part of `tls` cannot be used.
            #[cfg(feature = "tls-base")]
            pub fn require_tls(
                self,
                tls: &$crate::tls::ServerTls,
            ) -> Result<Self, $crate::tls::TlsError> {
                self.0.require_tls(tls).map(Self)
            }

            /// Asks `authorize` whether a client may know of and use an export, by its canonical
            /// name. To the client, an export that it may not use does not exist.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let server = server.authorize(|client, export| match export.as_str() {
            ///     "public" => true,
            ///     _ => client.encrypted,
            /// });
            #[doc = $end]
            /// ```
            ///
            /// It is asked whenever a client names an export, and for each export of a list; for an
            /// export that is for TLS only, not before TLS is up. It runs where the exports are
            /// asked for, and must not wait for anything slow unless they
            /// [may](exports::Exports::may_block).
            #[must_use]
            pub fn authorize(
                self,
                authorize: impl Fn(&$crate::server::ClientIdentity<'_>, &$crate::nbd_proto::ExportName) -> bool
                + Send
                + Sync
                + 'static,
            ) -> Self {
                Self(self.0.authorize(authorize))
            }

            /// Limits of a client's requests. By default the [usual limits](server::Limits), but 64
            /// requests at once, whose memory [`in_flight`](Self::in_flight) bounds.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let server = server.limits(server::Limits { accepted: 16, ..Default::default() });
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn limits(self, limits: $crate::nbd_proto::server::Limits) -> Self {
                Self(self.0.limits(limits))
            }

            /// Whether clients get extended headers if they ask. On by default.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let server = server.extended_headers(false);
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn extended_headers(self, grant: bool) -> Self {
                Self(self.0.extended_headers(grant))
            }

            /// Whether clients get structured replies if they ask. On by default. Extended headers,
            /// which have [a switch of their own](Self::extended_headers), bring the same replies
            /// with them.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let server = server.extended_headers(false).structured_replies(false);
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn structured_replies(self, grant: bool) -> Self {
                Self(self.0.structured_replies(grant))
            }

            /// Whether clients get a list of the exports if they ask. On by default.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let server = server.listing(false);
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn listing(self, grant: bool) -> Self {
                Self(self.0.listing(grant))
            }

            /// Time limit of TLS, and of the wait for a client's next option; it may be twice as
            /// long before it is noticed. Altogether the negotiation takes no more than 180 times
            /// as long. 10 s by default; `None` waits for ever.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let server = server.handshake_timeout(Some(Duration::from_secs(2)));
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn handshake_timeout(self, timeout: Option<std::time::Duration>) -> Self {
                Self(self.0.handshake_timeout(timeout))
            }

            /// Time for which a client that uses an export may neither send anything nor take the
            /// replies sent to it; it may be twice as long before it is noticed. While requests are
            /// carried out it does not count. By default `None`, which waits for ever: an idle disk
            /// is nothing unusual, and where it takes the place of another client, it is
            /// [closed](Self::displace_idle).
            ///
            /// ```no_run
            #[doc = $begin]
            /// let server = server.idle_timeout(Some(Duration::from_secs(3600)));
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn idle_timeout(self, timeout: Option<std::time::Duration>) -> Self {
                Self(self.0.idle_timeout(timeout))
            }

            /// Limit of connections at once. Default 256. One more takes the place of one that [is
            /// idle](Self::displace_idle), or else is closed at once.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let server = server.max_connections(16);
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn max_connections(self, max: usize) -> Self {
                Self(self.0.max_connections(max))
            }

            /// When there are [as many connections as may be](Self::max_connections), one that has
            /// been idle for so long is closed to make room for one more: of those that have not
            /// entered an export before those that have sent no request, and of these before
            /// others, the one that has been idle the longest. After two seconds, or after this
            /// time if it is shorter, a connection that has sent no request is idle. So clients
            /// that fall silent shut out no others.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let server = server.max_connections(16).displace_idle(None);
            #[doc = $end]
            /// ```
            ///
            /// It is ended as with a [stop](server::Stopper::stop), and counts no more; an eighth
            /// of all connections, and one, can be closing like that beside the others. By default
            /// five minutes; `None` closes none.
            #[must_use]
            pub fn displace_idle(self, after: Option<std::time::Duration>) -> Self {
                Self(self.0.displace_idle(after))
            }

            /// Limit of connections at once of each client, which is a host or a virtual machine;
            /// of Unix sockets and other streams, each connection is a client. One more is closed
            /// at once. By default any number.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let server = server.max_connections_per_client(4);
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn max_connections_per_client(self, max: usize) -> Self {
                Self(self.0.max_connections_per_client(max))
            }

            /// Limit of requests and bytes per second of all connections together. By default any
            /// number.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let server = server.rate(server::Rate::new().bytes(100 << 20));
            #[doc = $end]
            /// ```
            ///
            /// A request is carried out whole. A connection that has had more than the rate allows
            /// takes the next one when the rest is paid for by time, and so leaves the client
            /// waiting.
            #[must_use]
            pub fn rate(self, rate: $crate::server::Rate) -> Self {
                Self(self.0.rate(rate))
            }

            /// Limit of requests and bytes per second of each client: all connections of a host or
            /// of a virtual machine together; of Unix sockets and other streams, each connection is
            /// a client. By default any number.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let server = server.client_rate(server::Rate::new().bytes(100 << 20));
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn client_rate(self, rate: $crate::server::Rate) -> Self {
                Self(self.0.client_rate(rate))
            }

            /// Limit of requests of one connection that are carried out at once, where the export
            /// may wait: each takes a thread. Default 16; 0 counts as 1. An
            /// [asynchronous](exports::AsyncExport) export needs none, and is not limited by this.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let server = server.concurrency(32);
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn concurrency(self, most: usize) -> Self {
                Self(self.0.concurrency(most))
            }

            /// Limit of payload of one connection in memory, in bytes: of writes that are carried
            /// out, of reads, and of replies that the client has not taken. No more requests are
            /// taken beyond that, except that one may always be. Default 32 MiB.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let server = server.in_flight(64 << 20);
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn in_flight(self, bytes: u64) -> Self {
                Self(self.0.in_flight(bytes))
            }

            /// Limit of payload of all connections together in memory, in bytes, beside 1 MiB that
            /// each has in any case. Default 256 MiB.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let server = server.memory(1 << 30);
            #[doc = $end]
            /// ```
            ///
            /// A connection gets no more of it than it leaves to others, so that clients that ask
            /// for much and take nothing keep no client out that needs little. A request for which
            /// there is no memory waits, 10 s at most, and then fails with [`Errno::NoMem`]; so
            /// does one for which the system has none.
            #[must_use]
            pub fn memory(self, bytes: u64) -> Self {
                Self(self.0.memory(bytes))
            }

            /// Time that a connection in use has to come to an end when the server
            /// [stops](server::Stopper::stop). Default 5 s.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let server = server.grace(Duration::from_secs(30));
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn grace(self, grace: std::time::Duration) -> Self {
                Self(self.0.grace(grace))
            }

            /// Calls `on_event` whenever something happens that is worth a line in a log. It is
            /// called where it happened, and must not wait for anything slow.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let server = server.on_event(|event| eprintln!("{event:?}"));
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn on_event(
                self,
                on_event: impl Fn(&$crate::server::Event<'_>) + Send + Sync + 'static,
            ) -> Self {
                Self(self.0.on_event(on_event))
            }

            /// Calls `on_request` whenever an export has carried out a request, before the reply is
            /// sent. It is called where that happened, and holds up the reply. Requests that never
            /// came to an export, because the protocol or the export's flags forbid them, are not
            /// reported.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let server = server.on_request(|outcome| println!("{outcome:?}"));
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn on_request(
                self,
                on_request: impl Fn(&$crate::server::Outcome<'_>) + Send + Sync + 'static,
            ) -> Self {
                Self(self.0.on_request(on_request))
            }

            /// A handle by which the server can be stopped while it serves.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let stopper = server.stopper();
            /// stopper.stop();
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn stopper(&self) -> $crate::server::Stopper {
                self.0.stopper()
            }

            /// Serves clients that connect to `listener`, or to any of a `Vec` of them, until the
            /// server is [stopped](server::Stopper::stop), or until there will be no connection any
            /// more because the listener was a client that the process was [started
            /// with](Listener::inherited). It ends when the last of all its connections is closed,
            /// or 1 s after the [grace](Self::grace) if an export still holds one of them up.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let server = Server::single(Arc::new(Memory::new(1 << 30)));
            #[doc = concat!("server.serve(Listener::bind_tcp(\"localhost:10809\")?)", $dot_await, "?;")]
            #[doc = $end]
            /// ```
            ///
            /// # Errors
            ///
            /// When the listener fails for good; connections that there are go on. A failure of
            /// one of them is an [event](Self::on_event) and no error.
            ///
            /// # Cancel safety
            ///
            /// A future that is dropped closes the listener, and leaves the connections as they
            /// are.
            pub $($async)? fn serve<L: $crate::server::Listener + Send>(
                &self,
                listener: L,
            ) -> std::io::Result<()> {
                $wait(self.0.serve(listener)) $($await)*
            }
        }
    };
}
