//! The content of replies and its events: data, holes, extents and errors.

use super::{
    super::Context,
    Closing, ContextExtents, Cookie, Event, Outcome, Payload, Transmission,
    coverage::Refused,
    receive::{Run, State, buffer_index},
};
use crate::{
    Command, CommandFlags, Errno, Error, Failure, MAX_STRING, Text,
    meta::Extent,
    wire::{ChunkHeader, Descriptor, ErrorChunk, Fields, ReplyFlags, ReplyType},
};
use alloc::vec::Vec;

/// The longest piece of a list of extents that is gathered before it is decoded, in bytes.
const EXTENTS_AT_ONCE: u64 = 64 << 10;

impl Transmission {
    /// The fixed fields of a chunk are gathered.
    pub(super) fn fixed(
        &mut self,
        cookie: Cookie,
        chunk: ChunkHeader,
    ) -> Result<Option<Event>, Error> {
        let done = chunk.flags.contains(ReplyFlags::DONE);
        let short = Error::ChunkLength {
            reply: chunk.reply,
            len: chunk.len,
        };
        let mut fields = Fields(self.gather.bytes());
        match chunk.reply {
            ReplyType::OffsetData => {
                let offset = fields.u64().ok_or(short)?;
                self.data(cookie, chunk, offset)
            }
            ReplyType::OffsetHole => {
                let offset = fields.u64().ok_or(short)?;
                let len = fields.u32().ok_or(short)?;
                if len == 0 {
                    return Err(Error::EmptyHole { offset });
                }
                let (start, end) = self.content(cookie, chunk.reply, offset, len.into())?;
                let slot = self.slots.get(cookie);
                let quiet = slot.abandoned || slot.failure.is_some();
                let event = self.end_of_chunk(cookie, done)?;
                if quiet {
                    return Ok(event);
                }
                let payload = Payload {
                    cookie,
                    range: start..end,
                };
                Ok(Some(Event::Hole {
                    payload,
                    done: event.is_some(),
                }))
            }
            ReplyType::BlockStatus | ReplyType::BlockStatusExt => {
                let id = fields.u32().ok_or(short)?;
                let mut list = chunk.len - 4;
                if chunk.reply == ReplyType::BlockStatusExt {
                    let announced = fields.u32().ok_or(short)?;
                    list -= 4;
                    if u64::from(announced) * 16 != list {
                        return Err(Error::ExtentCount {
                            announced,
                            got: list / 16,
                        });
                    }
                }
                self.context(cookie, id)?;
                let now = list.min(EXTENTS_AT_ONCE);
                self.gather.restart(buffer_index(now));
                self.state = State::Extents {
                    cookie,
                    covered: 0,
                    left: list - now,
                    done,
                };
                Ok(None)
            }
            reply => self.error_chunk(cookie, reply, done),
        }
    }

    /// The payload of a data chunk is about to come.
    #[inline(always)]
    pub(super) fn data(
        &mut self,
        cookie: Cookie,
        chunk: ChunkHeader,
        offset: u64,
    ) -> Result<Option<Event>, Error> {
        let (next, end) = self.content(cookie, chunk.reply, offset, chunk.len - 8)?;
        self.state = State::Payload(Run {
            cookie,
            next,
            end,
            done: chunk.flags.contains(ReplyFlags::DONE),
        });
        Ok(None)
    }

