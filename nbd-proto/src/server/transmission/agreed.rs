//! The agreement between a client and a server that transmission starts with.

use super::Transmission;
use crate::{
    BlockSizes, ContextName, HeaderStyle, TransmissionFlags,
    server::{Limits, export::Offer},
};
use alloc::sync::Arc;

/// The longest data whose chunk has a length of 32 bits, with the 8 bytes of its offset.
const MAX_CHUNK_DATA: u32 = u32::MAX - 8;

/// A meta context that the client selected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    id: u32,
    name: ContextName,
}

impl Context {
    pub(in crate::server) const fn new(id: u32, name: ContextName) -> Self {
        Self { id, name }
    }

    /// Its number in this connection.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &ContextName {
        &self.name
    }
}

/// The bounds of every request.
#[derive(Clone, Debug)]
pub(in crate::server) struct Agreed {
    pub(in crate::server) contexts: Arc<[Context]>,
    pub(super) mode: HeaderStyle,
    pub(super) size: u64,
    pub(super) flags: TransmissionFlags,
    /// Requests are multiples of this.
    pub(super) minimum: u32,
    /// A longer payload ends the connection.
    pub(super) fatal_payload: u32,
    /// A longer payload is refused.
    pub(super) max_payload: u32,
    /// Requests in flight.
    pub(super) accepted: u32,
}

impl Agreed {
    pub(in crate::server) fn new(offer: &Offer, mode: HeaderStyle, limits: Limits) -> Self {
        Self {
            contexts: Arc::new([]),
            mode,
            size: offer.size,
            flags: offer.flags,
            minimum: 1,
            fatal_payload: limits.payload,
            max_payload: limits.payload.min(MAX_CHUNK_DATA),
            // With none at all, no request would ever be read.
            accepted: limits.accepted.max(1),
        }
    }

    /// The client asked for block sizes and was sent these.
    pub(in crate::server) fn with_block_sizes(self, sizes: BlockSizes) -> Self {
        Self {
            minimum: sizes.minimum(),
            fatal_payload: self.fatal_payload.max(sizes.maximum()),
            max_payload: sizes.maximum().min(MAX_CHUNK_DATA),
            ..self
        }
    }

    /// Whether a range consists of whole blocks of the minimum size.
    #[inline]
    pub(super) fn has_whole_blocks(&self, offset: u64, len: u64) -> bool {
        // It is a power of two.
        (offset | len) & u64::from(self.minimum - 1) == 0
    }

    pub(in crate::server) const fn start(self, shutdown: bool) -> Transmission {
        let mut transmission = Transmission::new(self);
        if shutdown {
            transmission.shut_down();
        }
        transmission
    }
}
