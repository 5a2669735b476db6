//! Connecting, as often as a client needs it.

use super::{
    Config, Connected, DialOptions, Driver, Error, NegotiationError, TlsPolicy, negotiate,
    server_name,
};
use crate::transport::Transport;
use nbd_proto::{ExportName, Uri, uri::Address};
use std::{ffi::OsString, fmt, io, pin::Pin, sync::Arc, time::Duration};

/// A maker of a client's connections: their address, their options, and the driver's way to wait.
#[derive(Clone)]
pub struct Connector<D> {
    /// The driver, which waits.
    pub driver: D,
    /// The options, with the settings of the URI.
    pub config: Arc<Config>,
    server: Server,
    /// The first connection was, or is to be, the only one.
    only: bool,
}

/// The address of a server, in the words of errors.
#[derive(Clone)]
pub(super) enum Server {
    /// New connections can be made.
    Address(Address),
    /// The host at the other end of a stream that the program brought, if that is known.
    Host(Option<String>),
    /// The same for streams that a function of the program's makes, as many as are needed.
    Dialer(Option<String>, Dialer),
    /// A child process.
    Program(OsString),
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => f.write_str(&server_name(address)),
            Self::Host(Some(host)) | Self::Dialer(Some(host), _) => f.write_str(host),
            Self::Host(None) | Self::Dialer(None, _) => f.write_str("the server"),
            Self::Program(program) => write!(f, "{program:?}"),
        }
    }
}

/// A function of the program's that makes connections.
#[derive(Clone)]
pub struct Dialer(Arc<dyn Fn() -> Dialing + Send + Sync>);

type Dialing = Pin<Box<dyn Future<Output = io::Result<Box<dyn Transport + Send>>> + Send>>;

impl Dialer {
    pub(super) fn new<F, T>(dial: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<T>> + Send + 'static,
        T: Transport + Send + 'static,
    {
        Self(Arc::new(move || {
            let dialing = dial();
            Box::pin(async {
                let stream: Box<dyn Transport + Send> = Box::new(dialing.await?);
                Ok(stream)
            })
        }))
    }

    /// Begins to make a connection.
    pub(super) fn dial(&self) -> Dialing {
        (self.0)()
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Dialer").finish_non_exhaustive()
    }
}

impl<D> Connector<D> {
    /// Whether more connections can be made.
    #[must_use]
    pub const fn can_dial(&self) -> bool {
        !self.only && matches!(self.server, Server::Address(_) | Server::Dialer(..))
    }

    /// The address of the server.
    #[cfg(feature = "tracing")]
    pub(super) const fn server(&self) -> &Server {
        &self.server
    }

    /// The same for a connection whose options the program sends: its options, and the export that
    /// it entered, are not known here, so that there can be no second one.
    pub(super) fn only(self) -> Self {
        Self { only: true, ..self }
    }
}

impl<D: Driver> Connector<D> {
    pub(super) const fn new(driver: D, config: Arc<Config>, server: Server) -> Self {
        Self {
            driver,
            config,
            server,
            only: false,
        }
    }

    /// A connector to the server of a URI. That may name files, which are read here.
    pub(super) async fn to(driver: D, mut config: Arc<Config>, uri: &Uri) -> Result<Self, Error> {
        if config.negotiation.export != *uri.export() {
            Arc::make_mut(&mut config).negotiation.export = uri.export().clone();
        }
        if let Some(tls) = uri.tls() {
            let config = Arc::make_mut(&mut config);
            config.negotiation.tls = TlsPolicy::Always;
            // In a box, so that futures have no room for TLS, which most connections do not have.
            Box::pin(trust(&driver, config, tls)).await?;
        }
        let server = Server::Address(uri.address().clone());
        Ok(Self::new(driver, config, server))
    }

    /// Makes a connection and enters the export. `driver` waits for it, `within` a time if there is
    /// one that is shorter than the options give.
    ///
    /// # Errors
    ///
    /// When the server cannot be reached, or the export cannot be entered.
    ///
    /// # Cancel safety
    ///
    /// A future that is dropped leaves no connection behind.
    pub async fn connect(
        &self,
        driver: &D,
        within: Option<Duration>,
    ) -> Result<Connected<D::Stream>, Error> {
        let start = driver.now();
        let time = shortest(self.config.dial.timeout, within);
        let stream = self.dial(driver, time).await?;
        self.negotiate(driver, stream, after(start, time)).await
    }