    /// Takes note of content of a read, and says where in the read's buffer it belongs.
    #[inline(always)]
    fn content(
        &mut self,
        cookie: Cookie,
        reply: ReplyType,
        offset: u64,
        len: u64,
    ) -> Result<(usize, usize), Error> {
        let limit = self.config.limits.read_ranges;
        let slot = self.slots.get(cookie);
        let outside = Error::OutsideRequest { offset, len };
        let start = offset.checked_sub(slot.offset).ok_or(outside)?;
        let end = start
            .checked_add(len)
            .filter(|end| *end <= slot.len)
            .ok_or(outside)?;
        slot.coverage
            .insert(start, end, limit)
            .map_err(|refused| match refused {
                Refused::Overlap => Error::Overlap { offset, len },
                Refused::TooMany => Error::TooManyRanges { limit },
            })?;
        slot.contents += 1;
        // Data may break off where an error follows. A hole may not: beside anything else it would
        // have had to be sent as data.
        let partial_hole = reply == ReplyType::OffsetHole && len != slot.len;
        if slot.flags.contains(CommandFlags::DF) && (slot.contents > 1 || partial_hole) {
            return Err(Error::Fragmented);
        }
        Ok((buffer_index(start), buffer_index(end)))
    }

    /// Takes note of a context whose extents are about to come.
    fn context(&mut self, cookie: Cookie, id: u32) -> Result<(), Error> {
        let slot = self.slots.get(cookie);
        let wanted = match &slot.filter {
            Some(ids) => ids.contains(&id),
            None => self.contexts.iter().any(|context| context.id == id),
        };
        if !wanted {
            return Err(Error::UnknownContext { id });
        }
        if slot.statuses.iter().any(|context| context.id == id) {
            return Err(Error::ContextTwice { id });
        }
        slot.statuses.push(ContextExtents {
            id,
            extents: Vec::new(),
        });
        Ok(())
    }

    /// A piece of a list of extents is gathered.
    pub(super) fn extents(
        &mut self,
        cookie: Cookie,
        mut covered: u64,
        left: u64,
        done: bool,
    ) -> Result<Option<Event>, Error> {
        let strict = !self.config.tolerance.surplus_extents;
        let (mode, size) = (self.mode, self.info.size);
        let contexts = &self.contexts;
        let slot = self.slots.get(cookie);
        let one = slot.flags.contains(CommandFlags::REQ_ONE);
        let (offset, requested) = (slot.offset, slot.len);
        if let Some(context) = slot.statuses.last_mut() {
            let named = |own: &Context| own.id == context.id && own.name.is_some();
            let kept = contexts.iter().any(named);
            for bytes in self.gather.bytes().chunks_exact(Descriptor::wire_len(mode)) {
                let Some(Descriptor { len, status }) = Descriptor::decode(mode, bytes) else {
                    continue;
                };
                if len == 0 {
                    return Err(Error::EmptyExtent);
                }
                let surplus = covered >= requested || one && covered > 0;
                let too_long = one && len > requested;
                if surplus || too_long {
                    if strict {
                        return Err(Error::SurplusExtents);
                    }
                    self.tolerated.surplus_extents = true;
                }
                if surplus {
                    continue;
                }
                // INVARIANT: covered < requested, so offset + covered is inside the export.
                let most = if one { requested } else { size - offset };
                let len = len.min(most - covered);
                if kept {
                    context.extents.push(Extent { len, status });
                }
                covered += len;
            }
        }
        if left > 0 {
            let now = left.min(EXTENTS_AT_ONCE);
            self.gather.restart(buffer_index(now));
            self.state = State::Extents {
                cookie,
                covered,
                left: left - now,
                done,
            };
            return Ok(None);
        }
        self.end_of_chunk(cookie, done)
    }

