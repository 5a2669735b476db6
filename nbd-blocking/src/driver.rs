//! The driver of the blocking client: its futures wait in place, and a call polls them once.

use crate::{
    Client, Error,
    dial_clock::{DialClock, START},
    pool::Pool,
    stream::{self, Negotiating},
};
use nbd_io::client::{Common, Connected, Connector, DialOptions, Driver, ServerProcess};
#[cfg(feature = "tls-base")]
use nbd_io::{client::NegotiationError, tls::ClientTls};
use nbd_proto::uri::Address;
use nbd_socket::Socket;
use std::{io, time::Duration};

/// Waits in place: the methods of [`ConnectOptions`](crate::ConnectOptions) and
/// [`Negotiation`](crate::negotiation::Negotiation) return their results.
#[derive(Clone, Debug, Default)]
pub struct Blocking {
    clock: DialClock,
}

impl Blocking {
    /// Waits as long as this says; then its futures pend.
    pub(crate) const fn with(clock: DialClock) -> Self {
        Self { clock }
    }

    pub(crate) fn negotiating(&self, stream: stream::Stream) -> io::Result<Negotiating> {
        Negotiating::new(stream, self.clock.clone())
    }

    fn negotiating_over(&self, socket: Socket) -> io::Result<Negotiating> {
        self.negotiating(stream::Stream::Socket(socket))
    }
}

impl Driver for Blocking {
    type Stream = Negotiating;
    type Client = Client;

    fn now(&self) -> Duration {
        self.clock.now().saturating_duration_since(*START)
    }

    async fn dial(&self, address: &Address, options: &DialOptions) -> io::Result<Negotiating> {
        let socket = nbd_socket::connect(&self.clock, address, options).await?;
        self.negotiating_over(socket.blocking()?)
    }

    fn launch(&self, server: ServerProcess<'_>) -> io::Result<Negotiating> {
        self.negotiating_over(Socket::launch(server)?)
    }

    fn set_deadline(&self, stream: &mut Negotiating, deadline: Option<Duration>) {
        stream.deadline = deadline.and_then(|at| START.checked_add(at));
    }

    #[cfg(feature = "tls-base")]
    async fn with_uri(
        &self,
        tls: ClientTls,
        uri: &nbd_proto::uri::Tls,
    ) -> Result<ClientTls, Error> {
        tls.with_uri(uri)
    }

    #[cfg(feature = "tls-base")]
    async fn start_tls(
        &self,
        stream: Negotiating,
        tls: &ClientTls,
        host: Option<&str>,
    ) -> Result<Negotiating, NegotiationError> {
        stream.start_tls(tls, host).await
    }

    fn enter(
        connector: Connector<Self>,
        first: Connected<Negotiating>,
    ) -> impl Future<Output = Result<Client, Error>> + Send {
        let common = Common::new(connector, &first);
        let opening = Pool::open(common, first);
        async { opening.await.map(Client::new) }
    }
}

#[cfg(all(test, not(feature = "tls-base")))]
mod tests {
    use crate::{ConnectOptions, Error};

    #[test]
    fn a_uri_that_demands_tls_is_an_error_in_a_build_without() {
        // U-044
        for uri in ["nbds://localhost", "nbds+unix:///?socket=/nowhere"] {
            let error = ConnectOptions::new().connect(uri).unwrap_err();
            assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
            assert!(error.to_string().contains("TLS"), "{error}");
        }
    }
}
