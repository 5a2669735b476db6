//! The part that the listeners of all drivers share.

/// The methods of a driver's `Listener`, with examples that begin with `$begin`. It has a `new`,
/// which takes over a [`Listener`] of this crate, and a `socket`, which lends that unless it is a
/// client that the process was started with.
///
/// [`Listener`]: crate::Listener
#[doc(hidden)]
#[macro_export]
macro_rules! driver_listener {
    (examples: $begin:literal, $end:literal,) => {
        impl Listener {
            /// Takes over a listening socket of the standard library's, or any other.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let socket = std::net::TcpListener::bind("127.0.0.1:10809")?;
            /// let listener = Listener::from_std(socket)?;
            #[doc = $end]
            /// ```
            ///
            /// # Errors
            ///
            /// Of the kind [`InvalidInput`](std::io::ErrorKind::InvalidInput) if it does not
            /// listen; when its mode cannot be changed.
            pub fn from_std(listener: impl Into<std::os::fd::OwnedFd>) -> std::io::Result<Self> {
                Self::new($crate::Listener::new(listener)?)
            }

            /// Listens on a TCP port, such as `"localhost:10809"` or `("::", 10809)`, at every
            /// address that the host stands for: `localhost` is most often one of IPv6 and one of
            /// IPv4. With port 0 the system chooses one, the same for all of them; see
            /// [`local_addr`](Self::local_addr). The thread waits while a host is looked up.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let listeners = Listener::bind_tcp("localhost:10809")?;
            #[doc = $end]
            /// ```
            ///
            /// # Errors
            ///
            /// When the host has no addresses, or the port is in use at one of them. An address
            /// that this machine does not have is left out, if there is another one.
            pub fn bind_tcp(address: impl std::net::ToSocketAddrs) -> std::io::Result<Vec<Self>> {
                let listeners = $crate::Listener::bind_tcp(address)?;
                listeners.into_iter().map(Self::new).collect()
            }

            /// Listens on a Unix socket, in place of one that a server has left behind. A socket
            /// that still answers, and a file that is no socket, are not touched. When the listener
            /// is dropped its file is removed, unless there is another one in its place by then.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let listener = Listener::bind_unix("/run/nbd.sock")?;
            #[doc = $end]
            /// ```
            ///
            /// # Errors
            ///
            /// Of the kind [`AddrInUse`](std::io::ErrorKind::AddrInUse) if there is something that
            /// is in use; the system's error if the socket cannot be made.
            pub fn bind_unix(path: impl AsRef<std::path::Path>) -> std::io::Result<Self> {
                Self::new($crate::Listener::bind_unix(path)?)
            }

            /// Listens on a port of the sockets between a virtual machine and its host (vsock).
            /// With `None` for a `cid`, it is all that this machine has, so that a host serves
            /// every virtual machine; 1 is for programs of the machine itself, and 2 for the
            /// virtual machines of a host.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let listener = Listener::bind_vsock(None, 10809)?;
            #[doc = $end]
            /// ```
            ///
            /// # Errors
            ///
            /// Of the kind [`InvalidInput`](std::io::ErrorKind::InvalidInput) if the port is 0 or
            /// `u32::MAX`, which no URI can name; the system's error if the socket cannot be made.
            pub fn bind_vsock(cid: Option<u32>, port: u32) -> std::io::Result<Self> {
                Self::new($crate::Listener::bind_vsock(cid, port)?)
            }

            /// Takes the listening sockets that the process was started with, as `systemd` and
            /// others hand them over by `LISTEN_FDS` and `LISTEN_PID` (socket activation). There
            /// are none if it was not started so. With `Accept=yes`, `systemd` hands over the
            /// socket of one client instead: a server serves it, and ends with it. They are given
            /// away once; later there are none.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let mut listeners = Listener::inherited()?;
            /// if listeners.is_empty() {
            ///     listeners = Listener::bind_tcp("localhost:10809")?;
            /// }
            #[doc = $end]
            /// ```
            ///
            /// # Errors
            ///
            /// When the variables make no sense, or one of the sockets is not a stream socket that
            /// listens or is connected.
            pub fn inherited() -> std::io::Result<Vec<Self>> {
                let listeners = $crate::Listener::inherited()?;
                listeners.into_iter().map(Self::new).collect()
            }

            /// The address that a TCP listener listens at.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let listeners = Listener::bind_tcp("localhost:0")?;
            /// println!("{}", listeners[0].local_addr()?);
            #[doc = $end]
            /// ```
            ///
            /// # Errors
            ///
            /// Of the kind [`Unsupported`](std::io::ErrorKind::Unsupported) if it is of another
            /// family, or the client that the process was [started with](Self::inherited).
            pub fn local_addr(&self) -> std::io::Result<std::net::SocketAddr> {
                match self.socket() {
                    Some(listener) => listener.local_addr(),
                    None => Err(std::io::ErrorKind::Unsupported.into()),
                }
            }
        }
    };
}
