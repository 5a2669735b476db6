//! The exports that a server has.

use crate::{AnyExport, AsyncExport, Export};
use nbd_proto::{ExportName, Text, server::Refusal};
use std::{collections::BTreeMap, fmt, future::ready, sync::Arc};

/// The exports of a server: finds one by its name.
///
/// [`NamedExports`] is a fixed set, [`ExportsByName`] a function. A set that changes while it is
/// served implements this itself, behind a lock of its own: a client that has been given an export
/// keeps it until they disconnect.
pub trait Exports: Send + Sync {
    /// The export of that name, or `None` if there is none, or none for this client to know of.
    ///
    /// The empty name asks for the default export. A client that negotiates looks the same name up
    /// several times.
    fn lookup(&self, name: &ExportName) -> Option<Offer>;

    /// Like [`lookup`](Self::lookup), with the reason if the export is not available. A server
    /// calls this.
    ///
    /// Unless it is implemented, an export that is not found [does not exist](Refusal::Unknown).
    ///
    /// # Errors
    ///
    /// When there is none, or it cannot be used now.
    fn find(&self, name: &ExportName) -> Result<Offer, Unavailable> {
        self.lookup(name).ok_or_else(Unavailable::unknown)
    }

    /// Every export that is to be listed, each once.
    ///
    /// None, unless it is implemented: a server does not have to list its exports.
    fn list(&self) -> Vec<Listing> {
        Vec::new()
    }

    /// Whether a call may wait for a disk, a network, or a timer, or the exports themselves [may]
    /// when they are asked for their description.
    ///
    /// Where nothing does, an asynchronous server calls it in place; otherwise on a thread that may
    /// wait, so that no other client waits. True, unless it is implemented.
    ///
    /// [may]: Export::refresh_may_block
    fn may_block(&self) -> bool {
        true
    }
}

/// The exports of a server that are looked up asynchronously, such as on another host. A lookup that
/// waits holds up no other client, and needs no thread.
///
/// ```
/// use nbd_io::{AsyncExports, Memory, Offer, Unavailable};
/// use nbd_proto::ExportName;
/// use std::sync::Arc;
///
/// /// Finds exports in a catalogue on another host.
/// struct Catalogue;
///
/// impl AsyncExports for Catalogue {
///     async fn find(&self, name: &ExportName) -> Result<Offer, Unavailable> {
///         // Here it would be asked, and the answer awaited.
///         match name.as_str() {
///             "scratch" => Ok(Offer::new(Arc::new(Memory::new(1 << 30)))),
///             _ => Err(Unavailable::unknown()),
///         }
///     }
/// }
/// ```
///
/// A program's [`authorize`](crate::server::Server::authorize) is called in the task of the
/// connection and must not wait there.
///
/// # Cancel safety
///
/// A future is dropped when its client takes too long to negotiate or the server stops.
pub trait AsyncExports: Send + Sync + 'static {
    /// The export of that name. The empty name asks for the default export. A client that negotiates
    /// looks the same name up several times.
    ///
    /// # Errors
    ///
    /// When there is [none](Unavailable::unknown), or it cannot be used now.
    fn find(&self, name: &ExportName) -> impl Future<Output = Result<Offer, Unavailable>> + Send;

    /// Every export that is to be listed, each once.
    ///
    /// None, unless it is implemented: a server does not have to list its exports.
    fn list(&self) -> impl Future<Output = Vec<Listing>> + Send {
        ready(Vec::new())
    }
}

impl<E: AsyncExports> AsyncExports for Arc<E> {
    fn find(&self, name: &ExportName) -> impl Future<Output = Result<Offer, Unavailable>> + Send {
        E::find(self, name)
    }

    fn list(&self) -> impl Future<Output = Vec<Listing>> + Send {
        E::list(self)
    }
}

impl fmt::Debug for dyn Exports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exports").finish_non_exhaustive()
    }
}

/// The reason for which a client does not get an export, as it is sent.
///
/// ```
/// use nbd_io::{Exports, Offer, Unavailable};
/// use nbd_proto::{ExportName, server::Refusal};
///
/// /// Exports that are being repaired.
/// struct Maintenance;
///
/// impl Exports for Maintenance {
///     fn lookup(&self, _: &ExportName) -> Option<Offer> {
///         None
///     }
///
///     fn find(&self, _: &ExportName) -> Result<Offer, Unavailable> {
///         Err(Unavailable::new(Refusal::Policy, "it is being repaired until noon"))
///     }
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unavailable {
    /// The text that the client's program gets.
    pub refusal: Refusal,
    /// A text for people; words of the server's own if it is empty.
    pub message: Text,
}

