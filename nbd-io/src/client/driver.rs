//! The part that differs between the clients: their way to wait, and the use of a connection.

use super::{Connected, Connector, DialOptions, Dialer, Error, ServerProcess};
use crate::transport::Transport;
#[cfg(feature = "tls")]
use crate::{client::NegotiationError, tls::ClientTls};
use nbd_proto::uri::Address;
use std::{io, time::Duration};

/// A client's way to wait while a connection is made, and its use of the connection.
///
/// Everything on the way to a client is written once, as futures: [`ConnectOptions`], the order of
/// options, [`Negotiation`] step by step, deadlines and errors. A driver for tasks has its users
/// await them. One that waits in place polls them once, since its streams wait instead of pending.
///
/// Each [`Network`](crate::runtime::Network) is the driver of the client in
/// [`tasks`](super::tasks).
///
/// [`ConnectOptions`]: super::ConnectOptions
/// [`Negotiation`]: super::Negotiation
pub trait Driver: Clone + Send + Sync + 'static {
    /// A connection that negotiates. An operation that would have to wait past its deadline fails.
    type Stream: Transport + Send + 'static;

    /// The client that uses an export.
    type Client: 'static;

    /// The time of a clock that only goes forward, from any start.
    fn now(&self) -> Duration;

    /// Connects to an address.
    ///
    /// # Errors
    ///
    /// Like [`Network::connect`](crate::runtime::Network::connect).
    fn dial(
        &self,
        address: &Address,
        options: &DialOptions,
    ) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// Connects by a function of the program's, within a time. Without a body it fails: a driver
    /// whose calls wait in place would wait in that function for all of its callers.
    ///
    /// # Errors
    ///
    /// When the function fails, or takes longer.
    fn dial_by(
        &self,
        dialer: &Dialer,
        timeout: Option<Duration>,
    ) -> impl Future<Output = io::Result<Self::Stream>> + Send {
        let _ = (dialer, timeout);
        std::future::ready(Err(io::ErrorKind::Unsupported.into()))
    }

    /// Starts a server as a child process and connects to it.
    ///
    /// # Errors
    ///
    /// When the program cannot be started.
    fn launch(&self, server: ServerProcess<'_>) -> io::Result<Self::Stream>;

    /// Sets until when a connection may be waited for, by [`now`](Driver::now).
    fn set_deadline(&self, stream: &mut Self::Stream, deadline: Option<Duration>);

    /// Adds the TLS settings of a URI. It may name files, which are read here. Without a body, this
    /// and `start_tls` fail: a program may build this crate with TLS for another driver.
    ///
    /// # Errors
    ///
    /// Like [`ClientTls::with_uri`].
    #[cfg(feature = "tls")]
    fn with_uri(
        &self,
        tls: ClientTls,
        uri: &nbd_proto::uri::Tls,
    ) -> impl Future<Output = Result<ClientTls, Error>> + Send {
        let _ = (tls, uri);
        std::future::ready(Err(Error::Unsupported {
            what: "this URI demands TLS, which is not in this build of the client",
        }))
    }

    /// Does the TLS handshake on a connection in the clear; `host` is the name in the server's
    /// address.
    ///
    /// # Errors
    ///
    /// When TLS cannot be set up, its handshake fails, or it is up already.
    #[cfg(feature = "tls")]
    fn start_tls(
        &self,
        stream: Self::Stream,
        tls: &ClientTls,
        host: Option<&str>,
    ) -> impl Future<Output = Result<Self::Stream, NegotiationError>> + Send {
        let _ = (stream, tls, host);
        std::future::ready(Err(NegotiationError::Tls(
            "TLS is not in this build of the client".into(),
        )))
    }

    /// Makes a client of its first connection. Its deadline does not hold any more.
    ///
    /// # Errors
    ///
    /// When it cannot be used, or the others that are wanted cannot be made.
    fn enter(
        connector: Connector<Self>,
        first: Connected<Self::Stream>,
    ) -> impl Future<Output = Result<Self::Client, Error>> + Send;
}
