//! What the ways to connect have in common.

use super::ConnectOptions;
use crate::{
    Client, Error,
    patience::Patience,
    pool::Pool,
    socket::{Socket, connect},
    stream::{Negotiating, Stream},
};
use nbd_io::{
    client::{Connected, NegotiationError, TlsPolicy, negotiate, server_name},
    transport::block_on_ready,
};
use nbd_proto::{Uri, client::Transmission, uri::Address};
use std::time::{Duration, Instant};

impl ConnectOptions {
    /// These options and what a URI says.
    pub(super) fn with_uri(mut self, uri: &Uri) -> Result<Self, Error> {
        self.target.export = uri.export().clone();
        let Some(tls) = uri.tls() else {
            return Ok(self);
        };
        self.target.tls = TlsPolicy::Always;
        self.trust(tls)?;
        Ok(self)
    }

    #[cfg(feature = "tls-base")]
    fn trust(&mut self, uri: &nbd_proto::uri::Tls) -> Result<(), Error> {
        let tls = self.tls.take().unwrap_or_default();
        self.tls = Some(tls.with_uri(uri)?);
        Ok(())
    }

    #[cfg(not(feature = "tls-base"))]
    fn trust(&mut self, _: &nbd_proto::uri::Tls) -> Result<(), Error> {
        Err(Error::Unsupported {
            what: "this URI demands TLS, which is not in this build",
        })
    }

    /// Makes one more connection to what a URI names, with everything that belongs to it. After the
    /// deadline it is of no use. It pends only where patience ends.
    pub(crate) async fn open(
        &self,
        uri: &Uri,
        deadline: Option<Instant>,
        patience: Patience,
    ) -> Result<Connected<Negotiating>, Error> {
        let left = deadline.map(|at| at.saturating_duration_since(patience.now()));
        let mut dial = self.dial.clone();
        dial.timeout = dial.timeout.into_iter().chain(left).min();
        let socket = connect(uri.address(), &dial, &patience).await?;
        let transport = Negotiating {
            stream: Stream::Socket(socket),
            deadline: after(self.negotiation_timeout)
                .into_iter()
                .chain(deadline)
                .min(),
            patience,
        };
        let server = server_name(uri.address());
        self.enter(transport, Some(&server), host(uri.address()))
            .await
    }

    pub(super) fn dial(&self, address: &Address) -> Result<Socket, Error> {
        block_on_ready(connect(address, &self.dial, &Patience::endless()))
    }

    pub(super) fn negotiating(&self, stream: Stream) -> Negotiating {
        Negotiating {
            stream,
            deadline: after(self.negotiation_timeout),
            patience: Patience::endless(),
        }
    }

    async fn enter(
        &self,
        transport: Negotiating,
        server: Option<&str>,
        host: Option<&str>,
    ) -> Result<Connected<Negotiating>, Error> {
        let upgrade = |transport| self.upgrade(transport, host);
        let connected = negotiate(transport, &self.target, upgrade).await;
        connected.map_err(|error| Error::entering(&self.target.export, server, error))
    }

    /// A client with this stream alone.
    pub(super) fn enter_once(&self, stream: Stream, host: Option<&str>) -> Result<Client, Error> {
        let connected = block_on_ready(self.enter(self.negotiating(stream), host, host))?;
        Ok(Client::new(Pool::alone(self, connected)?))
    }

    /// An export that was entered step by step.
    pub(crate) fn entered(
        &self,
        transport: Negotiating,
        transmission: Transmission,
        encrypted: bool,
    ) -> Result<Client, Error> {
        let connected = Connected {
            transport,
            transmission,
            encrypted,
        };
        Ok(Client::new(Pool::alone(self, connected)?))
    }

    /// Does the TLS handshake.
    #[cfg(feature = "tls-base")]
    pub(crate) async fn upgrade(
        &self,
        transport: Negotiating,
        host: Option<&str>,
    ) -> Result<Negotiating, NegotiationError> {
        let Negotiating {
            stream,
            deadline,
            patience,
        } = transport;
        let Stream::Socket(socket) = stream else {
            return Err(NegotiationError::Tls(
                "TLS can only be started over a socket".into(),
            ));
        };
        let (config, name) = self.tls.clone().unwrap_or_default().client(host)?;
        let tls =
            crate::tls::TlsStream::connect(socket, config, &name, deadline, &patience).await?;
        Ok(Negotiating {
            stream: Stream::Tls(Box::new(tls)),
            deadline,
            patience,
        })
    }

    #[cfg(not(feature = "tls-base"))]
    pub(crate) async fn upgrade(
        &self,
        _: Negotiating,
        _: Option<&str>,
    ) -> Result<Negotiating, NegotiationError> {
        Err(NegotiationError::Tls("TLS is not in this build".into()))
    }
}

fn after(timeout: Option<Duration>) -> Option<Instant> {
    timeout.and_then(|timeout| Instant::now().checked_add(timeout))
}

/// The name that a certificate is checked against unless another one is given.
pub(super) fn host(address: &Address) -> Option<&str> {
    match address {
        Address::Tcp { host, .. } => Some(host.as_str()),
        _ => None,
    }
}
