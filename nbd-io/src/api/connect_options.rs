//! The `ConnectOptions` of each driver.
//!
//! The file has more than 500 lines, because all that is to be said of each option is here.

/// Defines the `ConnectOptions` of a driver: one that waits as `$wait` and `$await` say, with
/// examples that begin with `$begin`.
#[doc(hidden)]
#[macro_export]
macro_rules! driver_connect_options {
    (
        $(#[$about:meta])*
        driver: $driver:ty,
        waiting: [$($async:tt)?] $wait:path, [$($await:tt)*],
        examples: $begin:literal, $dot_await:literal, $end:literal,
    ) => {
        $(#[$about])*
        ///
        /// # How long it takes
        ///
        /// | | steps that have to be done by then | default |
        /// |---|---|---|
        /// | [`connect_timeout`](Self::connect_timeout) | all of it: the lookup of a host, its addresses, TLS, the negotiation | 30 s |
        /// | [`negotiation_timeout`](Self::negotiation_timeout) | of that, TLS and the negotiation | 30 s |
        /// | [`request_timeout`](Self::request_timeout) | later, each request | 60 s |
        ///
        /// So [`connect`](Self::connect) ends after the `connect_timeout`, even if the server is
        /// silent or slow. Each further connection that is made for
        /// [`connections`](Self::connections) has as long. A policy by which to
        /// [`reconnect`](Self::reconnect) counts attempts that end so, and has a time of its own
        /// for all of them.
        #[derive(Clone, Debug, Default)]
        pub struct ConnectOptions($crate::client::ConnectOptions<$driver>);

        impl From<$crate::client::ConnectOptions<$driver>> for ConnectOptions {
            fn from(options: $crate::client::ConnectOptions<$driver>) -> Self {
                Self(options)
            }
        }

        impl AsRef<$crate::client::ConnectOptions<$driver>> for ConnectOptions {
            fn as_ref(&self) -> &$crate::client::ConnectOptions<$driver> {
                &self.0
            }
        }

        impl ConnectOptions {
            /// Extended headers or structured replies if the server has them, no meta context, TLS
            /// exactly if the URI asks for it, one connection, 30 s to connect and 60 s for each
            /// request.
            ///
            /// ```no_run
            #[doc = $begin]
            #[doc = concat!("let disk = ConnectOptions::new().connect(\"nbd://localhost/disk\")", $dot_await, "?;")]
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn new() -> Self {
                Self::default()
            }

            /// The export to enter where there is no URI: over a stream that the program brings, or
            /// of a server that it starts. A URI always names one: without a path, the default
            /// export.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let options = options.export("disk".parse()?);
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn export(self, name: $crate::nbd_proto::ExportName) -> Self {
                Self(self.0.export(name))
            }

            /// Selects one more meta context. One that the server does not have is left out; the
            /// client's `has_context` says whether it has one.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let bitmap = ContextName::dirty_bitmap("backup-0")?;
            /// let options = options.context(bitmap.clone());
            #[doc = concat!("let disk = options.connect(\"nbd://localhost/disk\")", $dot_await, "?;")]
            /// println!("{}", disk.has_context(&bitmap));
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn context(self, name: $crate::nbd_proto::ContextName) -> Self {
                Self(self.0.context(name))
            }

            /// Selects one more meta context, without which the export is of no use: connecting
            /// fails if the server does not have it.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let options = options.require_context(ContextName::base_allocation());
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn require_context(self, name: $crate::nbd_proto::ContextName) -> Self {
                Self(self.0.require_context(name))
            }

            /// The information to ask for beside size, flags and block sizes. All by default.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let options = options.infos(negotiation::InfoSet::NONE);
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn infos(self, infos: $crate::nbd_proto::client::InfoSet) -> Self {
                Self(self.0.infos(infos))
            }

            /// Whether to ask for extended headers. On by default.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let options = options.extended_headers(false);
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn extended_headers(self, ask: bool) -> Self {
                Self(self.0.extended_headers(ask))
            }

            /// Whether to ask for structured replies. On by default; extended headers imply them.
            /// Without them no meta context is selected.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let options = options.extended_headers(false).structured_replies(false);
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn structured_replies(self, ask: bool) -> Self {
                Self(self.0.structured_replies(ask))
            }

            /// Limits of the server's messages, and of requests in flight on each connection.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let options = options.limits(Limits { in_flight: 128, ..Limits::default() });
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn limits(self, limits: $crate::nbd_proto::client::Limits) -> Self {
                Self(self.0.limits(limits))
            }

            /// The deviations of the server's that are overlooked.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let options = options.tolerance(Tolerance::STRICT);
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn tolerance(self, tolerance: $crate::nbd_proto::client::Tolerance) -> Self {
                Self(self.0.tolerance(tolerance))
            }

            /// Time limit of connecting as a whole: the lookup of a host, its addresses, which are
            /// tried side by side, TLS and the negotiation. 30 s by default; `None` waits as long
            /// as the system does. Step by step, it is until the server has greeted, or TLS is up.
            ///
            /// Hosts are looked up by a thread of their own, because the system's resolver knows no
            /// deadlines. It ends with the lookup, which may be later than the call.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let options = options.connect_timeout(Some(Duration::from_secs(5)));
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn connect_timeout(self, timeout: Option<std::time::Duration>) -> Self {
                Self(self.0.connect_timeout(timeout))
            }

            /// Time limit of TLS and the negotiation together, as a part of the
            /// [`connect_timeout`](Self::connect_timeout), from when the server is reached. 30 s by
            /// default; `None` is all of it. Step by step, it is for all steps together, and the
            /// [`connect_timeout`](Self::connect_timeout) does not count any more.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let options = options.negotiation_timeout(Some(Duration::from_secs(2)));
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn negotiation_timeout(self, timeout: Option<std::time::Duration>) -> Self {
                Self(self.0.negotiation_timeout(timeout))
            }

            /// For how long a TCP connection may be quiet until the system asks whether the server
            /// is still there (`SO_KEEPALIVE`); if it does not answer for three times that time,
            /// the connection is lost. 30 s by default. It is about the connections that these
            /// options make.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let options = options.tcp_keepalive(Some(Duration::from_secs(10)));
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn tcp_keepalive(self, idle: Option<std::time::Duration>) -> Self {
                Self(self.0.tcp_keepalive(idle))
            }

            /// Time for which the server's system may acknowledge no sent data over TCP until the
            /// connection is lost (`TCP_USER_TIMEOUT`), on systems that have that. That is also so
            /// if the server reads nothing for that long, so it has to be longer than a request may
            /// take. 90 s by default; `None` leaves it to the system, and may be a quarter of an
            /// hour.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let options = options.tcp_user_timeout(None);
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn tcp_user_timeout(self, timeout: Option<std::time::Duration>) -> Self {
                Self(self.0.tcp_user_timeout(timeout))
            }

            /// Time limit of each request, from when its connection begins to send it until its
            /// reply is there. It may wait as long again until there is room for it, as long again
            /// for others that change the same bytes, and as long again for a new connection. Each
            /// piece of a long read or write is a request of its own. 60 s by default; `None` waits
            /// for ever.
            ///
            /// A write that the server has taken only a part of by then ends the connection of a
            /// client that waits in place, because no other request can follow.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let options = options.request_timeout(Some(Duration::from_secs(10)));
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn request_timeout(self, timeout: Option<std::time::Duration>) -> Self {
                Self(self.0.request_timeout(timeout))
            }

            /// Number of connections that share the requests, if the server says that it keeps
            /// several of one client's consistent ([`can_multi_conn`]); otherwise there is one. 1
            /// by default; 0 counts as 1. Only [`connect`](Self::connect) and
            /// [`connect_uri`](Self::connect_uri) make more than one. A request uses the one with
            /// the fewest requests in flight.
            ///
            /// [`can_multi_conn`]: crate::ExportInfo::can_multi_conn
            ///
            /// ```no_run
            #[doc = $begin]
            #[doc = concat!("let disk = options.connections(4).connect(\"nbd://localhost/disk\")", $dot_await, "?;")]
            /// println!("{} connections", disk.connections());
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn connections(self, connections: usize) -> Self {
                Self(self.0.connections(connections))
            }

            /// Limit of payload in flight on each connection, in bytes, of reads and writes
            /// together. A single request may always be. 128 MiB by default.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let options = options.bytes_in_flight(16 << 20);
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn bytes_in_flight(self, bytes: u64) -> Self {
                Self(self.0.bytes_in_flight(bytes))
            }

            /// Whether and how to make a new connection when one is lost, which
            /// [`connect`](Self::connect) and [`connect_uri`](Self::connect_uri) can. Not by
            /// default: then every request fails with the cause.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let policy = Reconnect::new().keep_unflushed(64 << 20);
            #[doc = concat!("let disk = options.reconnect(Some(policy)).connect(\"nbd://localhost/disk\")", $dot_await, "?;")]
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn reconnect(self, policy: Option<$crate::client::Reconnect>) -> Self {
                Self(self.0.reconnect(policy))
            }

            /// Whether a connection is lost when a request has taken too long and the server has
            /// sent nothing at all since that was sent. A server or a network that falls silent
            /// without closing would otherwise have one request after the other take too long. By
            /// default exactly if a new connection is made then, as [`reconnect`](Self::reconnect)
            /// says.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let options = options.lose_when_silent(true);
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn lose_when_silent(self, lose: bool) -> Self {
                Self(self.0.lose_when_silent(lose))
            }

            /// Calls `on_event` when a connection is made or lost, when an attempt to replace one
            /// fails, and when the client gives up; in the order in which that happens, for each
            /// client that these options make. With [`slow_request`](Self::slow_request) also when
            /// a request was slow.
            ///
            /// It is called by the thread or task that notices, with no lock held, so that it may
            /// use the client. It must not wait: it holds up other requests.
            ///
            /// A blocking client has no thread of its own, so that a loss is noticed and reported
            /// by the next call.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let options = options.on_event(|event| eprintln!("{event:?}"));
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn on_event(
                self,
                on_event: impl Fn(&$crate::client::ClientEvent) + Send + Sync + 'static,
            ) -> Self {
                Self(self.0.on_event(on_event))
            }

            /// Reports each request that takes at least `threshold`, from when it is submitted
            /// until its reply is read or it is given up, waiting for a connection included. Not by
            /// default, because it costs two readings of the clock for each request. Without
            /// [`on_event`](Self::on_event) it has no effect.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let options = options
            ///     .on_event(|event| eprintln!("{event:?}"))
            ///     .slow_request(Some(Duration::from_secs(1)));
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn slow_request(self, threshold: Option<std::time::Duration>) -> Self {
                Self(self.0.slow_request(threshold))
            }

            /// Lets a URI name files of this machine (`tls-certificates`, `tls-psk-file`). To be
            /// allowed only for URIs that come from a trusted place. Off by default. It is about
            /// [`connect`](Self::connect); a [`Uri`] was parsed with permissions of its own.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let uri = "nbds://localhost/disk?tls-certificates=/etc/pki/nbd";
            #[doc = concat!("let disk = options.local_files(true).connect(uri)", $dot_await, "?;")]
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn local_files(self, allow: bool) -> Self {
                Self(self.0.local_files(allow))
            }

            /// The trusted authorities of TLS connections, and the client's own certificate. It
            /// does not switch TLS on; see [`tls_policy`](Self::tls_policy).
            ///
            /// ```no_run
            #[doc = $begin]
            /// let tls = ClientTls::new().roots_file("authority.pem")?;
            #[doc = concat!("let disk = options.tls(tls).connect(\"nbds://localhost/disk\")", $dot_await, "?;")]
            #[doc = $end]
            /// ```
            #[cfg(feature = "tls-base")]
            #[must_use]
            pub fn tls(self, tls: $crate::tls::ClientTls) -> Self {
                Self(self.0.tls(tls))
            }

            /// Whether to start TLS where the URI does not demand it; not by default. A URI that
            /// does always gets it.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let options = options.tls_policy(TlsPolicy::IfOffered);
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn tls_policy(self, policy: $crate::client::TlsPolicy) -> Self {
                Self(self.0.tls_policy(policy))
            }

            /// Connects to the server of a URI and enters its export.
            ///
            /// ```no_run
            #[doc = $begin]
            #[doc = concat!("let disk = options.connect(\"nbd://localhost/disk\")", $dot_await, "?;")]
            /// println!("{} bytes", disk.size());
            #[doc = $end]
            /// ```
            ///
            /// # Errors
            ///
            /// When the URI is wrong, the server cannot be reached, or the export cannot be
            /// entered.
            pub $($async)? fn connect(&self, uri: &str) -> Result<Client, $crate::client::Error> {
                $wait(self.0.connect(uri)) $($await)*.map(Client::from)
            }

            /// Connects to the server of a parsed URI and enters its export.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let uri = Uri::tcp("localhost", 10809)?.with_export("disk".parse()?);
            #[doc = concat!("let disk = options.connect_uri(&uri)", $dot_await, "?;")]
            #[doc = $end]
            /// ```
            ///
            /// # Errors
            ///
            /// Like [`connect`](Self::connect).
            pub $($async)? fn connect_uri(
                &self,
                uri: &$crate::nbd_proto::Uri,
            ) -> Result<Client, $crate::client::Error> {
                $wait(self.0.connect_uri(uri)) $($await)*.map(Client::from)
            }

            /// Connects to the server of a URI and stops before any option is sent, to go on step
            /// by step. Not for URIs that demand TLS: see [`start_secure`](Self::start_secure).
            ///
            /// The caller then asks for everything that these options would have asked for, such as
            /// meta contexts. The client has one connection: the steps are not known here, so that
            /// no other one can be made like it.
            ///
            /// ```no_run
            #[doc = $begin]
            #[doc = concat!("let greeted = options.start(&\"nbd://localhost\".parse()?)", $dot_await, "?;")]
            /// let mut negotiation = greeted.negotiation().ok_or("the server is an old one")?;
            #[doc = concat!("println!(\"{:?}\", negotiation.list()", $dot_await, "?);")]
            #[doc = $end]
            /// ```
            ///
            /// # Errors
            ///
            /// When the URI is wrong or demands TLS, the server cannot be reached, or is none; or
            /// with [`reconnect`](Self::reconnect) or more than one of
            /// [`connections`](Self::connections).
            pub $($async)? fn start(
                &self,
                uri: &$crate::nbd_proto::Uri,
            ) -> Result<negotiation::Greeted, $crate::client::Error> {
                $wait(self.0.start(uri)) $($await)*.map(Into::into)
            }

            /// Connects to the server of a URI and starts TLS, to go on step by step as after
            /// [`start`](Self::start).
            ///
            /// ```no_run
            #[doc = $begin]
            #[doc = concat!("let mut negotiation = options.start_secure(&\"nbds://localhost\".parse()?)", $dot_await, "?;")]
            #[doc = concat!("println!(\"{:?}\", negotiation.list()", $dot_await, "?);")]
            #[doc = $end]
            /// ```
            ///
            /// # Errors
            ///
            /// When the URI is wrong, the server cannot be reached, is none, or TLS cannot be
            /// started.
            pub $($async)? fn start_secure(
                &self,
                uri: &$crate::nbd_proto::Uri,
            ) -> Result<
                negotiation::Negotiation<negotiation::Encrypted>,
                $crate::client::Error,
            > {
                $wait(self.0.start_secure(uri)) $($await)*.map(Into::into)
            }

            /// Starts a server that serves one connection on its standard input and output, such as
            /// `nbdkit -s`, and enters its export. The end of the connection ends the server, which
            /// is killed if it does not within 5 s of the last use.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let mut nbdkit = std::process::Command::new("nbdkit");
            /// nbdkit.args(["-s", "memory", "1G"]);
            #[doc = concat!("let disk = options.connect_command(nbdkit)", $dot_await, "?;")]
            #[doc = $end]
            /// ```
            ///
            /// # Errors
            ///
            /// When the program cannot be started, or the export cannot be entered; or with
            /// [`reconnect`](Self::reconnect) or more than one of
            /// [`connections`](Self::connections).
            pub $($async)? fn connect_command(
                &self,
                command: std::process::Command,
            ) -> Result<Client, $crate::client::Error> {
                $wait(self.0.connect_command(command)) $($await)*.map(Client::from)
            }

            /// Starts a server that takes a listening socket from its parent by the environment
            /// variables `LISTEN_FDS` and `LISTEN_PID`, such as `qemu-nbd` and `nbdkit` do, and
            /// enters its export. After the last use it gets SIGTERM, and SIGKILL if it has not
            /// ended within 5 s.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let mut qemu = std::process::Command::new("qemu-nbd");
            /// qemu.args(["--format=qcow2", "disk.qcow2"]);
            #[doc = concat!("let disk = options.connect_activated(&qemu)", $dot_await, "?;")]
            #[doc = $end]
            /// ```
            ///
            /// # Errors
            ///
            /// Like [`connect_command`](Self::connect_command).
            pub $($async)? fn connect_activated(
                &self,
                command: &std::process::Command,
            ) -> Result<Client, $crate::client::Error> {
                $wait(self.0.connect_activated(command)) $($await)*.map(Client::from)
            }
        }
    };
}
