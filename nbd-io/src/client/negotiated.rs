//! The results of negotiation with a server, and the comparison with those of another connection.

use super::{Connected, Reconnect, longest};
use crate::transport::{TlsSession, Transport};
use nbd_proto::{BlockSizes, Command, ContextName, ExportInfo, HeaderStyle, client::Context};
use std::sync::Arc;

/// The result of a negotiation: the same on all connections of a client.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Negotiated {
    /// The export as the server described it.
    pub export: ExportInfo,
    /// The headers that are used.
    pub mode: HeaderStyle,
    /// The meta contexts that were selected.
    pub contexts: Vec<Context>,
    /// The block sizes that hold.
    pub blocks: BlockSizes,
    /// Whether there is TLS.
    pub encrypted: bool,
    /// The TLS session of the first connection, if the transport knows it.
    pub tls: Option<Arc<TlsSession>>,
    /// The longest read in one request, in bytes.
    pub max_read: u64,
    /// The longest payload of one request, in bytes.
    pub max_payload: u64,
    /// The longest zeroes in one request, in bytes.
    pub max_zeroes: u64,
    /// The longest range of other requests, in bytes.
    pub max_range: u64,
}

impl Negotiated {
    /// The result of the negotiation of this connection.
    #[must_use]
    pub fn new<T: Transport>(connected: &Connected<T>) -> Self {
        let transmission = &connected.transmission;
        Self {
            export: transmission.export().clone(),
            mode: transmission.mode(),
            contexts: transmission.contexts().to_vec(),
            blocks: transmission.block_sizes(),
            encrypted: connected.encrypted,
            tls: connected.transport.tls_session().map(Arc::new),
            max_read: transmission.max_len(Command::Read),
            max_payload: transmission.max_len(Command::Write),
            max_zeroes: longest(transmission, Command::WriteZeroes),
            max_range: longest(transmission, Command::BlockStatus),
        }
    }

    /// The number of a meta context in replies, if it was selected.
    #[must_use]
    pub fn context_id(&self, name: &ContextName) -> Option<u32> {
        let mut contexts = self.contexts.iter();
        let found = contexts.find(|context| context.name.as_ref() == Some(name));
        found.map(|context| context.id)
    }

    /// The first property in which another connection to the same export differs from this one. An
    /// export that is larger than it was is the same if the policy accepts that.
    #[must_use]
    pub fn differs(&self, other: &Self, policy: Option<&Reconnect>) -> Option<&'static str> {
        let (ours, theirs) = (&self.export, &other.export);
        let may_grow = policy.is_some_and(Reconnect::accepts_growth);
        let same_size = ours.size == theirs.size || may_grow && ours.size < theirs.size;
        [
            (same_size, "its size"),
            (ours.flags == theirs.flags, "its flags"),
            (self.blocks == other.blocks, "its block sizes"),
            (self.contexts == other.contexts, "its meta contexts"),
            (self.mode == other.mode, "the headers that are agreed on"),
            (self.encrypted == other.encrypted, "whether there is TLS"),
        ]
        .into_iter()
        .find_map(|(same, what)| (!same).then_some(what))
    }
}
