//! An export of either kind.

use super::{AsyncExport, Export, MetaContext, info_of};
use crate::server::{Answer, InFlight, Report, answer, in_flight};
use bytes::Bytes;
use nbd_proto::{BlockSizes, ExportInfo, Failure, TransmissionFlags, server::Request};
use std::{fmt, pin::Pin, sync::Arc};

/// An export as a server has it: an [`Export`] or an [`AsyncExport`].
///
/// ```
/// use nbd_io::{AnyExport, Export, Memory};
/// use std::sync::Arc;
///
/// let memory: Arc<dyn Export> = Arc::new(Memory::new(1 << 20));
/// let export = AnyExport::from(memory);
/// assert_eq!(export.size(), 1 << 20);
/// assert!(export.as_sync().is_some());
/// ```
#[derive(Clone)]
pub struct AnyExport(pub(crate) Kind);

#[derive(Clone)]
pub(crate) enum Kind {
    Sync(Arc<dyn Export>),
    Async(Arc<dyn AsyncHandle>),
}

impl From<Arc<dyn Export>> for AnyExport {
    fn from(export: Arc<dyn Export>) -> Self {
        Self(Kind::Sync(export))
    }
}

impl AnyExport {
    /// An asynchronous export. An [`Arc`] of one is one, too.
    #[must_use]
    pub fn asynchronous(export: impl AsyncExport) -> Self {
        Self(Kind::Async(Arc::new(export)))
    }

    /// The export, if it is synchronous.
    #[must_use]
    pub const fn as_sync(&self) -> Option<&Arc<dyn Export>> {
        match &self.0 {
            Kind::Sync(export) => Some(export),
            Kind::Async(_) => None,
        }
    }

    /// Like [`as_sync`](Self::as_sync), with the share in it.
    #[must_use]
    pub fn into_sync(self) -> Option<Arc<dyn Export>> {
        match self.0 {
            Kind::Sync(export) => Some(export),
            Kind::Async(_) => None,
        }
    }

    /// The size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        match &self.0 {
            Kind::Sync(export) => export.size(),
            Kind::Async(export) => export.size(),
        }
    }

    /// The flags of the export.
    #[must_use]
    pub fn flags(&self) -> TransmissionFlags {
        match &self.0 {
            Kind::Sync(export) => export.flags(),
            Kind::Async(export) => export.flags(),
        }
    }

    /// Its block size constraints.
    #[must_use]
    pub fn block_sizes(&self) -> BlockSizes {
        match &self.0 {
            Kind::Sync(export) => export.block_sizes(),
            Kind::Async(export) => export.block_sizes(),
        }
    }

    /// Its text for people; may be empty.
    #[must_use]
    pub fn description(&self) -> &str {
        match &self.0 {
            Kind::Sync(export) => export.description(),
            Kind::Async(export) => export.description(),
        }
    }

    /// Its meta contexts.
    #[must_use]
    pub fn contexts(&self) -> Vec<MetaContext> {
        match &self.0 {
            Kind::Sync(export) => export.contexts(),
            Kind::Async(export) => export.contexts(),
        }
    }

    /// Its description for a client, as [`export_info`](crate::export_info) makes it.
    #[must_use]
    pub fn info(&self) -> ExportInfo {
        let (size, flags) = (self.size(), self.flags());
        info_of(size, flags, self.block_sizes(), self.description())
    }
}

impl fmt::Debug for AnyExport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnyExport")
            .field("size", &self.size())
            .field("flags", &self.flags())
            .field("is_async", &self.as_sync().is_none())
            .finish()
    }
}

type Answering<'a> = Pin<Box<dyn Future<Output = (Answer, Result<(), Failure>)> + Send + 'a>>;

/// An asynchronous export whose type is not known.
pub(crate) trait AsyncHandle: Send + Sync {
    fn size(&self) -> u64;
    fn flags(&self) -> TransmissionFlags;
    fn block_sizes(&self) -> BlockSizes;
    fn description(&self) -> &str;
    fn contexts(&self) -> Vec<MetaContext>;
    fn refresh(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// Carries out one request.
    fn answer(&self, request: Request, payload: Bytes) -> Answering<'_>;

    /// The place of a connection's requests. Its contents have the export's own type, so that a
    /// request takes one allocation, with its future in it.
    fn in_flight(self: Arc<Self>, report: Report) -> Box<dyn InFlight>;
}

impl<E: AsyncExport> AsyncHandle for E {
    fn size(&self) -> u64 {
        self.size()
    }

    fn flags(&self) -> TransmissionFlags {
        self.flags()
    }

    fn block_sizes(&self) -> BlockSizes {
        self.block_sizes()
    }

    fn description(&self) -> &str {
        self.description()
    }

    fn contexts(&self) -> Vec<MetaContext> {
        self.contexts()
    }

    fn refresh(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(AsyncExport::refresh(self))
    }

    fn answer(&self, request: Request, payload: Bytes) -> Answering<'_> {
        Box::pin(answer(self, request, payload))
    }

    fn in_flight(self: Arc<Self>, report: Report) -> Box<dyn InFlight> {
        in_flight(self, report)
    }
}
