//! The connect options.

use super::{Client, Driver, Greeted, Negotiation};
use nbd_io::{
    client::{self, Error, Reconnect, TlsPolicy, tasks},
    tls::ClientTls,
};
use nbd_proto::{
    ContextName, ExportName, Uri,
    client::{Encrypted, Tolerance},
};
use nbd_socket::{Reactor, Socket};
use std::{net::TcpStream, process::Command, time::Duration};

#[derive(Clone, Debug)]
pub(crate) struct ConnectOptions<D: Driver> {
    inner: client::ConnectOptions<D::Network>,
    driver: D,
}

macro_rules! setters {
    ($($name:ident: $type:ty;)*) => {
        $(pub(crate) fn $name(self, value: $type) -> Self {
            let inner = self.inner.$name(value);
            Self { inner, ..self }
        })*
    };
}

impl<D: Driver> ConnectOptions<D> {
    pub(crate) fn on(driver: D) -> Self {
        Self {
            inner: client::ConnectOptions::with_runtime(driver.network()),
            driver,
        }
    }

    setters! {
        export: ExportName;
        context: ContextName;
        extended_headers: bool;
        structured_replies: bool;
        tolerance: Tolerance;
        connect_timeout: Option<Duration>;
        tcp_keepalive: Option<Duration>;
        tcp_user_timeout: Option<Duration>;
        negotiation_timeout: Option<Duration>;
        request_timeout: Option<Duration>;
        local_files: bool;
        connections: usize;
        reconnect: Option<Reconnect>;
        tls: ClientTls;
        tls_policy: TlsPolicy;
    }

    pub(crate) fn connect(&self, uri: &str) -> Result<Client<D>, Error> {
        self.entered(self.inner.connect(uri))
    }

    pub(crate) fn connect_over(
        &self,
        stream: TcpStream,
        host: Option<&str>,
    ) -> Result<Client<D>, Error> {
        stream.set_nodelay(true).map_err(Error::lost)?;
        let socket = Socket::new(stream.into()).and_then(Socket::nonblocking);
        let socket = socket.map_err(Error::lost)?;
        self.entered(async {
            let socket = self.driver.network().register(socket);
            let socket = socket.map_err(Error::lost)?;
            self.inner.connect_over(socket, host).await
        })
    }

    pub(crate) fn connect_command(&self, command: Command) -> Result<Client<D>, Error> {
        self.entered(self.inner.connect_command(command))
    }

    pub(crate) fn connect_activated(&self, command: &Command) -> Result<Client<D>, Error> {
        self.entered(self.inner.connect_activated(command))
    }

    pub(crate) fn start(&self, uri: &Uri) -> Result<Greeted<D>, Error> {
        let greeted = self.driver.wait(self.inner.start(uri))?;
        Ok(Greeted::new(greeted, self.driver.clone()))
    }

    pub(crate) fn start_secure(&self, uri: &Uri) -> Result<Negotiation<D, Encrypted>, Error> {
        let negotiation = self.driver.wait(self.inner.start_secure(uri))?;
        Ok(Negotiation::new(negotiation, self.driver.clone()))
    }

    fn entered(
        &self,
        entering: impl Future<Output = Result<tasks::Client<D::Network>, Error>>,
    ) -> Result<Client<D>, Error> {
        Ok(Client {
            inner: self.driver.wait(entering)?,
            driver: self.driver.clone(),
        })
    }
}

impl<D: Driver + Default> ConnectOptions<D> {
    pub(crate) fn new() -> Self {
        Self::on(D::default())
    }
}
