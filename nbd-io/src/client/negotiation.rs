//! Negotiation step by step, for programs that want to look before they choose.

use super::{
    Connected, Connector, Driver, Error,
    connector::Named,
    exchange::{self, OptionExchange, Refused},
};
use nbd_proto::{
    ContextName, ExportInfo, ExportName, HeaderStyle,
    client::{self, Context, Encrypted, Go, ListEntry, MetaContextEntry, Plain},
};
use std::{fmt, time::Duration};

/// The kind of handshake that a server speaks.
#[derive(Debug)]
pub enum Greeted<D: Driver> {
    /// Fixed newstyle: the whole protocol.
    FixedNewstyle(Negotiation<D, Plain>),
    /// Newstyle that is not fixed: an export can be entered by its name and nothing else be asked.
    Newstyle(Newstyle<D>),
    /// Oldstyle: the server has entered its only export already.
    Oldstyle(Oldstyle<D>),
}

impl<D: Driver> Greeted<D> {
    pub(super) fn new(
        connector: Connector<D>,
        greeted: exchange::Greeted<D::Stream>,
        deadline: Option<Duration>,
    ) -> Self {
        match greeted {
            exchange::Greeted::FixedNewstyle(exchange) => {
                Self::FixedNewstyle(Negotiation::new(connector, exchange, deadline))
            }
            exchange::Greeted::Newstyle(mut stream, newstyle) => {
                connector.driver.set_deadline(&mut stream, deadline);
                Self::Newstyle(Newstyle {
                    connector,
                    stream,
                    newstyle,
                })
            }
            exchange::Greeted::Oldstyle(stream, oldstyle) => Self::Oldstyle(Oldstyle {
                connector,
                stream,
                oldstyle,
            }),
        }
    }

    /// The negotiation, if the server speaks fixed newstyle.
    #[must_use]
    pub fn negotiation(self) -> Option<Negotiation<D, Plain>> {
        match self {
            Self::FixedNewstyle(negotiation) => Some(negotiation),
            Self::Newstyle(_) | Self::Oldstyle(_) => None,
        }
    }
}

/// A server that can only be asked for one export.
pub struct Newstyle<D: Driver> {
    connector: Connector<D>,
    stream: D::Stream,
    newstyle: client::Newstyle,
}

impl<D: Driver> Newstyle<D> {
    /// Enters an export.
    pub async fn export_name(self, name: &ExportName) -> Result<D::Client, Error> {
        let Self {
            connector,
            stream,
            newstyle,
        } = self;
        match exchange::enter_newstyle(stream, newstyle, name).await {
            Ok(entered) => D::enter(connector, entered).await,
            Err(error) => Err(connector.entering(name, error)),
        }
    }
}

/// A server with a single export.
pub struct Oldstyle<D: Driver> {
    connector: Connector<D>,
    stream: D::Stream,
    oldstyle: client::Oldstyle,
}

impl<D: Driver> Oldstyle<D> {
    /// The export as the server described it.
    #[must_use]
    pub const fn export(&self) -> &ExportInfo {
        self.oldstyle.export()
    }

    /// Goes on to transmission.
    pub fn accept(self) -> impl Future<Output = Result<D::Client, Error>> + Send {
        let entered = Connected {
            transport: self.stream,
            transmission: Box::new(self.oldstyle.accept()),
            encrypted: false,
        };
        D::enter(self.connector, entered)
    }
}

/// A server that waits for an option: one after the other can be sent until an export is entered.
///
/// An option that the server refuses leaves it usable; after any other error it is over. The
/// [`negotiation_timeout`](super::ConnectOptions::negotiation_timeout) is for all steps together.
///
/// Dropping it sends `NBD_OPT_ABORT` like [`abort`](Self::abort), but waits for nothing.
///
/// Spec: [Option types](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#option-types).
///
/// # Cancel safety
///
/// None: a future that is dropped leaves an option half asked, and the connection is closed.
pub struct Negotiation<D: Driver, S> {
    connector: Connector<D>,
    exchange: OptionExchange<D::Stream, S>,
}

/// An option that the server refused, and the negotiation, which goes on.
pub type RefusedStep<D, S> = Refused<Negotiation<D, S>>;

/// The server's answer to the wish to start TLS.
pub type TlsOutcome<D> = StepOutcome<Negotiation<D, Encrypted>, Negotiation<D, Plain>>;

/// The server's answer to a step that consumes the negotiation `H`.
#[derive(Debug)]
#[must_use]
pub enum StepOutcome<T, H> {
    /// The step is done, and this comes of it.
    Done(T),
    /// The server refused it. The negotiation goes on, or is [dropped](Negotiation) with this.
    Refused(Refused<H>),
}

impl<T, H> StepOutcome<T, H> {
    /// The same with the parts converted.
    pub fn map<U, G>(
        self,
        done: impl FnOnce(T) -> U,
        handle: impl FnOnce(H) -> G,
    ) -> StepOutcome<U, G> {
        match self {
            Self::Done(value) => StepOutcome::Done(done(value)),
            Self::Refused(refused) => StepOutcome::Refused(refused.map(handle)),
        }
    }

    /// The outcome as a result, for `?` and the methods of [`Result`].
    pub fn into_result(self) -> Result<T, Refused<H>> {
        match self {
            Self::Done(done) => Ok(done),
            Self::Refused(refused) => Err(refused),
        }
    }
}

