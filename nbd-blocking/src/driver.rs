//! The driver of the blocking client: its futures wait in place, and a call polls them once.

use crate::{
    Client, Error,
    dial_clock::{DialClock, START},
    pool::Pool,
    stream::{self, Negotiating},
};
#[cfg(feature = "tls-base")]
use nbd_io::{client::NegotiationError, tls::ClientTls};
use nbd_io::{
    client::{Adopt, Common, Config, Connected, Connector, DialOptions, Driver, ServerProcess},
    transport::block_on_ready,
};
use nbd_proto::uri::Address;
use nbd_socket::Socket;
use std::{
    io::{self, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    time::Duration,
};

/// Waits in place: the methods of [`ConnectOptions`](crate::ConnectOptions) and
/// [`Negotiation`](crate::negotiation::Negotiation) return what has come of them.
#[derive(Clone, Debug, Default)]
pub struct Blocking {
    clock: DialClock,
}

impl Blocking {
    /// Waits as long as this says; then its futures pend.
    pub(crate) const fn with(clock: DialClock) -> Self {
        Self { clock }
    }

    fn negotiating_over(&self, socket: Socket) -> io::Result<Negotiating> {
        Negotiating::new(stream::Stream::Socket(socket), self.clock.clone())
    }
}

impl Driver for Blocking {
    type Call<'a, T: 'a> = T;
    type Stream = Negotiating;
    type Client = Client;

    fn call<'a, T: 'a>(future: impl Future<Output = T> + Send + 'a) -> T {
        block_on_ready(future)
    }

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

impl Adopt<TcpStream> for Blocking {
    fn adopt(&self, stream: TcpStream, _: &mut Config) -> io::Result<Negotiating> {
        self.negotiating_over(Socket::from_std(stream)?)
    }
}

impl Adopt<Socket> for Blocking {
    fn adopt(&self, socket: Socket, _: &mut Config) -> io::Result<Negotiating> {
        self.negotiating_over(socket.blocking()?)
    }
}

impl Adopt<UnixStream> for Blocking {
    fn adopt(&self, stream: UnixStream, _: &mut Config) -> io::Result<Negotiating> {
        self.negotiating_over(Socket::from_std(stream)?)
    }
}

/// Any stream, such as a pipe in memory or a tunnel, for
/// [`connect_over`](crate::ConnectOptions::connect_over) and
/// [`serve_over`](crate::Server::serve_over).
///
/// It is used by one thread at a time with one request in flight, because nothing is known of it but
/// that it reads and writes. It has to be blocking. Deadlines cannot be kept on it, and TLS cannot be
/// started; both are the stream's own business.
#[derive(Debug)]
pub struct Stream<S>(S);

impl<S: Read + Write + Send + 'static> Stream<S> {
    /// Takes over a stream.
    pub const fn new(stream: S) -> Self {
        Self(stream)
    }

    /// Gives the stream back.
    pub fn into_inner(self) -> S {
        self.0
    }
}

impl<S: Read + Write + Send + 'static> Adopt<Stream<S>> for Blocking {
    fn adopt(&self, stream: Stream<S>, config: &mut Config) -> io::Result<Negotiating> {
        config.negotiation.protocol.limits.in_flight = 1;
        Negotiating::new(stream::Stream::any(stream.0), self.clock.clone())
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
