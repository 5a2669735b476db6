//! The driver of the client for tasks: whatever reaches servers.

use super::{Client, pool::Pool, timed::Timed};
#[cfg(feature = "tls")]
use crate::{client::NegotiationError, tls::ClientTls};
use crate::{
    client::{
        Adopt, Common, Config, ConnectOptions, Connected, Connector, DialOptions, Driver, Error,
        ServerProcess,
    },
    runtime::{Network, Runtime},
    transport::{Layered, Transport},
};
use nbd_proto::uri::Address;
use std::{io, pin::Pin, sync::Arc, time::Duration};

impl<R: Network> Driver for R {
    /// A future, which is in a box so that those of the program's are small.
    type Call<'a, T: 'a> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
    type Stream = Layered<Timed<R>>;
    type Client = Client<R>;

    fn call<'a, T: 'a>(future: impl Future<Output = T> + Send + 'a) -> Self::Call<'a, T> {
        Box::pin(future)
    }

    fn now(&self) -> Duration {
        Runtime::now(self)
    }

    async fn dial(&self, address: &Address, options: &DialOptions) -> io::Result<Self::Stream> {
        let stream = Network::connect(self, address, options).await?;
        Ok(Layered::Plain(Timed::new(stream)))
    }

    fn launch(&self, server: ServerProcess<'_>) -> io::Result<Self::Stream> {
        let stream = Network::launch(self, server)?;
        Ok(Layered::Plain(Timed::new(stream)))
    }

    fn set_deadline(&self, stream: &mut Self::Stream, deadline: Option<Duration>) {
        let left = deadline.map(|at| at.saturating_sub(Runtime::now(self)));
        stream.transport_mut().deadline = left.map(|left| self.sleep(left));
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

impl<R: Network, T: Transport + Send + 'static> Adopt<T> for R {
    fn adopt(&self, stream: T, _: &mut Config) -> io::Result<Self::Stream> {
        Ok(Layered::Plain(Timed::new(stream)))
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

    /// How many bytes of payload, of reads and writes together, may be in flight on each
    /// connection. A single request may always be. 128 MiB by default.
    #[must_use]
    pub fn bytes_in_flight(mut self, bytes: u64) -> Self {
        self.config_mut().bytes_in_flight = bytes;
        self
    }
}
