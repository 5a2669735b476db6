//! The reply that nearly all are: success, in one piece.

use super::{Cookie, Transmission};
use crate::{
    Command, HeaderStyle,
    wire::{Fields, ReplyFlags, ReplyHeader, ReplyType},
};

/// The reply to a request that has succeeded, in one piece that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WholeReply {
    /// The request. Its cookie is free.
    pub cookie: Cookie,
    /// The number of bytes before the payload.
    pub header: usize,
    /// The number of bytes of payload: all of a read's, else none.
    pub payload: usize,
}

impl Transmission {
    /// Takes in the next reply if it is a whole one, without the state for a reply in several
    /// pieces: the outcome is [`Outcome::Done`](super::Outcome::Done). `have_come` is the number of
    /// bytes that have come, the first of which are `bytes`; the others may be somewhere else, if
    /// the header is in `bytes`. `only` is for a driver that has prepared for the reply to one
    /// request.
    ///
    /// `None` if no such reply comes next. Then nothing was taken in, and
    /// [`feed`](Transmission::feed) takes the bytes. Where this takes a reply, `feed` would return
    /// the same event.
    // Inlined, because a driver has one or two places for it, and needs no result in memory there.
    #[inline(always)]
    pub fn whole_reply(
        &mut self,
        bytes: &[u8],
        have_come: usize,
        only: Option<Cookie>,
    ) -> Option<WholeReply> {
        if self.dead.is_some() || !self.at_boundary() {
            return None;
        }
        let mut behind = Fields(bytes);
        let header = ReplyHeader::take(self.mode, &mut behind)?;
        let cookie = match header {
            ReplyHeader::Simple { error: 0, cookie } => cookie,
            ReplyHeader::Chunk(chunk) if chunk.flags.contains(ReplyFlags::DONE) => chunk.cookie,
            ReplyHeader::Simple { .. } | ReplyHeader::Chunk(_) => return None,
        };
        let (cookie, slot) = self.slots.find_mut(cookie)?;
        if only.is_some_and(|only| only != cookie) || !slot.is_untouched() {
            return None;
        }
        let payload = match (slot.command, header) {
            (Command::BlockStatus, _) => return None,
            (Command::Read, ReplyHeader::Simple { .. }) => {
                (self.mode == HeaderStyle::Simple).then_some(slot.len)?
            }
            (Command::Read, ReplyHeader::Chunk(chunk)) => {
                let is_all = chunk.reply == ReplyType::OffsetData
                    && chunk.len == slot.len + 8
                    && behind.u64()? == slot.offset
                    && slot.len <= u64::from(self.blocks.maximum());
                is_all.then_some(slot.len)?
            }
            (_, ReplyHeader::Simple { .. }) => 0,
            (_, ReplyHeader::Chunk(chunk)) => {
                (chunk.reply == ReplyType::None && chunk.len == 0).then_some(0)?
            }
        };
        // With extended headers, the offset of the request is in that of the chunk, too.
        if let ReplyHeader::Chunk(chunk) = header
            && self.mode == HeaderStyle::Extended
            && chunk.offset != slot.offset
        {
            return None;
        }
        let header = bytes.len() - behind.0.len();
        let payload = usize::try_from(payload).ok()?;
        if have_come.saturating_sub(header) < payload {
            return None;
        }
        slot.free_untouched();
        self.slots.put_back(cookie);
        Some(WholeReply {
            cookie,
            header,
            payload,
        })
    }
}