impl<D: Driver, S: Send + 'static> Negotiation<D, S> {
    pub(super) fn new(
        connector: Connector<D>,
        mut exchange: OptionExchange<D::Stream, S>,
        deadline: Option<Duration>,
    ) -> Self {
        if let Some(stream) = exchange.transport_mut() {
            connector.driver.set_deadline(stream, deadline);
        }
        Self {
            connector,
            exchange,
        }
    }

    /// The headers that transmission would use if it started now.
    #[must_use]
    pub fn mode(&self) -> HeaderStyle {
        self.exchange.mode()
    }

    /// Lists exports with their descriptions.
    pub fn list(&mut self) -> impl Future<Output = Result<Vec<ListEntry>, Error>> + Send {
        let Self {
            connector,
            exchange,
        } = self;
        async {
            let listed = exchange.list().await;
            listed.map_err(|error| connector.failed("list the exports of", error))
        }
    }

    /// Asks for the description of an export, without entering it.
    pub fn info(&mut self, request: Go) -> impl Future<Output = Result<ExportInfo, Error>> + Send {
        let Self {
            connector,
            exchange,
        } = self;
        async {
            let name = request.name.clone();
            let info = exchange.info(request).await;
            info.map_err(|error| {
                connector.failed(format_args!("ask about {} of", Named(&name)), error)
            })
        }
    }

    /// Asks for structured replies.
    pub fn structured_reply(&mut self) -> impl Future<Output = Result<(), Error>> + Send {
        let Self {
            connector,
            exchange,
        } = self;
        async {
            let agreed = exchange.structured_reply().await;
            agreed.map_err(|error| connector.failed("agree on structured replies with", error))
        }
    }

    /// Asks for extended headers.
    pub fn extended_headers(&mut self) -> impl Future<Output = Result<(), Error>> + Send {
        let Self {
            connector,
            exchange,
        } = self;
        async {
            let agreed = exchange.extended_headers().await;
            agreed.map_err(|error| connector.failed("agree on extended headers with", error))
        }
    }

    /// Lists the meta contexts of an export that match the queries; all without a query.
    pub fn list_meta_context<'a>(
        &'a mut self,
        export: &'a ExportName,
        queries: &'a [ContextName],
    ) -> impl Future<Output = Result<Vec<MetaContextEntry>, Error>> + Send {
        let Self {
            connector,
            exchange,
        } = self;
        async {
            let listed = exchange.list_meta_context(export, queries).await;
            listed.map_err(|error| {
                let step = format_args!("list the meta contexts of {} of", Named(export));
                connector.failed(step, error)
            })
        }
    }

    /// Selects the meta contexts that block status is to report of an export.
    pub fn set_meta_context<'a>(
        &'a mut self,
        export: &'a ExportName,
        queries: &'a [ContextName],
    ) -> impl Future<Output = Result<Vec<Context>, Error>> + Send {
        let Self {
            connector,
            exchange,
        } = self;
        async {
            let selected = exchange.set_meta_context(export, queries).await;
            selected.map_err(|error| {
                let step = format_args!("select meta contexts of {} of", Named(export));
                connector.failed(step, error)
            })
        }
    }

    /// Enters an export.
    pub async fn go(self, request: Go) -> Result<StepOutcome<D::Client, Self>, Error> {
        let Self {
            connector,
            exchange,
        } = self;
        let name = request.name.clone();
        match exchange.go(request).await {
            Ok(Ok(entered)) => D::enter(connector, entered).await.map(StepOutcome::Done),
            Ok(Err(refused)) => Ok(StepOutcome::Refused(refused.map(|exchange| Self {
                connector,
                exchange,
            }))),
            Err(error) => Err(connector.entering(&name, error)),
        }
    }

    /// Enters an export by the option that servers without `NBD_OPT_GO` know.
    pub async fn export_name(self, name: &ExportName) -> Result<D::Client, Error> {
        let Self {
            connector,
            exchange,
        } = self;
        match exchange.export_name(name).await {
            Ok(entered) => D::enter(connector, entered).await,
            Err(error) => Err(connector.entering(name, error)),
        }
    }

    /// Ends the session as the protocol asks for, and waits a short while for the server to answer
    /// or to close.
    pub fn abort(self) -> impl Future<Output = ()> + Send {
        self.exchange.abort()
    }
}

impl<D: Driver> Negotiation<D, Plain> {
    /// Starts TLS, by `ConnectOptions::tls`.
    pub async fn start_tls(self) -> Result<TlsOutcome<D>, Error> {
        let Self {
            connector,
            exchange,
        } = self;
        let upgrade = |stream| connector.upgrade(&connector.driver, stream);
        match exchange.start_tls(upgrade).await {
            Ok(Ok(exchange)) => Ok(StepOutcome::Done(Negotiation {
                connector,
                exchange,
            })),
            Ok(Err(refused)) => Ok(StepOutcome::Refused(refused.map(|exchange| Self {
                connector,
                exchange,
            }))),
            Err(error) => Err(connector.failed("start TLS with", error)),
        }
    }
}

macro_rules! opaque {
    ($name:literal, $type:ty $(, $extra:ident)?) => {
        impl<D: Driver $(, $extra)?> fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct($name)
                    .field("connector", &self.connector)
                    .finish_non_exhaustive()
            }
        }
    };
}

opaque!("Newstyle", Newstyle<D>);
opaque!("Oldstyle", Oldstyle<D>);
opaque!("Negotiation", Negotiation<D, S>, S);
