//! Negotiation step by step.

use super::{client::Client, link::Stream, options::ConnectOptions, timed::Release};
use crate::{
    client::{self as io, Error, Refused, enter_by_name},
    runtime::Network,
};
use nbd_proto::{
    ContextName, ExportInfo, ExportName, Mode,
    client::{Context, Encrypted, Go, ListEntry, MetaContextEntry, Newstyle, Oldstyle, Plain},
};
use std::fmt;

/// What a server turned out to speak.
pub enum Greeted<R: Network> {
    /// Fixed newstyle: the whole protocol.
    Options(Haggling<R, Plain>),
    /// Newstyle that is not fixed: an export can be entered by its name and nothing else be asked.
    ByName(ByName<R>),
    /// Oldstyle: the server has entered its only export already.
    Entered(Entered<R>),
}

impl<R: Network> Greeted<R> {
    pub(super) fn new(
        greeted: io::Greeted<Stream>,
        options: ConnectOptions<R>,
        host: Option<&str>,
        release: Release,
    ) -> Self {
        match greeted {
            io::Greeted::Options(inner) => {
                Self::Options(Haggling::new(inner, options, host, release))
            }
            io::Greeted::Newstyle(stream, newstyle) => Self::ByName(ByName {
                stream,
                newstyle,
                options,
                release,
            }),
            io::Greeted::Oldstyle(stream, oldstyle) => Self::Entered(Entered {
                stream,
                oldstyle,
                options,
                release,
            }),
        }
    }

    /// The connection that haggles, if the server speaks fixed newstyle.
    #[must_use]
    pub fn options(self) -> Option<Haggling<R, Plain>> {
        match self {
            Self::Options(haggling) => Some(haggling),
            Self::ByName(_) | Self::Entered(_) => None,
        }
    }
}

/// A server that can only be asked for one export.
pub struct ByName<R: Network> {
    stream: Stream,
    newstyle: Newstyle,
    options: ConnectOptions<R>,
    release: Release,
}

impl<R: Network> ByName<R> {
    /// Enters an export.
    ///
    /// # Errors
    ///
    /// When the connection fails or is closed, which is how such a server refuses.
    ///
    /// # Cancel safety
    ///
    /// A future that is dropped leaves no connection behind.
    pub async fn export_name(self, name: &ExportName) -> Result<Client<R>, Error> {
        let mut out = bytes::BytesMut::new();
        let pending = self.newstyle.export_name(name, &mut out);
        let (stream, transmission) = enter_by_name(self.stream, out, pending, name).await?;
        self.options
            .entered(stream, transmission, false, &self.release)
            .await
    }
}

/// A server with a single export.
pub struct Entered<R: Network> {
    stream: Stream,
    oldstyle: Oldstyle,
    options: ConnectOptions<R>,
    release: Release,
}

impl<R: Network> Entered<R> {
    /// What the server told of its export. To refuse it, drop this value.
    #[must_use]
    pub const fn export(&self) -> &ExportInfo {
        self.oldstyle.export()
    }

