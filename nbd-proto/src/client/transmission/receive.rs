//! Replies: every byte of the server's is checked before it is believed.

use super::{
    super::Context, ContextExtents, Cookie, Ending, Event, Fed, Fill, Outcome, Payload,
    Transmission, coverage::Refused, slots::Slot,
};
use crate::{
    BlockSizes, Command, CommandFlags, Errno, Error, Failure, MAX_STRING, Mode, Text,
    meta::Extent,
    wire::{ChunkHeader, Descriptor, ErrorChunk, Fields, ReplyFlags, ReplyHeader, ReplyType},
};
use alloc::vec::Vec;

/// The longest piece of a list of extents that is gathered before it is decoded, in bytes.
const EXTENTS_AT_ONCE: u64 = 64 << 10;

/// What the next bytes are.
#[derive(Debug)]
pub(super) enum State {
    /// The header of a reply, gathered.
    Header,
    /// The fixed fields of a chunk, gathered; a whole error chunk is one of them.
    Fixed { cookie: Cookie, chunk: ChunkHeader },
    /// Payload of a read: from `next` to `end` in its buffer.
    Payload {
        cookie: Cookie,
        next: usize,
        end: usize,
        done: bool,
    },
    /// Extents, gathered piece by piece; `left` bytes are behind the piece.
    /// The extents before it reach `covered` bytes into the request.
    Extents {
        cookie: Cookie,
        covered: u64,
        left: u64,
        done: bool,
    },
}