impl Unavailable {
    /// A refusal with a text for people.
    #[must_use]
    pub fn new(refusal: Refusal, message: impl Into<Text>) -> Self {
        Self {
            refusal,
            message: message.into(),
        }
    }

    /// There is no export of this name.
    #[must_use]
    pub fn unknown() -> Self {
        Refusal::Unknown.into()
    }
}

impl From<Refusal> for Unavailable {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal, "")
    }
}

/// An export, and the terms on which a client gets it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Offer {
    /// The export.
    pub export: AnyExport,
    /// The canonical name to send to the client, if it is not the one that was asked for.
    pub name: Option<ExportName>,
    /// Only to be served once TLS is up. Without TLS its size, flags and contexts are not sent.
    pub tls_only: bool,
    /// No other connection is given the same storage, so that another connection of the same client
    /// does not see its writes: [`CAN_MULTI_CONN`] is not set, even if the export sets it.
    ///
    /// [`CAN_MULTI_CONN`]: nbd_proto::TransmissionFlags::CAN_MULTI_CONN
    pub private: bool,
}

impl Offer {
    /// Offers an export to every client, under the name that was asked for.
    #[must_use]
    pub fn new(export: Arc<dyn Export>) -> Self {
        Self::of(export.into())
    }

    /// Like [`new`](Self::new), for an asynchronous export.
    #[must_use]
    pub fn asynchronous(export: impl AsyncExport) -> Self {
        Self::of(AnyExport::asynchronous(export))
    }

    /// Like [`new`](Self::new), for an export of either kind.
    #[must_use]
    pub const fn of(export: AnyExport) -> Self {
        Self {
            export,
            name: None,
            tls_only: false,
            private: false,
        }
    }

    /// Sends the client this canonical name.
    #[must_use]
    pub fn named(mut self, name: ExportName) -> Self {
        self.name = Some(name);
        self
    }

    /// Keeps the export from clients without TLS.
    #[must_use]
    pub fn tls_only(mut self) -> Self {
        self.tls_only = true;
        self
    }

    /// Makes no promise about other connections: for storage that each of them has for itself.
    #[must_use]
    pub fn private(mut self) -> Self {
        self.private = true;
        self
    }
}

/// An export in a server's list.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Listing {
    /// Its name.
    pub name: ExportName,
    /// A text for people; may be empty.
    pub description: Text,
    /// Whether it is only served once TLS is up; a server may then keep quiet about it without.
    pub tls_only: bool,
}

impl Listing {
    /// An export without a description that every client is served.
    #[must_use]
    pub fn new(name: ExportName) -> Self {
        Self {
            name,
            description: Text::default(),
            tls_only: false,
        }
    }
}

/// A fixed set of exports, each with its name, and perhaps a default among them.
///
/// ```
/// use nbd_io::{Exports, Memory, NamedExports};
/// use nbd_proto::ExportName;
/// use std::sync::Arc;
///
/// let exports = NamedExports::new()
///     .with(ExportName::new("scratch")?, Arc::new(Memory::new(1 << 30)))
///     .with_tls_only(ExportName::new("secret")?, Arc::new(Memory::new(1 << 20)))
///     .with_default(ExportName::new("scratch")?);
/// assert!(exports.lookup(&ExportName::default()).is_some());
/// assert!(exports.lookup(&ExportName::new("other")?).is_none());
/// # Ok::<(), nbd_proto::NameError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct NamedExports {
    offers: BTreeMap<ExportName, Offer>,
    default: Option<ExportName>,
    may_block: bool,
}

impl NamedExports {
    /// No exports yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Only `export`, as the default export.
    #[must_use]
    pub fn single(export: Arc<dyn Export>) -> Self {
        Self::new().with(ExportName::default(), export)
    }

    /// Adds an export, or replaces the one of that name. The empty name is the default export's.
    #[must_use]
    pub fn with(self, name: ExportName, export: Arc<dyn Export>) -> Self {
        self.with_offer(name, Offer::new(export))
    }

    /// Like [`with`](Self::with), for clients with TLS only.
    #[must_use]
    pub fn with_tls_only(self, name: ExportName, export: Arc<dyn Export>) -> Self {
        self.with_offer(name, Offer::new(export).tls_only())
    }