    /// Goes on to transmission.
    ///
    /// # Errors
    ///
    /// None at present.
    ///
    /// # Cancel safety
    ///
    /// A future that is dropped leaves no connection behind.
    pub async fn accept(self) -> Result<Client<R>, Error> {
        self.options
            .entered(self.stream, self.oldstyle.accept(), false, &self.release)
            .await
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
///
/// # Cancel safety
///
/// None: a future that is dropped leaves an option half asked, and the connection is closed.
pub struct Haggling<R: Network, S> {
    inner: io::Haggling<Stream, S>,
    options: ConnectOptions<R>,
    host: Option<String>,
    release: Release,
}

/// An option that the server refused, and the connection to go on with.
pub type RefusedStep<R, S> = Refused<Haggling<R, S>>;

impl<R: Network, S> Haggling<R, S> {
    pub(super) fn new(
        inner: io::Haggling<Stream, S>,
        options: ConnectOptions<R>,
        host: Option<&str>,
        release: Release,
    ) -> Self {
        Self {
            inner,
            options,
            host: host.map(str::to_owned),
            release,
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
    pub async fn list(&mut self) -> Result<Vec<ListEntry>, Error> {
        Ok(self.inner.list().await?)
    }

    /// Asks what an export is like, without entering it.
    ///
    /// # Errors
    ///
    /// When the server refuses, or the connection fails.
    pub async fn info(&mut self, request: Go) -> Result<ExportInfo, Error> {
        Ok(self.inner.info(request).await?)
    }

    /// Asks for structured replies.
    ///
    /// # Errors
    ///
    /// When they were agreed on before, the server refuses, or the connection fails.
    pub async fn structured_reply(&mut self) -> Result<(), Error> {
        Ok(self.inner.structured_reply().await?)
    }

    /// Asks for extended headers.
    ///
    /// # Errors
    ///
    /// When they were agreed on before, the server refuses, or the connection fails.
    pub async fn extended_headers(&mut self) -> Result<(), Error> {
        Ok(self.inner.extended_headers().await?)
    }

    /// Lists the meta contexts of an export that match the queries; all without a query.
    ///
    /// # Errors
    ///
    /// When the server refuses, or the connection fails.
    pub async fn list_meta_context(
        &mut self,
        export: &ExportName,
        queries: &[ContextName],
    ) -> Result<Vec<MetaContextEntry>, Error> {
        Ok(self.inner.list_meta_context(export, queries).await?)
    }

    /// Selects the meta contexts that block status is to report of an export.
    ///
    /// # Errors
    ///
    /// When no structured replies were agreed on, the server refuses, or the connection fails.
    pub async fn set_meta_context(
        &mut self,
        export: &ExportName,
        queries: &[ContextName],
    ) -> Result<Vec<Context>, Error> {
        Ok(self.inner.set_meta_context(export, queries).await?)
    }

    /// Ends the session as the protocol asks for, and waits a short while for the server to answer
    /// or to close.
    pub async fn abort(self) {
        self.inner.abort().await;
    }

    async fn enter(
        self,
        request: Go,
        encrypted: bool,
    ) -> Result<Result<Client<R>, RefusedStep<R, S>>, Error> {
        let Self {
            inner,
            options,
            host,
            release,
        } = self;
        Ok(match inner.go(request).await? {
            Ok((stream, transmission)) => Ok(options
                .entered(stream, transmission, encrypted, &release)
                .await?),
            Err(Refused {
                handle: inner,
                error,
            }) => Err(Refused {
                handle: Self {
                    inner,
                    options,
                    host,
                    release,
                },
                error,
            }),
        })
    }

    async fn enter_by_name(self, name: &ExportName, encrypted: bool) -> Result<Client<R>, Error> {
        let (stream, transmission) = self.inner.export_name(name).await?;
        self.options
            .entered(stream, transmission, encrypted, &self.release)
            .await
    }
}

macro_rules! entering {
    ($security:ty, $encrypted:literal) => {
        impl<R: Network> Haggling<R, $security> {
            /// Enters an export.
            ///
            /// # Errors
            ///
            /// When the connection fails. A refusal by the server is the inner error, with the
            /// connection to go on with.
            pub async fn go(
                self,
                request: Go,
            ) -> Result<Result<Client<R>, RefusedStep<R, $security>>, Error> {
                self.enter(request, $encrypted).await
            }

            /// Enters an export by the option that servers without `NBD_OPT_GO` know.
            ///
            /// # Errors
            ///
            /// When extended headers were agreed on; or when the connection fails, which is how a
            /// server refuses this option.
            pub async fn export_name(self, name: &ExportName) -> Result<Client<R>, Error> {
                self.enter_by_name(name, $encrypted).await
            }
        }
    };
}

entering!(Plain, false);
entering!(Encrypted, true);

impl<R: Network> Haggling<R, Plain> {
    /// Starts TLS, by `ConnectOptions::tls`. Nothing that was agreed on before holds inside it.
    ///
    /// # Errors
    ///
    /// When the TLS handshake or the connection fails. A refusal by the server is the inner error,
    /// with the connection to go on with in the clear.
    pub async fn start_tls(
        self,
    ) -> Result<Result<Haggling<R, Encrypted>, RefusedStep<R, Plain>>, Error> {
        let Self {
            inner,
            options,
            host,
            release,
        } = self;
        let upgrade = |stream| options.upgrade(stream, host.as_deref());
        Ok(match inner.start_tls(upgrade).await? {
            Ok(inner) => Ok(Haggling {
                inner,
                options,
                host,
                release,
            }),
            Err(Refused {
                handle: inner,
                error,
            }) => Err(Refused {
                handle: Self {
                    inner,
                    options,
                    host,
                    release,
                },
                error,
            }),
        })
    }
}

macro_rules! opaque {
    ($name:literal, $type:ty $(, $extra:ident)?) => {
        impl<R: Network $(, $extra)?> fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct($name)
                    .field("options", &self.options)
                    .finish_non_exhaustive()
            }
        }
    };
}

opaque!("ByName", ByName<R>);
opaque!("Entered", Entered<R>);
opaque!("Haggling", Haggling<R, S>, S);

impl<R: Network> fmt::Debug for Greeted<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Options(haggling) => haggling.fmt(f),
            Self::ByName(by_name) => by_name.fmt(f),
            Self::Entered(entered) => entered.fmt(f),
        }
    }
}