    /// Makes a connection.
    pub(super) async fn dial(
        &self,
        driver: &D,
        timeout: Option<Duration>,
    ) -> Result<D::Stream, Error> {
        let dialed = match &self.server {
            Server::Address(address) => {
                let options = DialOptions {
                    timeout,
                    ..self.config.dial
                };
                driver.dial(address, &options).await
            }
            Server::Dialer(_, dialer) => driver.dial_by(dialer, timeout).await,
            Server::Host(_) | Server::Program(_) => {
                return Err(Error::Unsupported {
                    what: "there is no address to make another connection to",
                });
            }
        };
        dialed.map_err(|error| Error::connect(&self.server, error))
    }

    /// Enters the export over a new connection. `deadline` is when that is of no use any more.
    pub(super) async fn negotiate(
        &self,
        driver: &D,
        mut stream: D::Stream,
        deadline: Option<Duration>,
    ) -> Result<Connected<D::Stream>, Error> {
        let negotiated = self.negotiation_deadline(driver);
        driver.set_deadline(&mut stream, shortest(negotiated, deadline));
        let upgrade = |stream| self.upgrade(driver, stream);
        let connected = negotiate(stream, &self.config.negotiation, upgrade).await;
        connected.map_err(|error| self.entering(&self.config.negotiation.export, error))
    }

    /// When a negotiation that begins now has to be done.
    pub(super) fn negotiation_deadline(&self, driver: &D) -> Option<Duration> {
        let timeout = self.config.negotiation_timeout;
        timeout.and_then(|time| driver.now().checked_add(time))
    }

    /// Does the TLS handshake.
    #[cfg(feature = "tls")]
    pub(super) async fn upgrade(
        &self,
        driver: &D,
        stream: D::Stream,
    ) -> Result<D::Stream, NegotiationError> {
        let tls = &self.config.tls;
        // In a box, as above.
        Box::pin(driver.start_tls(stream, tls, self.host())).await
    }

    #[cfg(not(feature = "tls"))]
    pub(super) async fn upgrade(&self, _: &D, _: D::Stream) -> Result<D::Stream, NegotiationError> {
        Err(NegotiationError::Tls("TLS is not in this build".into()))
    }

    /// The name that a certificate is checked against unless another one is given.
    #[cfg(feature = "tls")]
    fn host(&self) -> Option<&str> {
        match &self.server {
            Server::Address(Address::Tcp { host, .. }) => Some(host.as_str()),
            Server::Host(host) | Server::Dialer(host, _) => host.as_deref(),
            Server::Address(_) | Server::Program(_) => None,
        }
    }

    /// The error of a failed step; `step` is a verb with its object.
    pub(super) fn failed(&self, step: impl fmt::Display, error: NegotiationError) -> Error {
        Error::negotiation(format!("{step} {}", self.server), error)
    }

    /// An export could not be entered.
    pub(super) fn entering(&self, export: &ExportName, error: NegotiationError) -> Error {
        self.failed(format_args!("enter {} of", Named(export)), error)
    }
}

#[cfg(feature = "tls")]
async fn trust<D: Driver>(
    driver: &D,
    config: &mut Config,
    uri: &nbd_proto::uri::Tls,
) -> Result<(), Error> {
    config.tls = driver.with_uri(config.tls.clone(), uri).await?;
    Ok(())
}

#[cfg(not(feature = "tls"))]
async fn trust<D: Driver>(_: &D, _: &mut Config, _: &nbd_proto::uri::Tls) -> Result<(), Error> {
    Err(Error::Unsupported {
        what: "this URI demands TLS, which is not in this build",
    })
}

/// An export, as errors name it.
pub(super) struct Named<'a>(pub(super) &'a ExportName);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_default() {
            f.write_str("the default export")
        } else {
            write!(f, "export \"{}\"", self.0)
        }
    }
}

/// The shorter of two times, or the earlier of two deadlines.
pub(super) fn shortest(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    one.into_iter().chain(other).min()
}

pub(super) fn after(start: Duration, time: Option<Duration>) -> Option<Duration> {
    time.and_then(|time| start.checked_add(time))
}

impl<D> fmt::Debug for Connector<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector")
            .field("config", &self.config)
            .field("server", &format_args!("{}", self.server))
            .finish_non_exhaustive()
    }
}