    /// Only `export`, which is asynchronous, as the default export.
    #[must_use]
    pub fn single_async(export: impl AsyncExport) -> Self {
        Self::new().with_async(ExportName::default(), export)
    }

    /// Like [`with`](Self::with), for an asynchronous export.
    #[must_use]
    pub fn with_async(self, name: ExportName, export: impl AsyncExport) -> Self {
        self.with_offer(name, Offer::asynchronous(export))
    }

    /// Like [`with`](Self::with), on the terms of an offer.
    #[must_use]
    pub fn with_offer(mut self, name: ExportName, offer: Offer) -> Self {
        // Once and for all, because it is asked for at every option of every client.
        let sync = offer.export.as_sync();
        self.may_block |= sync.is_some_and(Export::refresh_may_block);
        self.offers.insert(name, offer);
        self
    }

    /// Serves the export called `name` to clients that ask for the default export too, and sends
    /// them its name. Without effect if there is an export with the empty name.
    #[must_use]
    pub fn with_default(mut self, name: ExportName) -> Self {
        self.default = Some(name);
        self
    }
}

impl Exports for NamedExports {
    fn lookup(&self, name: &ExportName) -> Option<Offer> {
        if let Some(offer) = self.offers.get(name) {
            return Some(offer.clone());
        }
        let default = self.default.as_ref().filter(|_| name.is_default())?;
        let offer = self.offers.get(default)?.clone();
        Some(offer.named(default.clone()))
    }

    fn list(&self) -> Vec<Listing> {
        let offers = self.offers.iter();
        offers
            .map(|(name, offer)| Listing {
                description: offer.export.info().description.unwrap_or_default(),
                tls_only: offer.tls_only,
                ..Listing::new(name.clone())
            })
            .collect()
    }

    fn may_block(&self) -> bool {
        self.may_block
    }
}

/// Exports that a function finds, or makes, by their names. None is listed.
///
/// The function may make a new export for each call, and so give each connection its own; it is
/// then to be cheap, because a client can look a name up any number of times. Clients spread their
/// requests over several connections where the flags say that these see each other's flushes.
/// Of connections with storage of their own that is not true, which is why exports of
/// [`new`](Self::new) are [private](Offer::private), and only [`shared`](Self::shared) says that a
/// name stands for the same storage each time.
///
/// ```
/// use nbd_io::{Exports, ExportsByName, Memory, Offer};
/// use nbd_proto::ExportName;
/// use std::sync::Arc;
///
/// let scratch = ExportsByName::new(|name: &ExportName| {
///     let mebibytes: u32 = name.as_str().parse().ok()?;
///     Some(Offer::new(Arc::new(Memory::new(u64::from(mebibytes) << 20))))
/// });
/// let offer = scratch.lookup(&ExportName::new("16")?).expect("a number");
/// assert_eq!(offer.export.size(), 16 << 20);
/// assert!(offer.private);
/// # Ok::<(), nbd_proto::NameError>(())
/// ```
#[derive(Clone)]
pub struct ExportsByName<F> {
    find: F,
    private: bool,
    may_block: bool,
}

impl<F> ExportsByName<F>
where
    F: Fn(&ExportName) -> Option<Offer> + Send + Sync,
{
    /// Serves the exports of `find`, to each connection as if they were its own.
    pub const fn new(find: F) -> Self {
        Self {
            find,
            private: true,
            may_block: true,
        }
    }

    /// Serves the exports of `find`, which has to return the same storage each time for a name: a
    /// clone of the same [`Arc`], or the same file opened again.
    pub const fn shared(find: F) -> Self {
        Self {
            find,
            private: false,
            may_block: true,
        }
    }

    /// Says that `find` waits for no disk, network or timer, and that no export that it finds
    /// [does](Export::may_block). Otherwise an asynchronous server calls it on a thread that may wait.
    #[must_use]
    pub const fn non_blocking(mut self) -> Self {
        self.may_block = false;
        self
    }
}

impl<F> Exports for ExportsByName<F>
where
    F: Fn(&ExportName) -> Option<Offer> + Send + Sync,
{
    fn lookup(&self, name: &ExportName) -> Option<Offer> {
        let mut offer = (self.find)(name)?;
        offer.private |= self.private;
        Some(offer)
    }

    fn may_block(&self) -> bool {
        self.may_block
    }
}

impl<F> fmt::Debug for ExportsByName<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExportsByName").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
