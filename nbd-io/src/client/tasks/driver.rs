//! The driver of the client for tasks, over any network of a runtime.

use super::{Client, pool::Pool, timed::Timed};
#[cfg(feature = "tls")]
use crate::{client::NegotiationError, tls::ClientTls};
use crate::{
    client::{
        Common, ConnectOptions, Connected, Connector, DialOptions, Dialer, Driver, Error,
        ServerProcess, connector::Server,
    },
    runtime::{Network, Runtime},
    transport::{Layered, Transport},
};
use nbd_proto::uri::Address;
use std::{future::poll_fn, io, pin::Pin, sync::Arc, task::Poll, time::Duration};

impl<R: Network> Driver for R {
    type Stream = Layered<Timed<R>>;
    type Client = Client<R>;

    fn now(&self) -> Duration {
        Runtime::now(self)
    }

    async fn dial(&self, address: &Address, options: &DialOptions) -> io::Result<Self::Stream> {
        let stream = Network::connect(self, address, options).await?;
        Ok(Layered::Plain(Timed::new(self, stream)))
    }

    async fn dial_by(
        &self,
        dialer: &Dialer,
        timeout: Option<Duration>,
    ) -> io::Result<Self::Stream> {
        let mut dialing = dialer.dial();
        let mut timer = timeout.map(|time| self.sleep(time));
        let stream = poll_fn(|cx| {
            if let Poll::Ready(dialed) = dialing.as_mut().poll(cx) {
                return Poll::Ready(dialed);
            }
            match &mut timer {
                Some(timer) => Pin::new(timer)
                    .poll(cx)
                    .map(|()| Err(io::ErrorKind::TimedOut.into())),
                None => Poll::Pending,
            }
        });
        Ok(Layered::Plain(Timed::boxed(self, stream.await?)))
    }

    fn launch(&self, server: ServerProcess<'_>) -> io::Result<Self::Stream> {
        let stream = Network::launch(self, server)?;
        Ok(Layered::Plain(Timed::new(self, stream)))
    }

    fn set_deadline(&self, stream: &mut Self::Stream, deadline: Option<Duration>) {
        stream.transport_mut().deadline = deadline;
    }

    #[cfg(feature = "tls")]
    async fn with_uri(
        &self,
        tls: ClientTls,
        uri: &nbd_proto::uri::Tls,
    ) -> Result<ClientTls, Error> {
        tls.with_uri_on(self, uri).await
    }

    #[cfg(feature = "tls")]
    async fn start_tls(
        &self,
        stream: Self::Stream,
        tls: &ClientTls,
        host: Option<&str>,
    ) -> Result<Self::Stream, NegotiationError> {
        let (config, name) = tls.client_on(self, host).await?;
        stream.start_tls(config, name).await
    }

    fn enter(
        connector: Connector<Self>,
        first: Connected<Self::Stream>,
    ) -> impl Future<Output = Result<Client<R>, Error>> + Send {
        let common = Common::new(connector, &first);
        // The future is small without the connection.
        let link = common.link(first);
        async { Pool::open(common, link).await.map(Client::new) }
    }
}

impl<R: Network> ConnectOptions<R> {
    /// Like [`new`](ConnectOptions::new), on this runtime.
    #[must_use]
    pub fn with_runtime(runtime: R) -> Self {
        Self {
            driver: runtime,
            config: Arc::default(),
        }
    }

    /// The runtime that connections are made on.
    #[must_use]
    pub const fn runtime(&self) -> &R {
        &self.driver
    }

    /// Enters the export over a stream that the program brings.
    ///
    /// # Errors
    ///
    /// Like [`enter_over`](Self::enter_over).
    pub fn connect_over<T: Transport + Send + 'static>(
        &self,
        stream: T,
        host: Option<&str>,
    ) -> impl Future<Output = Result<Client<R>, Error>> + Send {
        let stream = Timed::new(&self.driver, stream);
        self.enter_over(Ok(Layered::Plain(stream)), host)
    }

    /// Enters the export over streams that a function of the program's makes.
    ///
    /// # Errors
    ///
    /// When the function fails or takes longer than the
    /// [`connect_timeout`](Self::connect_timeout), or the export cannot be entered.
    pub async fn connect_with<F, T>(
        &self,
        dial: impl Fn() -> F + Send + Sync + 'static,
        host: Option<&str>,
    ) -> Result<Client<R>, Error>
    where
        F: Future<Output = io::Result<T>> + Send + 'static,
        T: Transport + Send + 'static,
    {
        let server = Server::Dialer(host.map(str::to_owned), Dialer::new(dial));
        self.enter_by(Connector::new(
            self.driver.clone(),
            self.config.clone(),
            server,
        ))
        .await
    }
}
