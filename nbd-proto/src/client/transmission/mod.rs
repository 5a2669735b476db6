//! Transmission: commands out, replies in, in any order.
//!
//! ```text
//!   Header ──┬─ simple, no data ──────────────────────────────▶ Event ─▶ Header
//!            ├─ simple, data ───────────────── Payload ───────▶ Event ─▶ Header
//!            ├─ OFFSET_DATA ── Fixed ───────── Payload ─┐
//!            ├─ OFFSET_HOLE ── Fixed ───────────────────┤
//!            ├─ BLOCK_STATUS ─ Fixed ───────── Extents ─┼─▶ Event if DONE ─▶ Header
//!            ├─ ERROR ──────── Fixed ───────────────────┤
//!            └─ NONE ───────────────────────────────────┘
//! ```

mod content;
mod coverage;
mod receive;
mod request;
mod slots;
mod whole;

pub use slots::{ContextExtents, Cookie};
pub use whole::WholeReply;

use super::{Config, Context, Tolerance};
use crate::{BlockSizes, Error, ExportInfo, Failure, HeaderStyle, gather::Gather};
use alloc::vec::Vec;
use core::ops::Range;
use receive::State;
use slots::Slots;

/// An export that was entered.
///
/// Spec: [Transmission phase](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#transmission-phase).
///
/// Commands are methods that give a [`Cookie`] and a [`Frame`](crate::Frame) to send. Replies are
/// taken in by one of two ways that may be mixed at any byte:
///
/// * [`fill`](Transmission::fill) names the place of the next bytes, and
///   [`filled`](Transmission::filled) takes note of them. Payload goes straight to its buffer.
/// * [`feed`](Transmission::feed) takes bytes that are in a buffer already.
///
/// The first violation of the protocol by the server ends the transmission for good: every later
/// call returns the same error.
#[derive(Debug)]
pub struct Transmission {
    info: ExportInfo,
    mode: HeaderStyle,
    contexts: Vec<Context>,
    blocks: BlockSizes,
    config: Config,
    /// The deviations that were overlooked.
    tolerated: Tolerance,
    slots: Slots,
    state: State,
    gather: Gather,
    dead: Option<Error>,
    ending: Option<Closing>,
}

/// The reason for which no more commands can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    /// The server answered with `NBD_ESHUTDOWN`.
    Asked,
    /// `NBD_CMD_DISC` was sent.
    Disconnecting,
}

/// Where the next bytes of the server belong.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Fill<'a> {
    /// Bytes of the protocol: at most this many, here. Never empty.
    Control(&'a mut [u8]),
    /// Payload of a read: into this part of the caller's own buffer for it. Never empty.
    Payload(Payload),
    /// Bytes that no request wants, this many. Never 0.
    Discard(usize),
}

/// A part of the buffer of a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// The read.
    pub cookie: Cookie,
    /// The part of its buffer, in bytes from the buffer's start.
    pub range: Range<usize>,
}

/// The outcome of bytes that were fed.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Fed {
    /// Number of bytes that were used.
    pub used: usize,
    /// The last of the used bytes are payload, and are to be copied to this place. There are as many
    /// as its range is long.
    pub payload: Option<Payload>,
    /// The event that they have completed.
    pub event: Option<Event>,
}

/// Something that a driver has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Event {
    /// A part of a read's buffer reads as zeroes, and no bytes were sent for it. The buffer is to
    /// be zeroed there, or the hole to be remembered.
    Hole {
        /// The part.
        payload: Payload,
        /// Whether this also completes the read, successfully.
        done: bool,
    },
    /// The reply is complete and the cookie is free.
    Complete {
        /// The request.
        cookie: Cookie,
        /// Its outcome.
        outcome: Outcome,
    },
}

/// The outcome of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Success. All bytes of a read are in place.
    Done,
    /// Success of a block status: at least one extent of every context that was asked for.
    Extents(Vec<ContextExtents>),
    /// The server failed the command. Nothing in the buffer of a read can be trusted.
    Failed(Failure),
}

impl Transmission {
    pub(super) fn new(
        info: ExportInfo,
        mode: HeaderStyle,
        contexts: Vec<Context>,
        config: Config,
        tolerated: Tolerance,
    ) -> Self {
        let tolerated = Tolerance {
            unasked_context: contexts.iter().any(|context| context.name.is_none()),
            ..tolerated
        };
        Self {
            blocks: info.block_sizes.unwrap_or(BlockSizes::UNKNOWN),
            tolerated,
            info,
            mode,
            contexts,
            config,
            // With none at all, no request could ever be sent.
            slots: Slots::new(config.limits.in_flight.max(1)),
            state: State::Header,
            gather: Gather::new(4),
            dead: None,
            ending: None,
        }
    }

    /// The export as the server described it.
    #[must_use]
    pub const fn export(&self) -> &ExportInfo {
        &self.info
    }

    /// The style of headers on this connection.
    #[must_use]
    pub const fn mode(&self) -> HeaderStyle {
        self.mode
    }

    /// The meta contexts that block status reports.
    #[must_use]
    pub fn contexts(&self) -> &[Context] {
        &self.contexts
    }

    /// The deviations of the server's that were overlooked so far, also in its description of the
    /// export.
    #[must_use]
    pub const fn tolerated(&self) -> Tolerance {
        self.tolerated
    }

    /// The block sizes that every command obeys.
    #[must_use]
    pub const fn block_sizes(&self) -> BlockSizes {
        self.blocks
    }

    /// Number of requests that have not been answered completely.
    #[inline]
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slots.in_flight()
    }

    /// Whether the limits allow one more request in flight.
    #[inline]
    #[must_use]
    pub fn has_room(&self) -> bool {
        !self.slots.is_full()
    }

    /// Whether the server said that it is shutting down, and the client is to
    /// [`disconnect`](Transmission::disconnect) when nothing is in flight.
    #[must_use]
    pub const fn server_shuts_down(&self) -> bool {
        matches!(self.ending, Some(Closing::Asked))
    }

    /// Whether the end of the stream here loses nothing: `NBD_CMD_DISC` was sent and every reply
    /// has come.
    #[must_use]
    pub fn may_end(&self) -> bool {
        self.dead.is_none()
            && self.ending == Some(Closing::Disconnecting)
            && self.slots.in_flight() == 0
            && self.at_boundary()
    }

    /// The server's violation of the protocol, if there was one.
    #[must_use]
    pub const fn error(&self) -> Option<Error> {
        self.dead
    }

    /// Gives up the result of a request. Its payload is thrown away from now on; its completion
    /// is still reported, because only then is the cookie free.
    pub fn abandon(&mut self, cookie: Cookie) {
        if self.slots.find(cookie.as_u64()).is_some() {
            self.slots.get(cookie).abandoned = true;
        }
    }
}