impl Transmission {
    /// Where the server's next bytes belong.
    ///
    /// # Errors
    ///
    /// When the server broke the protocol before.
    pub fn fill(&mut self) -> Result<Fill<'_>, Error> {
        if let Some(error) = self.dead {
            return Err(error);
        }
        Ok(match self.state {
            State::Payload {
                cookie, next, end, ..
            } => {
                if self.slots.get(cookie).abandoned {
                    Fill::Discard(end - next)
                } else {
                    Fill::Payload(Payload {
                        cookie,
                        range: next..end,
                    })
                }
            }
            State::Header | State::Fixed { .. } | State::Extents { .. } => {
                Fill::Control(self.gather.space())
            }
        })
    }

    /// Takes note that the first `n` bytes of what [`fill`](Transmission::fill) named have come.
    ///
    /// # Errors
    ///
    /// When the server broke the protocol, now or before.
    ///
    /// # Panics
    ///
    /// When `n` is larger than what was named.
    pub fn filled(&mut self, n: usize) -> Result<Option<Event>, Error> {
        if let Some(error) = self.dead {
            return Err(error);
        }
        self.advance(n)
            .inspect_err(|error| self.dead = Some(*error))
    }

    /// Takes bytes that are already there. Stops at the first event, so it is to be called again
    /// with what was not used.
    ///
    /// # Errors
    ///
    /// When the server broke the protocol, now or before.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Fed, Error> {
        if let Some(error) = self.dead {
            return Err(error);
        }
        self.take(bytes)
            .inspect_err(|error| self.dead = Some(*error))
    }

    /// Whether the next byte starts a reply.
    pub(super) fn at_boundary(&self) -> bool {
        matches!(self.state, State::Header) && self.gather.bytes().is_empty()
    }

    fn take(&mut self, bytes: &[u8]) -> Result<Fed, Error> {
        let mut used = 0;
        while used < bytes.len() {
            let rest = &bytes[used..];
            if let State::Payload {
                cookie, next, end, ..
            } = self.state
            {
                if used > 0 {
                    break; // so that all used bytes of one call are payload, or none
                }
                let n = rest.len().min(end - next);
                let wanted = !self.slots.get(cookie).abandoned;
                let payload = wanted.then(|| Payload {
                    cookie,
                    range: next..next + n,
                });
                let event = self.advance(n)?;
                return Ok(Fed {
                    used: n,
                    payload,
                    event,
                });
            }
            let event = if self.at_boundary()
                && let Some((header, len)) = self.whole_header(rest)?
            {
                used += len;
                self.header(header)?
            } else {
                let space = self.gather.space();
                let n = space.len().min(rest.len());
                space[..n].copy_from_slice(&rest[..n]);
                used += n;
                self.advance(n)?
            };
            if event.is_some() {
                return Ok(Fed {
                    used,
                    payload: None,
                    event,
                });
            }
        }
        Ok(Fed {
            used,
            payload: None,
            event: None,
        })
    }

    /// The header at the front of `bytes` and its length, if all of it is there.
    fn whole_header(&self, bytes: &[u8]) -> Result<Option<(ReplyHeader, usize)>, Error> {
        let Some(magic) = Fields(bytes).u32() else {
            return Ok(None);
        };
        let len = ReplyHeader::len(self.mode, magic).ok_or(Error::ReplyMagic { got: magic })?;
        Ok(bytes
            .get(..len)
            .and_then(|bytes| ReplyHeader::decode(self.mode, bytes))
            .map(|header| (header, len)))
    }

    fn advance(&mut self, n: usize) -> Result<Option<Event>, Error> {
        if let State::Payload {
            cookie,
            next,
            end,
            done,
        } = self.state
        {
            assert!(n <= end - next, "more bytes were filled than were named");
            if next + n < end {
                self.state = State::Payload {
                    cookie,
                    next: next + n,
                    end,
                    done,
                };
                return Ok(None);
            }
            return self.end_of_chunk(cookie, done);
        }
        if !self.gather.filled(n) {
            return Ok(None);
        }
        match self.state {
            State::Header => {
                let gathered = self.gather.bytes().len();
                match self.whole_header(self.gather.bytes())? {
                    Some((header, _)) => self.header(header),
                    None => {
                        let got = Fields(self.gather.bytes()).u32().unwrap_or_default();
                        let len =
                            ReplyHeader::len(self.mode, got).ok_or(Error::ReplyMagic { got })?;
                        self.gather.extend(len - gathered);
                        Ok(None)
                    }
                }
            }
            State::Fixed { cookie, chunk } => self.fixed(cookie, chunk),
            State::Extents {
                cookie,
                covered,
                left,
                done,
            } => self.extents(cookie, covered, left, done),
            State::Payload { .. } => Ok(None),
        }
    }

    fn header(&mut self, header: ReplyHeader) -> Result<Option<Event>, Error> {
        match header {
            ReplyHeader::Simple { error, cookie } => self.simple(error, self.in_flight_as(cookie)?),
            ReplyHeader::Chunk(chunk) => self.chunk(chunk, self.in_flight_as(chunk.cookie)?),
        }
    }

    fn in_flight_as(&self, cookie: u64) -> Result<Cookie, Error> {
        self.slots
            .find(cookie)
            .ok_or(Error::UnknownCookie { cookie })
    }

    fn simple(&mut self, error: u32, cookie: Cookie) -> Result<Option<Event>, Error> {
        let chunks = self.mode.has_chunks();
        let slot = self.slots.get(cookie);
        let command = slot.command;
        match (command, error) {
            (Command::Read | Command::BlockStatus, 0) if chunks => {
                Err(Error::SimpleSuccess { command })
            }
            (Command::Read, 0) => {
                let end = buffer_index(slot.len);
                self.state = State::Payload {
                    cookie,
                    next: 0,
                    end,
                    done: true,
                };
                slot.coverage.clear();
                // One simple reply answers all of the read.
                let _ = slot.coverage.insert(0, slot.len, u32::MAX);
                Ok(None)
            }
            (_, 0) => self.end_of_chunk(cookie, true),
            (Command::Read, _) if chunks && !self.config.tolerance.simple_error_to_read => {
                Err(Error::SimpleError)
            }
            (_, error) => {
                self.fail(cookie, Failure::new(Errno::from(error)));
                self.end_of_chunk(cookie, true)
            }
        }
    }

    fn chunk(&mut self, chunk: ChunkHeader, cookie: Cookie) -> Result<Option<Event>, Error> {
        let ChunkHeader { reply, len, .. } = chunk;
        let Slot {
            command,
            offset,
            len: requested,
            ..
        } = *self.slots.get(cookie);
        if self.mode == Mode::Extended && chunk.offset != offset {
            return Err(Error::WrongOffset {
                expected: offset,
                got: chunk.offset,
            });
        }
        let unexpected = Error::UnexpectedChunk { command, reply };
        let bad_length = Error::ChunkLength { reply, len };
        let status = match self.mode {
            Mode::Simple | Mode::Structured => (ReplyType::BlockStatus, 4, 8),
            Mode::Extended => (ReplyType::BlockStatusExt, 8, 16),
        };
        let fixed = match reply {
            ReplyType::None => {
                if len != 0 {
                    return Err(bad_length);
                }
                if !chunk.flags.contains(ReplyFlags::DONE) {
                    return Err(Error::NoneNotDone);
                }
                return self.end_of_chunk(cookie, true);
            }
            ReplyType::OffsetData | ReplyType::OffsetHole if command != Command::Read => {
                return Err(unexpected);
            }
            ReplyType::OffsetData => {
                let data = len
                    .checked_sub(8)
                    .filter(|data| *data > 0)
                    .ok_or(bad_length)?;
                if data > requested {
                    return Err(Error::ChunkTooLong {
                        reply,
                        len,
                        limit: requested + 8,
                    });
                }
                self.check_advertised(reply, 8, data)?;
                8
            }
            ReplyType::OffsetHole if len == 12 => 12,
            ReplyType::OffsetHole => return Err(bad_length),
            ReplyType::BlockStatus | ReplyType::BlockStatusExt => {
                let (legal, fixed, each) = status;
                if command != Command::BlockStatus || reply != legal {
                    return Err(unexpected);
                }
                let list = len
                    .checked_sub(fixed)
                    .filter(|list| *list > 0 && list % each == 0);
                let list = list.ok_or(bad_length)?;
                let extents = list / each;
                let most = u64::from(self.config.limits.extents);
                if extents > most {
                    let limit = fixed + each * most;
                    return Err(Error::ChunkTooLong { reply, len, limit });
                }
                self.check_advertised(reply, fixed, list)?;
                fixed
            }
            error if error.is_error() => {
                let least = if error == ReplyType::ErrorOffset {
                    14
                } else {
                    6
                };
                let limit = u64::from(self.config.limits.unknown_error).max(14 + 4096);
                if len < least {
                    return Err(bad_length);
                }
                if len > limit {
                    return Err(Error::ChunkTooLong { reply, len, limit });
                }
                len
            }
            _ => return Err(unexpected),
        };
        self.gather.restart(buffer_index(fixed));
        self.state = State::Fixed { cookie, chunk };
        Ok(None)
    }

    /// Holds a server to the maximum payload that it told, if it did.
    fn check_advertised(&self, reply: ReplyType, fixed: u64, variable: u64) -> Result<(), Error> {
        let told = self.info.block_sizes.map(BlockSizes::maximum);
        let limit = fixed + u64::from(told.unwrap_or(u32::MAX));
        let len = fixed + variable;
        if len > limit && !self.config.tolerance.oversized_chunk {
            return Err(Error::ChunkTooLong { reply, len, limit });
        }
        Ok(())
    }

    /// The fixed fields of a chunk are gathered.
    fn fixed(&mut self, cookie: Cookie, chunk: ChunkHeader) -> Result<Option<Event>, Error> {
        let done = chunk.flags.contains(ReplyFlags::DONE);
        let short = Error::ChunkLength {
            reply: chunk.reply,
            len: chunk.len,
        };
        let mut fields = Fields(self.gather.bytes());
        match chunk.reply {
            ReplyType::OffsetData => {
                let offset = fields.u64().ok_or(short)?;
                let (next, end) = self.content(cookie, chunk.reply, offset, chunk.len - 8)?;
                self.state = State::Payload {
                    cookie,
                    next,
                    end,
                    done,
                };
                Ok(None)
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

    /// Takes note of content of a read, and says where in the read's buffer it belongs.
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
    fn extents(
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
                if strict && (surplus || too_long) {
                    return Err(Error::SurplusExtents);
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
                ErrorChunk {
                    error,
                    message: &[],
                    offset: None,
                }
            }
            _ => return Err(bad),
        };
        if chunk.error == 0 && !tolerance.error_zero {
            return Err(Error::ErrorZero);
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
                None if tolerance.error_offset_outside => failure.offset = None,
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
    fn fail(&mut self, cookie: Cookie, failure: Failure) {
        if failure.errno == Errno::Shutdown && self.ending.is_none() {
            self.ending = Some(Ending::Asked);
        }
        self.slots.get(cookie).failure.get_or_insert(failure);
    }

    /// A chunk or a simple reply has been read to its end.
    fn end_of_chunk(&mut self, cookie: Cookie, done: bool) -> Result<Option<Event>, Error> {
        self.gather.restart(4);
        self.state = State::Header;
        if !done {
            return Ok(None);
        }
        let outcome = self.outcome(cookie)?;
        self.slots.release(cookie);
        Ok(Some(Event::Complete { cookie, outcome }))
    }

    /// What came of a request whose reply is complete.
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

/// A length that is limited by [`Limits`](crate::Limits) or by a read that a buffer exists for.
fn buffer_index(len: u64) -> usize {
    usize::try_from(len).expect("lengths of buffers fit into memory")
}
