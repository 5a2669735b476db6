//! Negotiation step by step.

use crate::{Client, ConnectOptions, Error, stream::Negotiating};
use nbd_io::{
    client::{self as io, Refused, enter_by_name},
    transport::block_on_ready,
};
use nbd_proto::{
    ContextName, ExportInfo, ExportName, Mode,
    client::{Context, Encrypted, Go, ListEntry, MetaContextEntry, Newstyle, Oldstyle, Plain},
};

/// What a server turned out to speak.
#[derive(Debug)]
pub enum Greeted {
    /// Fixed newstyle: the whole protocol.
    Options(Haggling<Plain>),
    /// Newstyle that is not fixed: an export can be entered by its name and nothing else be asked.
    ByName(ByName),
    /// Oldstyle: the server has entered its only export already.
    Entered(Entered),
}

impl Greeted {
    pub(crate) fn new(
        greeted: io::Greeted<Negotiating>,
        options: ConnectOptions,
        host: Option<&str>,
    ) -> Self {
        match greeted {
            io::Greeted::Options(inner) => Self::Options(Haggling::new(inner, options, host)),
            io::Greeted::Newstyle(transport, newstyle) => Self::ByName(ByName {
                transport,
                newstyle,
                options,
            }),
            io::Greeted::Oldstyle(transport, oldstyle) => Self::Entered(Entered {
                transport,
                oldstyle,
                options,
            }),
        }
    }

    /// The connection that haggles, if the server speaks fixed newstyle.
    #[must_use]
    pub fn options(self) -> Option<Haggling<Plain>> {
        match self {
            Self::Options(haggling) => Some(haggling),
            Self::ByName(_) | Self::Entered(_) => None,
        }
    }
}

/// A server that can only be asked for one export.
#[derive(Debug)]
pub struct ByName {
    transport: Negotiating,
    newstyle: Newstyle,
    options: ConnectOptions,
}

impl ByName {
    /// Enters an export.
    ///
    /// # Errors
    ///
    /// When the connection fails or is closed, which is how such a server refuses.
    pub fn export_name(self, name: &ExportName) -> Result<Client, Error> {
        let mut out = bytes::BytesMut::new();
        let pending = self.newstyle.export_name(name, &mut out);
        let entering = enter_by_name(self.transport, out, pending, name);
        let (transport, transmission) = block_on_ready(entering)?;
        self.options.entered(transport, transmission, false)
    }
}

/// A server with a single export.
#[derive(Debug)]
pub struct Entered {
    transport: Negotiating,
    oldstyle: Oldstyle,
    options: ConnectOptions,
}

impl Entered {
    /// What the server told of its export. To refuse it, drop this value.
    #[must_use]
    pub const fn export(&self) -> &ExportInfo {
        self.oldstyle.export()
    }

    /// Goes on to transmission.
    ///
    /// # Errors
    ///
    /// When the transport fails.
    pub fn accept(self) -> Result<Client, Error> {
        self.options
            .entered(self.transport, self.oldstyle.accept(), false)
    }
}

/// A connection that haggles: one option after the other until an export is entered.
///
/// An option that the server refuses leaves it usable; after any other error it is over. The
/// negotiation timeout of [`ConnectOptions`] counts from the start, over all steps.
///
/// Dropping it tells the server goodbye like [`abort`](Haggling::abort), but waits for nothing.
///
/// Spec: [Option types](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#option-types).
#[derive(Debug)]
pub struct Haggling<S> {
    inner: io::Haggling<Negotiating, S>,
    options: ConnectOptions,
    host: Option<String>,
}

/// An option that the server refused, and the connection to go on with.
pub type RefusedStep<S> = Refused<Haggling<S>>;

impl<S> Haggling<S> {
    pub(crate) fn new(
        inner: io::Haggling<Negotiating, S>,
        options: ConnectOptions,
        host: Option<&str>,
    ) -> Self {
        Self {
            inner,
            options,
            host: host.map(str::to_owned),
        }
    }