    /// A whole error chunk is gathered.
    fn error_chunk(
        &mut self,
        cookie: Cookie,
        reply: ReplyType,
        done: bool,
    ) -> Result<Option<Event>, Error> {
        let tolerance = self.config.tolerance;
        let payload = self.gather.bytes();
        let bad = Error::ChunkLength {
            reply,
            len: payload.len() as u64,
        };
        let chunk = match ErrorChunk::decode(reply, payload) {
            Some(chunk) if chunk.message.len() <= MAX_STRING => chunk,
            _ if tolerance.malformed_error_text => {
                let error = Fields(payload).u32().ok_or(bad)?;
                self.tolerated.malformed_error_text = true;
                ErrorChunk {
                    error,
                    message: &[],
                    offset: None,
                }
            }
            _ => return Err(bad),
        };
        if chunk.error == 0 {
            if !tolerance.error_zero {
                return Err(Error::ErrorZero);
            }
            self.tolerated.error_zero = true;
        }
        let errno = if chunk.error == 0 {
            Errno::Inval
        } else {
            Errno::from(chunk.error)
        };
        let mut failure = Failure {
            errno,
            message: Text::from_lossy(chunk.message),
            offset: chunk.offset,
        };
        let limit = self.config.limits.error_chunks;
        let slot = self.slots.get(cookie);
        // A command without a range has no place where an error could be.
        failure.offset = failure.offset.filter(|_| slot.command != Command::Flush);
        if let Some(at) = failure.offset {
            let inside = at.checked_sub(slot.offset).filter(|at| *at < slot.len);
            match inside {
                Some(at) => slot.coverage.error_at(at),
                None if tolerance.error_offset_outside => {
                    self.tolerated.error_offset_outside = true;
                    failure.offset = None;
                }
                None => return Err(Error::OutsideRequest { offset: at, len: 0 }),
            }
        }
        slot.error_chunks += 1;
        if slot.error_chunks > limit {
            return Err(Error::TooManyErrors { limit });
        }
        self.fail(cookie, failure);
        self.end_of_chunk(cookie, done)
    }

    /// Remembers the first failure of a request.
    pub(super) fn fail(&mut self, cookie: Cookie, failure: Failure) {
        if failure.errno == Errno::Shutdown && self.ending.is_none() {
            self.ending = Some(Closing::Asked);
        }
        self.slots.get(cookie).failure.get_or_insert(failure);
    }

    /// A chunk or a simple reply has been read to its end.
    #[inline(always)]
    pub(super) fn end_of_chunk(
        &mut self,
        cookie: Cookie,
        done: bool,
    ) -> Result<Option<Event>, Error> {
        self.gather.restart(4);
        self.state = State::Header;
        if !done {
            return Ok(None);
        }
        let outcome = if self.slots.get(cookie).is_read() {
            Outcome::Done
        } else {
            self.outcome(cookie)?
        };
        self.slots.release(cookie);
        Ok(Some(Event::Complete { cookie, outcome }))
    }

    /// The outcome of a request whose reply is complete.
    fn outcome(&mut self, cookie: Cookie) -> Result<Outcome, Error> {
        let slot = self.slots.get(cookie);
        if let Some(failure) = slot.failure.take() {
            return Ok(Outcome::Failed(failure));
        }
        match slot.command {
            Command::Read => match slot.coverage.missing(slot.len) {
                0 => Ok(Outcome::Done),
                missing => Err(Error::ShortRead {
                    len: slot.len,
                    missing,
                }),
            },
            Command::BlockStatus => {
                let mut statuses = core::mem::take(&mut slot.statuses);
                let missing = self
                    .contexts
                    .iter()
                    .filter(|context| {
                        slot.filter
                            .as_ref()
                            .is_none_or(|filter| filter.contains(&context.id))
                    })
                    .find(|context| !statuses.iter().any(|status| status.id == context.id));
                if let Some(Context { id, .. }) = missing {
                    if !self.config.tolerance.missing_context {
                        return Err(Error::MissingContext { id: *id });
                    }
                    self.tolerated.missing_context = true;
                    let message = alloc::format!("no extents came of meta context {id}");
                    return Ok(Outcome::Failed(Failure {
                        errno: Errno::Inval,
                        message: message.into(),
                        offset: None,
                    }));
                }
                statuses.retain(|status| {
                    self.contexts
                        .iter()
                        .any(|context| context.id == status.id && context.name.is_some())
                });
                Ok(Outcome::Extents(statuses))
            }
            _ => Ok(Outcome::Done),
        }
    }
}
