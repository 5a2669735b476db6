//! Answering a block status request: one chunk of extents for each meta context.

use super::{
    agreed::{Agreed, Context},
    ticket::{Base, Part, Reply, text},
};
use crate::{
    CommandFlags, Errno, HeaderStyle,
    frame::Frame,
    meta::{Allocation, Extent},
    wire::{Descriptor, ReplyType},
};
use alloc::{borrow::Cow, boxed::Box, sync::Arc};
use bytes::{Bytes, BytesMut};

/// Extents in one chunk.
const MAX_EXTENTS: usize = 1 << 20;

/// The longest extent with 32 bits that is a multiple of every legal minimum block size.
const MAX_COMPACT: u64 = 0xffff_0000;

/// Answers a block status request, one meta context after the other.
///
/// Spec: [Structured reply types](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#structured-reply-types).
///
/// It can be sent to another thread; the connection is not needed. Every step answers for one
/// [`context`](Self::context), and the last one ends the reply:
///
/// ```
/// use bytes::Bytes;
/// use nbd_proto::{Frame, meta::Extent, server::{Context, Part, Reply, StatusTicket}};
///
/// fn answer(
///     mut ticket: StatusTicket,
///     extents: impl Fn(&Context) -> Vec<Extent>,
///     mut send: impl FnMut(Frame<Bytes>),
/// ) -> Reply<Bytes> {
///     loop {
///         let extents = extents(ticket.context());
///         match ticket.extents(extents) {
///             Part::More { frame, rest } => {
///                 send(frame);
///                 ticket = rest;
///             }
///             Part::Last(reply) => return reply,
///         }
///     }
/// }
/// ```
#[derive(Debug)]
#[must_use = "the client waits for an answer"]
pub struct StatusTicket(Box<Status>);

/// Boxed, so that other requests are not as long as this one.
#[derive(Debug)]
struct Status {
    base: Base,
    /// Bytes from the start of the request to the end of the export.
    to_end: u64,
    minimum: u32,
    max_payload: u32,
    /// INVARIANT: `next` is the index of one of them.
    contexts: Arc<[Context]>,
    next: usize,
}

impl StatusTicket {
    pub(super) fn new(base: Base, agreed: &Agreed) -> Self {
        Self(Box::new(Status {
            base,
            to_end: agreed.size.saturating_sub(base.offset),
            minimum: agreed.minimum,
            max_payload: agreed.max_payload,
            contexts: Arc::clone(&agreed.contexts),
            next: 0,
        }))
    }

    /// The meta context that is to be answered for next.
    #[must_use]
    pub fn context(&self) -> &Context {
        self.0.context()
    }

    /// All meta contexts that are still to be answered for.
    pub fn contexts(&self) -> impl ExactSizeIterator<Item = &Context> {
        self.0.contexts[self.0.next..].iter()
    }

    /// Answers for one [`context`](Self::context) with the extents from the start of the request
    /// on.
    ///
    /// No more extents are taken than are needed, and any part that the client must not see is put
    /// right: equal neighbours become one, empty extents are skipped, and extents are cut off at
    /// the end of the export (or of the request, where the client wants one extent only). They need
    /// not reach the end of the request. Where block sizes were agreed on, extents should end at
    /// multiples of the minimum block size: the list is cut off before a block of which this is not
    /// true, and if it is the first, that block alone is said to have status 0. Without any extent
    /// the status is 0, which is always safe.
    pub fn extents(mut self, extents: impl IntoIterator<Item = Extent>) -> Part<Bytes, Self> {
        let status = &mut *self.0;
        let chunk = status.chunk(extents);
        let last = status.next + 1 == status.contexts.len();
        let mut fields = [0; 8];
        fields[..4].copy_from_slice(&status.context().id().to_be_bytes());
        fields[4..].copy_from_slice(&chunk.count.to_be_bytes());
        let payload = chunk.out.freeze();
        let (reply, fields) = match status.base.mode {
            HeaderStyle::Simple | HeaderStyle::Structured => (ReplyType::BlockStatus, &fields[..4]),
            HeaderStyle::Extended => (ReplyType::BlockStatusExt, &fields[..]),
        };
        let header = status.base.chunk(reply, last, payload.len(), fields);
        if last {
            return Part::Last(Reply::new(header, payload));
        }
        status.next += 1;
        Part::More {
            frame: Frame::new(header, payload),
            rest: self,
        }
    }