    /// Which headers transmission would use if it started now.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.inner.mode()
    }

    /// Lists exports with their descriptions. A server may keep some of them to itself.
    ///
    /// # Errors
    ///
    /// When the server refuses, or the connection fails.
    pub fn list(&mut self) -> Result<Vec<ListEntry>, Error> {
        Ok(block_on_ready(self.inner.list())?)
    }

    /// Asks what an export is like, without entering it.
    ///
    /// # Errors
    ///
    /// When the server refuses, or the connection fails.
    pub fn info(&mut self, request: Go) -> Result<ExportInfo, Error> {
        Ok(block_on_ready(self.inner.info(request))?)
    }

    /// Asks for structured replies.
    ///
    /// # Errors
    ///
    /// When they were agreed on before, the server refuses, or the connection fails.
    pub fn structured_reply(&mut self) -> Result<(), Error> {
        Ok(block_on_ready(self.inner.structured_reply())?)
    }

    /// Asks for extended headers.
    ///
    /// # Errors
    ///
    /// When they were agreed on before, the server refuses, or the connection fails.
    pub fn extended_headers(&mut self) -> Result<(), Error> {
        Ok(block_on_ready(self.inner.extended_headers())?)
    }

    /// Lists the meta contexts of an export that match the queries; all without a query.
    ///
    /// # Errors
    ///
    /// When the server refuses, or the connection fails.
    pub fn list_meta_context(
        &mut self,
        export: &ExportName,
        queries: &[ContextName],
    ) -> Result<Vec<MetaContextEntry>, Error> {
        Ok(block_on_ready(
            self.inner.list_meta_context(export, queries),
        )?)
    }

    /// Selects the meta contexts that block status is to report of an export.
    ///
    /// # Errors
    ///
    /// When no structured replies were agreed on, the server refuses, or the connection fails.
    pub fn set_meta_context(
        &mut self,
        export: &ExportName,
        queries: &[ContextName],
    ) -> Result<Vec<Context>, Error> {
        Ok(block_on_ready(
            self.inner.set_meta_context(export, queries),
        )?)
    }

    /// Ends the session as the protocol asks for, and waits a short while for the server to answer
    /// or to close.
    pub fn abort(self) {
        block_on_ready(self.inner.abort());
    }
}

macro_rules! entering {
    ($security:ty, $encrypted:literal) => {
        impl Haggling<$security> {
            /// Enters an export.
            ///
            /// # Errors
            ///
            /// When the connection fails. A refusal by the server is the inner error, with the
            /// connection to go on with.
            pub fn go(self, request: Go) -> Result<Result<Client, RefusedStep<$security>>, Error> {
                let Self {
                    inner,
                    options,
                    host,
                } = self;
                Ok(match block_on_ready(inner.go(request))? {
                    Ok((transport, transmission)) => {
                        Ok(options.entered(transport, transmission, $encrypted)?)
                    }
                    Err(Refused {
                        handle: inner,
                        error,
                    }) => Err(Refused {
                        handle: Self {
                            inner,
                            options,
                            host,
                        },
                        error,
                    }),
                })
            }

            /// Enters an export by the option that servers without `NBD_OPT_GO` know.
            ///
            /// # Errors
            ///
            /// When extended headers were agreed on; or when the connection fails, which is how a
            /// server refuses this option.
            pub fn export_name(self, name: &ExportName) -> Result<Client, Error> {
                let (transport, transmission) = block_on_ready(self.inner.export_name(name))?;
                self.options.entered(transport, transmission, $encrypted)
            }
        }
    };
}

entering!(Plain, false);
entering!(Encrypted, true);

impl Haggling<Plain> {
    /// Starts TLS, by [`ConnectOptions::tls`]. Nothing that was agreed on before holds inside it.
    ///
    /// # Errors
    ///
    /// When the TLS handshake or the connection fails. A refusal by the server is the inner error,
    /// with the connection to go on with in the clear.
    pub fn start_tls(self) -> Result<Result<Haggling<Encrypted>, RefusedStep<Plain>>, Error> {
        let Self {
            inner,
            options,
            host,
        } = self;
        let upgrade = |transport| options.upgrade(transport, host.as_deref());
        Ok(match block_on_ready(inner.start_tls(upgrade))? {
            Ok(inner) => Ok(Haggling {
                inner,
                options,
                host,
            }),
            Err(Refused {
                handle: inner,
                error,
            }) => Err(Refused {
                handle: Self {
                    inner,
                    options,
                    host,
                },
                error,
            }),
        })
    }
}