    /// The request failed, even if contexts were answered before; see
    /// [`Ticket::fail`](super::Ticket::fail).
    pub fn fail(self, errno: Errno, message: impl Into<Cow<'static, str>>) -> Reply<Bytes> {
        self.0.base.error(errno, text(message.into()), None)
    }
}

impl Status {
    fn context(&self) -> &Context {
        &self.contexts[self.next]
    }

    fn chunk(&self, extents: impl IntoIterator<Item = Extent>) -> Chunk {
        let base = &self.base;
        let one = base.flags.contains(CommandFlags::REQ_ONE);
        let wire_len = Descriptor::wire_len(base.mode);
        let room = usize::try_from(self.max_payload).unwrap_or(usize::MAX) / wire_len;
        let mut chunk = Chunk {
            mode: base.mode,
            out: BytesMut::new(),
            count: 0,
            done: 0,
            // The last extent may go past the request, but not past the export.
            end: if one { base.len } else { self.to_end },
            minimum: self.minimum.into(),
        };
        let most = if one { 1 } else { room.clamp(1, MAX_EXTENTS) };
        let allocation = self.context().name().as_str() == "base:allocation";
        let mut pending: Option<Extent> = None;
        for Extent { len, status } in extents {
            let status = match base.mode {
                _ if allocation => Allocation::new(status).status(),
                HeaderStyle::Simple | HeaderStyle::Structured => status & u64::from(u32::MAX),
                HeaderStyle::Extended => status,
            };
            match &mut pending {
                _ if len == 0 => continue,
                Some(last) if last.status == status => last.len = last.len.saturating_add(len),
                Some(last) => {
                    let full = chunk.len() + 1 == most;
                    if !chunk.put(*last) || full {
                        return chunk;
                    }
                    *last = Extent { len, status };
                }
                None => pending = Some(Extent { len, status }),
            }
            let reached = chunk
                .done
                .saturating_add(pending.map_or(0, |last| last.len));
            if reached >= base.len {
                break;
            }
        }
        let rest = Extent {
            len: base.len,
            status: 0,
        };
        chunk.put(pending.unwrap_or(rest));
        chunk
    }
}

/// The descriptors of one chunk.
struct Chunk {
    mode: HeaderStyle,
    out: BytesMut,
    count: u32,
    /// Bytes that they are about.
    done: u64,
    /// Where they have to end.
    end: u64,
    /// Each of them is a multiple of this, and so is `end`.
    minimum: u64,
}

impl Chunk {
    fn len(&self) -> usize {
        self.out.len() / Descriptor::wire_len(self.mode)
    }

    /// Appends an extent. Returns whether it is there in full, so that others can follow.
    fn put(&mut self, extent: Extent) -> bool {
        let max = match self.mode {
            HeaderStyle::Simple | HeaderStyle::Structured => MAX_COMPACT,
            HeaderStyle::Extended => u64::MAX,
        };
        let Extent { len, status } = extent;
        let whole = len;
        let len = len.min(self.end - self.done).min(max);
        let (len, status) = match len - len % self.minimum {
            // The client will ask for it again, and hear no two neighbours of one status.
            0 if self.count > 0 => return false,
            0 => (self.minimum, 0),
            blocks => (blocks, status),
        };
        Descriptor { len, status }.encode(self.mode, &mut self.out);
        self.count += 1;
        self.done += len;
        len == whole
    }
}
